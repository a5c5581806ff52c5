"""Reads shards: the index, the loader, teacher caches and checks."""
