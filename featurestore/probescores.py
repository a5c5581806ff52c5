"""How good scores (N, C) are for labels (N, C), multi-hot: accuracy, average precision, area under the ROC curve.

In numpy, since torchmetrics takes scores outside [0, 1] for logits and squashes them, which makes ties of large ones.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Counts = NDArray[np.float64]


class Ranking(NamedTuple):
    """Where a class's positive clips stand, for each group of equal scores that holds one, the best group first.

    (G,) each: the clips above the group, those above or in it, and its positive ones. Or (G, R), as weights of clips
    in R resamples, in which a group may weigh nothing.
    """

    above: Counts
    through: Counts
    positive: Counts


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
    return np.array([precision_of(ranking) for ranking in rank_classes(scores, labels)])


def roc_area(scores: Scores, labels: Scores) -> NDArray[np.float64]:
    """The share of pairs of a positive and a negative clip that are in order (C,), equal scores counting half.

    NaN where a class lacks one or the other.
    """
    return np.array([area_of(ranking, len(scores)) for ranking in rank_classes(scores, labels)])


def rank_classes(scores: Scores, labels: Scores) -> Iterator[Ranking]:
    """The ranking of each class in turn. Scores may have any range, and are finite."""
    for of_class, positive in zip(scores.T, labels.T > 0, strict=True):
        yield rank(of_class, positive)


def rank(scores: Scores, positive: NDArray[np.bool_]) -> Ranking:
    """The ranking of one class's scores (N,); `positive` (N,)."""
    ascending = np.sort(scores)
    distinct, counts = np.unique(scores[positive], return_counts=True)
    above, through = (len(scores) - np.searchsorted(ascending, distinct, side) for side in ("right", "left"))
    return Ranking(*(values[::-1].astype(np.float64) for values in (above, through, counts)))


def precision_of(ranking: Ranking) -> Counts:
    """Average precision () or (R,); NaN without a positive clip."""
    found = ranking.positive.cumsum(0)
    if not len(found):
        return _share(found.sum(0), found.sum(0))
    precise = (ranking.positive * found / np.maximum(ranking.through, 1)).sum(0)
    return _share(precise, found[-1])


def area_of(ranking: Ranking, num_clips: int) -> Counts:
    """Area under the ROC curve () or (R,); NaN without a positive clip or a negative one."""
    found = ranking.positive.cumsum(0)
    if not len(found):
        return _share(found.sum(0), found.sum(0))
    negatives_above = ranking.above - (found - ranking.positive)
    negatives_equal = ranking.through - ranking.above - ranking.positive
    in_order = num_clips - found[-1] - negatives_above - negatives_equal / 2
    return _share((ranking.positive * in_order).sum(0), found[-1] * (num_clips - found[-1]))


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


def _share(part: Counts, whole: Counts) -> Counts:
    """part / whole, NaN where whole is 0."""
    share: Counts = np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)
    return share
