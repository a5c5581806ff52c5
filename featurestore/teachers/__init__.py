"""Teachers: pretrained models whose embeddings are cached beside the shards."""
