"""Turns audio files into shards of fbanks and HOG statistics."""
