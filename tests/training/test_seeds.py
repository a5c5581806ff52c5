"""Randomness from names."""

import hashlib

import torch

from training.seeds import generator_for


def test_a_generator_for_every_name() -> None:
    names = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "iter1/multissl", 12)]
    seeds = [generator_for(*name).initial_seed() for name in names]
    assert seeds == [generator_for(*name).initial_seed() for name in names]
    assert len(set(seeds)) == len(names)


def test_the_seed_is_arithmetic() -> None:
    digest = hashlib.sha256(b"7:iter1/multissl:3").digest()
    generator = generator_for(7, "iter1/multissl", 3)
    assert generator.initial_seed() == int.from_bytes(digest[:8], "big") // 2
    torch.manual_seed(5)
    first = torch.rand(4, generator=generator)
    torch.manual_seed(6)
    assert (first == torch.rand(4, generator=generator_for(7, "iter1/multissl", 3))).all()
