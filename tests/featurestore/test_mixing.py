"""Several stores as one stream: exact proportions, every store's own order, the same on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.batches import Member
from featurestore.loader import Loader, MixedLoader, Part
from featurestore.mixing import BLOCK_SIZE, StreamMix
from featurestore.order import ClipOrder
from featurestore.store import Store
from manifests.errors import InputError

proportions = st.lists(st.floats(0.05, 1.0), min_size=1, max_size=5)


@given(proportions, st.integers(0, 2**40), st.integers(1, 600), st.integers(0, 9))
def test_ranges_follow_one_another_and_add_up(shares: list[float], start: int, length: int, seed: int) -> None:
    mix = StreamMix(shares, seed)
    first, second = mix.ranges(start, start + length), mix.ranges(start + length, start + 2 * length)
    assert sum(stop - begin for begin, stop in first) == length
    assert [stop for _, stop in first] == [begin for begin, _ in second]


@given(proportions, st.integers(0, 2**40), st.integers(0, 2100))
def test_streams_say_position_by_position_what_ranges_count(shares: list[float], start: int, length: int) -> None:
    mix = StreamMix(shares, 4)
    streams = mix.streams(start, start + length)
    assert np.bincount(streams, minlength=len(shares)).tolist() == [
        stop - begin for begin, stop in mix.ranges(start, start + length)
    ]
    for place in range(0, length, 401):
        (only,) = [n for n, (a, b) in enumerate(mix.ranges(start + place, start + place + 1)) if a < b]
        assert streams[place] == only


@given(proportions)
def test_each_block_has_the_proportions_to_one_clip(shares: list[float]) -> None:
    mix = StreamMix(shares, 3)
    counts = [stop - start for start, stop in mix.ranges(7 * BLOCK_SIZE, 8 * BLOCK_SIZE)]
    exact = np.array(shares) / sum(shares) * BLOCK_SIZE
    assert (np.abs(np.array(counts) - exact) < 1).all()
    assert mix.shares == [count / BLOCK_SIZE for count in counts]
    assert mix.ranges(7 * BLOCK_SIZE, 7 * BLOCK_SIZE)[0][0] == 7 * counts[0]


def test_one_stream_is_itself_and_several_are_mixed_anew_in_each_block() -> None:
    assert StreamMix([3.0], 0).ranges(5, 4000) == [(5, 4000)]
    mix = StreamMix([1, 1], 0)

    def pattern(start: int) -> tuple[int, ...]:
        parts = [mix.ranges(position, position + 1)[0] for position in range(start, start + 64)]
        return tuple(stop - begin for begin, stop in parts)

    patterns = {pattern(start) for start in range(0, 8 * BLOCK_SIZE, BLOCK_SIZE)}
    assert len(patterns) == 8
    assert all(16 < sum(found) < 48 for found in patterns)


@pytest.mark.parametrize("shares", [[1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], [1e9, 1.0]])
def test_impossible_proportions_are_refused(shares: list[float]) -> None:
    with pytest.raises(InputError, match="proportions"):
        StreamMix(shares, 0)


def _part(store: Store, seed: int, **about: object) -> Part:
    rows = store.rows()
    order = ClipOrder(rows, store.shard_of(rows), snapshot=store.snapshot.number, seed=seed)
    return Part(Member(store, **about), order)  # type: ignore[arg-type]


def test_a_mixed_batch_holds_the_clips_of_both_and_each_ones_own_order(store_root: str) -> None:
    store = Store(store_root)
    columns = np.array([2, -1, 0])  # of chirp, noise, tone
    first, second = _part(store, 1), _part(store, 2, label_columns=columns, num_labels=3)
    loader = MixedLoader([first, second], [3, 1], 8, seed=5)
    batches = list(loader.batches(0, 128))
    (whole,) = Loader(store, store.rows(), 12).batches(0, 1)
    alone = dict(zip(whole.rows.tolist(), whole.fbank, strict=True))
    rows, taken = [list[int](), list[int]()], [0, 0]
    mix = StreamMix([3, 1], 5)
    for step, batch in enumerate(batches):
        streams = mix.streams(8 * step, 8 * step + 8)
        for which in (0, 1):
            rows[which] += batch.rows[streams == which].tolist()
            taken[which] += int((streams == which).sum())
        assert [store.clip(int(row)).key for row in batch.rows] == batch.keys
        assert (batch.labels[streams == 0] == store.labels(batch.rows[streams == 0])).all()
        own = store.labels(batch.rows[streams == 1])
        assert (batch.labels[streams == 1] == np.stack([own[:, 2], 0 * own[:, 0], own[:, 0]], 1)).all()
        if step < 3:
            assert all((fbank == alone[row]).all() for row, fbank in zip(batch.rows.tolist(), batch.fbank, strict=True))
    assert taken == [768, 256]
    for which, part in enumerate((first, second)):
        assert rows[which] == part.order.rows(0, taken[which]).tolist()


def test_ranks_share_the_mixed_stream(store_root: str) -> None:
    store = Store(store_root)

    def stream(world_size: int, batch_size: int) -> list[list[tuple[str, int]]]:
        loaders = [
            MixedLoader(
                [_part(store, 1), _part(store, 2)], [1, 2], batch_size, seed=1, rank=rank, world_size=world_size
            )
            for rank in range(world_size)
        ]
        steps = zip(*(loader.batches(3, 5) for loader in loaders), strict=True)
        return [
            [(key, int(visit)) for b in ranks for key, visit in zip(b.keys, b.visits, strict=True)] for ranks in steps
        ]

    assert stream(1, 4) == stream(2, 2) == stream(4, 1)


def test_stores_of_other_features_and_wrong_numbers_are_refused(store_root: str) -> None:
    store, other = Store(store_root), Store(store_root)
    other.file = store.file.model_copy(update={"fbank": store.file.fbank.model_copy(update={"num_frames": 512})})
    with pytest.raises(InputError, match="other features"):
        MixedLoader([_part(store, 1), _part(other, 1)], [1, 1], 4)
    with pytest.raises(InputError, match="3 proportions for 2 stores"):
        MixedLoader([_part(store, 1), _part(store, 2)], [1, 1, 1], 4)
