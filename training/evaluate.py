"""Evaluation of a student on held-out clips."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featurestore.loader import sequential_batches
from featurestore.store import Store
from manifests.errors import InputError
from training.checkpoint import About
from training.inference import infer
from training.inputs import Normalisation
from training.metrics import accuracy, feature_spread, mean_average_precision
from training.model.networks import Student
from training.splits import Split

BATCH_SIZE = 64


@dataclass(frozen=True)
class Evaluation:
    """Figures of one split, over its clips that have a label; always with the clips and classes that they are over.

    `accuracy` is None where clips have several labels; mAP is over the classes that have a clip.
    """

    split: str
    mean_average_precision: float
    accuracy: float | None
    feature_spread: float
    num_evaluated: int
    num_listed: int
    num_classes_evaluated: int
    num_classes: int

    def as_dict(self) -> dict[str, float | int | str | None]:
        return asdict(self)

    def __str__(self) -> str:
        head = "" if self.accuracy is None else f"accuracy {self.accuracy:.1%}, "
        return (
            f"{head}mAP {self.mean_average_precision:.3f} on {self.split} ({self.num_evaluated} of {self.num_listed} "
            f"clips listed, {self.num_classes_evaluated} of {self.num_classes} classes)"
        )


def evaluate(
    student: Student, store: Store, split: Split, normalisation: Normalisation, device: torch.device, *, one_label: bool
) -> Evaluation:
    """Scores of the held-out clips. The student is put back into the mode that it was in."""
    labels = torch.from_numpy(store.labels(split.held_out))
    labelled = labels.any(1)
    if not labelled.any():
        raise InputError(f"no clip of {split.name} in {store.location} has a label to evaluate against")
    labels, rows = labels[labelled], split.held_out[labelled.numpy()]
    scores, pooled = predict_rows(student, store, rows, normalisation, device, one_label=one_label)
    return Evaluation(
        split=split.name,
        mean_average_precision=mean_average_precision(scores, labels),
        accuracy=accuracy(scores, labels) if bool((labels.sum(1) == 1).all()) else None,
        feature_spread=feature_spread(pooled),
        num_evaluated=len(rows),
        num_listed=split.num_listed,
        num_classes_evaluated=int(labels.any(0).sum()),
        num_classes=labels.shape[1],
    )


def predict_rows(
    student: Student,
    store: Store,
    rows: NDArray[np.int64],
    normalisation: Normalisation,
    device: torch.device,
    *,
    one_label: bool,
) -> tuple[Tensor, Tensor]:
    """Probabilities (N, C) and pooled features (N, D) of whole clips, on the CPU, in the order of `rows`."""
    training = student.training
    student.eval()
    scores, pooled = [], []
    for batch in sequential_batches(store, rows, BATCH_SIZE):
        said = infer(student, torch.from_numpy(batch.fbank).to(device), normalisation)
        scores.append(said.probabilities(one_label=one_label).cpu())
        pooled.append(said.pooled.mean(1).cpu())
    student.train(training)
    return torch.cat(scores), torch.cat(pooled)


def check_fits(about: About, store: Store) -> None:
    """Raises InputError when a checkpoint's labels or features are not the store's."""
    if about.vocabulary.ids != store.file.vocabulary.ids:
        raise InputError(
            f"the checkpoint knows {len(about.vocabulary)} labels ({', '.join(about.vocabulary.ids[:3])} ...), "
            f"{store.location} has {store.num_classes} others; evaluate it on a store of the same labels"
        )
    if about.model.num_frames > store.file.fbank.num_frames:
        raise InputError(
            f"the checkpoint takes {about.model.num_frames} frames and {store.location} holds "
            f"{store.file.fbank.num_frames}; ingest with --num-frames {about.model.num_frames}"
        )
