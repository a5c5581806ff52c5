"""Who runs a teacher: this process, or actors on a Ray, which tasks beside them feed with decoded clips."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch

from featurestore.cachefiles import Precision
from featurestore.device import choose_device
from featurestore.embedder import ClipInputs, Embedder, Outputs
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.teachers.base import TeacherInput
from featurestore.teachers.ensemble import Ensemble
from featurestore.teacherwork import ShardReport, fill_shard
from ingest.cluster import start_ray
from ingest.location import Location, open_location
from manifests.errors import InputError

# Without a GPU an actor takes this share of a core, and the task that feeds it the rest: so both find room on any
# number of cores, and neither can wait for the other.
CPUS_OF_AN_ACTOR = 0.8
# A task, or an actor, is tried again when its machine or process dies.
MAX_RETRIES = 3


@dataclass(frozen=True)
class TeacherJob:
    """What is to be computed: a cache that is there, to be filled by `ensemble`."""

    store: Store
    cache: str
    ensemble: Ensemble
    precision: Precision
    with_tokens: bool

    @property
    def takes(self) -> list[TeacherInput]:
        """What the teachers take, a member each."""
        return [member.input for member in self.ensemble.members]


class TeacherPool(Protocol):
    """Fills shards of a cache; `on_cuda` says where its teachers run."""

    on_cuda: bool

    def fill(self, job: TeacherJob, shards: Sequence[int]) -> Iterator[tuple[int, ShardReport]]:
        """Reports of the shards as they come; an exception of a worker comes out here."""
        ...


@contextmanager
def open_pool(num_workers: int | None, ray_address: str | None, device: str) -> Iterator[TeacherPool]:
    """`num_workers` 0: this process; else Ray, on this machine or at an address, with so many processes (None: all).

    `device`: auto, cpu, cuda or (in this process) cuda:N. Raises InputError for a device or a cluster that isn't there.
    """
    if num_workers == 0:
        yield InProcess(choose_device(device), num_threads=1)
        return
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {device!r} names one device: give --workers 0 with it, or auto, cpu or cuda")
    if ray_address is None:
        # Ray may know of a GPU that PyTorch can't use.
        device = choose_device(device).type
    ray = start_ray(num_workers, ray_address)
    try:
        yield OnRay(ray, num_workers, device)
    finally:
        ray.shutdown()


class InProcess:
    """One shard after the other in this thread, while others decode."""

    def __init__(self, device: torch.device | None = None, num_threads: int | None = None) -> None:
        """`device`: None leaves the teachers, of float32, where they are; `num_threads`: of the teachers on a CPU.

        One thread gives what Ray's workers give, to the last bit; None: as many as there are.
        """
        self._device, self._num_threads = device, num_threads
        self.on_cuda = device is not None and device.type == "cuda"

    def fill(self, job: TeacherJob, shards: Sequence[int]) -> Iterator[tuple[int, ShardReport]]:
        cache = TeacherCache(job.store, job.cache, writable=True)
        ensemble = job.ensemble if self._device is None else job.ensemble.to(self._device)
        device_type = "cpu" if self._device is None else self._device.type
        embedder = Embedder(ensemble, job.precision, device_type, with_tokens=job.with_tokens)
        for shard in shards:
            for report in fill_shard(job.store, cache, shard, job.takes, lambda clips: self._embed(embedder, clips)):
                yield shard, report

    def _embed(self, embedder: Embedder, clips: ClipInputs) -> Outputs:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(self._num_threads or num_threads)
        try:
            return embedder(clips)
        finally:
            torch.set_num_threads(num_threads)


class OnRay:
    """An actor for each GPU, or each core where there are none; every shard is one task, that writes it as well.

    The driver sees reports alone.
    """

    def __init__(self, ray: Any, num_workers: int | None, device: str) -> None:
        """`num_workers`: shards at a time, and without GPUs actors. Raises InputError for cuda without a GPU."""
        self._ray = ray
        resources = ray.cluster_resources()
        num_gpus, num_cores = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
        if device == "cuda" and not num_gpus:
            raise InputError("--device cuda: Ray knows of no GPU here; give --device cpu, or start Ray with --num-gpus")
        self.on_cuda = device != "cpu" and num_gpus > 0
        at_a_time = min(num_workers or num_cores, num_cores)
        self._num_actors = num_gpus if self.on_cuda else at_a_time
        self._num_tasks = max(at_a_time, self._num_actors)

    def fill(self, job: TeacherJob, shards: Sequence[int]) -> Iterator[tuple[int, ShardReport]]:
        # Kept here as long as actors may be started anew from it. Once for all: a worker on another machine needs no
        # file of weights, and none can differ.
        ensemble = self._ray.put(job.ensemble)
        actors = self._start_actors(job, ensemble, min(self._num_actors, len(shards)))
        try:
            yield from self._fill_by(actors, job, shards)
        finally:
            # Their part of the cores is free again at once, also while an error is looked at.
            for actor in actors:
                self._ray.kill(actor)

    def _fill_by(self, actors: list[Any], job: TeacherJob, shards: Sequence[int]) -> Iterator[tuple[int, ShardReport]]:
        cpus = 1.0 if self.on_cuda else 1 - CPUS_OF_AN_ACTOR
        fill = self._ray.remote(num_cpus=cpus, max_retries=MAX_RETRIES)(_fill_remotely)
        location = _absolute(job.store.location)
        running: dict[Any, tuple[int, int]] = {}
        waiting = list(reversed(shards))
        load = [0] * len(actors)
        while waiting or running:
            while waiting and len(running) < self._num_tasks:
                least = load.index(min(load))
                shard = waiting.pop()
                task = fill.remote(location, job.store.snapshot.number, job.cache, shard, job.takes, actors[least])
                running[task] = (shard, least)
                load[least] += 1
            ready, _ = self._ray.wait(list(running), num_returns=1)
            for task in ready:
                shard, actor = running[task]
                report = self._next(task)
                if report is None:
                    del running[task]
                    load[actor] -= 1
                else:
                    yield shard, report

    def _start_actors(self, job: TeacherJob, ensemble: Any, number: int) -> list[Any]:
        options = {"num_gpus": 1, "num_cpus": 0} if self.on_cuda else {"num_cpus": CPUS_OF_AN_ACTOR}
        actor = self._ray.remote(max_restarts=MAX_RETRIES, max_task_retries=MAX_RETRIES, **options)(_Actor)
        # In a list, which the actor opens: of a bare reference Ray warns that its restarts may fail.
        return [actor.remote([ensemble], job.precision, job.with_tokens, self.on_cuda) for _ in range(number)]

    def _next(self, task: Any) -> ShardReport | None:
        """A task's next report, None at its end."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(next(task))  # type: ignore[no-any-return]
        except StopIteration:
            return None
        except errors.RayTaskError as error:
            cause = error.cause
            while isinstance(cause, errors.RayTaskError):  # the actor's, inside the task's
                cause = cause.cause
            if isinstance(cause, errors.RayError):  # an actor that is gone
                raise _died(cause) from error
            # The text of Ray's own error is the worker's traceback.
            raise cause from error
        except errors.RayError as error:
            raise _died(error) from error


def _died(error: Exception) -> InputError:
    return InputError(
        f"a worker process died again and again ({type(error).__name__}); what was finished is kept: run the same "
        "command again, with fewer --workers if memory is short (each has a copy of the teacher), or with --workers 0 "
        "to see at which clip"
    )


class _Actor:
    """Holds the teachers on one device, or on one core."""

    def __init__(self, reference: list[Any], precision: Precision, with_tokens: bool, on_cuda: bool) -> None:
        import ray

        # Sums over more threads would round otherwise, and the parallelism is one actor a core.
        torch.set_num_threads(1)
        device = torch.device("cuda" if on_cuda else "cpu")
        ensemble: Ensemble = ray.get(reference[0])
        self._embedder = Embedder(ensemble.to(device), precision, device.type, with_tokens=with_tokens)

    def embed(self, clips: ClipInputs) -> Outputs:
        return self._embedder(clips)


def _fill_remotely(
    location: str, snapshot: int, cache: str, shard: int, takes: list[TeacherInput], actor: Any
) -> Iterator[ShardReport]:
    import ray

    store, opened = _open(location, snapshot, cache)
    yield from fill_shard(store, opened, shard, takes, lambda clips: ray.get(actor.embed.remote(clips)))


@lru_cache(maxsize=1)
def _open(location: str, snapshot: int, cache: str) -> tuple[Store, TeacherCache]:
    """Once a worker process: it serves many shards of one build."""
    store = Store(open_location(location), snapshot)
    return store, TeacherCache(store, cache, writable=True)


def _absolute(location: Location) -> str:
    """An address that means the same in a worker's folder."""
    return str(location if location.folder is None else location.folder.resolve())
