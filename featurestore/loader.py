"""Batches of clips, read ahead in the background, in an order that is arithmetic (:mod:`featurestore.order`)."""

import math
import queue
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurestore.order import ClipOrder, draws
from featurestore.reader import NUM_THREADS, ShardReader
from featurestore.shardfiles import open_shard_files
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.views import view_of
from manifests.errors import InputError

NUM_READ_AHEAD = 3
# What the thread is at when it is stopped takes far less.
THREAD_PATIENCE_S = 30.0
# Of an object store, read in the order of its shards, so many are downloaded ahead.
NUM_SHARDS_AHEAD = 4


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


class BatchViews(NamedTuple):
    """The view of each clip (see :mod:`featurestore.views`): roll_frames (B,) int64, gain_db (B,) float32."""

    roll_frames: NDArray[np.int64]
    gain_db: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LoaderState:
    """All that a loader needs to go on where it was: it resumes in constant time."""

    fingerprint: str
    seed: int
    step: int


class Loader:
    """Shuffled training batches of one rank; every clip exactly once an epoch, every batch full (see ClipOrder)."""

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
        self._source = _BatchSource(store, teacher, with_logits, seed if with_views else None)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._seed, self._fingerprint = seed, store.snapshot.fingerprint
        self.order = ClipOrder(rows, store.shard_of(rows), snapshot=store.snapshot.number, seed=seed)

    def state(self, step: int) -> LoaderState:
        """The state before `step`."""
        return LoaderState(self._fingerprint, self._seed, step)

    def resume(self, state: LoaderState, num_steps: int | None = None) -> Iterator[Batch]:
        """The batches from a state on. Raises InputError for the state of another order."""
        if (state.fingerprint, state.seed) != (self._fingerprint, self._seed):
            raise InputError(
                f"the loader's state is of a store with fingerprint {state.fingerprint[:12]} and of seed {state.seed}; "
                f"this loader reads {self._fingerprint[:12]} with seed {self._seed}"
            )
        return self.batches(state.step, num_steps)

    def batches(self, start_step: int = 0, num_steps: int | None = None) -> Iterator[Batch]:
        """The batches of steps start_step, start_step + 1, ...; without end where `num_steps` is None."""

        def all_parts() -> Iterator[_Part]:
            step = start_step
            while num_steps is None or step < start_step + num_steps:
                now, coming = self.order.shards_around(step * self._world_size * self._batch_size)
                rows = self.order.batch(step, self._batch_size, self._rank, self._world_size)
                yield _Part(rows, now, coming, step)
                step += 1

        return self._source.read_ahead(all_parts())


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

    def all_parts() -> Iterator[_Part]:
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            now = np.unique(store.shard_of(part))
            first_coming = int(np.searchsorted(shards, now[-1], side="right"))
            yield _Part(part, now, shards[first_coming : first_coming + NUM_SHARDS_AHEAD])

    return _BatchSource(store, teacher).read_ahead(all_parts())


class _Part(NamedTuple):
    """The rows of a batch, the shards in use with them, those that will be soon, and the step that it is for."""

    rows: NDArray[np.int64]
    shards: NDArray[np.int64]
    coming_shards: NDArray[np.int64]
    step: int = 0


class _BatchSource:
    """Makes batches of rows in a background thread."""

    def __init__(
        self, store: Store, teacher: TeacherCache | None, with_logits: bool = False, views_seed: int | None = None
    ) -> None:
        self._store, self._teacher, self._views_seed = store, teacher, views_seed
        self._with_logits = with_logits and teacher is not None
        self._fbanks, self._hogs = _BufferPool(), _BufferPool()

    def read_ahead(self, parts: Iterator[_Part]) -> Iterator[Batch]:
        """Batches of `parts`, up to NUM_READ_AHEAD of them ahead of the consumer; its errors come out here."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(NUM_READ_AHEAD)
        stopped = threading.Event()
        thread = threading.Thread(target=self._fill, args=(parts, ready, stopped), daemon=True, name="read-ahead")
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            # Ctrl-C may have left the queue's lock taken, and then it never ends; it ends with the process.
            thread.join(THREAD_PATIENCE_S)

    def _fill(self, parts: Iterator[_Part], ready: "queue.Queue[Any]", stopped: threading.Event) -> None:
        last: BaseException | None = None
        try:
            with (
                closing(open_shard_files(self._store)) as files,
                closing(ShardReader(self._store, files)) as reader,
                ThreadPoolExecutor(NUM_THREADS, "shard-reader") as pool,
            ):
                for part in parts:
                    in_use = part.shards.tolist()
                    files.require_room(in_use)
                    reader.close_all_but(in_use)
                    files.prefetch([*in_use, *part.coming_shards.tolist()])
                    if not _put(ready, self._batch(part, reader, pool), stopped):
                        return
        except BaseException as error:  # handed to the consumer, who raises it
            last = error
        finally:
            _put(ready, last, stopped)

    def _batch(self, part: _Part, reader: ShardReader, pool: ThreadPoolExecutor) -> Batch:
        rows = part.rows
        fbanks = self._fbanks.take((len(rows), *reader.fbank_shape))
        cells = self._hogs.take((len(rows), *reader.hog_shape))
        reader.read(rows, fbanks, cells, pool)
        # The sum over orientations, as a product because numpy's sums over short axes are slow.
        hog = cells.astype(np.float32) @ np.ones(cells.shape[-1], np.float32)
        keys, labels = self._store.keys(rows), self._store.labels(rows)
        if self._teacher is None:
            return Batch(rows, keys, fbanks, hog, labels, None)
        if self._views_seed is not None:
            return self._with_views(Batch(rows, keys, fbanks, hog, labels, None), self._teacher, part.step)
        logits = self._teacher.logits(rows) if self._with_logits else None
        return Batch(rows, keys, fbanks, hog, labels, self._teacher.embeddings(rows), logits)

    def _with_views(self, batch: Batch, teacher: TeacherCache, step: int) -> Batch:
        about, num_frames = teacher.attributes, batch.fbank.shape[1]
        numbers = draws(batch.rows, self._views_seed or 0, step, about.num_views)
        views = [
            view_of(key, number, about.views_seed, num_frames)
            for key, number in zip(batch.keys, numbers.tolist(), strict=True)
        ]
        return replace(
            batch,
            teacher=teacher.gather_view("embedding", batch.rows, numbers),
            teacher_logits=teacher.gather_view("logits", batch.rows, numbers) if self._with_logits else None,
            views=BatchViews(
                np.array([view.roll_frames for view in views]), np.array([view.gain_db for view in views], np.float32)
            ),
        )


def _put(ready: "queue.Queue[Any]", item: Any, stopped: threading.Event) -> bool:
    """Puts `item`, unless the consumer has stopped."""
    while not stopped.is_set():
        try:
            ready.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


class _BufferPool:
    """Memory used again once nobody holds it: fresh pages cost as much time as the reading itself.

    An array over a bytearray is the base of all its views, and torch holds it too, so that the memory is free when that
    array is gone.
    """

    def __init__(self) -> None:
        self._memory: list[tuple[bytearray, weakref.ref[NDArray[np.float16]]]] = []
        # Two iterators of one loader fill their batches at the same time.
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float16]:
        """A float16 array with arbitrary content that nobody else holds."""
        with self._lock:
            return self._take(2 * math.prod(shape)).reshape(shape)

    def _take(self, num_bytes: int) -> NDArray[np.float16]:
        free = [entry for entry in self._memory if entry[1]() is None]
        memory = next((block for block, _ in free if len(block) == num_bytes), None)
        if memory is None:
            memory = bytearray(num_bytes)
        # What is free and not taken now is of another size, or more than the consumer needed: let it go.
        self._memory = [entry for entry in self._memory if entry[1]() is not None or len(entry[0]) == num_bytes]
        self._memory = [entry for entry in self._memory if entry[0] is not memory]
        array = np.frombuffer(memory, np.float16)
        self._memory.append((memory, weakref.ref(array)))
        return array
