"""Metrics against scikit-learn, and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from training.metrics import (
    Array,
    accuracy,
    class_figures,
    d_prime,
    feature_spread,
    mean_average_precision,
    recall,
)


def drawn(seed: int, digits: int) -> tuple[Array, Array]:
    """60 clips of 9 classes: one without a positive clip, one without a negative."""
    rng = np.random.default_rng(seed)
    labels = rng.random((60, 9)) < 0.15
    labels[:, 4], labels[:, 5] = False, True
    scores = np.round(0.5 * rng.random((60, 9)) + 0.3 * labels, digits)
    return scores.astype(np.float32), labels.astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("digits", [1, 7])
def test_means_are_scikit_learns(seed: int, digits: int) -> None:
    """With one digit many scores are tied."""
    scores, labels = drawn(seed, digits)
    figures = class_figures(scores, labels)
    present = labels.any(0)
    expected = average_precision_score(labels[:, present], scores[:, present], average="macro")
    assert figures.mean_average_precision == pytest.approx(expected, abs=1e-12)
    assert mean_average_precision(scores, labels) == figures.mean_average_precision
    both = present & ~labels.all(0)
    expected = roc_auc_score(labels[:, both], scores[:, both], average="macro")
    assert figures.mean_auc == pytest.approx(expected, abs=1e-12)


def test_figures_of_classes() -> None:
    scores, labels = drawn(0, 1)
    figures = class_figures(scores, labels)
    np.testing.assert_array_equal(figures.num_clips, labels.sum(0))
    for n in range(9):
        if n == 4:
            assert np.isnan([figures.average_precision[n], figures.roc_area[n], figures.recall[n]]).all()
            continue
        assert figures.average_precision[n] == pytest.approx(average_precision_score(labels[:, n], scores[:, n]))
        if n == 5:
            assert np.isnan(figures.roc_area[n])
        else:
            assert figures.roc_area[n] == pytest.approx(roc_auc_score(labels[:, n], scores[:, n]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-1000, 1000))
def test_scores_of_any_range_are_only_ranked(seed: int, scale: float, shift: float) -> None:
    """Scores of an eighth each, so that scaling and shifting by powers of two make no new ties."""
    scores, labels = drawn(seed, 7)
    scores = np.round(scores * 8)
    factor = np.float32(2.0 ** round(math.log2(scale)))
    moved = scores * factor + np.float32(round(shift)) * factor
    assert class_figures(moved, labels).mean_average_precision == class_figures(scores, labels).mean_average_precision
    assert class_figures(moved, labels).mean_auc == class_figures(scores, labels).mean_auc


def test_logits_are_not_squashed() -> None:
    """Sigmoids of these are all 1 in float32, which would make all clips a tie."""
    scores = np.array([[40.0], [60.0], [50.0]], np.float32)
    labels = np.array([[0.0], [1.0], [0.0]], np.float32)
    assert mean_average_precision(scores, labels) == 1.0


def test_one_class_and_none() -> None:
    scores = np.array([[0.9, 0.2], [0.8, 0.3], [0.1, 0.4]], np.float32)
    labels = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], np.float32)
    expected = average_precision_score([0, 1, 1], [0.9, 0.8, 0.1])
    assert mean_average_precision(scores, labels) == pytest.approx(expected)
    assert mean_average_precision(scores[:, :1], labels[:, :1]) == pytest.approx(expected)
    assert math.isnan(mean_average_precision(scores, np.zeros_like(labels)))


def test_d_prime() -> None:
    assert d_prime(0.5) == 0.0
    # Hershey et al. 2017, table 2: ResNet-50's AUC of 0.926 is a d' of 2.041.
    assert d_prime(0.926) == pytest.approx(2.041, abs=0.01)
    for area in (0.1, 0.73, 0.9999):
        assert d_prime(area) == pytest.approx(math.sqrt(2) * norm.ppf(area), abs=1e-9)
    assert (d_prime(1.0), d_prime(0.0)) == (math.inf, -math.inf)
    assert math.isnan(d_prime(math.nan))


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_accuracy_and_recall_of_one_label(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    scores, classes = rng.random((50, num_classes), np.float32), rng.integers(num_classes, size=50)
    labels = np.eye(num_classes, dtype=np.float32)[classes]
    assert accuracy(scores, labels) == pytest.approx(accuracy_score(classes, scores.argmax(1)))
    by_class = [(scores[classes == n].argmax(1) == n).mean() for n in range(num_classes)]
    assert recall(scores, labels) == pytest.approx(by_class)


def test_recall_of_several_labels_by_hand() -> None:
    """A clip of two labels has its two highest scores counted; of equal scores the first class's is the higher."""
    scores = np.array([[0.9, 0.8, 0.1], [0.2, 0.5, 0.9], [0.4, 0.4, 0.1]], np.float32)
    labels = np.array([[1, 0, 1], [0, 1, 1], [0, 1, 0]], np.float32)
    assert recall(scores, labels).tolist() == [1.0, 0.5, 0.5]


def test_feature_spread() -> None:
    rng = torch.Generator().manual_seed(0)
    assert feature_spread(torch.randn(500, 64, generator=rng)) == pytest.approx(1.0, abs=0.02)
    direction = torch.randn(1, 64, generator=rng)
    lengths = torch.rand(500, 1, generator=rng) + 0.1
    assert feature_spread(direction * lengths) == pytest.approx(0.0, abs=1e-5)
    # Two opposite clips in one of four dimensions: deviations (1, 0, 0, 0), mean 1/4, times sqrt(4).
    pooled = torch.zeros(2, 4)
    pooled[:, 0] = torch.tensor([3.0, -2.0])
    assert feature_spread(pooled) == pytest.approx(0.5)
