"""Builds a teacher's cache: every clip of a store through a frozen model, shard by shard."""

from dataclasses import dataclass

from featurestore.cachefiles import Precision, cache_lock, write_cache_checksums
from featurestore.cacheplan import CacheOptions, CachePlan, plan_cache
from featurestore.store import Store
from featurestore.teachercache import TeacherCache, create_cache
from featurestore.teacherpool import InProcess, TeacherJob, TeacherPool
from featurestore.teachers.base import Teacher, WaveformInput
from featurestore.teachers.ensemble import Ensemble
from featurestore.waveforms import why_no_waveforms
from ingest.progress import ProgressDisplay
from manifests.errors import InputError


@dataclass(frozen=True)
class BuildResult:
    """Clips with a row, and those without and why."""

    cache: TeacherCache
    num_rows: int
    failures: list[str]


def build_teacher(store: Store, teacher: Teacher, name: str, *, with_tokens: bool = False) -> BuildResult:
    """Fills the cache `name` with `teacher`'s outputs for all clips, in this process, where the teacher is, in float32.

    Shards that are complete stay as they are. Raises InputError as `plan_cache` and `build_cache`.
    """
    options = CacheOptions(with_tokens=with_tokens, precision="float32")
    return build_cache(plan_cache(store, Ensemble([teacher]), name, options), InProcess())


def build_cache(plan: CachePlan, pool: TeacherPool) -> BuildResult:
    """Fills a cache as planned; shards that are complete stay as they are.

    Raises InputError when a cache of that name holds something else, another process is building it, or a teacher takes
    waveforms and none of those that are still wanted is at hand.
    """
    store = plan.store
    why_not = _why_no_waveforms(plan)
    if why_not is not None and plan.name not in store.teachers:
        raise InputError(why_not)
    precision = plan.precision(pool.on_cuda)
    with cache_lock(store, plan.name):
        cache = _create(plan, precision)
        shards = range(store.snapshot.num_shards)
        # What is complete needs no waveforms any more.
        if why_not is not None and not all(map(cache.has_shard, shards)):
            raise InputError(why_not)
        job = TeacherJob(store, plan.name, plan.ensemble, precision, plan.options.with_tokens)
        failures = _fill(job, pool, shards)
        write_cache_checksums(store, plan.name)
    # Opened again: workers have written it since.
    return BuildResult(TeacherCache(store, plan.name, writable=True), len(store) - len(failures), failures)


def begin_cache(plan: CachePlan, *, on_cuda: bool) -> None:
    """Makes a cache as planned, or opens it again, and fills nothing. Raises InputError as `build_cache`."""
    with cache_lock(plan.store, plan.name):
        _create(plan, plan.precision(on_cuda))


def _create(plan: CachePlan, precision: Precision) -> TeacherCache:
    return create_cache(plan.store, plan.name, plan.attributes(precision), plan.row_shapes)


def _fill(job: TeacherJob, pool: TeacherPool, shards: range) -> list[str]:
    failures: dict[int, list[str]] = {}
    num_failed = 0
    with ProgressDisplay("clips", len(job.store)) as display:
        for shard, report in pool.fill(job, shards):
            failures.setdefault(shard, []).extend(report.failures)
            num_failed += len(report.failures)
            display.advance(report.num_clips, f"{num_failed} failed")
    return [failure for shard in sorted(failures) for failure in failures[shard]]


def _why_no_waveforms(plan: CachePlan) -> str | None:
    members = [member for member in plan.ensemble.members if isinstance(member.input, WaveformInput)]
    if not members or (why_not := why_no_waveforms(plan.store)) is None:
        return None
    return (
        f"the teacher {members[0].name!r} takes waveforms, and none is at hand: {why_not}; put the sources back there, "
        "or ingest the store again with --keep-audio"
    )
