"""Randomness from names: the same seed, stage and step always draw the same numbers, so a resumed run repeats them."""

import hashlib

import torch


def generator_for(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for (seed, names)."""
    digest = hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
