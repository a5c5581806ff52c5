"""Evaluation of a student on held-out clips."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurestore.loader import sequential_batches
from featurestore.probe import hash_keys
from featurestore.store import Store
from manifests.errors import InputError
from training.inference import infer
from training.inputs import Normalisation
from training.metrics import accuracy, class_figures, d_prime, feature_spread
from training.model.networks import Student
from training.predictions import Predictions
from training.splits import Split

BATCH_SIZE = 64


@dataclass(frozen=True)
class Evaluation:
    """Figures of one split, over its clips that have a label; always with the clips and classes that they are over.

    `accuracy` is None where clips have several labels; mAP and mAUC are over the classes that have a clip, and mAUC is
    None where none lacks one. `d_prime` is None where mAUC is, or where it is infinite. `feature_spread` is None of an
    average of several models. `keys_sha256` is that of the evaluated clips' sorted keys, each with a line feed.
    `heard` says on how many of the clips the model, or one that it started from, was trained; None of none. Fields
    with a default are not in files of earlier versions.
    """

    split: str
    mean_average_precision: float
    accuracy: float | None
    feature_spread: float | None
    num_evaluated: int
    num_listed: int
    num_classes_evaluated: int
    num_classes: int
    mean_auc: float | None = None
    d_prime: float | None = None
    num_unlabelled: int | None = None
    keys_sha256: str | None = None
    heard: str | None = None

    def as_dict(self) -> dict[str, float | int | str | None]:
        return asdict(self)

    def __str__(self) -> str:
        shown = {"mAP": self.mean_average_precision, "mAUC": self.mean_auc, "d'": self.d_prime}
        figures = [f"{name} {value:.3f}" for name, value in shown.items() if value is not None]
        if self.accuracy is not None:
            figures.insert(0, f"accuracy {self.accuracy:.1%}")
        return f"{', '.join(figures)} on {self.split} ({self.evaluated})"

    @property
    def evaluated(self) -> str:
        """Of how many clips and classes the figures are."""
        without = f", {self.num_unlabelled} without a label" if self.num_unlabelled else ""
        return (
            f"{self.num_evaluated} of {self.num_listed} clips listed{without}, {self.num_classes_evaluated} of "
            f"{self.num_classes} classes"
        )


def evaluate(
    student: Student, store: Store, split: Split, normalisation: Normalisation, device: torch.device, *, one_label: bool
) -> Evaluation:
    """Figures of the held-out clips. The student is put back into the mode that it was in."""
    return judge(predict_split(student, store, split, normalisation, device, one_label=one_label))


def judge(predictions: Predictions) -> Evaluation:
    """The figures of predictions."""
    scores, labels = predictions.scores, predictions.labels
    figures = class_figures(scores, labels)
    area = figures.mean_auc
    return Evaluation(
        split=predictions.split,
        mean_average_precision=figures.mean_average_precision,
        accuracy=accuracy(scores, labels) if bool((labels.sum(1) == 1).all()) else None,
        feature_spread=predictions.feature_spread,
        num_evaluated=len(scores),
        num_listed=predictions.num_listed,
        num_classes_evaluated=int(labels.any(0).sum()),
        num_classes=labels.shape[1],
        mean_auc=_finite(area),
        d_prime=_finite(d_prime(area)),
        num_unlabelled=predictions.num_unlabelled,
        keys_sha256=hash_keys(predictions.keys),
    )


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def predict_split(
    student: Student,
    store: Store,
    split: Split,
    normalisation: Normalisation,
    device: torch.device,
    *,
    one_label: bool,
    advance: Callable[[int], None] = lambda _: None,
) -> Predictions:
    """What the student says of the held-out clips that have a label; `advance` counts them.

    Raises InputError when none has, or when the student's scores are not finite.
    """
    labels = store.labels(split.held_out)
    labelled = labels.any(1)
    if not labelled.any():
        raise InputError(f"no clip of {split.name} in {store.location} has a label to evaluate against")
    rows = split.held_out[labelled]
    scores, pooled = predict_rows(student, store, rows, normalisation, device, one_label=one_label, advance=advance)
    _refuse_non_finite(scores, store, rows)
    return Predictions(
        split=split.name,
        label_ids=store.file.vocabulary.ids,
        keys=store.keys(rows),
        scores=scores.numpy(),
        labels=labels[labelled],
        num_listed=split.num_listed,
        num_unlabelled=int((~labelled).sum()),
        feature_spread=feature_spread(pooled),
    )


def _refuse_non_finite(scores: Tensor, store: Store, rows: NDArray[np.int64]) -> None:
    odd = (~scores.isfinite().all(1)).numpy()
    if odd.any():
        raise InputError(
            f"the model's scores of {odd.sum()} of {len(rows)} clips are not finite, for instance of "
            f"{store.keys(rows[odd][:1])[0]}; its weights are damaged, or its steps were too long (take an earlier "
            "checkpoint, or train it with a lower peak_lr), or the clips are damaged (`featurestore verify`)"
        )


def predict_rows(
    student: Student,
    store: Store,
    rows: NDArray[np.int64],
    normalisation: Normalisation,
    device: torch.device,
    *,
    one_label: bool,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Tensor, Tensor]:
    """Probabilities (N, C) and pooled features (N, D) of whole clips, on the CPU, in the order of `rows`."""
    training = student.training
    student.eval()
    scores, pooled = [], []
    for batch in sequential_batches(store, rows, BATCH_SIZE):
        said = infer(student, torch.from_numpy(batch.fbank).to(device), normalisation)
        scores.append(said.probabilities(one_label=one_label).cpu())
        pooled.append(said.pooled.mean(1).cpu())
        advance(len(batch.rows))
    student.train(training)
    return torch.cat(scores), torch.cat(pooled)
