"""Runs shard tasks in this process or on Ray: a sliding window of tasks, one shard a task."""

import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ingest.shards import ShardProgress, ShardTask, write_shard
from manifests.errors import InputError

# Tasks waiting behind the running ones, so that no worker idles while the driver prepares the next.
QUEUED_PER_WORKER = 1


def run_in_process(tasks: Iterable[ShardTask]) -> Iterator[ShardProgress]:
    """Makes the shards one after the other, without Ray."""
    for task in tasks:
        yield from _write_shard_on_one_thread(task)


def run_on_ray(tasks: Iterable[ShardTask], num_workers: int | None) -> Iterator[ShardProgress]:
    """Makes the shards on a local Ray with `num_workers` processes (None: one a core).

    Only tasks and progress pass through the driver: a worker reads and writes files itself. At most
    (1 + QUEUED_PER_WORKER) tasks a worker are submitted at a time, however many there are.
    """
    ray = _start_ray(num_workers)
    try:
        workers = num_workers or int(ray.cluster_resources()["CPU"])
        remote = ray.remote(num_cpus=1, max_retries=2)(_write_shard_on_one_thread)
        yield from _drain(ray, remote, iter(tasks), window=workers * (1 + QUEUED_PER_WORKER))
    finally:
        ray.shutdown()


def _start_ray(num_workers: int | None) -> Any:
    # Ray's own choice for later versions, which it warns of until it is made.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Nothing is reported to anybody unless the user wants it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Imported here: Ray takes a second to import and --workers 0 does without it.
    import ray

    ray.init(
        address="local",  # whatever RAY_ADDRESS says
        num_cpus=num_workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    return ray


def _write_shard_on_one_thread(task: ShardTask) -> Iterator[ShardProgress]:
    """One thread: the parallelism is one shard a core, and sums over threads would round otherwise than over one."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from write_shard(task)
    finally:
        torch.set_num_threads(num_threads)


def _drain(ray: Any, remote: Any, tasks: Iterator[ShardTask], window: int) -> Iterator[ShardProgress]:
    """Keeps `window` tasks submitted and yields their reports as they come."""
    running: list[Any] = []
    exhausted = False
    while True:
        while not exhausted and len(running) < window:
            task = next(tasks, None)
            if task is None:
                exhausted = True
            else:
                running.append(remote.remote(task))
        if not running:
            return
        ready, _ = ray.wait(running, num_returns=1)
        for stream in ready:
            try:
                yield ray.get(next(stream))
            except StopIteration:
                running.remove(stream)
            except ray.exceptions.RayTaskError as error:
                # The text of Ray's own error is the worker's traceback.
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise InputError(
                    f"a worker process died ({type(error).__name__}); what was finished is kept: run the same command "
                    "again, with fewer --workers, or with --workers 0 to see at which clip"
                ) from error
