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
from training.distill import probabilities
from training.inputs import Normalisation, prepare
from training.metrics import accuracy, feature_spread, mean_average_precision
from training.model.networks import Student
from training.model.patches import patchify
from training.splits import Split

BATCH_SIZE = 64


@dataclass(frozen=True)
class Evaluation:
    """Figures of one split; `accuracy` is None where clips have several labels. Always with the clips counted."""

    split: str
    mean_average_precision: float
    accuracy: float | None
    feature_spread: float
    num_evaluated: int
    num_listed: int

    def as_dict(self) -> dict[str, float | int | str | None]:
        return asdict(self)

    def __str__(self) -> str:
        head = "" if self.accuracy is None else f"accuracy {self.accuracy:.1%}, "
        return (
            f"{head}mAP {self.mean_average_precision:.3f} on {self.split} "
            f"({self.num_evaluated} of {self.num_listed} clips listed)"
        )


def evaluate(
    student: Student, store: Store, split: Split, normalisation: Normalisation, device: torch.device, *, one_label: bool
) -> Evaluation:
    """Scores of the held-out clips. The student is put back into the mode that it was in."""
    logits, pooled = predict_rows(student, store, split.held_out, normalisation, device)
    labels = torch.from_numpy(store.labels(split.held_out))
    scores = probabilities(logits, one_label=one_label)
    return Evaluation(
        split=split.name,
        mean_average_precision=mean_average_precision(scores, labels),
        accuracy=accuracy(scores, labels) if one_label else None,
        feature_spread=feature_spread(pooled),
        num_evaluated=len(split.held_out),
        num_listed=split.num_listed,
    )


@torch.inference_mode()
def predict_rows(
    student: Student, store: Store, rows: NDArray[np.int64], normalisation: Normalisation, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and pooled features (N, D) of clips, on the CPU, in the order of `rows`."""
    training = student.training
    student.eval()
    outputs = []
    for batch in sequential_batches(store, rows, BATCH_SIZE):
        inputs = prepare(batch, student.grid, normalisation, device, generator=None)
        outputs.append(student(patchify(inputs.fbank, student.grid)))
    student.train(training)
    logits = torch.cat([output.logits.float().cpu() for output in outputs])
    return logits, torch.cat([output.pooled.float().cpu() for output in outputs])


def check_fits(about: About, store: Store) -> None:
    """Raises InputError when a checkpoint's labels or features are not the store's."""
    if about.vocabulary.ids != store.file.vocabulary.ids:
        raise InputError(
            f"the checkpoint knows {len(about.vocabulary)} labels ({', '.join(about.vocabulary.ids[:3])} ...), "
            f"{store.root} has {store.num_classes} others; evaluate it on a store of the same labels"
        )
    if about.model.num_frames > store.file.fbank.num_frames:
        raise InputError(
            f"the checkpoint takes {about.model.num_frames} frames and {store.root} holds "
            f"{store.file.fbank.num_frames}; ingest with --num-frames {about.model.num_frames}"
        )
