"""The student of an iteration as the teacher of the next: its cache, filled by all processes together."""

from pathlib import Path

from featurestore.build import begin_cache, build_cache
from featurestore.cachefiles import Precision
from featurestore.cacheplan import CacheOptions, plan_cache
from featurestore.store import Store
from featurestore.teacherpool import InProcess, TeacherJob
from featurestore.teachers.ensemble import Ensemble
from manifests.errors import InputError
from training.distributed import gather_objects, on_first, rank, world_size
from training.loop import Machine
from training.run import Run
from training.teacher import load_checkpoint_teacher


def build_own(run: Run, checkpoint: Path) -> str:
    """Fills a cache in each of the run's stores with what the checkpoint says of every clip, and returns its name.

    Every process must ask for it at the same time. Raises InputError where there is no embedding for a clip, and as
    :func:`featurestore.build.build_cache` does.
    """
    teacher = load_checkpoint_teacher(checkpoint).to(run.machine.device)
    # Named by content: two runs' teachers, or one trained anew, never share a cache.
    name = f"own-{teacher.provenance['checkpoint_sha256'][:12]}"
    for source in run.sources:
        if failures := _build(source.store, Ensemble([teacher]), name, run.machine):
            raise InputError(f"the previous iteration's model has no embedding for {failures[0]}")
    return name


def _build(store: Store, ensemble: Ensemble, name: str, machine: Machine) -> list[str]:
    """Clips without a row, and why. With several processes each fills its shards; the first then looks at them all."""
    precision: Precision = "float32" if machine.autocast is None else "bfloat16"
    options = CacheOptions(precision=precision)
    pool = InProcess(machine.device)
    if world_size() > 1:
        on_first(lambda: begin_cache(plan_cache(store, ensemble, name, options), on_cuda=pool.on_cuda))
        _fill_mine(TeacherJob(store, name, ensemble, precision, with_tokens=False), pool)

    def complete() -> list[str]:
        return build_cache(plan_cache(store, ensemble, name, options), pool).failures

    return on_first(complete)


def _fill_mine(job: TeacherJob, pool: InProcess) -> None:
    """This process's shards. Raises InputError in all processes where one can't."""
    error = ""
    try:
        for _ in pool.fill(job, range(rank(), job.store.snapshot.num_shards, world_size())):
            pass
    except InputError as raised:
        error = str(raised)
    if errors := [said for said in gather_objects(error) if said]:
        raise InputError(errors[0])
