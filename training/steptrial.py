"""The step of a stage on a batch of noise: measures a device's rate where there is no store."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from manifests.errors import InputError
from training.config import RunConfig, Stage
from training.distill import Task, distill_losses
from training.inputs import Inputs
from training.model.networks import MultiSSLNetwork, Student
from training.multissl import multissl_losses
from training.optimiser import make_optimiser
from training.parallel import compile_blocks

NUM_WARM_UP, NUM_TIMED = 2, 3


@dataclass(frozen=True, slots=True)
class TrialSizes:
    """What a step's cost depends on besides the configuration; `teacher_dim` is None where there is no teacher."""

    batch_size: int
    num_classes: int
    teacher_dim: int | None


@dataclass(frozen=True, slots=True)
class Measured:
    """Median seconds of a step, and the most memory that was allocated on a CUDA device."""

    step_s: float
    peak_bytes: int | None


class Trial:
    """A stage's network and optimiser, and one batch of noise on the device.

    A step is losses, backward pass, clipping and AdamW; reading data and logging are not part of it.
    """

    def __init__(self, stage: Stage, config: RunConfig, sizes: TrialSizes, device: torch.device) -> None:
        self.config, self.device = config, device
        self.autocast = uses_autocast(config, device)
        self.inputs = noise_inputs(config, sizes, device)
        self._draw = torch.Generator(device).manual_seed(0)
        start = torch.Generator().manual_seed(0)
        self.network: nn.Module
        self.losses: Callable[[], dict[str, Tensor]]
        if stage == "multissl":
            multissl = self.network = MultiSSLNetwork(config.model, start)
            self.losses = lambda: multissl_losses(multissl, self.inputs, config.multissl, self._draw)
        else:
            student = self.network = Student(config.model, sizes.num_classes, sizes.teacher_dim, start)
            self.losses = lambda: distill_losses(student, self.inputs, config.distill, Task(one_label=False))
        self.network.to(device).train()
        if config.compile == "on" or (config.compile == "auto" and device.type == "cuda"):
            compile_blocks(self.network)
        self._schedule = config.optimiser_of(stage)
        self.optimiser = make_optimiser(self.network, self._schedule, self._schedule.peak_lr, device)

    def forward(self) -> Tensor:
        """The loss, with its graph."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.losses()["loss"]

    def backward(self, loss: Tensor) -> None:
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.network.parameters(), self._schedule.max_gradient_norm)
        self.optimiser.step()

    def step(self) -> None:
        """One step; on CUDA it may not be done when this returns."""
        self.backward(self.forward())
        self.update()


def uses_autocast(config: RunConfig, device: torch.device) -> bool:
    """Whether a run computes in bfloat16 there."""
    return config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")


def noise_inputs(config: RunConfig, sizes: TrialSizes, device: torch.device) -> Inputs:
    """A batch of the right shape: normal pixels, uniform gradients, one label a clip, a normal teacher."""
    grid, draw = config.model.grid, torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device)

    return Inputs(
        fbank=normal(sizes.batch_size, grid.num_frames, grid.num_mel_bins),
        gradient_magnitude=torch.rand((sizes.batch_size, grid.num_patches), generator=draw, device=device),
        labels=torch.eye(sizes.num_classes, device=device)[torch.arange(sizes.batch_size) % sizes.num_classes],
        teacher=None if sizes.teacher_dim is None else normal(sizes.batch_size, sizes.teacher_dim),
        teacher_logits=None,
    )


def measure_step(stage: Stage, config: RunConfig, sizes: TrialSizes, device: torch.device) -> Measured:
    """Times a few steps after a warm-up. Raises InputError where the device's memory is too small."""
    try:
        trial = Trial(stage, config, sizes, device)
        seconds = [_timed(trial) for _ in range(NUM_WARM_UP + NUM_TIMED)][NUM_WARM_UP:]
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"the memory of {device} is too small for the {stage} stage with batches of {sizes.batch_size}; give a "
            "rate (--device-name, --tflops-per-s), set a smaller batch_size or model.recompute=true"
        ) from error
    return Measured(median(seconds), torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)


def _timed(trial: Trial) -> float:
    if trial.device.type == "cuda":
        torch.cuda.synchronize(trial.device)
    started = time.perf_counter()
    trial.step()
    if trial.device.type == "cuda":
        torch.cuda.synchronize(trial.device)
    return time.perf_counter() - started
