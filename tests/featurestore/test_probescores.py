"""Scores against scikit-learn's, and by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from featurestore.probescores import (
    accuracy,
    accuracy_per_class,
    average_precision,
    exceeds_chance,
    mean_over_classes,
    roc_area,
)


@pytest.mark.parametrize("num_levels", [3, 10_000])
def test_precision_and_area_are_scikit_learns(num_levels: int) -> None:
    """With many ties and with hardly any, and with scores so large that their sigmoids would be equal."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, num_levels, (200, 6)).astype(np.float32) + 50
    labels = (rng.random((200, 6)) < 0.2).astype(np.float32)
    assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores, average=None))
    assert roc_area(scores, labels) == pytest.approx(roc_auc_score(labels, scores, average=None))


def test_classes_without_a_clip_have_no_figure() -> None:
    scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]], np.float32)
    labels = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    np.testing.assert_array_equal(average_precision(scores, labels), [1.0, np.nan, 1.0])
    np.testing.assert_array_equal(roc_area(scores, labels), [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(accuracy_per_class(scores, np.eye(3, dtype=np.float32)[[0, 2]]), [1.0, np.nan, 0.0])
    assert mean_over_classes(np.array([0.5, np.nan, 1.0])) == 0.75
    assert np.isnan(mean_over_classes(np.array([np.nan])))


def test_accuracy_is_the_share_of_right_clips() -> None:
    scores = np.array([[2.0, 1.0], [0.0, 3.0], [5.0, 4.0], [1.0, 0.0]], np.float32)
    labels = np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]
    assert accuracy(scores, labels) == 0.75
    np.testing.assert_array_equal(accuracy_per_class(scores, labels), [1.0, 0.5])


def test_chance_is_what_shuffled_labels_give() -> None:
    rng = np.random.default_rng(3)
    labels = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 200)]
    noise = rng.random((200, 4)).astype(np.float32)
    assert not exceeds_chance(accuracy, noise, labels, seed=0)
    assert exceeds_chance(accuracy, noise + 0.5 * labels, labels, seed=0)
    # One class for all, however common it is, is chance.
    assert not exceeds_chance(accuracy, np.zeros((200, 4), np.float32), labels, seed=0)
