"""The training loop of one stage: steps, metrics, checkpoints, and going on where it was stopped."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from featurestore.batches import Batch
from featurestore.loader import MixedLoader
from ingest.progress import ProgressDisplay
from manifests.errors import InputError, first_line
from training.augment import Augmentation
from training.checkpoint import About, Checkpoint, load_checkpoint, save_checkpoint
from training.config import OptimiserConfig
from training.distributed import is_first, on_first, world_size
from training.evaluate import Evaluation
from training.hostbatch import HostBatch, host_batches
from training.inputs import Inputs, prepare
from training.log import MetricsLog, NoLog
from training.optimiser import make_optimiser, set_learning_rate
from training.parallel import (
    Losses,
    LossModule,
    Parallel,
    WholeNetwork,
    compile_blocks,
    compile_failures,
    distribute,
    divides,
    load_optimiser_state,
    whole_optimiser_state,
)
from training.schedule import learning_rate
from training.seeds import generator_for
from training.watch import GRADIENT_NORM, Watch, norms_by_term

LAST, BEST = "last.pt", "best.pt"
EVALUATIONS_PER_STAGE = 5


@dataclass(frozen=True)
class Machine:
    """Where and in which precision to train, and how over several processes."""

    device: torch.device
    autocast: torch.dtype | None  # None: float32 throughout
    parallel: Parallel = "ddp"
    compiled: bool = False


@dataclass
class StagePlan:
    """One stage of one iteration: what is trained, on what, how long. `losses` gives "loss" and its terms.

    `evaluate` takes the network with all of its weights.
    """

    name: str
    network: nn.Module
    losses: Losses
    loader: MixedLoader
    optimiser: OptimiserConfig
    peak_lr: float
    about: About
    seed: int
    augmentation: Augmentation
    checkpoint_every_steps: int
    evaluate: Callable[[nn.Module], Evaluation] | None = None
    evaluation: Evaluation | None = None  # the latest, of the network as it is now


def train_stage(plan: StagePlan, run: Path, machine: Machine) -> Checkpoint:
    """Trains a stage to its end, from its last checkpoint where there is one, and returns the last checkpoint.

    Raises InputError when a loss is not finite, naming the step, the term and the clips; the last good checkpoint
    stays.
    """
    folder = run / plan.name
    on_first(lambda: folder.mkdir(parents=True, exist_ok=True))
    if not divides(machine.parallel):
        plan.network.to(machine.device)
    plan.network.train()
    trainer = _Trainer(plan, folder, machine)
    about = trainer.resume()
    if not about.finished:
        with ExitStack() as opened:
            log: MetricsLog | NoLog = NoLog()
            shown = None
            if is_first():
                log = opened.enter_context(MetricsLog(run, plan.name, about.step))
                shown = opened.enter_context(ProgressDisplay("steps", about.num_steps - about.step))
                shown.describe(plan.name)
            with _room_on_device(plan):
                about = trainer.train(about, log, shown)
    return Checkpoint(about, trainer.whole.state(everywhere=True))


class _Trainer:
    """The loop and what it carries from step to step."""

    def __init__(self, plan: StagePlan, folder: Path, machine: Machine) -> None:
        self._plan, self._folder, self._machine = plan, folder, machine
        self.whole = WholeNetwork(plan.network, machine.parallel)
        if machine.compiled:
            compile_blocks(plan.network)
        # Without DDP around it: for what is looked at beside training.
        self._bare = LossModule(plan.network, plan.losses)
        self._module = distribute(plan.network, plan.losses, machine.parallel, machine.device)
        self._optimiser = make_optimiser(plan.network, plan.optimiser, plan.peak_lr, machine.device)

    def resume(self) -> About:
        """Loads the last checkpoint into network and optimiser; without one, the state before the first step.

        Raises InputError when it is not this stage's, or lacks what it takes to go on.
        """
        path, plan = self._folder / LAST, self._plan
        if not path.exists():
            return plan.about
        divided = divides(self._machine.parallel)
        checkpoint = load_checkpoint(path, "cpu" if divided else self._machine.device)
        about, unchanged = checkpoint.about, {"step": 0, "best": None}
        if about.model_copy(update=unchanged) != plan.about.model_copy(update=unchanged):
            raise InputError(f"{path} belongs to another configuration or store; choose another --run folder")
        if checkpoint.optimiser is None and not about.finished:
            raise InputError(
                f"{path} is of step {about.step} of {about.num_steps} and has no optimiser's state, like a {BEST}, so "
                f"that training can't go on from it; put {LAST} back, or delete it to train the stage anew"
            )
        try:
            self.whole.load(checkpoint.network)
            if checkpoint.optimiser is not None:
                load_optimiser_state(self._optimiser, checkpoint.optimiser)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path} has other weights than this version's network ({first_line(error)}); choose another --run "
                "folder"
            ) from error
        return about

    def train(self, about: About, log: MetricsLog | NoLog, shown: ProgressDisplay | None) -> About:
        """Trains from the step that `about` says to the last."""
        num_steps, plan = about.num_steps, self._plan
        evaluate_every = -(-num_steps // EVALUATIONS_PER_STAGE)
        watch = Watch(plan.name, log, world_size(), self._batch_of)
        wanted = plan.loader.batches(about.step, num_steps - about.step)
        batches = watch.timed(host_batches(wanted, self._machine.device))
        for step, batch in enumerate(batches, start=about.step + 1):
            evaluated = step % evaluate_every == 0 or step == num_steps
            # At the first step, too: what doesn't fit into the memory beside it shows at once.
            self._step(step, num_steps, batch, watch, look_closer=evaluated or step == 1)
            saved = step % plan.checkpoint_every_steps == 0 or evaluated
            if watch.is_full or saved:
                num_read = len(watch.steps)
                text = watch.flush()
                if shown is not None:
                    shown.advance(num_read, text)
            if saved:
                about = about.model_copy(update={"step": step})
                about = self._keep_best(about, step, log, watch) if evaluated else about
                self._save(about, watch)
        return about

    def _batch_of(self, step: int) -> Batch:
        """The batch of a step, once more; `step` counts from 1."""
        (batch,) = self._plan.loader.batches(step - 1, 1)
        return batch

    def _step(self, step: int, num_steps: int, batch: HostBatch, watch: Watch, *, look_closer: bool) -> None:
        """One optimiser step; `step` counts from 1."""
        plan, device = self._plan, self._machine.device
        rate = learning_rate(step - 1, num_steps, plan.peak_lr, plan.optimiser.warmup_share)
        set_learning_rate(self._optimiser, rate)
        inputs = prepare(batch, plan.about.model.grid, plan.about.normalisation, device, plan.augmentation)
        # A generator for masks alone: what they draw doesn't depend on what else is switched on.
        norms = self._norms(inputs, step) if look_closer else {}
        terms = self._backward(inputs, generator_for(plan.seed, plan.name, step, "masks", device=device))
        norm = nn.utils.clip_grad_norm_(plan.network.parameters(), plan.optimiser.max_gradient_norm)
        self._optimiser.step()
        read_later = {name: term.detach() for name, term in terms.items()} | {GRADIENT_NORM: _local(norm), **norms}
        watch.add(step, read_later, batch.about.keys, rate)

    def _norms(self, inputs: Inputs, step: int) -> dict[str, Tensor]:
        """Each term's gradient norm, in a pass of its own: the step itself stays what it is."""
        if divides(self._machine.parallel):
            return {}  # whose weights are only whole inside a pass
        masks = generator_for(self._plan.seed, self._plan.name, step, "masks", device=self._machine.device)
        # Compiled blocks give their buffers away in the first of several backward passes.
        with self._autocast(), torch.compiler.set_stance("force_eager"):
            return norms_by_term(self._bare(inputs, masks), self._plan.network)

    def _autocast(self) -> torch.autocast:
        machine = self._machine
        return torch.autocast(machine.device.type, machine.autocast, enabled=machine.autocast is not None)

    def _backward(self, inputs: Inputs, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses, and their gradients in the network."""
        with compile_failures():
            with self._autocast():
                terms: dict[str, Tensor] = self._module(inputs, generator)
            self._optimiser.zero_grad()
            terms["loss"].backward()  # type: ignore[no-untyped-call]
        return terms

    def _keep_best(self, about: About, step: int, log: MetricsLog | NoLog, watch: Watch) -> About:
        """Evaluates, and keeps the network as best.pt where it is better than before."""
        plan = self._plan
        score = -watch.take_mean_loss()
        if plan.evaluate is not None:
            evaluate = plan.evaluate
            with self.whole.network(self._machine.device) as network:
                evaluation = plan.evaluation = on_first(lambda: evaluate(network))
            figures = {f"eval_{name}": value for name, value in evaluation.as_dict().items() if value is not None}
            log.write(step, figures)
            # Before the checkpoint: a run that goes on from it doesn't evaluate this step again.
            log.flush()
            score = evaluation.mean_average_precision if evaluation.accuracy is None else evaluation.accuracy
        if about.best is not None and score <= about.best:
            return about
        about = about.model_copy(update={"best": score})
        state = self.whole.state()
        on_first(lambda: save_checkpoint(Checkpoint(about, state), self._folder / BEST))
        return about

    def _save(self, about: About, watch: Watch) -> None:
        # A run that goes on from here knows nothing of earlier losses, so neither may this one.
        watch.recent_loss.clear()
        # A finished stage has no further step to take, and the optimiser's state is two thirds of a checkpoint.
        optimiser = None if about.finished else whole_optimiser_state(self._optimiser)
        checkpoint = Checkpoint(about, self.whole.state(), optimiser)
        on_first(lambda: save_checkpoint(checkpoint, self._folder / LAST))
        watch.restart_clock()  # which counts neither evaluation nor saving


@contextmanager
def _room_on_device(plan: StagePlan) -> Iterator[None]:
    """Turns a device without memory, in a step or beside it, into an InputError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{plan.name}: the device's memory is too small for batches of {plan.optimiser.batch_size}; set a "
            "smaller batch_size, model.recompute=true, or take a smaller preset"
        ) from error


def _local(norm: Tensor) -> Tensor:
    """A gradient norm as a plain tensor; that of divided weights is whole only when asked for."""
    whole = getattr(norm, "full_tensor", None)
    return norm if whole is None else whole()
