"""Random numbers of a clip: the same whenever a run comes to this visit of it, on any rank and after any resume."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def clip_uniforms(
    keys: Sequence[str], visits: NDArray[np.int64], seed: int, purpose: str, num: int
) -> NDArray[np.float64]:
    """Numbers (B, num) in [0, 1) that depend on nothing but seed, purpose, key and visit (the epoch of a plain stream).

    SplitMix64 (Steele, Lea and Flood 2014) from a hash of the four.
    """
    digests = [
        hashlib.blake2b(f"{seed}:{purpose}:{visit}:{key}".encode(), digest_size=8).digest()
        for key, visit in zip(keys, visits.tolist(), strict=True)
    ]
    state = np.frombuffer(b"".join(digests), np.uint64)[:, None] + GOLDEN * np.arange(1, num + 1, dtype=np.uint64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = state ^ (state >> np.uint64(31))
    uniforms: NDArray[np.float64] = (mixed >> np.uint64(11)) * 2.0**-53
    return uniforms
