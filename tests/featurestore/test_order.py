"""The order of clips: a permutation every epoch, the same stream for every number of ranks, local and well mixed."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurestore.order import SHARDS_PER_WINDOW, ClipOrder, draws, permute

Rows = NDArray[np.int64]
# No deadline: the machine may be busy with something else.
untimed = settings(deadline=None, max_examples=60)


@st.composite
def chosen_rows(draw: st.DrawFn) -> tuple[Rows, int]:
    """Rows of a store of ragged shards, some of them empty, and its clips per shard."""
    clips_per_shard = draw(st.integers(1, 12))
    size = draw(st.integers(1, 400))
    keep = draw(st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random(size)))
    rows = np.flatnonzero(keep < draw(st.sampled_from((0.02, 0.5, 1.0))))
    return (rows if len(rows) else np.array([size - 1])), clips_per_shard


def make_order(rows: Rows, clips_per_shard: int = 7, seed: int = 0, snapshot: int = 1) -> ClipOrder:
    return ClipOrder(rows, rows // clips_per_shard, snapshot=snapshot, seed=seed)


@untimed
@given(st.integers(1, 2000), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation_at_any_part_of_it(size: int, key: int) -> None:
    whole = permute(np.arange(size), size, key)
    assert sorted(whole.tolist()) == list(range(size))
    some = np.arange(0, size, 3)[::-1]
    assert (permute(some, size, key) == whole[some]).all()


def test_keys_choose_different_permutations() -> None:
    orders = {tuple(permute(np.arange(50), 50, key).tolist()) for key in range(200)}
    assert len(orders) == 200
    # All six orders of three things come up.
    assert len({tuple(permute(np.arange(3), 3, key).tolist()) for key in range(200)}) == 6


@untimed
@given(chosen_rows(), st.integers(0, 5))
def test_an_epoch_is_exactly_the_chosen_rows(chosen: tuple[Rows, int], epoch: int) -> None:
    rows, clips_per_shard = chosen
    order = make_order(rows, clips_per_shard)
    assert len(order) == len(rows)
    stream = order.rows(epoch * len(rows), (epoch + 1) * len(rows))
    assert sorted(stream.tolist()) == rows.tolist()


def test_epochs_seeds_and_snapshots_differ() -> None:
    rows = np.arange(200)
    streams = [make_order(rows).rows(epoch * 200, (epoch + 1) * 200) for epoch in range(10)]
    streams += [make_order(rows, seed=1).rows(0, 200), make_order(rows, snapshot=2).rows(0, 200)]
    assert len({tuple(stream.tolist()) for stream in streams}) == 12
    assert (make_order(rows).rows(0, 200) == streams[0]).all()


@untimed
@given(chosen_rows(), st.integers(0, 100))
def test_the_stream_is_the_same_for_every_number_of_ranks(chosen: tuple[Rows, int], step: int) -> None:
    order = make_order(*chosen)
    whole = order.batch(step, 4)
    for world_size in (1, 2, 4):
        parts = [order.batch(step, 4 // world_size, rank, world_size) for rank in range(world_size)]
        assert (np.concatenate(parts) == whole).all()


@untimed
@given(chosen_rows())
def test_ranks_are_disjoint_within_an_epoch(chosen: tuple[Rows, int]) -> None:
    order = make_order(*chosen)
    num_steps = len(order) // 6
    seen = [row for step in range(num_steps) for rank in range(3) for row in order.batch(step, 2, rank, 3).tolist()]
    assert len(set(seen)) == len(seen) == 6 * num_steps


@untimed
@given(chosen_rows(), st.integers(0, 12), st.integers(1, 25))
def test_any_batch_is_its_slice_of_the_uninterrupted_stream(
    chosen: tuple[Rows, int], step: int, batch_size: int
) -> None:
    uninterrupted = make_order(*chosen).rows(0, (step + 1) * batch_size)
    # A new order that was asked nothing before: there is no state that a resume could lack.
    resumed = make_order(*chosen).batch(step, batch_size)
    assert (resumed == uninterrupted[step * batch_size :]).all()


def test_clips_of_sixteen_shards_at_a_time_are_mixed() -> None:
    clips_per_shard, num_shards = 10, 40
    order = make_order(np.arange(clips_per_shard * num_shards), clips_per_shard)
    shards = order.rows(400, 800) // clips_per_shard
    windows = np.split(shards, [160, 320])
    assert [len(np.unique(window)) for window in windows] == [SHARDS_PER_WINDOW, SHARDS_PER_WINDOW, 8]
    assert len(np.unique(shards[:50])) > 10


@pytest.mark.parametrize("num_shards", [1, 15, 16, 17, 32, 33])
def test_windows_at_the_edges(num_shards: int) -> None:
    rows = np.arange(num_shards * 3)
    assert sorted(make_order(rows, 3).rows(0, len(rows)).tolist()) == rows.tolist()


def test_every_clip_is_as_likely_at_every_place() -> None:
    """Chi-square of (clip, place) over 2000 epochs of 12 clips: 121 degrees of freedom, deviation sqrt(242)."""
    num_epochs, size = 2000, 12
    stream = make_order(np.arange(size), 4).rows(0, num_epochs * size).reshape(num_epochs, size)
    counts = np.stack([(stream == clip).sum(0) for clip in range(size)])
    expected = num_epochs / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 121) < 5 * 242**0.5


def test_places_are_not_correlated_with_rows_neighbours_or_the_last_epoch() -> None:
    size = 5000
    stream = make_order(np.arange(size), 500).rows(0, 2 * size)
    first, second = np.argsort(stream[:size]), np.argsort(stream[size:])
    for one, other in ((np.arange(size), first), (first, second), (stream[: size - 1], stream[1:size])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / size**0.5


def test_two_million_clips_make_no_list() -> None:
    rows = np.arange(2_000_000)
    tracemalloc.start()
    try:
        order = make_order(rows, 1000)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        batch = order.batch(123_456, 256)
        peak_bytes = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert len(np.unique(batch)) == 256
    assert peak_bytes < 1_000_000


def test_draws_depend_on_seed_step_and_row_alone() -> None:
    rows = np.arange(20_000)
    drawn = draws(rows, 3, 11, 5)
    assert np.bincount(drawn, minlength=5).tolist() == pytest.approx([4000] * 5, rel=0.06)
    some = np.array([7, 19_999, 0])
    assert (draws(some, 3, 11, 5) == drawn[some]).all()
    for seed, step in ((4, 11), (3, 12), (11, 3)):
        assert (draws(rows, seed, step, 5) == drawn).mean() == pytest.approx(0.2, abs=0.02)
    assert (draws(rows, 2**63, 2**40, 1) == 0).all()
