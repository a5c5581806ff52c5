"""The training loop of one stage: steps, metrics, checkpoints, and going on where it was stopped."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from featurestore.loader import Batch, Loader
from ingest.progress import ProgressDisplay
from manifests.errors import InputError
from training.checkpoint import About, Checkpoint, load_checkpoint, save_checkpoint
from training.config import OptimiserConfig
from training.evaluate import Evaluation
from training.inputs import Inputs, prepare
from training.log import MetricsLog
from training.schedule import learning_rate
from training.seeds import generator_for

LAST, BEST = "last.pt", "best.pt"
# Losses stay on the device until so many steps are done: reading one makes the host wait for the device.
STEPS_PER_FLUSH = 10
EVALUATIONS_PER_STAGE = 5


@dataclass(frozen=True)
class Machine:
    """Where and in which precision to train."""

    device: torch.device
    autocast: torch.dtype | None  # None: float32 throughout


@dataclass
class StagePlan:
    """One stage of one iteration: what is trained, on what, how long. `losses` gives "loss" and its terms."""

    name: str
    network: nn.Module
    losses: Callable[[Inputs, torch.Generator], dict[str, Tensor]]
    loader: Loader
    optimiser: OptimiserConfig
    peak_lr: float
    about: About
    seed: int
    roll: bool
    checkpoint_every_steps: int
    evaluate: Callable[[], Evaluation] | None = None
    evaluation: Evaluation | None = None  # the latest, of the network as it is now


@dataclass
class _Pending:
    """Steps whose losses have not been read yet."""

    steps: list[tuple[int, dict[str, Tensor], list[str], float]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0


def train_stage(plan: StagePlan, run: Path, machine: Machine) -> Checkpoint:
    """Trains a stage to its end, from its last checkpoint where there is one, and returns the last checkpoint.

    Raises InputError when a loss is not finite, naming the step, the term and the clips; the last good checkpoint
    stays.
    """
    folder = run / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    plan.network.to(machine.device).train()
    optimiser = _optimiser(plan, machine)
    about = _resume(plan, folder / LAST, optimiser, machine)
    if about.finished:
        return Checkpoint(about, plan.network.state_dict())
    with MetricsLog(run, plan.name, about.step) as log, ProgressDisplay("steps", about.num_steps - about.step) as shown:
        shown.describe(plan.name)
        about = _Trainer(plan, folder, machine, optimiser, log, shown).train(about)
    return Checkpoint(about, plan.network.state_dict())


def _optimiser(plan: StagePlan, machine: Machine) -> torch.optim.AdamW:
    config = plan.optimiser
    # Norms, biases, positions and tokens aren't decayed, as usual for transformers.
    decayed, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, weight in plan.network.named_parameters():
        (decayed if weight.ndim >= 2 and not name.endswith("positions") else others).append(weight)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.peak_lr, betas=config.betas, fused=machine.device.type == "cuda")


def _resume(plan: StagePlan, path: Path, optimiser: torch.optim.AdamW, machine: Machine) -> About:
    """Loads the last checkpoint into network and optimiser; without one, the state before the first step."""
    if not path.exists():
        return plan.about
    checkpoint = load_checkpoint(path, machine.device)
    unchanged = {"step": 0, "best": None}
    if checkpoint.about.model_copy(update=unchanged) != plan.about.model_copy(update=unchanged):
        raise InputError(f"{path} belongs to another configuration or store; choose another --run folder")
    plan.network.load_state_dict(checkpoint.network)
    if checkpoint.optimiser is not None:
        optimiser.load_state_dict(checkpoint.optimiser)
    return checkpoint.about


class _Trainer:
    """The loop and what it carries from step to step."""

    def __init__(
        self,
        plan: StagePlan,
        folder: Path,
        machine: Machine,
        optimiser: torch.optim.AdamW,
        log: MetricsLog,
        shown: ProgressDisplay,
    ) -> None:
        self._plan, self._folder, self._machine = plan, folder, machine
        self._optimiser, self._log, self._shown = optimiser, log, shown
        self._pending = _Pending()
        self._recent_loss: list[float] = []

    def train(self, about: About) -> About:
        num_steps = about.num_steps
        evaluate_every = -(-num_steps // EVALUATIONS_PER_STAGE)
        batches = self._plan.loader.batches(about.step, num_steps - about.step)
        for step, batch in enumerate(self._timed(batches), start=about.step + 1):
            self._step(step, num_steps, batch)
            evaluated = step % evaluate_every == 0 or step == num_steps
            saved = step % self._plan.checkpoint_every_steps == 0 or evaluated
            if len(self._pending.steps) >= STEPS_PER_FLUSH or saved:
                self._flush()
            if saved:
                about = about.model_copy(update={"step": step})
                about = self._keep_best(about, step) if evaluated else about
                self._save(about)
        return about

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Counts the time in which the loop waits for data."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self._pending.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _step(self, step: int, num_steps: int, batch: Batch) -> None:
        """One optimiser step; `step` counts from 1."""
        plan, device = self._plan, self._machine.device
        rate = learning_rate(step - 1, num_steps, plan.peak_lr, plan.optimiser.warmup_share)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        # A generator a purpose: what one draws doesn't depend on whether another is switched on.
        rolls = generator_for(plan.seed, plan.name, step, "roll", device=device) if plan.roll else None
        generator = generator_for(plan.seed, plan.name, step, "masks", device=device)
        inputs = prepare(batch, plan.about.model.grid, plan.about.normalisation, device, rolls)
        terms = self._backward(inputs, generator)
        norm = nn.utils.clip_grad_norm_(plan.network.parameters(), plan.optimiser.max_gradient_norm)
        self._optimiser.step()
        read_later = {name: term.detach() for name, term in terms.items()} | {"gradient_norm": norm}
        self._pending.steps.append((step, read_later, batch.keys, rate))

    def _backward(self, inputs: Inputs, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses, and their gradients in the network."""
        machine, plan = self._machine, self._plan
        try:
            with torch.autocast(machine.device.type, machine.autocast, enabled=machine.autocast is not None):
                terms = plan.losses(inputs, generator)
            self._optimiser.zero_grad()
            terms["loss"].backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{plan.name}: the device's memory is too small for batches of {plan.optimiser.batch_size}; set a "
                "smaller batch_size, model.recompute=true, or take a smaller preset"
            ) from error
        return terms

    def _flush(self) -> None:
        """Reads the pending losses, refuses those that are not finite, and logs them."""
        pending, self._pending = self._pending, _Pending()
        if not pending.steps:
            return
        losses = torch.stack([torch.stack(list(terms.values())) for _, terms, _, _ in pending.steps]).tolist()
        elapsed_s = time.perf_counter() - pending.started
        num_clips = sum(len(keys) for _, _, keys, _ in pending.steps)
        for (step, terms, keys, rate), values in zip(pending.steps, losses, strict=True):
            named = dict(zip(terms, values, strict=True))
            self._refuse_non_finite(step, named, keys)
            speed = {"clips_per_s": num_clips / elapsed_s, "data_wait_share": pending.waited_s / elapsed_s}
            self._log.write(step, {**named, "learning_rate": rate, **speed})
            self._recent_loss.append(named["loss"])
        self._log.flush()
        self._shown.advance(len(pending.steps), f"loss {losses[-1][0]:.4f}")

    def _refuse_non_finite(self, step: int, values: dict[str, float], keys: list[str]) -> None:
        guilty = [name for name, value in values.items() if not abs(value) < float("inf")]
        if guilty:
            terms = [name for name in guilty if name != "loss"] or guilty
            raise InputError(
                f"{self._plan.name}, step {step}: {', '.join(terms)} is not finite; the batch held "
                f"{', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}. The last good checkpoint is kept; check the "
                "clips with `featurestore verify`, or lower the learning rate"
            )

    def _keep_best(self, about: About, step: int) -> About:
        """Evaluates, and keeps the network as best.pt where it is better than before."""
        if self._plan.evaluate is None:
            score = -sum(self._recent_loss) / len(self._recent_loss)
        else:
            evaluation = self._plan.evaluation = self._plan.evaluate()
            figures = {f"eval_{name}": value for name, value in evaluation.as_dict().items() if value is not None}
            self._log.write(step, figures)
            # Before the checkpoint: a run that goes on from it doesn't evaluate this step again.
            self._log.flush()
            score = evaluation.mean_average_precision if evaluation.accuracy is None else evaluation.accuracy
        if about.best is not None and score <= about.best:
            return about
        about = about.model_copy(update={"best": score})
        save_checkpoint(Checkpoint(about, self._plan.network.state_dict()), self._folder / BEST)
        return about

    def _save(self, about: About) -> None:
        # A run that goes on from here knows nothing of earlier losses, so neither may this one.
        self._recent_loss.clear()
        checkpoint = Checkpoint(about, self._plan.network.state_dict(), self._optimiser.state_dict())
        save_checkpoint(checkpoint, self._folder / LAST)
        self._pending = _Pending()  # its clock counts neither evaluation nor saving
