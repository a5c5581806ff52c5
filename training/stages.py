"""The two stages of an iteration as plans for the loop: their networks, losses and batches."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from featurestore.teachercache import TeacherCache
from training.augment import Augmentation
from training.checkpoint import About
from training.config import OptimiserConfig, Stage
from training.distill import Task, distill_losses, teacher_columns
from training.distributed import on_first
from training.evaluate import Evaluation, judge, predict_split
from training.heard import heard_of, trained_before
from training.loop import StagePlan
from training.model.networks import MultiSSLNetwork, Student
from training.multissl import multissl_losses
from training.predictions import Predictions
from training.run import Run
from training.schedule import iteration_peak
from training.seeds import generator_for
from training.sources import distill_loader, multissl_loader

Weights = dict[str, Tensor]


class HeldOut:
    """What a student says of the clips that a run holds out; the latest predictions are kept, for a file of them."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._heard = heard_of(trained_before(run.folder), run.store, run.split.held_out)
        self.predictions: Predictions | None = None

    def __call__(self, network: nn.Module) -> Evaluation:
        """The network's figures. Raises TypeError for one that can't classify."""
        if not isinstance(network, Student):
            raise TypeError(f"a student is evaluated, not a {type(network).__name__}")
        run = self._run
        self.predictions = predict_split(
            network, run.store, run.split, run.normalisation, run.machine.device, one_label=run.one_label
        )
        return replace(judge(self.predictions), heard=self._heard)


def multissl_plan(run: Run, iteration: int, network: MultiSSLNetwork) -> StagePlan:
    """The Multi-SSL stage of an iteration, of a network that has the weights to begin with."""
    config = run.config.multissl
    name = stage_name(iteration, "multissl")
    return StagePlan(
        name=name,
        network=network,
        losses=lambda inputs, generator: multissl_losses(network, inputs, config, generator),
        loader=multissl_loader(run.sources, config, _loader_seed(run, name)),
        optimiser=config.optimiser,
        peak_lr=_peak(config.optimiser, iteration),
        about=_about(run, "multissl", iteration, run.num_steps(config.optimiser), []),
        seed=run.config.seed,
        augmentation=Augmentation(config.augment, run.config.seed, name),
        checkpoint_every_steps=run.config.checkpoint_every_steps,
    )


def distill_plan(
    run: Run, iteration: int, student: Student, caches: list[TeacherCache], held_out: HeldOut | None
) -> StagePlan:
    """The stage of labels and distillation of an iteration; `caches` of each store, or none."""
    config, store = run.config.distill, run.store
    name = stage_name(iteration, "distill")
    columns = None
    if caches and config.probability_weight > 0:
        columns = teacher_columns(store.file.vocabulary, caches[0].attributes.vocabulary).to(run.machine.device)
    task = Task(run.one_label, columns)
    about = _about(run, "distill", iteration, run.num_steps(config.optimiser), caches)

    return StagePlan(
        name=name,
        network=student,
        losses=lambda inputs, _: distill_losses(student, inputs, config, task),
        loader=distill_loader(run.sources, config, caches, _loader_seed(run, name)),
        optimiser=config.optimiser,
        peak_lr=_peak(config.optimiser, iteration),
        about=about,
        seed=run.config.seed,
        augmentation=Augmentation(config.augment, run.config.seed, name),
        checkpoint_every_steps=run.config.checkpoint_every_steps,
        evaluate=held_out,
    )


def new_multissl_network(run: Run, iteration: int) -> MultiSSLNetwork:
    """A Multi-SSL network with the seed's weights."""
    return MultiSSLNetwork(run.config.model, _generator(run, stage_name(iteration, "multissl")))


def new_student(run: Run, iteration: int, caches: list[TeacherCache]) -> Student:
    """A student with the seed's weights."""
    teacher_dim = caches[0].embedding_dim if caches else None
    generator = _generator(run, stage_name(iteration, "distill"))
    return Student(run.config.model, run.store.num_classes, teacher_dim, generator)


def stage_name(iteration: int, stage: Stage) -> str:
    """The name of a stage, which is also its folder in the run's."""
    return f"iter{iteration}/{stage}"


def stage_folder(run: Run, iteration: int, stage: Stage) -> Path:
    """Where a stage's checkpoints lie."""
    return run.folder / stage_name(iteration, stage)


def _about(run: Run, stage: Stage, iteration: int, num_steps: int, caches: list[TeacherCache]) -> About:
    file = run.store.file
    cache = caches[0] if caches else None
    return About(
        stage=stage,
        iteration=iteration,
        step=0,
        num_steps=num_steps,
        model=run.config.model,
        fbank=file.fbank,
        mean=run.normalisation.mean,
        std=run.normalisation.std,
        vocabulary=file.vocabulary,
        one_label=run.one_label,
        classifies=run.config.distill.classify,
        teacher_dim=None if cache is None else cache.embedding_dim,
        teacher=None if cache is None else {"name": cache.name, **cache.attributes.provenance},
        store_fingerprint=run.store.snapshot.fingerprint,
        other_fingerprints=tuple(source.store.snapshot.fingerprint for source in run.sources[1:]),
        data=run.config.data,
        seed=run.config.seed,
        held_out=run.split.name,
        before=on_first(lambda: trained_before(run.folder)),
    )


def _peak(optimiser: OptimiserConfig, iteration: int) -> float:
    return iteration_peak(optimiser.peak_lr, optimiser.lr_factor_per_iteration, iteration)


def _generator(run: Run, name: str) -> torch.Generator:
    return generator_for(run.config.seed, name, "initialise")


def _loader_seed(run: Run, name: str) -> int:
    return generator_for(run.config.seed, name, "order").initial_seed()
