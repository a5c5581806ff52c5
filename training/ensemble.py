"""Several models as one: their weights averaged, and what they say averaged (as in AST, Gong et al. 2021)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featurestore.store import Store
from manifests.errors import InputError
from training.checkpoint import About, Checkpoint, load_checkpoint, load_student
from training.choices import Mode
from training.evaluate import Evaluation, judge, predict_split
from training.heard import heard_rows
from training.modelfile import check_classifies, check_fits, choose_part, load_fitting
from training.predictions import Predictions
from training.splits import Split

# Of `About`: what must be equal for a mean of weights to be a network, and to see the clips that its parts saw.
SAME_FOR_WEIGHTS = ("stage", "model", "fbank", "mean", "std", "one_label", "teacher_dim")


@dataclass(frozen=True)
class Ensemble:
    """Figures of each model, by its path, and of the averages; None of an average that wasn't asked for."""

    models: dict[str, Evaluation]
    weights: Evaluation | None
    predictions: Evaluation | None
    averaged: Checkpoint | None  # the model of averaged weights

    @property
    def rows(self) -> dict[str, Evaluation]:
        """All figures by what they are of."""
        averages = {"mean of weights": self.weights, "mean of predictions": self.predictions}
        return self.models | {name: figures for name, figures in averages.items() if figures is not None}

    def as_json(self) -> dict[str, Any]:
        return {
            "models": [{"checkpoint": path, **figures.as_dict()} for path, figures in self.models.items()],
            "weights": None if self.weights is None else asdict(self.weights),
            "predictions": None if self.predictions is None else asdict(self.predictions),
        }


@dataclass(frozen=True)
class Place:
    """Where models are evaluated; `advance` counts clips."""

    store: Store
    part: Split
    device: torch.device
    advance: Callable[[int], None] = lambda _: None


def check_ensemble(
    paths: Sequence[Path], abouts: Sequence[About], store: Store, mode: Mode, weights_out: Path | None
) -> None:
    """Raises InputError where the models can't be averaged, before any is evaluated."""
    if len(paths) < 2:
        raise InputError("an ensemble is of two models or more; name their run folders or checkpoints")
    resolved = [path.resolve() for path in paths]
    if twice := next((path for place, path in enumerate(paths) if resolved[place] in resolved[:place]), None):
        raise InputError(f"{twice} is named twice; name each model of the ensemble once")
    if weights_out is not None and weights_out.resolve() in resolved:
        raise InputError(f"--weights-out {weights_out} is one of the models to average; choose another file")
    if weights_out is not None and mode == Mode.PREDICTIONS:
        raise InputError("--weights-out keeps averaged weights, and --mode predictions makes none; leave one away")
    for path, about in zip(paths, abouts, strict=True):
        check_classifies(about, path)
        check_fits(about, store)
    if mode == Mode.PREDICTIONS:
        return
    first = _for_weights(abouts[0])
    for path, about in zip(paths[1:], abouts[1:], strict=True):
        other = _for_weights(about)
        if differing := [f"{key} ({first[key]} and {other[key]})" for key in first if first[key] != other[key]]:
            raise InputError(
                f"the weights of {paths[0]} and {path} can't be averaged, they differ in {', '.join(differing)}; "
                "average what the models say with --mode predictions"
            )


def _for_weights(about: About) -> dict[str, Any]:
    content = about.model_dump(include=set(SAME_FOR_WEIGHTS), mode="json")
    if about.teacher_dim == about.model.width:
        content["teacher_dim"] = None  # there is no projection to it
    flat: dict[str, Any] = {}
    for name in SAME_FOR_WEIGHTS:
        value = content[name]
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def choose_common_part(
    paths: Sequence[Path], abouts: Sequence[About], store: Store, split: str | None, fold: int | None
) -> Split:
    """The part that all models held out, or the one named.

    Raises InputError when one of them, or what it started from, was trained on clips of it with their labels: its
    figure, and so the ensemble's, would be too good.
    """
    part = choose_part(abouts[0], store, split, fold)
    for path, about in zip(paths, abouts, strict=True):
        heard = heard_rows([training for training in about.trainings if training.with_labels], store)
        if heard is not None and (overlap := len(np.intersect1d(heard, part.held_out))):
            raise InputError(
                f"{path} held out {about.held_out} and was trained, or what it started from, on {overlap} of the "
                f"{len(part.held_out)} clips of {part.name}, so that an ensemble with it can't be judged there; take "
                "models that held out the same part, or name one, with --split or --fold, that none was trained on"
            )
    return part


def evaluate_ensemble(paths: Sequence[Path], mode: Mode, place: Place) -> Ensemble:
    """Evaluates every model and the averages; one model is in memory at a time. Classes are joined by their ids."""
    single, said, mean = {}, None, None
    for path in paths:
        predictions = _predict(load_fitting(path, place.store), place)
        single[str(path)] = judge(predictions)
        if mode != Mode.WEIGHTS:
            mean = predictions.scores.astype(np.float64) / len(paths) + (0.0 if mean is None else mean)
            said = predictions
    averaged = None if mode == Mode.PREDICTIONS else average_checkpoints(paths, place.store)
    return Ensemble(
        models=single,
        weights=None if averaged is None else judge(_predict(averaged, place)),
        predictions=None if said is None or mean is None else judge(_averaged(said, mean)),
        averaged=averaged,
    )


def _averaged(one: Predictions, mean: np.ndarray[Any, np.dtype[np.float64]]) -> Predictions:
    return replace(one, scores=mean.astype(np.float32), feature_spread=None)


def _predict(checkpoint: Checkpoint, place: Place) -> Predictions:
    about = checkpoint.about
    student = load_student(checkpoint).to(place.device)
    return predict_split(
        student,
        place.store,
        place.part,
        about.normalisation,
        place.device,
        one_label=about.one_label,
        advance=place.advance,
    )


def average_checkpoints(paths: Sequence[Path], store: Store) -> Checkpoint:
    """A checkpoint of averaged weights, in the order of the store's labels; it says of itself what the first one says.

    But for what the others started from, which it has heard as well. Its `best` and its optimiser are gone: no run
    reached that score, and none goes on from it.
    """
    before = dict.fromkeys(training for about in read_abouts(paths) for training in about.before)
    about = load_fitting(paths[0], store).about.model_copy(update={"best": None, "before": tuple(before)})
    return Checkpoint(about, average_weights(load_fitting(path, store).network for path in paths))


def average_weights(networks: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts of one architecture, floating values summed in float64.

    Other values are the first's. Raises InputError when names or shapes differ.
    """
    sums: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    count = 0
    for network in networks:
        first = first or network
        if {name: value.shape for name, value in network.items()} != {name: v.shape for name, v in first.items()}:
            raise InputError("the models' weights have other names or shapes; they are not of one architecture")
        floating = {name: value.double() for name, value in network.items() if value.is_floating_point()}
        sums = {name: value + sums[name] if sums else value for name, value in floating.items()}
        count += 1
    return {name: (sums[name] / count).to(value.dtype) if name in sums else value for name, value in first.items()}


def check_same_part(paths: Sequence[Path], abouts: Sequence[About], store: Store) -> None:
    """Raises InputError when models were trained on different clips: no checkpoint of ours can say so of itself."""
    keys = [_trained_on(about, store) for about in abouts]
    for path, about, key in zip(paths[1:], abouts[1:], keys[1:], strict=True):
        if key != keys[0]:
            raise InputError(
                f"{paths[0]} held out {abouts[0].held_out}, and {path} {about.held_out}, of clips of their own: a "
                "checkpoint of their mean couldn't say which clips it has heard; leave --weights-out away, or average "
                "models that were trained on the same clips"
            )


def _trained_on(about: About, store: Store) -> tuple[Any, ...]:
    heard = heard_rows(about.trainings, store)
    if heard is None:
        return about.store_fingerprint, about.held_out, about.seed, about.data.holdout_share
    return about.store_fingerprint, heard.tobytes()


def read_abouts(paths: Sequence[Path]) -> list[About]:
    """What each checkpoint says of itself."""
    return [load_checkpoint(path).about for path in paths]
