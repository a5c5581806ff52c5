"""Metrics of scores over all clips of a part: what an evaluation prints.

Scores and labels are (N, C), labels multi-hot. All but recall and accuracy depend on the order of a class's scores
alone, so that scores may have any range: nothing is squashed, and nothing becomes a tie that wasn't one.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from featurestore.probescores import area_of, mean_over_classes, precision_of, rank_classes
from training.losses import spread

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ClassFigures:
    """Of each class (C,): average precision, area under the ROC curve, recall, and the number of its clips.

    NaN where a class has no clip; the area also where every clip has the class. Recall is the share of the class's
    clips that have it among their k highest scores, k the number of the clip's labels: of one label, the highest.
    """

    average_precision: NDArray[np.float64]
    roc_area: NDArray[np.float64]
    recall: NDArray[np.float64]
    num_clips: NDArray[np.int64]

    @property
    def mean_average_precision(self) -> float:
        """mAP: the unweighted mean over the classes that have a clip; NaN when none has."""
        return mean_over_classes(self.average_precision)

    @property
    def mean_auc(self) -> float:
        """mAUC: the same of the area under the ROC curve, over the classes that have a clip and lack one."""
        return mean_over_classes(self.roc_area)


def class_figures(scores: Array, labels: Array) -> ClassFigures:
    """All figures that are a class's own."""
    rankings = list(rank_classes(scores, labels))
    return ClassFigures(
        average_precision=np.array([precision_of(ranking) for ranking in rankings]),
        roc_area=np.array([area_of(ranking, len(scores)) for ranking in rankings]),
        recall=recall(scores, labels),
        num_clips=(labels > 0).sum(0),
    )


def mean_average_precision(scores: Array, labels: Array) -> float:
    """mAP, as scikit-learn's average_precision_score(average="macro") over the classes that have a clip."""
    return mean_over_classes(np.array([precision_of(ranking) for ranking in rank_classes(scores, labels)]))


def d_prime(mean_auc: float) -> float:
    """d' = sqrt(2) x Phi^-1(mAUC), as for AudioSet (Hershey et al. 2017; Kong et al. 2020): 0 at chance.

    Of the mean area, and not a mean of classes' d', which one class told apart without a mistake makes infinite.
    Infinite for an area of 1 or 0, NaN for NaN.
    """
    if math.isnan(mean_auc):
        return math.nan
    if mean_auc in (0.0, 1.0):
        return math.copysign(math.inf, mean_auc - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(mean_auc)


def accuracy(scores: Array, labels: Array) -> float:
    """Share of clips whose highest score is their label; labels one-hot."""
    return float((scores.argmax(1) == labels.argmax(1)).mean())


def recall(scores: Array, labels: Array) -> NDArray[np.float64]:
    """Recall of each class (C,), see :class:`ClassFigures`; of equal scores the first class counts as the higher."""
    num_labels = labels.sum(1)
    found = np.full(labels.shape[1], np.nan)
    for n in range(labels.shape[1]):
        clips = np.flatnonzero(labels[:, n])
        if len(clips):
            own, others = scores[clips, n, None], scores[clips]
            place = (others > own).sum(1) + (others[:, :n] == own).sum(1)
            found[n] = (place < num_labels[clips]).mean()
    return found


def feature_spread(pooled: Tensor) -> float:
    """The spread of pooled features (N, D), see :func:`training.losses.spread`, as a number."""
    return float(spread(pooled))
