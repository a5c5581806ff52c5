"""Class-balanced sampling as arithmetic: which clips an epoch has, and how often, in proportion to their weights."""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from featurestore.order import ClipOrder, Visited

# A clip's visits of one epoch are numbered within so many: more than any epoch has.
VISITS_PER_EPOCH = 1 << 24


def class_weights(
    owners: NDArray[np.int64], labels: NDArray[np.int32], num_clips: int, num_classes: int
) -> NDArray[np.float64]:
    """Sampling weights (num_clips,) of mean 1, from pairs of a clip and one of its labels.

    A clip weighs the sum over its labels of 1 / the clips of that label (PSLA, Gong et al. 2021, section III-C); one
    without a label as much as a mean one.
    """
    if not len(owners):
        return np.ones(num_clips)
    of_class = 1.0 / np.maximum(np.bincount(labels, minlength=num_classes), 1)
    weights = np.bincount(owners, of_class[labels], minlength=num_clips)
    labelled = np.bincount(owners, minlength=num_clips) > 0
    weights[~labelled] = weights[labelled].mean()
    scaled: NDArray[np.float64] = weights / weights.mean()
    return scaled


class BalancedOrder:
    """A stream whose epochs have as many draws as there are clips, each clip as often as its weight says.

    A clip of weight w is drawn floor(w) or ceil(w) times an epoch, w times in the mean (systematic resampling, with
    another offset each epoch). Within an epoch the order is that of :class:`ClipOrder`, shard by shard.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        shards: NDArray[np.int64],
        weights: NDArray[np.float64],
        *,
        snapshot: int,
        seed: int,
    ) -> None:
        """`rows`: the clips chosen, ascending; `shards` and `weights`: of each, weights of mean 1."""
        self._rows, self._shards = rows, shards
        self._ends = np.cumsum(weights) * (len(rows) / weights.sum())
        self._snapshot, self._seed = snapshot, seed
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def __len__(self) -> int:
        """Draws in an epoch."""
        return len(self._rows)

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """The store's rows at positions [start, stop) of the stream."""
        return self.visited(start, stop).rows

    def visited(self, start: int, stop: int) -> Visited:
        """The rows at positions [start, stop) of the stream, and which visit of its clip each is."""
        epochs, within = np.divmod(np.arange(start, stop, dtype=np.int64), len(self))
        rows, visits = np.empty_like(within), np.empty_like(within)
        for epoch in np.unique(epochs).tolist():
            inside = epochs == epoch
            order, clips, copies = self._epoch(epoch)
            drawn = order.indices(epoch, within[inside])
            rows[inside] = self._rows[clips[drawn]]
            visits[inside] = epoch * VISITS_PER_EPOCH + copies[drawn]
        return Visited(rows, visits)

    def shards_around(self, position: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards in use at a position of the stream, and those that come next."""
        epoch = position // len(self)
        # That order's own stream repeats this epoch's draws: at the same place of the same epoch it is this one.
        return self._epoch(epoch)[0].shards_around(position)

    def _make_epoch(self, epoch: int) -> tuple[ClipOrder, NDArray[np.int64], NDArray[np.int64]]:
        """The order of an epoch's draws; the clip of each draw, by index; and how often that was drawn before."""
        digest = hashlib.sha256(f"balanced:{self._snapshot}:{self._seed}:{epoch}".encode()).digest()
        offset = int.from_bytes(digest[:8]) / 2**64
        # The last end is len(rows) but for rounding, and must be it: an epoch has that many draws.
        up_to = np.append(np.floor(self._ends[:-1] + offset), len(self)).astype(np.int64)
        counts = np.diff(up_to, prepend=0)
        clips = np.repeat(np.arange(len(self)), counts)
        copies = np.arange(len(clips)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = ClipOrder(self._rows[clips], self._shards[clips], snapshot=self._snapshot, seed=self._seed)
        return order, clips, copies
