"""Models for use elsewhere: waveform in, tags and embedding out, in files that need none of our code."""
