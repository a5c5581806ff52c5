"""Metrics over all clips of a split."""

import torch
from torch import Tensor


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of clips whose highest score is their label; `scores`, `labels`: (N, C), labels one-hot."""
    return float((scores.argmax(1) == labels.argmax(1)).sum() / len(scores))


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """mAP: the unweighted mean of average precision over the classes that have a positive clip.

    `scores`, `labels`: (N, C), labels multi-hot. NaN when no class has one.
    """
    # Imported here: with all that it imports it would double the time in which the command line starts.
    from torchmetrics.functional.classification import multilabel_average_precision

    present = labels.any(0)
    if not present.any():
        return float("nan")
    if int(present.sum()) == 1:  # torchmetrics wants two classes or more
        scores, labels = scores.repeat(1, 2), labels.repeat(1, 2)
        present = present.repeat(2)
    return float(
        multilabel_average_precision(
            scores[:, present], labels[:, present].long(), num_labels=int(present.sum()), average="macro"
        )
    )


def feature_spread(pooled: Tensor) -> float:
    """Mean standard deviation over clips of the unit-length pooled features (N, D), times sqrt(D).

    About 1 for features in all directions, 0 when they have collapsed to one point.
    """
    unit = torch.nn.functional.normalize(pooled.float(), dim=1)
    return float(unit.std(0, correction=0).mean() * pooled.shape[1] ** 0.5)
