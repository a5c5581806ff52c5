"""Runs shard tasks and downloads, in this process or on a Ray: both report as they go."""

import math
import queue
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ingest.cluster import start_ray
from ingest.fetching import FetchOutcome, FetchTask, fetch_recording, stop_downloads
from ingest.ledger import Reason
from ingest.shards import ShardProgress, ShardTask, write_shard
from manifests.errors import InputError

# Tasks waiting behind the running ones, so that no worker idles while the driver prepares the next.
QUEUED_PER_WORKER = 1
# Downloads wait for the network: all of them together take this share of a core, and a shard takes the rest. So both
# find room even on a single core, and neither can wait for the other.
CPUS_FOR_DOWNLOADS = 0.02
# Ray counts in steps of this size.
_CPU_STEP = 1e-4
# A task is tried again when its machine or process dies.
MAX_RETRIES = 3
# A cluster grows and shrinks; its size is looked up so often.
SECONDS_BETWEEN_COUNTS = 10.0


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A shard task has ended, and its shard is committed."""

    shard: int


Event = ShardProgress | ShardDone | FetchOutcome


class Executor(Protocol):
    """Takes tasks and reports what came of them."""

    @property
    def window(self) -> int:
        """How many shards it makes sense to have submitted."""
        ...

    def submit_shard(self, task: ShardTask) -> None: ...

    def submit_fetch(self, task: FetchTask) -> None: ...

    def wait(self, timeout_s: float) -> list[Event]:
        """What has been reported, after `timeout_s` at most; an exception of a task comes out here."""
        ...


@contextmanager
def in_process(num_downloads: int) -> Iterator[Executor]:
    """Without Ray: one shard after the other in this thread, while others download."""
    with ThreadPoolExecutor(num_downloads, "download") as pool:
        executor = _InProcess(pool)
        try:
            yield executor
        finally:
            # On Ctrl-C nobody waits for a slow server.
            pool.shutdown(wait=False, cancel_futures=True)
            stop_downloads(executor.downloads)


class _InProcess:
    window = 1 + QUEUED_PER_WORKER

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._shards: deque[tuple[int, Iterator[ShardProgress]]] = deque()
        # Not queue.Queue, whose lock stays taken when Ctrl-C comes at a bad moment: downloads would never end.
        self._fetched: queue.SimpleQueue[Future[FetchOutcome]] = queue.SimpleQueue()
        self.downloads: set[Future[FetchOutcome]] = set()

    def submit_shard(self, task: ShardTask) -> None:
        self._shards.append((task.shard, _write_shard_on_one_thread(task)))

    def submit_fetch(self, task: FetchTask) -> None:
        download = self._pool.submit(fetch_recording, task)
        self.downloads.add(download)
        download.add_done_callback(self._fetched.put)

    def wait(self, timeout_s: float) -> list[Event]:
        events: list[Event] = []
        if self._shards:
            shard, progress = self._shards[0]
            report = next(progress, None)
            if report is None:
                self._shards.popleft()
            events.append(ShardDone(shard) if report is None else report)
        try:
            while True:
                fetched = self._fetched.get(timeout=timeout_s, block=not events)
                self.downloads.remove(fetched)
                events.append(fetched.result())
        except queue.Empty:
            return events


@contextmanager
def on_ray(num_workers: int | None, address: str | None, num_downloads: int) -> Iterator[Executor]:
    """On the Ray cluster at `address`, or on a Ray of this machine with `num_workers` processes (None: one a core).

    Only tasks and reports pass through the driver: a worker reads and writes files itself. On a cluster all of its
    cores are used, also those that join later, unless `num_workers` says how many shards may be made at a time.
    Raises InputError when no cluster answers at `address`.
    """
    ray = start_ray(num_workers, address)
    try:
        yield _OnRay(ray, num_downloads, max_shards=num_workers if address else None)
    finally:
        ray.shutdown()


def _write_shard_on_one_thread(task: ShardTask) -> Iterator[ShardProgress]:
    """One thread: the parallelism is one shard a core, and sums over threads would round otherwise than over one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from write_shard(task)
    finally:
        torch.set_num_threads(num_threads)


class _OnRay:
    def __init__(self, ray: Any, num_downloads: int, max_shards: int | None) -> None:
        """`max_shards`: at a time, fewer than the cluster has cores for."""
        self._ray, self._max_shards = ray, max_shards
        steps = max(1, math.floor(CPUS_FOR_DOWNLOADS / _CPU_STEP / num_downloads))
        self._shard = ray.remote(num_cpus=1 - CPUS_FOR_DOWNLOADS, max_retries=MAX_RETRIES)(_write_shard_on_one_thread)
        # Not tried again by Ray, which knows of no limiter.
        self._fetch = ray.remote(num_cpus=steps * _CPU_STEP, max_retries=0)(fetch_recording)
        self._shards: dict[Any, int] = {}
        self._fetches: dict[Any, str] = {}
        self._num_cores, self._counted = 1, -math.inf

    @property
    def window(self) -> int:
        if self._max_shards is not None:
            return self._max_shards
        now = time.monotonic()
        if now - self._counted > SECONDS_BETWEEN_COUNTS:
            self._num_cores = max(1, int(self._ray.cluster_resources().get("CPU", 0)))
            self._counted = now
        return self._num_cores * (1 + QUEUED_PER_WORKER)

    def submit_shard(self, task: ShardTask) -> None:
        self._shards[self._shard.remote(task)] = task.shard

    def submit_fetch(self, task: FetchTask) -> None:
        self._fetches[self._fetch.remote(task)] = task.recording

    def wait(self, timeout_s: float) -> list[Event]:
        waiting = [*self._shards, *self._fetches]
        if not waiting:
            time.sleep(timeout_s)
            return []
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [self._report(ref) if ref in self._shards else self._outcome(ref) for ref in ready]

    def _report(self, shard: Any) -> Event:
        try:
            return self._ray.get(next(shard))  # type: ignore[no-any-return]
        except StopIteration:
            return ShardDone(self._shards.pop(shard))
        except self._ray.exceptions.RayTaskError as error:
            # The text of Ray's own error is the worker's traceback.
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise InputError(
                f"a worker process died again and again ({type(error).__name__}); what was finished is kept: run the "
                "same command again, with fewer --workers if memory is short, or with --workers 0 to see at which clip"
            ) from error

    def _outcome(self, fetch: Any) -> FetchOutcome:
        recording = self._fetches.pop(fetch)
        try:
            return self._ray.get(fetch)  # type: ignore[no-any-return]
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            detail = f"its worker process died ({type(error).__name__})"
            return FetchOutcome(recording, reason=Reason.DOWNLOADER, detail=detail)
