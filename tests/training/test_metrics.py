"""Metrics against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score

from training.metrics import accuracy, feature_spread, mean_average_precision


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("digits", [1, 7])
def test_mean_average_precision(seed: int, digits: int) -> None:
    """With one digit many scores are tied."""
    rng = np.random.default_rng(seed)
    labels = rng.random((60, 9)) < 0.15
    labels[:, 4] = False  # a class without a positive clip
    labels[:, 5] = True
    scores = np.round(0.5 * rng.random((60, 9)) + 0.3 * labels, digits).astype(np.float32)
    present = labels.any(0)
    expected = average_precision_score(labels[:, present], scores[:, present], average="macro")
    found = mean_average_precision(torch.tensor(scores), torch.tensor(labels, dtype=torch.float32))
    assert found == pytest.approx(expected, abs=1e-6)


def test_one_class_and_none() -> None:
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.3], [0.1, 0.4]])
    labels = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    expected = average_precision_score([0, 1, 1], [0.9, 0.8, 0.1])
    assert mean_average_precision(scores, labels) == pytest.approx(expected)
    assert mean_average_precision(scores[:, :1], labels[:, :1]) == pytest.approx(expected)
    assert math.isnan(mean_average_precision(scores, torch.zeros(3, 2)))


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_accuracy(num_classes: int) -> None:
    rng = np.random.default_rng(0)
    scores, classes = rng.random((50, num_classes)), rng.integers(num_classes, size=50)
    labels = np.eye(num_classes)[classes]
    found = accuracy(torch.tensor(scores), torch.tensor(labels))
    assert found == pytest.approx(accuracy_score(classes, scores.argmax(1)))


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
