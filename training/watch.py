"""What is measured of a stage's steps: losses read late, refused when they aren't finite, and logged."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featurestore.batches import Batch
from manifests.errors import InputError
from training.distributed import gather_objects, mean_over_ranks
from training.hostbatch import HostBatch
from training.log import MetricsLog, NoLog
from training.optimiser import layer_of, num_blocks

# Losses stay on the device until so many steps are done: reading one makes the host wait for the device.
STEPS_PER_FLUSH = 10
GRADIENT_NORM, FEATURE_SPREAD = "gradient_norm", "feature_spread"
MAX_KEYS_TOLD = 8


@dataclass(frozen=True)
class _Step:
    step: int
    terms: dict[str, Tensor]
    keys: list[str]
    learning_rate: float


@dataclass
class Watch:
    """Steps whose losses have not been read yet, and the time that they took. `batch_of` reads a step's batch again."""

    stage: str
    log: MetricsLog | NoLog
    num_ranks: int
    batch_of: Callable[[int], Batch]
    steps: list[_Step] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0
    recent_loss: list[float] = field(default_factory=list)  # since the last evaluation or checkpoint

    def timed(self, batches: Iterator[HostBatch]) -> Iterator[HostBatch]:
        """Counts the time in which the loop waits for data."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def add(self, step: int, terms: dict[str, Tensor], keys: list[str], learning_rate: float) -> None:
        """Takes note of a step; its terms are read later."""
        self.steps.append(_Step(step, terms, keys, learning_rate))

    @property
    def is_full(self) -> bool:
        return len(self.steps) >= STEPS_PER_FLUSH

    def flush(self) -> str:
        """Reads the losses, the mean over ranks, refuses those that are not finite, and logs them.

        Returns a short text for the display, empty when there was nothing to read.
        """
        steps = self.steps
        if not steps:
            return ""
        # In one tensor: the host waits for the device once.
        mine = torch.stack([value.float() for entry in steps for value in entry.terms.values()])
        sizes = [len(entry.terms) for entry in steps]
        by_step = [part.tolist() for part in torch.split(mean_over_ranks(mine), sizes)]
        elapsed_s = time.perf_counter() - self.started
        num_clips = sum(len(entry.keys) for entry in steps) * self.num_ranks
        for entry, values, own in zip(steps, by_step, torch.split(mine, sizes), strict=True):
            named = dict(zip(entry.terms, values, strict=True))
            self._refuse_non_finite(entry, named, own)
            speed = {"clips_per_s": num_clips / elapsed_s, "data_wait_share": self.waited_s / elapsed_s}
            self.log.write(entry.step, {**named, "learning_rate": entry.learning_rate, **speed})
            self.recent_loss.append(named["loss"])
        self.log.flush()
        self.steps = []
        speed_text = f"{num_clips / elapsed_s:.0f} clips/s, data wait {self.waited_s / elapsed_s:.0%}"
        text = f"{_shown(named)}, {speed_text}"
        self.restart_clock()
        return text

    def restart_clock(self) -> None:
        """Leaves what was done meanwhile out of the speed."""
        self.started, self.waited_s = time.perf_counter(), 0.0

    def take_mean_loss(self) -> float:
        """The mean loss since the last evaluation."""
        return sum(self.recent_loss) / len(self.recent_loss)

    def _refuse_non_finite(self, entry: _Step, values: dict[str, float], own: Tensor) -> None:
        guilty = _guilty([name for name, value in values.items() if not abs(value) < float("inf")])
        if not guilty:
            return
        # Of the ranks, those whose own values are not finite held the clips.
        is_mine = not bool(own.isfinite().all())
        held = gather_objects(entry.keys if is_mine else [])
        damaged = gather_objects(damaged_clips(self.batch_of(entry.step)) if is_mine else [])
        keys = [key for part in held for key in part] or entry.keys
        found = [clip for part in damaged for clip in part]
        raise InputError(
            f"{self.stage}, step {entry.step}: {', '.join(guilty)} is not finite; the batch held {_some(keys)}. "
            + (
                f"Not finite are {_some(found)}: `featurestore verify` says what is damaged, and `featurestore repair` "
                "mends it. "
                if found
                else "All of its clips' values are finite, so the steps are too long: lower the peak_lr or "
                "max_gradient_norm, in another --run folder. "
            )
            + "The last good checkpoint is kept"
        )


def _shown(values: dict[str, float]) -> str:
    """The loss and its terms, in short."""
    terms = [name for name in values if not name.startswith(("loss", GRADIENT_NORM, FEATURE_SPREAD))]
    inside = ", ".join(f"{name} {values[name]:.3g}" for name in terms)
    return f"loss {values['loss']:.4f}" + (f" ({inside})" if len(terms) > 1 else "")


def _guilty(names: list[str]) -> list[str]:
    """Of the figures that are not finite the losses; where these are, the gradients' norms."""
    terms = [name for name in names if not name.startswith(("loss", GRADIENT_NORM, FEATURE_SPREAD))]
    norms = [name for name in names if name.startswith(f"{GRADIENT_NORM}/")]
    return terms or norms or names


def damaged_clips(batch: Batch) -> list[str]:
    """The clips with a value that is not finite, and what of them it is: "KEY's fbank".

    A teacher's row may lack values: it is left out of the losses.
    """
    parts: dict[str, NDArray[Any]] = {"fbank": batch.fbank, "HOG": batch.hog, "labels": batch.labels}
    whole = {name: np.isfinite(values).reshape(len(values), -1).all(1) for name, values in parts.items()}
    return [
        f"{key}'s {name}"
        for name, rows in whole.items()
        for key, fine in zip(batch.keys, rows, strict=True)
        if not fine
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:MAX_KEYS_TOLD]) + (" ..." if len(names) > MAX_KEYS_TOLD else "")


def norms_by_term(terms: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The norm of each loss term's gradient in the weights that all terms share last: the transformer's last block.

    As in GradNorm (Chen et al. 2018): it says which losses drive the network. Unweighted, before clipping.
    """
    depth = num_blocks(network)
    shared = [weight for name, weight in network.named_parameters() if layer_of(name, depth) == depth]
    found = {}
    for name, term in terms.items():
        if name == "loss" or not term.requires_grad:
            continue
        gradients = torch.autograd.grad(term, shared, retain_graph=True, allow_unused=True)
        present = [mean_over_ranks(gradient.float()).norm() for gradient in gradients if gradient is not None]
        found[f"{GRADIENT_NORM}/{name}"] = torch.stack(present).norm() if present else torch.zeros_like(term)
    return found
