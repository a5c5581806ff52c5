"""Runs shard tasks and downloads, in this process or on a Ray: both report as they go."""

import logging
import os
import queue
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ingest.fetching import FetchOutcome, FetchTask, fetch_recording, stop_downloads
from ingest.shards import ShardProgress, ShardTask, write_shard
from manifests.errors import InputError

# Tasks waiting behind the running ones, so that no worker idles while the driver prepares the next.
QUEUED_PER_WORKER = 1
# A download waits for the network, and leaves the core to the features.
CPUS_PER_DOWNLOAD = 0.05
# A task is tried again when its machine or process dies.
MAX_RETRIES = 3


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A shard task has ended, and its shard is committed."""

    shard: int


Event = ShardProgress | ShardDone | FetchOutcome


class Executor(Protocol):
    """Takes tasks and reports what came of them; `window`: how many shards it makes sense to have submitted."""

    window: int

    def submit_shard(self, task: ShardTask) -> None: ...

    def submit_fetch(self, task: FetchTask) -> None: ...

    def wait(self, timeout_s: float) -> list[Event]:
        """What has been reported, after `timeout_s` at most; an exception of a task comes out here."""
        ...


@contextmanager
def in_process(num_downloads: int) -> Iterator[Executor]:
    """Without Ray: one shard after the other in this thread, while others download."""
    with ThreadPoolExecutor(num_downloads, "download") as pool:
        try:
            yield _InProcess(pool)
        finally:
            # On Ctrl-C nobody waits for a slow server.
            pool.shutdown(wait=False, cancel_futures=True)
            stop_downloads()


class _InProcess:
    window = 1 + QUEUED_PER_WORKER

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._shards: deque[tuple[int, Iterator[ShardProgress]]] = deque()
        self._fetched: queue.Queue[Callable[[], FetchOutcome]] = queue.Queue()

    def submit_shard(self, task: ShardTask) -> None:
        self._shards.append((task.shard, _write_shard_on_one_thread(task)))

    def submit_fetch(self, task: FetchTask) -> None:
        self._pool.submit(fetch_recording, task).add_done_callback(lambda done: self._fetched.put(done.result))

    def wait(self, timeout_s: float) -> list[Event]:
        events: list[Event] = []
        if self._shards:
            shard, progress = self._shards[0]
            report = next(progress, None)
            if report is None:
                self._shards.popleft()
            events.append(ShardDone(shard) if report is None else report)
            timeout_s = 0.0
        try:
            while True:
                events.append(self._fetched.get(timeout=0.0 if events else timeout_s, block=not events)())
        except queue.Empty:
            return events


@contextmanager
def on_ray(num_workers: int | None, address: str | None) -> Iterator[Executor]:
    """On the Ray cluster at `address`, or on a Ray of this machine with `num_workers` processes (None: one a core).

    Only tasks and reports pass through the driver: a worker reads and writes files itself. On a cluster all of its
    cores are used, unless `num_workers` says fewer.
    """
    ray = _start_ray(num_workers, address)
    try:
        workers = num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield _OnRay(ray, workers, queued=0 if address and num_workers else workers * QUEUED_PER_WORKER)
    finally:
        ray.shutdown()


def _start_ray(num_workers: int | None, address: str | None) -> Any:
    # Ray's own choice for later versions, which it warns of until it is made.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Nothing is reported to anybody unless the user wants it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Imported here: Ray takes a second to import and --workers 0 does without it.
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        ray.init(address="local", num_cpus=num_workers, include_dashboard=False, **options)
        return ray
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise InputError(
            f"no Ray cluster answers at {address!r} ({str(error).splitlines()[0]}); start one with `ray start --head`, "
            "correct --ray-address (or RAY_ADDRESS), or leave it out to use this machine alone"
        ) from error
    return ray


def _write_shard_on_one_thread(task: ShardTask) -> Iterator[ShardProgress]:
    """One thread: the parallelism is one shard a core, and sums over threads would round otherwise than over one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from write_shard(task)
    finally:
        torch.set_num_threads(num_threads)


class _OnRay:
    def __init__(self, ray: Any, num_workers: int, queued: int) -> None:
        self.window = num_workers + queued
        self._ray = ray
        self._shard = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_write_shard_on_one_thread)
        self._fetch = ray.remote(num_cpus=CPUS_PER_DOWNLOAD, max_retries=MAX_RETRIES)(fetch_recording)
        self._shards: dict[Any, int] = {}
        self._fetches: list[Any] = []

    def submit_shard(self, task: ShardTask) -> None:
        self._shards[self._shard.remote(task)] = task.shard

    def submit_fetch(self, task: FetchTask) -> None:
        self._fetches.append(self._fetch.remote(task))

    def wait(self, timeout_s: float) -> list[Event]:
        waiting = [*self._shards, *self._fetches]
        if not waiting:
            return []
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=timeout_s)
        return [self._event(reference) for reference in ready]

    def _event(self, reference: Any) -> Event:
        try:
            if reference in self._shards:
                return self._ray.get(next(reference))  # type: ignore[no-any-return]
            self._fetches.remove(reference)
            return self._ray.get(reference)  # type: ignore[no-any-return]
        except StopIteration:
            return ShardDone(self._shards.pop(reference))
        except self._ray.exceptions.RayTaskError as error:
            # The text of Ray's own error is the worker's traceback.
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise InputError(
                f"a worker process died again and again ({type(error).__name__}); what was finished is kept: run the "
                "same command again, with fewer --workers if memory is short, or with --workers 0 to see at which clip"
            ) from error
