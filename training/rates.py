"""How fast a device trains: measured here, or a share of a peak that is known."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from manifests.errors import InputError
from training.config import RunConfig, Stage
from training.gpus import DEVICES
from training.plan import NUM_CLASSES, Rate, flops_of, memory_of, stages_of, teacher_dim_of
from training.steptrial import TrialSizes, measure_step, uses_autocast

DEFAULT_MFU = 0.5
# A trial of a few steps on a CPU, which does some 10^11 FLOP/s: half a minute or less.
MAX_CPU_FLOPS_PER_STEP = 5e11
# Of a dry run on a CPU: ten steps of two stages are done in some twenty seconds.
DRY_RUN_FLOPS_PER_STEP = 1e11
MIN_BATCH_SIZE, MIN_FRAMES = 2, 256
# What the allocator can't use, and the estimate's errors, are a tenth.
FREE_SHARE = 0.9
# Of cgroups 2 and 1: a container's share of the machine's memory.
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
TERA, GIB = 1e12, 2**30


@dataclass(frozen=True, slots=True)
class RateWish:
    """How the user wants the rate to be found; None: not said."""

    tflops_per_s: float | None = None
    device_name: str | None = None
    mfu: float | None = None
    measure: bool = False


def choose_rate(config: RunConfig, wish: RateWish, num_gpus: int, device: torch.device) -> Rate:
    """The rate that is wished for: a share of a peak, or what a short trial on `device` reaches.

    Raises InputError for wishes that contradict each other, and where a trial is not possible or would take long.
    """
    _check(wish)
    if wish.device_name is not None and config.precision == "float32":
        raise InputError(
            f"--device-name {wish.device_name} stands for its 16-bit peak, which precision=float32 doesn't reach; give "
            "the device's float32 peak as --tflops-per-s, or leave out --set precision=float32"
        )
    mfu = DEFAULT_MFU if wish.mfu is None else wish.mfu
    if wish.tflops_per_s is not None:
        reached = wish.tflops_per_s * TERA * mfu
        return Rate(reached, reached, f"estimate: {mfu:.0%} of {wish.tflops_per_s:g} TFLOP/s")
    if wish.device_name is not None:
        known = DEVICES[wish.device_name]
        reached = known.peak_tflops_per_s * TERA * mfu
        source = f"estimate: {mfu:.0%} of the {known.peak_tflops_per_s:g} TFLOP/s of a {wish.device_name}"
        return Rate(reached, reached, source, int(known.memory_gib * GIB))
    if wish.mfu is not None:
        raise InputError("--mfu is a share of a peak: give --device-name or --tflops-per-s as well")
    _check_possible(config, num_gpus, device, asked=wish.measure)
    return measured_rate(config, num_gpus, device)


def _check(wish: RateWish) -> None:
    given = [
        name
        for name, value in (
            ("--tflops-per-s", wish.tflops_per_s),
            ("--device-name", wish.device_name),
            ("--measure", wish.measure or None),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} say the same thing; give one of them")
    if wish.device_name is not None and wish.device_name not in DEVICES:
        raise InputError(
            f"--device-name {wish.device_name!r} is not known; known are {', '.join(DEVICES)}; for others give "
            "--tflops-per-s"
        )
    if wish.tflops_per_s is not None and not (math.isfinite(wish.tflops_per_s) and wish.tflops_per_s > 0):
        raise InputError(f"--tflops-per-s {wish.tflops_per_s:g} is no rate; give the device's peak, above 0")
    if wish.mfu is not None and not 0 < wish.mfu <= 1:
        raise InputError(f"--mfu {wish.mfu:g} is no share; give one above 0, at most 1")


def _check_possible(config: RunConfig, num_gpus: int, device: torch.device, *, asked: bool) -> None:
    """Refuses a trial that doesn't fit, or one that nobody asked for and that would take minutes."""
    alternatives = f"give --device-name ({', '.join(DEVICES)}) or --tflops-per-s"
    available = memory_bytes(device)
    for stage in stages_of(config):
        needed = _needed_bytes(config, stage, num_gpus, device)
        if needed > FREE_SHARE * available:
            raise InputError(
                f"the rate can't be measured here: a {stage} step takes about {needed / GIB:.0f} GiB and {device} has "
                f"{available / GIB:.0f} GiB; {alternatives}, or set a smaller batch_size"
            )
        flops = flops_of(config, stage, num_gpus).hardware
        if device.type == "cpu" and not asked and flops > MAX_CPU_FLOPS_PER_STEP:
            raise InputError(
                f"measuring would take minutes on this CPU ({flops / TERA:.1f} TFLOP a {stage} step); {alternatives}, "
                "or ask for it with --measure"
            )


def _needed_bytes(config: RunConfig, stage: Stage, num_gpus: int, device: torch.device) -> int:
    memory = memory_of(config, stage, num_gpus, autocast=uses_autocast(config, device))
    return (memory.recomputing if config.model.recompute else memory.keeping).total


def memory_bytes(device: torch.device) -> int:
    """All memory of a device; on a CPU what this process may have of it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_memory_limits()])


def _memory_limits() -> Iterator[int]:
    for path in MEMORY_LIMITS:
        # "max" where there is no limit, and no file without the controller
        with suppress(OSError, ValueError):
            yield int(path.read_text())


def small_enough(config: RunConfig, device: torch.device) -> RunConfig:
    """The configuration made smaller until a step fits into the memory and, on a CPU, takes a second or so.

    Batches are halved, and from batches of two on the model of both stages: its blocks, then its frames. Its width
    stays, and so about the same FLOP/s are reached.
    """
    # Compiling takes longer than the trial.
    config = config.model_copy(update={"compile": "off"})
    for stage in stages_of(config):
        while not _is_easy(config, stage, device) and (smaller := _halved(config, stage)) is not None:
            config = smaller
    return config


def _is_easy(config: RunConfig, stage: Stage, device: torch.device) -> bool:
    quick = device.type != "cpu" or flops_of(config, stage, 1).hardware <= DRY_RUN_FLOPS_PER_STEP
    return quick and _needed_bytes(config, stage, 1, device) <= FREE_SHARE * memory_bytes(device)


def _halved(config: RunConfig, stage: Stage) -> RunConfig | None:
    """With half of a stage's batch or, where that is small, of the blocks or the frames; None: nothing is left."""
    optimiser, model = config.optimiser_of(stage), config.model
    if optimiser.batch_size > MIN_BATCH_SIZE:
        size = max(optimiser.batch_size // 2, MIN_BATCH_SIZE)
        smaller = optimiser.model_copy(update={"batch_size": size})
        section = getattr(config, stage).model_copy(update={"optimiser": smaller})
        return config.model_copy(update={stage: section})
    if model.depth > 1:
        return config.model_copy(update={"model": model.model_copy(update={"depth": model.depth // 2})})
    if model.num_frames > MIN_FRAMES:
        return config.model_copy(update={"model": model.model_copy(update={"num_frames": model.num_frames // 2})})
    return None


def measured_rate(config: RunConfig, num_gpus: int, device: torch.device) -> Rate:
    """The rate that short trials of the stages reach here. Raises InputError where the memory is too small."""
    reached = dict[Stage, float]()
    for stage in stages_of(config):
        sizes = TrialSizes(config.optimiser_of(stage).batch_size // num_gpus, NUM_CLASSES, teacher_dim_of(config))
        flops = flops_of(config, stage, num_gpus).hardware
        reached[stage] = flops / measure_step(stage, config, sizes, device).step_s
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    one = next(iter(reached.values()))
    rates = reached.get("multissl", one), reached.get("distill", one)
    return Rate(*rates, f"measured here: {name}", memory_bytes(device), is_measured=True)
