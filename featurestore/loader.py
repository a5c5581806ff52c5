"""Training batches in an order that is arithmetic (:mod:`featurestore.order`), of one store or of several mixed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurestore.batches import Batch, BatchSource, Member, Slice
from featurestore.mixing import StreamMix
from featurestore.order import ClipOrder, Order
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from manifests.errors import InputError

# Of an object store, read in the order of its shards, so many are downloaded ahead.
NUM_SHARDS_AHEAD = 4


@dataclass(frozen=True)
class Part:
    """What a mixed loader takes from one store: the member of its batches, and the order of its clips."""

    member: Member
    order: Order


class MixedLoader:
    """Shuffled training batches of one rank from several stores in given proportions; every batch is full.

    The stream of a store is its order, whatever it is mixed with, and the mixed stream doesn't depend on the number of
    ranks: rank r of w takes positions [(s w + r) b, (s w + r + 1) b) of it at step s. A batch is in the stream's order.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        proportions: Sequence[float],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`proportions`: of the parts in the stream, of any sum; `batch_size` is that of one rank.

        Raises InputError when the stores' features differ, or a proportion isn't possible.
        """
        if len(parts) != len(proportions):
            raise InputError(f"there are {len(proportions)} proportions for {len(parts)} stores; give one a store")
        self.orders = [part.order for part in parts]
        self._source = BatchSource([part.member for part in parts])
        self._mix = StreamMix(proportions, seed)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size

    def batches(self, start_step: int = 0, num_steps: int | None = None) -> Iterator[Batch]:
        """The batches of steps start_step, start_step + 1, ...; without end where `num_steps` is None."""

        def all_slices() -> Iterator[list[Slice]]:
            step = start_step
            while num_steps is None or step < start_step + num_steps:
                yield self._slices(step)
                step += 1

        return self._source.read_ahead(all_slices())

    def _slices(self, step: int) -> list[Slice]:
        first_of_ranks = step * self._world_size * self._batch_size
        first = first_of_ranks + self._rank * self._batch_size
        streams = self._mix.streams(first, first + self._batch_size)
        # Where all ranks are in the stream: the shards that they share.
        reached = self._mix.ranges(first_of_ranks, first_of_ranks + 1)
        slices = []
        for number, (start, stop) in enumerate(self._mix.ranges(first, first + self._batch_size)):
            order = self.orders[number]
            now, coming = order.shards_around(reached[number][0])
            rows, visits = order.visited(start, stop)
            slices.append(Slice(rows, np.flatnonzero(streams == number), now, coming, step, visits))
        return slices


class Loader(MixedLoader):
    """Shuffled training batches of one store; every clip exactly once an epoch, every batch full (see ClipOrder)."""

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        teacher: TeacherCache | None = None,
        with_logits: bool = False,
        with_views: bool = False,
    ) -> None:
        """`rows` are the clips to train on, `batch_size` is that of one rank; `with_views`: of the teacher's views of a
        clip, another one is drawn in each step. Raises InputError when there are no clips, or no views.
        """
        if not len(rows):
            raise InputError(f"no clip of {store.location} is in the part asked for; see `featurestore info`")
        if with_views:
            require_views(teacher)
        member = Member(store, teacher, with_logits, seed if with_views else None)
        self.order = ClipOrder(rows, store.shard_of(rows), snapshot=store.snapshot.number, seed=seed)
        super().__init__([Part(member, self.order)], [1.0], batch_size, seed=seed, rank=rank, world_size=world_size)


def require_views(teacher: TeacherCache | None) -> None:
    """Raises InputError unless there is a cache, and it has augmented views."""
    if teacher is None or not teacher.attributes.num_views:
        which = "there is no cache" if teacher is None else f"{teacher.path} has none"
        raise InputError(
            f"a teacher's augmented views are needed, and {which}; make them with `featurestore build-teacher "
            "--views K`, under another --name"
        )


def sequential_batches(
    store: Store, rows: NDArray[np.int64], batch_size: int, teacher: TeacherCache | None = None
) -> Iterator[Batch]:
    """Every clip of `rows` once, in order; the last batch is as long as what is left."""
    shards = np.unique(store.shard_of(rows))

    def all_slices() -> Iterator[list[Slice]]:
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            now = np.unique(store.shard_of(part))
            first_coming = int(np.searchsorted(shards, now[-1], side="right"))
            yield [Slice(part, np.arange(len(part)), now, shards[first_coming : first_coming + NUM_SHARDS_AHEAD])]

    return BatchSource([Member(store, teacher)]).read_ahead(all_slices())
