"""Intervals against a slow bootstrap that takes the clips drawn one resample at a time."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from training import bootstrap as module
from training.bootstrap import bootstrap
from training.metrics import Array, class_figures, d_prime


def drawn(num_clips: int, digits: int, *, one_label: bool) -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    if one_label:
        labels = np.eye(5, dtype=np.float32)[rng.integers(5, size=num_clips)]
    else:
        labels = (rng.random((num_clips, 5)) < 0.1).astype(np.float32)
        labels[0], labels[:, 3], labels[:, 4] = 1, 0, 1  # a class without a clip, and one without a negative
        labels[0, 3] = 0
    return np.round(rng.random(labels.shape) + 0.3 * labels, digits).astype(np.float32), labels


def slow_figures(scores: Array, labels: Array) -> tuple[float, float]:
    """mAP and mAUC of one resample, by scikit-learn."""
    present = labels.any(0)
    both = present & ~labels.all(0)
    precisions = [average_precision_score(labels[:, n], scores[:, n]) for n in np.flatnonzero(present)]
    areas = [roc_auc_score(labels[:, n], scores[:, n]) for n in np.flatnonzero(both)]
    return np.mean(precisions), np.mean(areas) if areas else math.nan


@pytest.mark.parametrize(("one_label", "digits"), [(True, 7), (False, 1)])
def test_intervals_are_those_of_resampled_clips(one_label: bool, digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the resamples are dealt to several blocks."""
    scores, labels = drawn(40, digits, one_label=one_label)
    monkeypatch.setattr(module, "BLOCK_ENTRIES", 40 * 12)
    monkeypatch.setattr(module, "RESAMPLES_AT_ONCE", 5)
    found = bootstrap(scores, labels, 30, seed=3)
    rng = np.random.default_rng(3)
    figures, accuracies = [], []
    for _ in range(30):
        clips = rng.integers(40, size=40)
        figures.append(slow_figures(scores[clips], labels[clips]))
        accuracies.append((scores[clips].argmax(1) == labels[clips].argmax(1)).mean())
    precision, area = np.nanquantile(np.array(figures), [0.025, 0.975], axis=0).T
    assert (found["mean_average_precision"].low, found["mean_average_precision"].high) == pytest.approx(precision)
    assert (found["mean_auc"].low, found["mean_auc"].high) == pytest.approx(area)
    assert found["d_prime"].low == pytest.approx(d_prime(area[0]))
    assert ("accuracy" in found) == one_label
    if one_label:
        expected = np.quantile(accuracies, [0.025, 0.975])
        assert (found["accuracy"].low, found["accuracy"].high) == pytest.approx(expected, abs=1e-6)


def test_the_same_seed_gives_the_same() -> None:
    scores, labels = drawn(30, 7, one_label=True)
    assert bootstrap(scores, labels, 50) == bootstrap(scores, labels, 50)
    assert bootstrap(scores, labels, 50) != bootstrap(scores, labels, 50, seed=1)


def test_more_clips_make_it_narrower_around_the_figure() -> None:
    widths = []
    for num_clips in (50, 5000):
        scores, labels = drawn(num_clips, 7, one_label=True)
        interval = bootstrap(scores, labels, 200)["mean_auc"]
        assert interval.low < class_figures(scores, labels).mean_auc < interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0] / 5  # the square root of 100, and some room


def test_perfect_scores_and_a_class_of_all_clips() -> None:
    labels = np.eye(2, dtype=np.float32)[np.arange(40) % 2]
    found = bootstrap(labels, labels, 20)
    assert (found["accuracy"].low, found["mean_average_precision"].low, found["mean_auc"].low) == (1.0, 1.0, 1.0)
    assert found["d_prime"].high == math.inf
    everywhere = np.ones((40, 1), np.float32)
    assert math.isnan(bootstrap(everywhere, everywhere, 5)["mean_auc"].low)
    assert math.isnan(bootstrap(everywhere, everywhere, 5)["d_prime"].high)
