"""Batches of clips of one store or several, read ahead in the background."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurestore.buffers import BufferPool
from featurestore.order import draws
from featurestore.readahead import read_ahead
from featurestore.reader import NUM_THREADS, ShardReader
from featurestore.shardfiles import open_shard_files
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.views import view_of
from manifests.errors import InputError

NUM_READ_AHEAD = 3


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips side by side.

    fbank (B, T, F) float16, not normalised; hog (B, T/16, F/16) float32: mean gradient magnitude per patch;
    labels (B, C) float32, multi-hot; teacher (B, D) float32, NaN where the cache lacks a row, None without a cache;
    teacher_logits (B, C of the teacher) float32, where they were asked for. With views, `teacher` and `teacher_logits`
    are those of an augmented view of each clip, and `views` says which; `fbank` and `hog` are the clip's own.
    """

    rows: NDArray[np.int64]
    keys: list[str]
    fbank: NDArray[np.float16]
    hog: NDArray[np.float32]
    labels: NDArray[np.float32]
    teacher: NDArray[np.float32] | None
    teacher_logits: NDArray[np.float32] | None = None
    views: "BatchViews | None" = None
    visits: NDArray[np.int64] | None = None


class BatchViews(NamedTuple):
    """The view of each clip (see :mod:`featurestore.views`): roll_frames (B,) int64, gain_db (B,) float32."""

    roll_frames: NDArray[np.int64]
    gain_db: NDArray[np.float32]


@dataclass(frozen=True)
class Member:
    """A store that batches are made of.

    `teacher`: its cache, or None. `label_columns`: for each of the store's labels its column in the batch, -1 for one
    that the batch doesn't have; None: as in the store. `views_seed`: clips come with augmented views of the teacher.
    """

    store: Store
    teacher: TeacherCache | None = None
    with_logits: bool = False
    views_seed: int | None = None
    label_columns: NDArray[np.int64] | None = None
    num_labels: int | None = None

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Multi-hot labels (len(rows), C) in the batch's columns."""
        own = self.store.labels(rows)
        if self.label_columns is None:
            return own
        labels = np.zeros((len(rows), self.num_labels or 0), np.float32)
        known = self.label_columns >= 0
        labels[:, self.label_columns[known]] = own[:, known]
        return labels


class Slice(NamedTuple):
    """A member's clips in a batch, their places there, the shards in use, those that will be soon, and the step."""

    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    shards: NDArray[np.int64]
    coming_shards: NDArray[np.int64]
    step: int = 0
    visits: NDArray[np.int64] | None = None


class BatchSource:
    """Makes batches of rows in a background thread."""

    def __init__(self, members: Sequence[Member]) -> None:
        """Raises InputError where the stores' features differ: they can't be one batch."""
        self._members = members
        self._fbanks, self._hogs = BufferPool(), BufferPool()
        first = members[0].store
        for member in members[1:]:
            if (member.store.file.fbank, member.store.file.hog) != (first.file.fbank, first.file.hog):
                raise InputError(
                    f"{member.store.location} and {first.location} hold other features (their fbank or HOG parameters "
                    "in store.json differ); ingest one of them again with the other's"
                )

    def read_ahead(self, parts: Iterator[Sequence[Slice]]) -> Iterator[Batch]:
        """Batches of `parts`, each a slice a member; up to NUM_READ_AHEAD are ahead of the consumer.

        Errors come out here.
        """
        return read_ahead(self._batches(parts), NUM_READ_AHEAD, "read-ahead")

    def _batches(self, parts: Iterator[Sequence[Slice]]) -> Generator[Batch]:
        with ExitStack() as opened:
            readers = [_MemberReader(member, opened) for member in self._members]
            # Last, so that nothing reads any more when the files are closed.
            pool = opened.enter_context(ThreadPoolExecutor(NUM_THREADS, "shard-reader"))
            for slices in parts:
                yield self._batch(slices, readers, pool)

    def _batch(self, slices: Sequence[Slice], readers: "Sequence[_MemberReader]", pool: ThreadPoolExecutor) -> Batch:
        num_clips = sum(len(part.rows) for part in slices)
        fbanks = self._fbanks.take((num_clips, *readers[0].reader.fbank_shape))
        cells = self._hogs.take((num_clips, *readers[0].reader.hog_shape))
        parts = [reader.read(part, fbanks, cells, pool) for reader, part in zip(readers, slices, strict=True)]
        # The sum over orientations, as a product because numpy's sums over short axes are slow.
        hog = cells.astype(np.float32) @ np.ones(cells.shape[-1], np.float32)
        joined = parts[0] if len(parts) == 1 else _joined(parts, np.concatenate([part.places for part in slices]))
        return replace(joined, fbank=fbanks, hog=hog)


class _MemberReader:
    """Reads the clips of one member: all of a batch but what follows from the features."""

    def __init__(self, member: Member, opened: ExitStack) -> None:
        self._member = member
        self._files = opened.enter_context(closing(open_shard_files(member.store)))
        self.reader = opened.enter_context(closing(ShardReader(member.store, self._files)))

    def read(
        self, part: Slice, fbanks: NDArray[np.float16], cells: NDArray[np.float16], pool: ThreadPoolExecutor
    ) -> Batch:
        in_use = part.shards.tolist()
        self._files.require_room(in_use)
        self.reader.close_all_but(in_use)
        self._files.prefetch([*in_use, *part.coming_shards.tolist()])
        member, rows = self._member, part.rows
        self.reader.read(rows, part.places, fbanks, cells, pool)
        batch = Batch(rows, member.store.keys(rows), fbanks, _NO_HOG, member.labels(rows), None, visits=part.visits)
        if member.teacher is None:
            return batch
        if member.views_seed is not None:
            return _with_views(batch, member.teacher, member.views_seed, part.step, with_logits=member.with_logits)
        logits = member.teacher.logits(rows) if member.with_logits else None
        return replace(batch, teacher=member.teacher.embeddings(rows), teacher_logits=logits)


_NO_HOG = np.empty((0, 0, 0), np.float32)


def _joined(parts: Sequence[Batch], places: NDArray[np.int64]) -> Batch:
    """The members' parts together, each clip at its place, but for fbank and HOG."""
    order = np.argsort(places)

    def together(arrays: Sequence[Any]) -> Any:
        return None if any(array is None for array in arrays) else np.concatenate(arrays)[order]

    views = [part.views for part in parts if part.views is not None]
    keys = [key for part in parts for key in part.keys]
    return Batch(
        rows=together([part.rows for part in parts]),
        keys=[keys[place] for place in order.tolist()],
        fbank=parts[0].fbank,
        hog=_NO_HOG,
        labels=together([part.labels for part in parts]),
        teacher=together([part.teacher for part in parts]),
        teacher_logits=together([part.teacher_logits for part in parts]),
        views=BatchViews(*map(together, zip(*views, strict=True))) if len(views) == len(parts) else None,
        visits=together([part.visits for part in parts]),
    )


def _with_views(batch: Batch, teacher: TeacherCache, seed: int, step: int, *, with_logits: bool) -> Batch:
    about, num_frames = teacher.attributes, batch.fbank.shape[1]
    numbers = draws(batch.rows, seed, step, about.num_views)
    views = [
        view_of(key, number, about.views_seed, num_frames)
        for key, number in zip(batch.keys, numbers.tolist(), strict=True)
    ]
    return replace(
        batch,
        teacher=teacher.gather_view("embedding", batch.rows, numbers),
        teacher_logits=teacher.gather_view("logits", batch.rows, numbers) if with_logits else None,
        views=BatchViews(
            np.array([view.roll_frames for view in views], np.int64),
            np.array([view.gain_db for view in views], np.float32),
        ),
    )
