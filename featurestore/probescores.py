"""How good scores (N, C) are for labels (N, C), multi-hot: accuracy, average precision, area under the ROC curve.

In numpy, since torchmetrics takes scores outside [0, 1] for logits and squashes them, which makes ties of large ones.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


def accuracy(scores: Scores, labels: Scores) -> float:
    """Share of clips whose highest score is their label's; NaN without clips. Labels are one-hot."""
    return float((scores.argmax(1) == labels.argmax(1)).mean()) if len(scores) else float("nan")


def accuracy_per_class(scores: Scores, labels: Scores) -> NDArray[np.float64]:
    """Share of each class's clips whose highest score it is (C,); NaN where it has none."""
    correct = scores.argmax(1) == labels.argmax(1)
    num_clips, found = labels.sum(0, dtype=np.float64), (labels * correct[:, None]).sum(0)
    return np.where(num_clips > 0, found / np.maximum(num_clips, 1), np.nan)


def average_precision(scores: Scores, labels: Scores) -> NDArray[np.float64]:
    """Precision at each positive clip's rank, averaged (C,); NaN where a class has none.

    Clips of equal scores share the precision at the last of them, as in scikit-learn.
    """
    return np.array([_average_precision(s, positive) for s, positive in zip(scores.T, labels.T > 0, strict=True)])


def roc_area(scores: Scores, labels: Scores) -> NDArray[np.float64]:
    """The share of pairs of a positive and a negative clip that are in order (C,), equal scores counting half.

    NaN where a class lacks one or the other.
    """
    return np.array([_roc_area(s, positive) for s, positive in zip(scores.T, labels.T > 0, strict=True)])


def mean_over_classes(values: NDArray[np.float64]) -> float:
    """The mean over the classes that have a value; NaN where none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def exceeds_chance(
    score: Callable[[Scores, Scores], float], scores: Scores, labels: Scores, seed: int, num_shuffles: int = 100
) -> bool:
    """Whether a score is more than three standard deviations above what it is for shuffled labels."""
    rng = np.random.default_rng(seed)
    shuffled = np.array([score(scores, labels[rng.permutation(len(labels))]) for _ in range(num_shuffles)])
    return bool(score(scores, labels) > shuffled.mean() + 3 * shuffled.std())


def _average_precision(scores: Scores, positive: NDArray[np.bool_]) -> float:
    if not positive.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = np.cumsum(positive[order])[last_of_ties]
    return float((np.diff(found, prepend=0) * found / (last_of_ties + 1)).sum() / found[-1])


def _roc_area(scores: Scores, positive: NDArray[np.bool_]) -> float:
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    _, of_clip, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[of_clip]
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
