"""The order of clips as arithmetic: any position of any epoch, without a state and without a list of all clips."""

import hashlib
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 6
# Clips of so many shards are mixed with one another before the next shards are opened: a good shuffle of
# 16,000 clips that never has more than 16 files in use.
SHARDS_PER_WINDOW = 16


def permute(indices: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """A pseudo-random permutation of range(size), evaluated at `indices` alone.

    A Feistel network over the next power of four; values outside the range walk the cycle until they are inside
    (Black and Rogaway 2002). `key` chooses the permutation.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    round_keys = _round_keys(key)
    values = _feistel(indices.astype(np.uint64), half_bits, round_keys)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], half_bits, round_keys)
    return values.astype(np.int64)


@lru_cache(maxsize=256)
def _round_keys(key: int) -> tuple[np.uint64, ...]:
    digest = hashlib.sha256(f"feistel:{key}".encode()).digest() + hashlib.sha256(f"more:{key}".encode()).digest()
    return tuple(np.uint64(word) for word in np.frombuffer(digest, np.uint64)[:NUM_ROUNDS])


def _feistel(values: NDArray[np.uint64], half_bits: int, round_keys: tuple[np.uint64, ...]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right + round_key) & mask)
    return (left << shift) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele et al. 2014); overflow is meant."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Visited(NamedTuple):
    """Rows of the store (n,), and the number of each one's visit (n,): a stream never has a row and visit twice."""

    rows: NDArray[np.int64]
    visits: NDArray[np.int64]


class Order(Protocol):
    """An endless stream of clips of one store."""

    def __len__(self) -> int:
        """Clips in an epoch."""

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """The store's rows at positions [start, stop) of the stream."""

    def visited(self, start: int, stop: int) -> Visited:
        """The same, with the number of each visit."""

    def shards_around(self, position: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards in use at a position of the stream, and those that come next."""


class ClipOrder:
    """An endless stream of clips: epoch after epoch, in each every clip exactly once, in another order.

    Position p of the stream lies in epoch p // num_clips. The stream depends on (snapshot, seed) and on the clips
    chosen, and not on the number of ranks: batch s of rank r out of w holds positions
    [(s w + r) b, (s w + r + 1) b), so all batches are full and equal on every rank, and an epoch's end falls inside a
    batch where b w doesn't divide the number of clips.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        shards: NDArray[np.int64],
        *,
        snapshot: int,
        seed: int,
        window: int = SHARDS_PER_WINDOW,
    ) -> None:
        """`rows`: the clips chosen, ascending, as rows of the store; `shards`: the shard of each."""
        self._rows = rows
        self._name = f"{snapshot}:{seed}"
        self._window = window
        self._shards, self._counts = np.unique(shards, return_counts=True)
        self._first = np.concatenate([[0], np.cumsum(self._counts)[:-1]]).astype(np.int64)
        self._num_shards = len(self._shards)
        self._epoch_layout = lru_cache(maxsize=2)(self._layout)

    def __len__(self) -> int:
        """Clips in an epoch."""
        return len(self._rows)

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """The store's rows at positions [start, stop) of the stream."""
        return self.visited(start, stop).rows

    def visited(self, start: int, stop: int) -> "Visited":
        """The rows at positions [start, stop) of the stream, and which visit of its clip each is: the epoch."""
        positions = np.arange(start, stop, dtype=np.int64)
        epochs, within = np.divmod(positions, len(self))
        parts = [self.indices(int(epoch), within[epochs == epoch]) for epoch in np.unique(epochs)]
        return Visited(self._rows[np.concatenate(parts)] if parts else positions, epochs)

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> NDArray[np.int64]:
        """The rows of one rank's batch at one step."""
        first = (step * world_size + rank) * batch_size
        return self.rows(first, first + batch_size)

    def shards_around(self, position: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards in use at a position of the stream, and those that come next."""
        epoch, within = divmod(position, len(self))
        order, _, window_ends = self._epoch_layout(epoch)
        window = int(np.searchsorted(window_ends, within, side="right"))
        first = window * self._window
        now, coming = order[first : first + self._window], order[first + self._window : first + 2 * self._window]
        if not len(coming):
            coming = self._epoch_layout(epoch + 1)[0][: self._window]
        return self._shards[now], self._shards[coming]

    def _layout(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """This epoch's order of shards, the stream positions at which they end, and at which windows of them end."""
        order = permute(np.arange(self._num_shards), self._num_shards, self._key(epoch, "shards"))
        ends = np.cumsum(self._counts[order])
        return order, ends, np.append(ends[self._window - 1 : -1 : self._window], ends[-1])

    def indices(self, epoch: int, within: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the chosen clips, by index, are at the positions `within` an epoch."""
        order, shard_ends, window_ends = self._epoch_layout(epoch)
        windows = np.searchsorted(window_ends, within, side="right")
        mixed = np.empty_like(within)
        for window in np.unique(windows):
            start = int(window_ends[window - 1]) if window else 0
            inside = windows == window
            size = int(window_ends[window]) - start
            mixed[inside] = start + permute(within[inside] - start, size, self._key(epoch, f"window {window}"))
        slots = np.searchsorted(shard_ends, mixed, side="right")
        shards = order[slots]
        offset = mixed - (shard_ends[slots] - self._counts[shards])
        indices: NDArray[np.int64] = self._first[shards] + offset
        return indices

    def _key(self, epoch: int, purpose: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self._name}:{epoch}:{purpose}".encode()).digest()[:8], "big")


def draws(rows: NDArray[np.int64], seed: int, step: int, below: int) -> NDArray[np.int64]:
    """A number in [0, below) for each row, which depends on (seed, step, row) alone: not on ranks, nor on the batch.

    By SplitMix64's mixing (Steele, Lea and Flood 2014); `below` is small, so that the remainder has hardly any bias.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    state = np.full(len(rows), seed, np.uint64)
    for value in (np.uint64(step), rows.astype(np.uint64)):
        state = _mix(state + golden) ^ value
    return (_mix(state + golden) % np.uint64(below)).astype(np.int64)
