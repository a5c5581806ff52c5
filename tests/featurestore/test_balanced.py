"""Class-balanced sampling: weights by hand, every epoch's counts, and the order's other promises."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from featurestore.balanced import VISITS_PER_EPOCH, BalancedOrder, class_weights


def test_weights_by_hand() -> None:
    # Label 0 on three clips, label 1 on one; the last clip has none.
    owners, labels = np.array([0, 1, 2, 2]), np.array([0, 0, 0, 1], np.int32)
    by_hand = np.array([1 / 3, 1 / 3, 1 / 3 + 1, (1 / 3 + 1 / 3 + 4 / 3) / 3])
    np.testing.assert_allclose(class_weights(owners, labels, 4, 2), by_hand / by_hand.mean())
    assert (class_weights(owners[:0], labels[:0], 3, 2) == 1).all()


@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(0.01, 10)), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_draws_each_clip_as_often_as_it_weighs(weights: np.ndarray, epoch: int, seed: int) -> None:
    rows = np.arange(0, 3 * len(weights), 3)
    order = BalancedOrder(rows, rows // 20, weights, snapshot=1, seed=seed)
    drawn, visits = order.visited(epoch * len(rows), (epoch + 1) * len(rows))
    counts = (drawn[:, None] == rows).sum(0)
    expected = weights / weights.sum() * len(rows)
    assert counts.sum() == len(rows)
    assert (np.abs(counts - expected) < 1 + 1e-9).all()
    assert len(set(zip(drawn.tolist(), visits.tolist(), strict=True))) == len(rows)
    assert (visits // VISITS_PER_EPOCH == epoch).all()


def test_in_the_mean_clips_come_in_proportion_and_parts_are_the_whole() -> None:
    rows, weights = np.arange(50), np.linspace(0.2, 1.8, 50)
    order = BalancedOrder(rows, rows // 7, weights, snapshot=1, seed=0)
    drawn, visits = order.visited(0, 200 * 50)
    counts = np.bincount(drawn, minlength=50) / 200
    assert np.abs(counts - weights).max() < 0.12  # three standard deviations of a mean of 200
    np.testing.assert_array_equal(np.concatenate([order.rows(0, 77), order.rows(77, 400)]), drawn[:400])
    assert (order.visited(60, 90).visits == visits[60:90]).all()


def test_the_shards_in_use_are_those_of_the_clips_drawn() -> None:
    rows = np.arange(400)
    order = BalancedOrder(rows, rows // 10, np.linspace(0.1, 1.9, 400), snapshot=1, seed=0)
    for start in range(0, 1200, 50):
        assert set((order.rows(start, start + 1) // 10).tolist()) <= set(order.shards_around(start)[0].tolist())


def test_equal_weights_are_every_clip_once() -> None:
    rows = np.arange(30)
    order = BalancedOrder(rows, rows // 7, np.ones(30), snapshot=1, seed=2)
    assert sorted(order.rows(30, 60).tolist()) == rows.tolist()
