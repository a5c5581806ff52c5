"""Several streams as one, in given proportions: which clips of which stream are at any position, as arithmetic."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from featurestore.order import permute
from manifests.errors import InputError

# In each block of so many positions every stream has its share exactly.
BLOCK_SIZE = 1024


class StreamMix:
    """Positions of a mixed stream to positions of the streams in it.

    Each stream is gone through in its own order, without a gap; where in a block its positions are is drawn by the
    seed. One stream alone is itself.
    """

    def __init__(self, proportions: Sequence[float], seed: int) -> None:
        """`proportions`: of the streams, above 0, of any sum. Raises InputError for others, or one below 1 in 1024."""
        self._counts = _shares(proportions)
        self._seed = seed
        self._block = lru_cache(maxsize=4)(self._make_block)

    @property
    def shares(self) -> list[float]:
        """The part of the mixed stream that each stream is."""
        return [int(count) / BLOCK_SIZE for count in self._counts]

    def ranges(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The positions [from, to) of each stream that the mixed stream has at [start, stop)."""
        before, until = self._passed(start), self._passed(stop)
        return [(int(first), int(last)) for first, last in zip(before, until, strict=True)]

    def streams(self, start: int, stop: int) -> NDArray[np.int64]:
        """The stream at each of the positions [start, stop) of the mixed stream."""
        blocks = range(start // BLOCK_SIZE, -(-stop // BLOCK_SIZE))
        first = blocks.start * BLOCK_SIZE
        together = [self._block(block) for block in blocks]
        return np.concatenate([np.empty(0, np.int64), *together])[start - first : stop - first]

    def _passed(self, position: int) -> NDArray[np.int64]:
        """How many positions of each stream lie before a position of the mixed one."""
        block, offset = divmod(position, BLOCK_SIZE)
        return block * self._counts + np.bincount(self._block(block)[:offset], minlength=len(self._counts))

    def _make_block(self, block: int) -> NDArray[np.int64]:
        """The stream at each position of a block."""
        if len(self._counts) == 1:
            return np.zeros(BLOCK_SIZE, np.int64)
        key = int.from_bytes(hashlib.sha256(f"mix:{self._seed}:{block}".encode()).digest()[:8])
        places = permute(np.arange(BLOCK_SIZE), BLOCK_SIZE, key)
        return np.searchsorted(np.cumsum(self._counts), places, side="right").astype(np.int64)


def _shares(proportions: Sequence[float]) -> NDArray[np.int64]:
    """Whole numbers in the given proportions that add up to a block, by largest remainders."""
    wanted = np.array(proportions, np.float64)
    if not (np.isfinite(wanted) & (wanted > 0)).all():
        given = ", ".join(f"{value:g}" for value in proportions)
        raise InputError(f"proportions must be numbers above 0, one a store; got {given}")
    exact = wanted / wanted.sum() * BLOCK_SIZE
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")
    counts[largest[: BLOCK_SIZE - int(counts.sum())]] += 1
    if (counts == 0).any():
        given = ", ".join(f"{value:g}" for value in proportions)
        raise InputError(
            f"in the proportions {given} a store would be less than one clip of {BLOCK_SIZE}; give it a larger one"
        )
    return counts
