"""The probes against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from featurestore import probemodels
from featurestore.probemodels import TEMPERATURE, choose_penalty, fit_linear, knn_scores, mean_loss

NUM_TRAIN, NUM_TEST, WIDTH, NUM_CLASSES = 120, 40, 12, 4


def clouds(num: int, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping clouds, a class each, far from the origin and with axes of very different lengths."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((NUM_CLASSES, WIDTH))
    classes = rng.integers(0, NUM_CLASSES, num)
    points = (centres[classes] + rng.standard_normal((num, WIDTH))) * np.geomspace(0.01, 100, WIDTH) + 7
    return torch.tensor(points, dtype=torch.float32), torch.eye(NUM_CLASSES)[classes]


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *clouds(NUM_TRAIN, 0), *clouds(NUM_TEST, 1)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_linear_is_scikit_learns(data: tuple[Tensor, Tensor, Tensor, Tensor], penalty: float) -> None:
    train, labels, test, _ = data
    ours = fit_linear(train, labels, penalty, is_multi_label=False).scores(test).softmax(1)
    scaler = StandardScaler().fit(train)
    theirs = LogisticRegression(C=1 / (penalty * NUM_TRAIN), tol=1e-8, max_iter=5000)
    theirs.fit(scaler.transform(train), labels.argmax(1))
    np.testing.assert_allclose(ours, theirs.predict_proba(scaler.transform(test)), atol=2e-3)


def test_several_labels_are_a_regression_each(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    train, labels, test, _ = data
    labels = torch.maximum(labels, labels.roll(1, 0))
    ours = fit_linear(train, labels, 0.01, is_multi_label=True).scores(test).sigmoid()
    scaler = StandardScaler().fit(train)
    for number in range(NUM_CLASSES):
        theirs = LogisticRegression(C=1 / (0.01 * NUM_TRAIN), tol=1e-8, max_iter=5000)
        theirs.fit(scaler.transform(train), labels[:, number])
        np.testing.assert_allclose(ours[:, number], theirs.predict_proba(scaler.transform(test))[:, 1], atol=2e-3)


def test_a_start_does_not_move_the_minimum(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    train, labels, test, _ = data
    strong = fit_linear(train, labels, 1.0, is_multi_label=False)
    warm = fit_linear(train, labels, 0.01, is_multi_label=False, start=strong)
    cold = fit_linear(train, labels, 0.01, is_multi_label=False)
    np.testing.assert_allclose(warm.scores(test), cold.scores(test), atol=5e-3)
    assert strong.weight.square().sum() < cold.weight.square().sum()


def test_a_dimension_that_never_changes_is_harmless(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    train, labels, test, _ = data
    plain = fit_linear(train, labels, 0.01, is_multi_label=False).scores(test)
    wider = [torch.cat([part, torch.full((len(part), 1), 3.0)], 1) for part in (train, test)]
    np.testing.assert_allclose(
        fit_linear(wider[0], labels, 0.01, is_multi_label=False).scores(wider[1]), plain, atol=5e-3
    )


def test_the_penalty_is_the_one_that_validates_best(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Of labels that say nothing the strongest is best, of clouds far apart the weakest."""
    train, labels, _, _ = data
    is_validation = torch.arange(NUM_TRAIN) % 4 == 0
    noise = labels[torch.randperm(NUM_TRAIN, generator=torch.Generator().manual_seed(0))]
    assert choose_penalty(train, noise, is_validation, is_multi_label=False) == 1.0
    apart = labels.repeat(1, 3) * 10
    assert choose_penalty(apart, labels, is_validation, is_multi_label=False) == 1e-4
    losses = {}
    for penalty in (1.0, 0.03, 1e-5):
        probe = fit_linear(train[~is_validation], labels[~is_validation], penalty, is_multi_label=False)
        losses[penalty] = mean_loss(probe.scores(train[is_validation]), labels[is_validation], False)
    chosen = choose_penalty(train, labels, is_validation, is_multi_label=False, penalties=tuple(losses))
    assert chosen == min(losses, key=lambda penalty: float(losses[penalty]))


def test_neighbours_are_scikit_learns(
    data: tuple[Tensor, Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, labels, test, _ = data
    train, test = train - 7, test - 7
    theirs = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    ).fit(train, labels.argmax(1))
    expected = theirs.predict_proba(test)
    np.testing.assert_allclose(knn_scores(train, labels, test), expected, atol=1e-4)
    # In blocks of two clips.
    monkeypatch.setattr(probemodels, "BLOCK_ENTRIES", 2 * NUM_TRAIN)
    np.testing.assert_allclose(knn_scores(train, labels, test), expected, atol=1e-4)


def test_few_clips_have_few_neighbours() -> None:
    train, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    scores = knn_scores(train, labels, torch.tensor([[3.0, 0.0]]))
    share = 1 / (1 + np.exp(-1 / TEMPERATURE))
    np.testing.assert_allclose(scores, [[share, 1.0, 0.0]], rtol=1e-5)
