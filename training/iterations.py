"""Iterations: Multi-SSL from the previous model, labels and distillation, evaluation; each kept once it is done."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from featurestore.build import build_teacher
from featurestore.loader import Loader
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from ingest.atomic import atomic_write
from manifests.errors import InputError
from training.checkpoint import About, Stage, load_checkpoint
from training.config import OptimiserConfig, RunConfig
from training.distill import Task, distill_losses, teacher_columns
from training.evaluate import Evaluation, evaluate
from training.loop import LAST, Machine, StagePlan, train_stage
from training.model.networks import MultiSSLNetwork, Student
from training.multissl import multissl_losses
from training.schedule import iteration_peak, num_steps_of
from training.seeds import generator_for
from training.splits import Split
from training.teacher import load_checkpoint_teacher

NO_TEACHER, OWN_TEACHER = "none", "own"
EVAL_FILE = "eval.json"


@dataclass(frozen=True)
class IterationResult:
    """An iteration's checkpoint and figures; both None where its distillation has no epochs."""

    iteration: int
    teacher: str | None
    checkpoint: Path | None
    evaluation: Evaluation | None


@dataclass(frozen=True)
class Run:
    """A run: what is trained on what, where it is kept, and on which machine."""

    store: Store
    config: RunConfig
    split: Split
    folder: Path
    machine: Machine

    @property
    def one_label(self) -> bool:
        return self.config.distill.loss == "ce"

    def num_steps(self, optimiser: OptimiserConfig) -> int:
        return num_steps_of(optimiser.epochs, len(self.split.train), optimiser.batch_size)


def run_iterations(run: Run, num_iterations: int) -> list[IterationResult]:
    """Does iterations 1..num_iterations; those that are done are read, an interrupted one goes on."""
    results = []
    previous = _Models(None, None)
    for iteration in range(1, num_iterations + 1):
        previous, result = _iterate(run, iteration, previous)
        results.append(result)
    return results


@dataclass(frozen=True)
class _Models:
    """The last Multi-SSL network and student, as state dicts, for the next iteration to start from."""

    multissl: dict[str, torch.Tensor] | None
    student: dict[str, torch.Tensor] | None


def _iterate(run: Run, iteration: int, previous: _Models) -> tuple[_Models, IterationResult]:
    """Does one iteration, or reads it where its evaluation is there, which is written last."""
    done = run.folder / f"iter{iteration}" / EVAL_FILE
    if done.exists():
        return _read_iteration(run, iteration, done)
    multissl = _multissl_stage(run, iteration, previous)
    if run.num_steps(run.config.distill.optimiser) == 0:
        return _Models(multissl, None), IterationResult(iteration, None, None, None)
    teacher_name = _teacher_name(run, iteration)
    cache = None if teacher_name is None else open_teacher(run.store, teacher_name, run.split)
    start = previous.student if multissl is None else multissl
    student, evaluation = _distill_stage(run, iteration, start, cache)
    content = {"teacher": teacher_name, **evaluation.as_dict()}
    atomic_write(done, json.dumps(content, indent=1) + "\n")
    return _Models(multissl, student), IterationResult(
        iteration, teacher_name, last_checkpoint(run, iteration), evaluation
    )


def _read_iteration(run: Run, iteration: int, done: Path) -> tuple[_Models, IterationResult]:
    try:
        content = json.loads(done.read_bytes())
        teacher_name = content.pop("teacher")
        evaluation = Evaluation(**content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{done} is damaged ({error}); delete it to have the iteration evaluated again") from error
    has_multissl = run.num_steps(run.config.multissl.optimiser) > 0
    multissl = load_checkpoint(last_checkpoint(run, iteration, "multissl")).network if has_multissl else None
    path = last_checkpoint(run, iteration)
    student = load_checkpoint(path).network
    return _Models(multissl, student), IterationResult(iteration, teacher_name, path, evaluation)


def last_checkpoint(run: Run, iteration: int, stage: Stage = "distill") -> Path:
    """Where the last checkpoint of a stage lies."""
    return run.folder / f"iter{iteration}" / stage / LAST


def _multissl_stage(run: Run, iteration: int, previous: _Models) -> dict[str, torch.Tensor] | None:
    """Trains the Multi-SSL stage; None where it has no epochs."""
    config = run.config.multissl
    num_steps = run.num_steps(config.optimiser)
    if num_steps == 0:
        return None
    name = f"iter{iteration}/multissl"
    network = MultiSSLNetwork(run.config.model, generator_for(run.config.seed, name, "initialise"))
    if previous.multissl is not None:
        network.load_state_dict(previous.multissl)
    if previous.student is not None:
        network.aft.load_state_dict(aft_weights(previous.student))
    plan = StagePlan(
        name=name,
        network=network,
        losses=lambda inputs, generator: multissl_losses(network, inputs, config, generator),
        loader=Loader(run.store, run.split.train, config.optimiser.batch_size, seed=_loader_seed(run, name)),
        optimiser=config.optimiser,
        peak_lr=iteration_peak(config.optimiser.peak_lr, config.optimiser.lr_factor_per_iteration, iteration),
        about=_about(run, "multissl", iteration, num_steps, None),
        seed=run.config.seed,
        roll=run.config.data.roll,
        checkpoint_every_steps=run.config.checkpoint_every_steps,
    )
    return train_stage(plan, run.folder, run.machine).network


def open_teacher(store: Store, name: str, split: Split) -> TeacherCache:
    """The cache to distil from. Raises InputError when it lacks clips to train on: they would not be distilled."""
    cache = TeacherCache(store, name)
    shards = np.unique(store.shard_of(split.train))
    lacking = np.intersect1d(np.concatenate([cache.missing_rows(int(shard)) for shard in shards]), split.train)
    if len(lacking):
        raise InputError(
            f"{cache.path} lacks {len(lacking)} of the {len(split.train)} clips to train on, for instance "
            f"{store.keys(lacking[:1])[0]}; run `featurestore build-teacher` again to complete it"
        )
    return cache


def _distill_stage(
    run: Run, iteration: int, start: dict[str, torch.Tensor] | None, cache: TeacherCache | None
) -> tuple[dict[str, torch.Tensor], Evaluation]:
    """Trains on labels and, with a cache, on the teacher's embeddings; `start` holds the AFT to begin with."""
    config, store = run.config.distill, run.store
    name = f"iter{iteration}/distill"
    teacher_dim = None if cache is None else cache.embedding_dim
    student = Student(
        run.config.model, store.num_classes, teacher_dim, generator_for(run.config.seed, name, "initialise")
    )
    if start is not None:
        student.aft.load_state_dict(aft_weights(start))
    with_logits = cache is not None and config.probability_weight > 0
    columns = None
    if cache is not None and with_logits:
        columns = teacher_columns(store.file.vocabulary, cache.attributes.vocabulary).to(run.machine.device)
    task = Task(run.one_label, columns)
    batch_size = config.optimiser.batch_size
    loader = Loader(
        store,
        run.split.train,
        batch_size,
        seed=_loader_seed(run, name),
        teacher=cache,
        with_logits=with_logits,
        with_views=config.views,
    )
    about = _about(run, "distill", iteration, run.num_steps(config.optimiser), cache)

    def figures() -> Evaluation:
        return evaluate(student, store, run.split, about.normalisation, run.machine.device, one_label=run.one_label)

    plan = StagePlan(
        name=name,
        network=student,
        losses=lambda inputs, _: distill_losses(student, inputs, config, task),
        loader=loader,
        optimiser=config.optimiser,
        peak_lr=iteration_peak(config.optimiser.peak_lr, config.optimiser.lr_factor_per_iteration, iteration),
        about=about,
        seed=run.config.seed,
        roll=run.config.data.roll,
        checkpoint_every_steps=run.config.checkpoint_every_steps,
        evaluate=figures,
    )
    network = train_stage(plan, run.folder, run.machine).network
    return network, plan.evaluation or figures()


def _teacher_name(run: Run, iteration: int) -> str | None:
    """The cache to distil from; the own teacher's is made here, from the previous iteration's student."""
    wanted = run.config.distill.teacher
    if wanted == NO_TEACHER or (wanted == OWN_TEACHER and iteration == 1):
        return None
    if wanted != OWN_TEACHER:
        return wanted
    teacher = load_checkpoint_teacher(last_checkpoint(run, iteration - 1)).to(run.machine.device)
    # Named by content: two runs' teachers, or one trained anew, never share a cache.
    name = f"own-{teacher.provenance['checkpoint_sha256'][:12]}"
    result = build_teacher(run.store, teacher, name)
    if result.failures:
        raise InputError(f"the previous iteration's model has no embedding for {result.failures[0]}")
    return name


def aft_weights(network: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The AFT's part of a network's state dict."""
    prefix = "aft."
    return {name.removeprefix(prefix): weight for name, weight in network.items() if name.startswith(prefix)}


def _about(run: Run, stage: Stage, iteration: int, num_steps: int, cache: TeacherCache | None) -> About:
    file, snapshot = run.store.file, run.store.snapshot
    return About(
        stage=stage,
        iteration=iteration,
        step=0,
        num_steps=num_steps,
        model=run.config.model,
        fbank=file.fbank,
        mean=snapshot.mean,
        std=snapshot.std,
        vocabulary=file.vocabulary,
        one_label=run.one_label,
        teacher_dim=None if cache is None else cache.embedding_dim,
        teacher=None if cache is None else {"name": cache.name, **cache.attributes.provenance},
        store_fingerprint=snapshot.fingerprint,
        data=run.config.data,
        seed=run.config.seed,
        held_out=run.split.name,
    )


def _loader_seed(run: Run, name: str) -> int:
    return generator_for(run.config.seed, name, "order").initial_seed()
