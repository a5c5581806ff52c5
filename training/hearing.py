"""Many files heard by one model: decoded and prepared ahead by helpers, their windows batched together, in order."""

import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ingest.ledger import ClipError, Reason
from manifests.errors import InputError
from training.audiopieces import PieceReader
from training.filewindows import Windows
from training.tagger import Prepared, Tagger

# Of each file so many windows wait, and no more files than this many batches, or one a worker: however long they are,
# memory is bounded.
WINDOWS_AHEAD, BATCHES_AHEAD = 4, 2
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class HeardWindow:
    """What a model says of a window of file number `file`: probabilities (C) or None, embedding (D), tokens (L, D)."""

    file: int
    start_s: float
    end_s: float
    probabilities: NDArray[np.float32] | None
    embedding: NDArray[np.float32]
    tokens: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class FileEnd:
    """All windows of file number `file` were heard; `error`: why there are none, or no more."""

    file: int
    error: ClipError | None


@dataclass(frozen=True, slots=True)
class HearingOptions:
    """How fast, and with how much memory: neither changes what is heard."""

    num_workers: int
    batch_size: int = 16


@dataclass(frozen=True, slots=True)
class _Window:
    file: int
    start: int
    num_samples: int
    prepared: Prepared


@contextmanager
def hear_files(
    files: Iterable[Path], tagger: Tagger, windows: Windows, options: HearingOptions
) -> Iterator[Iterator[HeardWindow | FileEnd]]:
    """The windows of each file and its end, in the order of the files, which are numbered from 0.

    A file that can't be read, hangs or crashes its decoder ends with an error. The helpers end with the context.
    """
    num_ahead = max(options.num_workers, BATCHES_AHEAD * options.batch_size)
    with _Workers(tagger, windows, options.num_workers) as workers:
        yield _heard(_ahead(files, workers, num_ahead), tagger, options.batch_size)


class _File:
    """A file on its way from a worker's thread to the main one."""

    def __init__(self, number: int, path: Path) -> None:
        self.number, self.path = number, path
        # Not queue.Queue, which an interrupt can leave locked.
        self._items: queue.SimpleQueue[_Window | FileEnd | BaseException] = queue.SimpleQueue()
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(WINDOWS_AHEAD):
            self._places.put(None)

    def put(self, item: "_Window | FileEnd | BaseException", timeout_s: float) -> bool:
        """Hands an item on; False where there was no place for it in time."""
        try:
            self._places.get(timeout=timeout_s)
        except queue.Empty:
            return False
        self._items.put(item)
        return True

    def __iter__(self) -> Iterator[_Window | FileEnd]:
        while True:
            item = self._items.get()
            self._places.put(None)
            if isinstance(item, BaseException):
                raise item
            yield item
            if isinstance(item, FileEnd):
                return


class _Workers:
    """Threads, each with a process that decodes for it; the preparation itself leaves Python's lock free."""

    def __init__(self, tagger: Tagger, windows: Windows, num_workers: int) -> None:
        self._tagger, self._windows = tagger, windows
        self._files: queue.SimpleQueue[_File | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._readers = [PieceReader() for _ in range(num_workers)]
        self._threads = [threading.Thread(target=self._work, args=(reader,), daemon=True) for reader in self._readers]

    def __enter__(self) -> "_Workers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        # All of them first: a thread takes whichever comes.
        for _ in self._threads:
            self._files.put(None)
        for thread, reader in zip(self._threads, self._readers, strict=True):
            while thread.is_alive():
                reader.kill()
                thread.join(_POLL_S)

    def start(self, file: _File) -> _File:
        """Has `file` prepared by the next worker that is free."""
        self._files.put(file)
        return file

    def _work(self, reader: PieceReader) -> None:
        try:
            while not self._stopping.is_set() and (file := self._files.get()) is not None:
                try:
                    self._prepare(file, reader)
                except OSError as error:
                    reason = f"decoding needs a helper process, which can't be had ({error}); give fewer --workers"
                    self._put(file, InputError(reason))
                except Exception as error:  # a bug, which the main thread shows
                    self._put(file, error)
        finally:
            reader.close()

    def _prepare(self, file: _File, reader: PieceReader) -> None:
        try:
            for start, waveform in self._windows.cut(reader.pieces(file.path, self._tagger.sample_rate_hz)):
                self._put(file, _Window(file.number, start, waveform.size, self._tagger.prepare(waveform)))
                if self._stopping.is_set():
                    return
        except ClipError as error:
            self._put(file, FileEnd(file.number, error))
        else:
            self._put(file, FileEnd(file.number, None))

    def _put(self, file: _File, item: _Window | FileEnd | Exception) -> None:
        while not self._stopping.is_set() and not file.put(item, _POLL_S):
            pass


def _ahead(files: Iterable[Path], workers: _Workers, num_files: int) -> Iterator[_Window | FileEnd]:
    """All files' windows and ends in order, while workers are busy with up to `num_files` of the next ones."""
    under_way: deque[_File] = deque()
    for number, path in enumerate(files):
        under_way.append(workers.start(_File(number, path)))
        if len(under_way) >= num_files:
            yield from under_way.popleft()
    while under_way:
        yield from under_way.popleft()


def _heard(items: Iterable[_Window | FileEnd], tagger: Tagger, batch_size: int) -> Iterator[HeardWindow | FileEnd]:
    failed: dict[int, ClipError] = {}
    for batch in _batches(items, batch_size):
        heard = iter(_hear([item for item in batch if isinstance(item, _Window)], tagger))
        for item in batch:
            if isinstance(item, FileEnd):
                yield FileEnd(item.file, failed.pop(item.file, item.error))
                continue
            window = next(heard)
            if not np.isfinite(window.embedding).all():
                detail = f"the model's answer to the window at {window.start_s:.1f} s is not finite"
                failed.setdefault(item.file, ClipError(Reason.NON_FINITE, detail))
            if item.file not in failed:
                yield window


def _batches(items: Iterable[_Window | FileEnd], batch_size: int) -> Iterator[list[_Window | FileEnd]]:
    """Runs of items with up to `batch_size` windows."""
    batch: list[_Window | FileEnd] = []
    num_windows = 0
    for item in items:
        batch.append(item)
        num_windows += isinstance(item, _Window)
        # The end of the last window's file comes with the next batch, but for what failed nothing is waited for.
        if num_windows == batch_size or (num_windows == 0 and isinstance(item, FileEnd)):
            yield batch
            batch, num_windows = [], 0
    if batch:
        yield batch


def _hear(windows: list[_Window], tagger: Tagger) -> list[HeardWindow]:
    """What the model says of the windows, in their order; those of one shape go to it together."""
    places_of: dict[tuple[int, ...], list[int]] = {}
    for place, window in enumerate(windows):
        places_of.setdefault(window.prepared.shape, []).append(place)
    said: list[HeardWindow | None] = [None] * len(windows)
    rate_hz = tagger.sample_rate_hz
    for places in places_of.values():
        heard = tagger.hear([windows[place].prepared for place in places])
        for row, place in enumerate(places):
            window = windows[place]
            said[place] = HeardWindow(
                file=window.file,
                start_s=window.start / rate_hz,
                end_s=(window.start + window.num_samples) / rate_hz,
                probabilities=None if heard.probabilities is None else heard.probabilities[row],
                embedding=heard.embedding[row],
                tokens=None if heard.tokens is None else heard.tokens[row],
            )
    return [window for window in said if window is not None]
