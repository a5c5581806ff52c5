"""Trains the paper's Multi-SSL and distillation iterations on a feature store."""
