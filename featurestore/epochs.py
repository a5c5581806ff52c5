"""Batches epoch by epoch, for training loops that people write themselves."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurestore.batches import Batch
from featurestore.loader import Loader, sequential_batches
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from manifests.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Tensors:
    """A batch in torch: fbank (B, T, F) float32, normalised by the store's mean and standard deviation.

    hog (B, T/16, F/16) float32: mean gradient magnitude per patch; labels (B, C) float32, multi-hot; teacher (B, D)
    float32, NaN where the cache lacks a clip, None without a teacher.
    """

    keys: list[str]
    fbank: "torch.Tensor"
    hog: "torch.Tensor"
    labels: "torch.Tensor"
    teacher: "torch.Tensor | None" = None

    def classes(self) -> "torch.Tensor":
        """The one label of each clip as its place in the vocabulary, (B,) int64: what cross-entropy takes.

        Raises InputError where a clip has none or several.
        """
        counts = self.labels.count_nonzero(1)
        if odd := (counts != 1).nonzero().flatten().tolist():
            raise InputError(
                f"clip {self.keys[odd[0]]} has {int(counts[odd[0]])} labels, and a class is exactly one; train on the "
                "multi-hot `labels`, or on the `rows` of clips with one label"
            )
        return self.labels.argmax(1)


class EpochLoader:
    """The clips of some rows of a store in batches, epoch by epoch, read ahead in the background.

    Shuffled, the clips are one endless stream of epochs, cut into batches that are all full: what doesn't fill the last
    batch of an epoch begins the next one's first. Nothing is left out or repeated, and all ranks have as many batches.
    In order (`shuffle=False`), each rank has its part of the rows, and its last batch is as short as what is left.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        teacher: TeacherCache | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`batch_size` is that of one of `world_size` ranks.

        Raises InputError when there are no clips, or fewer than all ranks' batches take together.
        """
        if batch_size < 1 or not 0 <= rank < world_size:
            raise InputError(
                f"a batch of {batch_size}, rank {rank} of {world_size}: batch_size must be at least 1, and rank one of "
                "0 to world_size - 1"
            )
        if not len(rows):
            raise InputError(f"no clip of {store.location} is in the part asked for; see `store.table()`")
        if shuffle and batch_size * world_size > len(rows):
            raise InputError(
                f"the {len(rows)} clips of an epoch don't fill one batch of {batch_size} on {world_size} ranks; choose "
                "a smaller batch_size"
            )
        self.store, self.batch_size, self.shuffle, self.world_size = store, batch_size, shuffle, world_size
        self._arguments = {"shuffle": shuffle, "seed": seed, "rank": rank, "world_size": world_size}
        self._all_rows = rows
        self.rows = rows if shuffle else np.array_split(rows, world_size)[rank]
        self._teacher, self._of_all_ranks = teacher, batch_size * world_size
        self._loader = (
            Loader(store, rows, batch_size, seed=seed, rank=rank, world_size=world_size, teacher=teacher)
            if shuffle
            else None
        )

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """A process that gets it makes it again."""
        teacher = None if self._teacher is None else self._teacher.name
        return _remake, (self.store, self._all_rows, self.batch_size, teacher, self._arguments)

    def num_batches(self, number: int = 0) -> int:
        """Batches of an epoch: from one shuffled epoch to another they may differ by one."""
        if self.shuffle:
            return self._first_step(number + 1) - self._first_step(number)
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` = 0, 1, ... in numpy, from batch `start` of it on.

        A loop that was stopped goes on with `start` = the number of batches that it had done; skipping them costs
        nothing. Unshuffled, all epochs are the same. Raises InputError for negative ones, and in several workers of a
        DataLoader, of which each would give all batches.
        """
        if number < 0 or start < 0:
            raise InputError(f"epoch {number} from batch {start}: both are counted from 0")
        _refuse_workers(self.world_size)
        if self._loader is not None:
            return self._loader.batches(self._first_step(number) + start, max(0, self.num_batches(number) - start))
        return sequential_batches(self.store, self.rows[start * self.batch_size :], self.batch_size, self._teacher)

    def tensors(self, number: int, device: "torch.device | str" = "cpu", start: int = 0) -> Iterator[Tensors]:
        """The batches of :meth:`epoch` in torch, on a device, their fbanks normalised there."""
        import torch

        def there(array: NDArray[np.generic]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        mean, std = self.store.snapshot.mean, self.store.snapshot.std
        for batch in self.epoch(number, start):
            teacher = None if batch.teacher is None else there(batch.teacher)
            fbank = (there(batch.fbank).float() - mean) / std
            yield Tensors(batch.keys, fbank, there(batch.hog), there(batch.labels), teacher)

    def _first_step(self, epoch: int) -> int:
        return -(-epoch * len(self.rows) // self._of_all_ranks)


def _remake(
    store: Store, rows: NDArray[np.int64], batch_size: int, teacher: str | None, arguments: dict[str, Any]
) -> EpochLoader:
    cache = None if teacher is None else TeacherCache(store, teacher)
    return EpochLoader(store, rows, batch_size, teacher=cache, **arguments)


def _refuse_workers(world_size: int) -> None:
    """Raises InputError in one of several workers of a DataLoader, unless they are ranks of their own."""
    # Where torch isn't imported, there are none.
    torch = sys.modules.get("torch")
    worker = None if torch is None else torch.utils.data.get_worker_info()
    if worker is not None and world_size % worker.num_workers:
        raise InputError(
            f"each of the DataLoader's {worker.num_workers} workers would give all batches: use num_workers=0 (the "
            "loader reads ahead by itself), or make each worker a rank: store.loader(..., rank=, world_size=)"
        )
