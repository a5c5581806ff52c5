"""Many runs as one experiment: configurations by folds and seeds, each a run folder of its own, so that it goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch

from featurestore.store import Store
from manifests.errors import InputError
from training.config import RunConfig
from training.distributed import is_first
from training.evaluate import Evaluation
from training.iterations import run_iterations
from training.run import open_run


@dataclass(frozen=True)
class Trial:
    """One configuration, on one fold (None: what is held out by default) from one seed."""

    name: str  # of its folder
    config: RunConfig
    num_iterations: int = 1

    def at(self, fold: int | None, seed: int) -> "Trial":
        """The trial on another fold and from another seed."""
        data = self.config.data if fold is None else self.config.data.model_copy(update={"eval_fold": fold})
        config = self.config.model_copy(update={"data": data, "seed": seed})
        place = f"seed{seed}" if fold is None else f"fold{fold}-seed{seed}"
        return Trial(f"{self.name}/{place}", config, self.num_iterations)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (None of one value) of a figure over `num` runs."""

    mean: float
    deviation: float | None
    num: int

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{self.mean:.1%}"
        return f"{self.mean:.1%} ± {100 * self.deviation:.1f}"


def spread_of(values: Sequence[float]) -> Spread:
    """The mean and the sample standard deviation."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def choose_folds(store: Store, text: str | None) -> list[int | None]:
    """ "all", "1,3", or None for what is held out by default. Raises InputError for folds that there aren't."""
    if text is None:
        return [None]
    there = ", ".join(map(str, store.folds)) or "none"
    if text == "all":
        if not store.folds:
            raise InputError(f"{store.location} has no folds; leave --folds out")
        return [*store.folds]
    try:
        chosen = [int(fold) for fold in text.split(",")]
    except ValueError as error:
        raise InputError(f"--folds {text!r} is neither all nor numbers like 1,3; there are: {there}") from error
    if lacking := [fold for fold in chosen if fold not in store.folds]:
        raise InputError(f"{store.location} has no fold {lacking[0]}; it has: {there}")
    return [*chosen]


def run_trial(trial: Trial, stores: Sequence[Store], folder: Path, device: torch.device) -> list[Evaluation | None]:
    """The figures of each of the trial's iterations; one that is done is read."""
    with open_run(stores, trial.config, folder / trial.name, device) as run:
        if is_first():
            print(f"{trial.name}: {run.num_clips} clips to train on, {run.split.name} held out", flush=True)
        return [result.evaluation for result in run_iterations(run, trial.num_iterations)]


def main_figure(evaluation: Evaluation) -> float:
    """Accuracy where clips have one label, else mAP."""
    return evaluation.mean_average_precision if evaluation.accuracy is None else evaluation.accuracy
