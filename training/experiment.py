"""Many runs as one experiment: configurations by folds and seeds, each a run folder of its own, so that it goes on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import torch

from featurestore.splits import require_fold
from featurestore.store import Store
from manifests.errors import InputError
from training.choices import Keep
from training.config import RunConfig
from training.distributed import is_first, on_first
from training.evaluate import Evaluation
from training.iterations import EVAL_FILE, RANDOM, read_evaluation, run_iterations
from training.loop import LAST
from training.model.aft import AudioFeatureTransformer
from training.model.initialise import initialise_aft
from training.run import check_teachers, choose_sources, open_run
from training.splits import choose_split

Figure = Literal["accuracy", "mAP"]


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
        return Trial(str(Path(self.name) / place), config, self.num_iterations)

    @property
    def place(self) -> str:
        """The fold and the seed, as its folder has them."""
        return Path(self.name).name


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None of one value) of a figure over `num` runs."""

    mean: float
    deviation: float | None
    num: int

    def __str__(self) -> str:
        return f"{self.mean:.1%}{self._uncertainty}"

    @property
    def points(self) -> str:
        """As a difference: with its sign, in points of a per cent."""
        return f"{100 * self.mean:+.1f}{self._uncertainty}"

    @property
    def _uncertainty(self) -> str:
        return "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"


def spread_of(values: Sequence[float]) -> Spread:
    """The mean and the sample standard deviation of one value or more."""
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def choose_folds(store: Store, text: str | None) -> list[int | None]:
    """ "all", "1,3", or None for what is held out by default. Raises InputError for folds that there aren't."""
    if text is None:
        return [None]
    if not store.folds:
        raise InputError(f"{store.location} has no folds; leave --folds out")
    if text == "all":
        return [*store.folds]
    there = ", ".join(map(str, store.folds))
    try:
        chosen = list(dict.fromkeys(int(fold) for fold in text.split(",")))
    except ValueError as error:
        raise InputError(f"--folds {text!r} is neither all nor numbers like 1,3; there are: {there}") from error
    for fold in chosen:
        require_fold(store, fold)
    return [*chosen]


def check_trials(trials: Sequence[Trial], stores: Sequence[Store], folder: Path) -> None:
    """Raises InputError for what would stop one of several trials of the same start, before the first is trained."""
    waiting = [trial for trial in trials if not is_finished(trial, folder)]
    for trial in waiting:
        _check_trial(trial.config, stores)
    if waiting:
        check_start(waiting[0].config)


def check_start(config: RunConfig) -> None:
    """Raises InputError where a model can't start from the weights that the configuration names."""
    if config.initialise != RANDOM:
        initialise_aft(AudioFeatureTransformer(config.model), config.initialise)


def _check_trial(config: RunConfig, stores: Sequence[Store]) -> None:
    if config.distill.optimiser.epochs == 0:
        raise InputError("distill.optimiser.epochs is 0: what has not learned labels has no figures; give it some")
    if not config.distill.classify:
        raise InputError("distill.classify is false: what has not learned labels has no figures; leave it true")
    split = choose_split(stores[0], config.data, config.seed)
    if not stores[0].labels(split.held_out).any():
        raise InputError(
            f"{stores[0].location}: {split.name} is held out, and no clip of it has a label, so that there are no "
            "figures; the first --store must have labels, and data.holdout_share, .eval_split or .eval_fold name "
            "clips with some"
        )
    check_teachers(choose_sources(stores, config)[1], config)


def is_finished(trial: Trial, folder: Path) -> bool:
    """Whether all iterations of the trial have their evaluations, which are written last."""
    return all(path.exists() for path in _eval_files(trial, folder))


def run_trial(
    trial: Trial, stores: Sequence[Store], folder: Path, device: torch.device, keep: Keep = "all"
) -> list[Evaluation]:
    """The figures of each of the trial's iterations; of one that is done they are read, and nothing else of it.

    Checkpoints that `keep` doesn't name are deleted when the trial is finished. Raises InputError where the folder is
    another configuration's.
    """
    with open_run(stores, trial.config, folder / trial.name, device) as run:
        if on_first(lambda: is_finished(trial, folder)):
            _say(f"{trial.name}: done before")
        else:
            _say(f"{trial.name}: {run.num_clips} clips to train on, {run.split.name} held out")
            run_iterations(run, trial.num_iterations)
        on_first(lambda: _delete_checkpoints(trial, run.folder, keep))
        return on_first(lambda: [_figures(path) for path in _eval_files(trial, folder)])


def _say(text: str) -> None:
    if is_first():
        print(text, flush=True)


def _eval_files(trial: Trial, folder: Path) -> list[Path]:
    return [folder / trial.name / f"iter{number}" / EVAL_FILE for number in range(1, trial.num_iterations + 1)]


def _figures(path: Path) -> Evaluation:
    _, evaluation = read_evaluation(path)
    if evaluation is None:
        raise InputError(f"{path} has no figures; delete it to have the iteration evaluated again")
    return evaluation


def _delete_checkpoints(trial: Trial, run: Path, keep: Keep) -> None:
    if keep == "all":
        return
    kept = run / f"iter{trial.num_iterations}" / "distill" / LAST
    for number in range(1, trial.num_iterations + 1):
        for path in run.glob(f"iter{number}/*/*.pt"):
            if keep == "none" or path != kept:
                path.unlink()


def choose_figure(evaluations: Iterable[Evaluation]) -> Figure:
    """Accuracy where the clips of all have one label, else mAP, so that all are measured alike."""
    return "mAP" if any(evaluation.accuracy is None for evaluation in evaluations) else "accuracy"


def value_of(evaluation: Evaluation, figure: Figure) -> float:
    """The figure of an evaluation that has it. Raises ValueError for one that hasn't."""
    value = evaluation.mean_average_precision if figure == "mAP" else evaluation.accuracy
    if value is None:
        raise ValueError(f"the evaluation of {evaluation.split} has no {figure}")
    return value
