"""Recordings into the raw cache: the driver's queue of what to fetch and when, and the worker's part of it."""

import math
import shutil
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from ingest.child import Child
from ingest.download import DownloadRequest, FetchError, download, video_url
from ingest.ledger import TRANSIENT, Reason
from ingest.location import Location, open_location
from ingest.rawcache import NUM_LOOKUPS, RawCache, RawEntry
from ingest.throttle import Backoff, BlockGuard, Limiter
from manifests.errors import InputError

# A recording that the server refuses so often, while it lets others pass, has to do with itself.
MAX_BLOCKS_EACH = 3


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How to fetch. `source`: youtube, or a URL with {id}; `rate_per_hour`: of videos, for the whole cluster."""

    source: str = "youtube"
    rate_per_hour: float = 300.0
    num_parallel: int = 3
    time_limit_s: float = 600.0
    cookies: Path | None = None
    keep_raw: bool = True


@dataclass(frozen=True, slots=True)
class FetchTask:
    """One recording to download into the raw cache at the address `raw`."""

    recording: str
    raw: str
    request: DownloadRequest


@dataclass(frozen=True, slots=True)
class FetchOutcome:
    """What came of a FetchTask: no reason where the recording is in the cache now."""

    recording: str
    num_bytes: int = 0
    reason: Reason | None = None
    detail: str = ""
    retry_after_s: float | None = None


class _Children:
    """The helper process of each thread that downloads."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._all: list[Child] = []

    def mine(self) -> Child:
        if not hasattr(self._of_thread, "child"):
            self._of_thread.child = Child("ingest.download_child")
            self._all.append(self._of_thread.child)
        child: Child = self._of_thread.child
        return child

    def kill(self) -> None:
        for child in self._all:
            child.kill()

    def close(self) -> None:
        while self._all:
            self._all.pop().close()


_children = _Children()


def fetch_recording(task: FetchTask) -> FetchOutcome:
    """Downloads one recording into the raw cache; every way in which that fails is an outcome."""
    location = open_location(task.raw)
    location.create()
    # In the cache itself where it is a folder: there is room, and no second copy is made.
    scratch = None if location.folder is None else location.folder
    try:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=scratch) as folder:
            got = download(task.request, Path(folder), _children.mine())
            entry = RawCache(location).add(task.recording, got.path, got.format_id)
            return FetchOutcome(task.recording, num_bytes=entry.size or 0)
    except FetchError as error:
        return FetchOutcome(task.recording, 0, error.reason, error.detail, error.retry_after_s)
    except OSError as error:
        trouble = (error.strerror or str(error)).removeprefix(f"{location} ")
        raise InputError(
            f"the raw cache {location} can't be written: {trouble}; make room or mend the place, and run the same "
            "command again"
        ) from error


def stop_downloads(downloads: Collection[Future[FetchOutcome]]) -> None:
    """Ends the downloads of this process at once; no further ones may be submitted."""
    # One that was only about to start is not there yet to be ended.
    while wait(downloads, timeout=0.05).not_done:
        _children.kill()
    _children.close()


def remove_scratch(raw: Location) -> None:
    """Removes what killed downloads left in a raw cache; call it only when none is at work."""
    if raw.folder is not None:
        for scratch in raw.folder.glob(".fetch-*"):
            shutil.rmtree(scratch, ignore_errors=True)


class Fetcher:
    """Which recordings shards wait for, and when the next one may be asked for. Lives in the driver alone.

    A recording is fetched once, however many clips and shards want it.
    """

    def __init__(
        self,
        cache: RawCache,
        options: FetchOptions,
        *,
        retry_failed: bool = False,
        num_uses: dict[str, int] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`num_uses`: by how many shards of this run a recording is used; it is dropped after the last one."""
        self._cache, self._options, self._retry_failed, self._clock = cache, options, retry_failed, clock
        self._limiter, self._backoff = Limiter(options.rate_per_hour), Backoff()
        self._guard = BlockGuard.load(cache.read_state(), clock())
        # Recordings that weren't tried yet, and those that are to be tried again.
        self._queue: deque[str] = deque()
        self._again: list[str] = []
        self._num_blocks: Counter[str] = Counter()
        self._asked: set[str] = set()
        self._in_flight: set[str] = set()
        # Of each shard that was asked about: the recordings that it still waits for, and all that it uses.
        self._waiting_for: dict[int, set[str]] = {}
        self._uses: dict[int, set[str]] = {}
        self._num_uses = num_uses or {}
        self.num_fetched = self.num_failed = 0
        self.last_failure = ""

    @property
    def note(self) -> str:
        """What to show beside the progress."""
        note = f"{self.num_fetched} fetched, {self.num_failed} not to be had"
        paused = self._guard.paused_until_text(self._clock())
        return f"{note}; blocked, paused until {paused}" if paused else note

    def settled(self, shard: int, recordings: Callable[[int], Sequence[str]]) -> bool:
        """Whether each recording of a shard is in the cache or can't be had; asks for them the first time."""
        if shard not in self._waiting_for:
            self._uses[shard] = set(recordings(shard))
            self._waiting_for[shard] = self.ask(recordings(shard))
        return not self._waiting_for[shard]

    def ask(self, recordings: Sequence[str]) -> set[str]:
        """Queues those recordings that must be fetched and weren't yet; returns those that are not settled."""
        wanted = list(dict.fromkeys(recordings))
        new = [name for name in wanted if name not in self._asked]
        self._asked.update(new)
        with ThreadPoolExecutor(NUM_LOOKUPS, "lookup") as pool:
            entries = list(pool.map(self._cache.find, new))
        self._queue += [name for name, entry in zip(new, entries, strict=True) if self._must_fetch(entry)]
        unsettled = {*self._queue, *self._again, *self._in_flight}
        return {name for name in wanted if name in unsettled}

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits to be fetched or is under way."""
        return not (self._queue or self._again or self._in_flight)

    def _must_fetch(self, entry: RawEntry | None) -> bool:
        if entry is None or entry.file is not None:
            return entry is None
        return entry.reason is None or entry.reason in TRANSIENT or self._retry_failed

    def due(self) -> list[FetchTask]:
        """What may be asked for now. Raises InputError when the server has refused for too long."""
        now = self._clock()
        if self._guard.gave_up:
            raise InputError(
                f"the server has refused {self._guard.num_blocks} times in a row, with longer and longer pauses "
                "between; what was fetched is kept. Run the same command again tomorrow, lower --rate, or "
                "give --cookies"
            )
        tasks = []
        while not self.wait_s(now):
            recording = self._next(now)
            self._in_flight.add(recording)
            self._limiter.started(now)
            tasks.append(FetchTask(recording, str(self._cache.location), self._request(recording)))
        return tasks

    def _next(self, now: float) -> str:
        if self._queue:
            return self._queue.popleft()
        recording = min(self._again, key=lambda name: self._backoff.wait_s(name, now))
        self._again.remove(recording)
        return recording

    def _request(self, recording: str) -> DownloadRequest:
        options = self._options
        return DownloadRequest(video_url(options.source, recording), options.time_limit_s, cookies=options.cookies)

    def wait_s(self, now: float | None = None) -> float:
        """How long nothing may be asked for, 0 where something may be at once.

        Endless while nothing waits, or as many are under way as may be: then there will be news.
        """
        if len(self._in_flight) >= self._options.num_parallel:
            return math.inf
        now = self._clock() if now is None else now
        own_s = 0.0 if self._queue else min((self._backoff.wait_s(name, now) for name in self._again), default=math.inf)
        return max(own_s, self._limiter.wait_s(now), self._guard.wait_s(now))

    def finished(self, outcome: FetchOutcome) -> None:
        """Takes note of what came of a download."""
        now, recording = self._clock(), outcome.recording
        self._in_flight.remove(recording)
        if outcome.reason is Reason.RATE_LIMITED:
            self._guard.blocked(now, outcome.retry_after_s)
            self._cache.write_state(self._guard.save())
        if self._is_tried_again(outcome, now):
            self._again.append(recording)
            return
        if outcome.reason is None:
            self._guard.succeeded(now)
            self._backoff.succeeded(recording)
            self.num_fetched += 1
        else:
            self._cache.fail(recording, outcome.reason, outcome.detail)
            self.num_failed += 1
            self.last_failure = f"{recording}: {outcome.reason}, {outcome.detail}"
        for waiting in self._waiting_for.values():
            waiting.discard(recording)

    def _is_tried_again(self, outcome: FetchOutcome, now: float) -> bool:
        if outcome.reason is Reason.RATE_LIMITED:
            # As a rule not this recording's fault, so that it doesn't count as a try.
            self._num_blocks[outcome.recording] += 1
            return self._num_blocks[outcome.recording] < MAX_BLOCKS_EACH
        return outcome.reason in TRANSIENT and self._backoff.failed(outcome.recording, now, outcome.retry_after_s)

    def shard_done(self, shard: int) -> None:
        """A shard is committed: recordings that no other one uses are dropped, where the raw cache isn't kept."""
        del self._waiting_for[shard]
        for recording in self._uses.pop(shard):
            self._num_uses[recording] = self._num_uses.get(recording, 1) - 1
            if not self._options.keep_raw and self._num_uses[recording] == 0:
                self._cache.drop(recording)
