"""What a run will cost, before anyone pays for it: steps, FLOPs, hours, memory, disk."""

import math
from dataclasses import dataclass
from typing import Literal

from manifests.errors import InputError
from manifests.geometry import FLOAT16_BYTES, FbankSpec, HogSpec, bytes_per_clip
from training.config import RunConfig, Stage
from training.flops import (
    StepFlops,
    StepMemory,
    distill_flops,
    distill_memory,
    multissl_flops,
    multissl_memory,
    multissl_parameters,
    student_parameters,
)
from training.schedule import num_steps_of

# The paper's own figure for one iteration on AudioSet-2M; on how many epochs it is not known.
PAPER_V100_HOURS = 896
# AudioSet's classes; the classifier is too small to matter.
NUM_CLASSES = 527
# What one loader process was measured to read on two cores (benchmarks/results).
LOADER_CLIPS_PER_S = 10_000
FLOAT32_BYTES = 4
# last.pt holds the weights and AdamW's two states, best.pt the weights.
# A finished stage keeps last.pt and best.pt; the one at work has an optimiser's two moments, too.
CHECKPOINT_BYTES_PER_PARAMETER, OPTIMISER_BYTES_PER_PARAMETER = 2 * FLOAT32_BYTES, 2 * FLOAT32_BYTES
# Embeddings of the official models; that of EfficientAT is mn04's.
TEACHER_DIMS = {"beats": 768, "ast": 768, "efficientat": 384}

PlannedStage = Stage | Literal["teacher"]


@dataclass(frozen=True, slots=True)
class Rate:
    """FLOP/s that one device reaches in each stage, in words where from, and its memory where known."""

    multissl_flops_per_s: float
    distill_flops_per_s: float
    source: str
    memory_bytes: int | None = None
    is_measured: bool = False

    def of(self, stage: PlannedStage) -> float:
        return self.multissl_flops_per_s if stage == "multissl" else self.distill_flops_per_s


@dataclass(frozen=True, slots=True)
class StageCost:
    """A stage of an iteration on all GPUs; `teacher` is the model of the iteration before, over every clip once."""

    iteration: int
    stage: PlannedStage
    num_steps: int
    flops: float
    gpu_hours: float
    wall_hours: float
    clips_per_s_per_gpu: float


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes for a stage on each GPU, as configured and with `model.recompute` the other way."""

    stage: Stage
    batch_size_per_gpu: int
    keeping: StepMemory
    recomputing: StepMemory


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes: the store's shards, teachers' caches (float16 embeddings), and the run's checkpoints."""

    shards: int
    teacher_caches: int
    checkpoints: int


@dataclass(frozen=True)
class Plan:
    """The cost of a run. FLOPs follow from the shapes; hours from `rate`; activations and disk are estimates."""

    num_clips: int
    num_iterations: int
    num_gpus: int
    rate: Rate
    stages: tuple[StageCost, ...]
    memory: tuple[StageMemory, ...]
    disk: Disk
    teacher: str
    teacher_dim: int
    recompute: bool

    @property
    def gpu_hours(self) -> float:
        return sum(cost.gpu_hours for cost in self.stages)

    @property
    def loader_clips_per_s(self) -> float:
        """What each GPU's loader must give."""
        return max(cost.clips_per_s_per_gpu for cost in self.stages)

    def fits(self, memory: StageMemory) -> bool | None:
        """Whether a stage fits, as configured, into a GPU; None where its memory isn't known."""
        wanted = memory.recomputing if self.recompute else memory.keeping
        return None if self.rate.memory_bytes is None else wanted.total <= self.rate.memory_bytes


def check_sizes(config: RunConfig, num_clips: float, num_iterations: int, num_gpus: int) -> None:
    """Raises InputError for sizes of which there is no plan."""
    if not (math.isfinite(num_clips) and num_clips >= 1 and num_clips == int(num_clips)):
        raise InputError(f"--clips {num_clips:g} is no number of clips; give a whole number from 1, like 1.9e6")
    if num_iterations < 1:
        raise InputError(f"--iter {num_iterations} is no number of iterations; give 1 or more")
    if num_gpus < 1:
        raise InputError(f"--gpus {num_gpus} is no number of GPUs; give 1 or more")
    for optimiser in (config.multissl.optimiser, config.distill.optimiser):
        if optimiser.epochs > 0 and optimiser.batch_size % num_gpus:
            raise InputError(
                f"batches of {optimiser.batch_size} can't be shared by {num_gpus} GPUs; choose a divisor as --gpus, or "
                "change multissl.optimiser.batch_size and distill.optimiser.batch_size"
            )


def teacher_dim_of(config: RunConfig) -> int | None:
    """The width of the teacher's embedding, None without a teacher; one that isn't known is taken as wide as the model.

    The first iteration of teacher `own` has none, which changes next to nothing.
    """
    teacher = config.distill.teacher
    return None if teacher == "none" else TEACHER_DIMS.get(teacher, config.model.width)


def flops_of(config: RunConfig, stage: PlannedStage, num_gpus: int) -> StepFlops:
    """A step of one GPU; for the stage `teacher` one clip."""
    model = config.model
    if stage == "multissl":
        size = config.multissl.optimiser.batch_size // num_gpus
        return multissl_flops(model, config.multissl, size, num_gpus)
    size = 1 if stage == "teacher" else config.distill.optimiser.batch_size // num_gpus
    return distill_flops(model, config.distill, size, NUM_CLASSES, teacher_dim_of(config))


def memory_of(config: RunConfig, stage: Stage, num_gpus: int, *, autocast: bool) -> StageMemory:
    """A stage's memory on each GPU."""

    def of(*, recompute: bool) -> StepMemory:
        model = config.model.model_copy(update={"recompute": recompute})
        if stage == "multissl":
            return multissl_memory(model, config.multissl, size, autocast=autocast)
        return distill_memory(model, size, NUM_CLASSES, teacher_dim_of(config), autocast=autocast)

    size = config.optimiser_of(stage).batch_size // num_gpus
    return StageMemory(stage, size, of(recompute=False), of(recompute=True))


def stages_of(config: RunConfig) -> list[Stage]:
    """The stages that are trained at all."""
    both: tuple[Stage, ...] = ("multissl", "distill")
    return [stage for stage in both if config.optimiser_of(stage).epochs > 0]


def make_plan(
    config: RunConfig,
    num_clips: int,
    num_iterations: int,
    num_gpus: int,
    rate: Rate,
    *,
    autocast: bool,
    stored: FbankSpec | None = None,
) -> Plan:
    """The cost of `num_iterations` on `num_clips` clips to train on, stored as `stored` (None: of 1024 frames).

    The configuration's batch sizes are those of all GPUs together. Left out: evaluations, and the time in which GPUs
    wait for one another or for data. Raises InputError as :func:`check_sizes`.
    """
    check_sizes(config, num_clips, num_iterations, num_gpus)
    stored = stored or FbankSpec()
    trained = stages_of(config)
    costs = []
    for iteration in range(1, num_iterations + 1):
        is_taught = config.distill.teacher == "own" and iteration > 1 and "distill" in trained
        stages: list[PlannedStage] = [*trained[:-1], "teacher", *trained[-1:]] if is_taught else [*trained]
        costs += [_stage_cost(config, iteration, stage, num_clips, num_gpus, rate, stored) for stage in stages]
    return Plan(
        num_clips=num_clips,
        num_iterations=num_iterations,
        num_gpus=num_gpus,
        rate=rate,
        stages=tuple(costs),
        memory=tuple(memory_of(config, stage, num_gpus, autocast=autocast) for stage in trained),
        disk=_disk(config, num_clips, num_iterations, stored),
        teacher=config.distill.teacher,
        teacher_dim=teacher_dim_of(config) or 0,
        recompute=config.model.recompute,
    )


def _stage_cost(
    config: RunConfig,
    iteration: int,
    stage: PlannedStage,
    num_clips: int,
    num_gpus: int,
    rate: Rate,
    stored: FbankSpec,
) -> StageCost:
    step = flops_of(config, stage, num_gpus)
    if stage == "teacher":
        # All windows of a stored clip are seen, forwards only.
        num_steps = 0
        flops = float(num_clips * step.forward * (stored.num_frames // config.model.num_frames))
        shown = float(num_clips)
    else:
        optimiser = config.optimiser_of(stage)
        num_steps = num_steps_of(optimiser.epochs, num_clips, optimiser.batch_size)
        flops, shown = float(num_steps * num_gpus * step.hardware), float(num_steps * optimiser.batch_size)
    gpu_s = flops / rate.of(stage)
    return StageCost(iteration, stage, num_steps, flops, gpu_s / 3600, gpu_s / 3600 / num_gpus, shown / gpu_s)


def _disk(config: RunConfig, num_clips: int, num_iterations: int, stored: FbankSpec) -> Disk:
    teacher = config.distill.teacher
    num_caches = num_iterations - 1 if teacher == "own" else int(teacher != "none")
    if "distill" not in stages_of(config):
        num_caches = 0
    parameters = {
        "multissl": multissl_parameters(config.model),
        "distill": student_parameters(config.model, NUM_CLASSES, teacher_dim_of(config)),
    }
    trained = [parameters[stage] for stage in stages_of(config)]
    checkpoints = num_iterations * sum(trained) * CHECKPOINT_BYTES_PER_PARAMETER
    values_per_clip = (teacher_dim_of(config) or 0) + NUM_CLASSES
    return Disk(
        shards=num_clips * bytes_per_clip(stored, HogSpec()),
        teacher_caches=num_caches * num_clips * values_per_clip * FLOAT16_BYTES,
        checkpoints=checkpoints + max(trained) * OPTIMISER_BYTES_PER_PARAMETER,
    )
