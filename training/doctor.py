"""What a training needs on this machine: what is there, what is missing, and what a run would take, by a dry run."""

import importlib.metadata
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from featurestore.loader import sequential_batches
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from ingest.diskroom import disk_room
from manifests.errors import InputError
from manifests.findings import Finding, Status, refusal
from training.config import RunConfig
from training.experiment import check_start
from training.iterations import RANDOM
from training.plan import Plan, make_plan, stages_of
from training.rates import FREE_SHARE, GIB, measured_rate, memory_bytes, small_enough
from training.run import NO_TEACHER, OWN_TEACHER, check_sources, check_teachers
from training.sources import Source, make_sources
from training.splits import choose_split
from training.steptrial import uses_autocast

LIBRARIES = ("torch", "torchaudio", "numpy", "zarr", "pyarrow", "acm-sskd")
READING_S = 2.0
SCARCE_SHARE = 2.0


@dataclass(frozen=True)
class Wish:
    """What is to be trained, where, and on which store; `num_clips` stands in for a store that isn't there yet."""

    config: RunConfig
    num_iterations: int
    device: torch.device
    store: Store | None
    folder: Path
    num_clips: int


def examine(wish: Wish, *, with_trial: bool = True) -> Iterator[Finding]:
    """The findings, as they come. With a trial, the last ones are a dry run's, of twenty seconds or so."""
    yield examine_versions()
    yield examine_device(wish.device)
    if wish.device.type == "cuda" or wish.config.compile == "on":
        yield examine_compiler(wish.config, wish.device)
    if wish.config.initialise != RANDOM:
        yield examine_start(wish.config)
    num_clips, reads_per_s = wish.num_clips, None
    if wish.store is not None:
        finding, sources = examine_store(wish.store, wish.config)
        yield finding
        if not sources:
            # Of how many clips the hours would be, nobody knows.
            return
        num_clips = len(sources[0].rows)
        yield from examine_sources(sources, wish.config)
        finding, reads_per_s = examine_reading(wish.store, wish.config)
        yield finding
    if with_trial:
        yield from examine_trial(wish, num_clips, reads_per_s)


def examine_versions() -> Finding:
    """The libraries that results depend on."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    return Finding("versions", Status.OK, f"Python {sys.version.split()[0]}, {', '.join(versions)}")


def examine_device(device: torch.device) -> Finding:
    """The device that is trained on, and why it is no GPU where it isn't."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        found = (
            f"{properties.name}, compute capability {properties.major}.{properties.minor}, {free / GIB:.0f} of "
            f"{total / GIB:.0f} GiB free, CUDA {torch.version.cuda}"
        )
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return Finding("device", Status.WARNING, f"{found}, no bfloat16", "--set precision=float32")
        if free < total / 2:
            return Finding("device", Status.WARNING, found, "others use it: `nvidia-smi` says who")
        return Finding("device", Status.OK, found)
    memory = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory_bytes(device) / GIB:.0f} GiB"
    if torch.cuda.is_available():
        return Finding("device", Status.WARNING, f"CPU ({memory}), though there is a GPU", "--device cuda")
    if Path("/dev/nvidia0").exists():
        why = "built without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda}, can't use it"
        remedy = "install a torch for this driver (`nvidia-smi` names its CUDA): https://pytorch.org/get-started"
        return Finding("device", Status.WARNING, f"CPU ({memory}): there is an NVIDIA GPU, but torch is {why}", remedy)
    return Finding("device", Status.OK, f"CPU ({memory}); no GPU: presets demo, tiny and small are for this")


def examine_compiler(config: RunConfig, device: torch.device) -> Finding:
    """What torch.compile needs beside torch: for Triton's kernels a C compiler, for a CPU's a C++ compiler."""
    if config.compile == "off":
        return Finding("torch.compile", Status.OK, "off")
    language, variable, names = ("C", "CC", ("gcc", "clang")) if device.type == "cuda" else ("C++", "CXX", ("g++",))
    compiler = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        remedy = f"install {names[0]}, or --set compile=off"
        found = f"no {language} compiler, which it needs at its first step"
        return Finding("torch.compile", Status.MISSING, found, remedy)
    return Finding("torch.compile", Status.OK, f"{compiler}")


def examine_start(config: RunConfig) -> Finding:
    """Whether the model can start from the weights that the configuration names; those of timm are fetched for that."""
    try:
        check_start(config)
    except InputError as error:
        return refusal("initialise", error)
    return Finding("initialise", Status.OK, config.initialise)


def examine_store(store: Store, config: RunConfig) -> tuple[Finding, list[Source]]:
    """Whether the store has clips that the model can train on, and these; none where not."""
    name, held = f"store {store.location}", store.file.fbank.num_frames
    if held < config.model.num_frames:
        found = f"its clips have {held} frames, and the model takes {config.model.num_frames}"
        remedy = f"--set model.num_frames={held}, or ingest with --num-frames {config.model.num_frames}"
        return Finding(name, Status.MISSING, found, remedy), []
    try:
        split = choose_split(store, config.data, config.seed)
        sources = make_sources([store], split)
    except InputError as error:
        return Finding(name, Status.MISSING, str(error), "see `featurestore info`"), []
    found = (
        f"{len(store):,} clips, {store.num_classes} labels; {len(split.train):,} to train on, "
        f"{len(split.held_out):,} held out ({split.name})"
    )
    return Finding(name, Status.OK, found), sources


def examine_sources(sources: Sequence[Source], config: RunConfig) -> Iterator[Finding]:
    """The teacher's cache where one is asked for, and what `training run` itself checks before it begins."""
    teacher = config.distill.teacher
    if "distill" in stages_of(config) and teacher not in (NO_TEACHER, OWN_TEACHER):
        finding = examine_teacher(sources[0].store, teacher)
        yield finding
        if finding.status is Status.MISSING:
            return
    try:
        check_sources(sources, config)
        check_teachers(sources, config)
    except InputError as error:
        yield refusal("training run", error)
    else:
        yield Finding("training run", Status.OK, "takes these clips, labels and batches")


def examine_teacher(store: Store, teacher: str) -> Finding:
    """Whether the store has the teacher's cache; which clips it lacks is for :func:`training.run.check_teachers`."""
    name = f"teacher {teacher}"
    try:
        attributes = TeacherCache(store, teacher).attributes
    except InputError as error:
        remedy = f"featurestore build-teacher --model ... --name {teacher} --store {store.location}"
        return Finding(name, Status.MISSING, str(error), remedy)
    return Finding(name, Status.OK, f"{attributes.embedding_dim} wide, {attributes.num_views} views of a clip")


def examine_reading(store: Store, config: RunConfig) -> tuple[Finding, float | None]:
    """Reads batches for two seconds: what the loader gives, in clips a second; None where it can't read."""
    num_read, started = 0, time.perf_counter()
    size = config.multissl.optimiser.batch_size
    try:
        for batch in sequential_batches(store, store.rows(), size):
            num_read += len(batch.rows)
            if time.perf_counter() - started > READING_S:
                break
    except InputError as error:
        return refusal("reading", error), None
    rate = num_read / (time.perf_counter() - started)
    return Finding("reading", Status.OK, f"{rate:,.0f} clips/s in the store's order ({num_read:,} clips read)"), rate


def examine_trial(wish: Wish, num_clips: int, reads_per_s: float | None) -> Iterator[Finding]:
    """Steps on noise: hours, memory and disk of the run that is wished for, on so many clips."""
    config = small_enough(wish.config, wish.device)
    try:
        rate = measured_rate(config, 1, wish.device)
    except InputError as error:
        yield Finding("dry run", Status.MISSING, str(error), "choose a smaller preset")
        return
    autocast = uses_autocast(wish.config, wish.device)
    stored = None if wish.store is None else wish.store.file.fbank
    plan = make_plan(wish.config, num_clips, wish.num_iterations, 1, rate, autocast=autocast, stored=stored)
    yield _time(plan, wish.config, config)
    yield _memory(plan)
    yield examine_disk(wish.folder, plan.disk.checkpoints)
    if reads_per_s is not None and reads_per_s < plan.loader_clips_per_s:
        found = f"the device takes {plan.loader_clips_per_s:,.0f} clips/s, more than are read"
        yield Finding("data wait", Status.WARNING, found, "keep the store on a faster disk of this machine")


def examine_disk(folder: Path, needed_bytes: int) -> Finding:
    """Room and permission for the run's folder."""
    try:
        existing, free = disk_room(folder)
    except InputError as error:
        return Finding("disk", Status.MISSING, str(error), "choose --run")
    found = f"{free / 1e9:,.1f} GB free at {existing}; checkpoints take {needed_bytes / 1e9:,.2f} GB"
    if free < needed_bytes:
        return Finding("disk", Status.MISSING, found, "make room, or choose another --run")
    if free < SCARCE_SHARE * needed_bytes:
        return Finding("disk", Status.WARNING, found, "make room: a checkpoint is written before its older one goes")
    return Finding("disk", Status.OK, found)


def _time(plan: Plan, wanted: RunConfig, tried: RunConfig) -> Finding:
    sizes = " and ".join(str(tried.optimiser_of(stage).batch_size) for stage in stages_of(tried))
    # A smaller model was timed where even its smallest batch would take minutes, or too much memory.
    models = [
        f"{part} of {whole} {what}"
        for part, whole, what in (
            (tried.model.depth, wanted.model.depth, "blocks"),
            (tried.model.num_frames, wanted.model.num_frames, "frames"),
        )
        if part != whole
    ]
    found = (
        f"{plan.gpu_hours:,.2f} hours on {plan.num_clips:,} clips, iterations: {plan.num_iterations}; evaluations left "
        f"out ({plan.rate.source}; steps of {', '.join([f'{sizes} clips', *models])}, not compiled)"
    )
    return Finding("time", Status.OK, found)


def _memory(plan: Plan) -> Finding:
    available, needed = plan.rate.memory_bytes or 0, dict[str, int]()
    for memory in plan.memory:
        needed[memory.stage] = (memory.recomputing if plan.recompute else memory.keeping).total
    parts = ", ".join(f"{stage} {size / GIB:.1f} GiB" for stage, size in needed.items())
    found = f"{parts} of {available / GIB:.0f} (worked out)"
    if max(needed.values()) <= FREE_SHARE * available:
        return Finding("memory", Status.OK, found)
    remedy = "--set model.recompute=true, a smaller batch_size, or several GPUs (docs/distributed.md)"
    if max(needed.values()) <= available:
        return Finding("memory", Status.WARNING, f"{found}: tight, for this is an estimate", remedy)
    return Finding("memory", Status.MISSING, found, remedy)
