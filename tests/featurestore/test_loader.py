"""Batches: their values, whose memory they are, how they end, and what is said when a shard is damaged."""

import gc
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from featurestore.batches import Batch
from featurestore.build import build_cache, build_teacher
from featurestore.cacheplan import CacheOptions, plan_cache
from featurestore.loader import Loader, sequential_batches
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.teacherpool import InProcess
from featurestore.teachers.ensemble import Ensemble
from featurestore.views import View, apply_to_fbank
from ingest.index import ShardEntry
from manifests.errors import InputError

Arrays = dict[str, NDArray[Any]]


def tar_path(store: Store, shard: int) -> Path:
    return store.root / store.tar_name(shard)


def background_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("read-ahead", "shard-reader"))]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    # What an earlier test of another file left behind in a cycle is not this one's.
    gc.collect()
    yield
    assert background_threads() == []


def assert_right(batch: Batch, store: Store, fbanks: Arrays, hogs: Arrays) -> None:
    assert batch.keys == store.keys(batch.rows)
    assert batch.fbank.dtype == np.float16
    assert (batch.fbank == np.stack([fbanks[key] for key in batch.keys])).all()
    assert batch.hog.dtype == np.float32
    by_hand = np.stack([hogs[key] for key in batch.keys]).astype(np.float32).sum(-1)
    np.testing.assert_allclose(batch.hog, by_hand, rtol=1e-5, atol=1e-6)
    assert (batch.labels == store.labels(batch.rows)).all()


def same(one: Batch, other: Batch) -> bool:
    return one.keys == other.keys and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("rows", "fbank", "hog", "labels")
    )


def test_batches_hold_what_the_tars_hold(finished_store: Store, fbanks: Arrays, hogs: Arrays) -> None:
    seen: list[int] = []
    for batch in Loader(finished_store, finished_store.rows(), 4, seed=3).batches(num_steps=11):
        assert batch.fbank.shape == (4, 256, 128)
        assert batch.hog.shape == (4, 16, 8)
        assert batch.teacher is None
        assert_right(batch, finished_store, fbanks, hogs)
        seen += batch.rows.tolist()
    # 44 clips are two epochs of 22.
    assert sorted(seen[:22]) == sorted(seen[22:]) == finished_store.rows().tolist()
    assert seen[:22] != seen[22:]


def test_views_are_drawn_by_step_and_joined(store_copy: Path, fbanks: Arrays, hogs: Arrays, fbank_stats: Any) -> None:
    """The teacher's rows are those of the views that a batch names, and of its clips' own fbanks."""
    store = Store(store_copy)
    options = CacheOptions(num_views=3, views_seed=5)
    cache = build_cache(plan_cache(store, Ensemble([fbank_stats()]), "stats", options), InProcess()).cache
    loader = Loader(store, store.rows(), 8, seed=4, teacher=cache, with_logits=True, with_views=True)
    batches = list(loader.batches(num_steps=6))
    for batch in batches:
        assert batch.views is not None
        assert batch.teacher is not None
        assert_right(batch, store, fbanks, hogs)
        named = zip(batch.keys, batch.views.roll_frames.tolist(), batch.views.gain_db.tolist(), strict=True)
        for place, (key, roll_frames, gain_db) in enumerate(named):
            seen = apply_to_fbank(fbanks[key], View(roll_frames, gain_db))
            np.testing.assert_allclose(batch.teacher[place], [seen.mean(), seen.std(ddof=1)], rtol=2e-3)
    drawn = {
        (key, roll) for batch in batches if batch.views for key, roll in zip(batch.keys, batch.views[0], strict=True)
    }
    assert len(drawn) > 30  # of 48 draws for 22 clips with three views each
    # A later start draws the same.
    (later,) = loader.batches(5, num_steps=1)
    assert later.views is not None
    assert batches[5].views is not None
    assert (later.views.roll_frames == batches[5].views.roll_frames).all()
    with pytest.raises(
        InputError, match=r"a teacher's augmented views are needed, and .*plain\.zarr has none; make them"
    ):
        Loader(store, store.rows(), 8, teacher=build_teacher(store, fbank_stats(), "plain").cache, with_views=True)
    with pytest.raises(InputError, match="views are needed, and there is no cache"):
        Loader(store, store.rows(), 8, with_views=True)


def test_teacher_rows_are_joined_by_row(store_copy: Path, fbanks: Arrays, fbank_stats: Any) -> None:
    store = Store(store_copy)
    cache = build_teacher(store, fbank_stats(), "stats").cache
    cache.write(1, {"embedding": np.full((5, 2), np.nan, np.float16)})
    rows = store.rows()
    for batches in (
        Loader(store, rows, 8, teacher=cache).batches(num_steps=3),
        sequential_batches(store, rows, 8, cache),
    ):
        for batch in batches:
            assert batch.teacher is not None
            assert batch.teacher.dtype == np.float32
            means = np.array([fbanks[key].astype(np.float32).mean() for key in batch.keys])
            means[store.shard_of(batch.rows) == 1] = np.nan
            np.testing.assert_allclose(batch.teacher[:, 0], means, rtol=2e-3)


def test_sequential_batches_cover_each_clip_once(finished_store: Store, fbanks: Arrays, hogs: Arrays) -> None:
    rows = finished_store.rows()[::-1]
    batches = list(sequential_batches(finished_store, rows, 5))
    assert [len(batch.rows) for batch in batches] == [5, 5, 5, 5, 2]
    assert np.concatenate([batch.rows for batch in batches]).tolist() == rows.tolist()
    for batch in batches:
        assert_right(batch, finished_store, fbanks, hogs)
    assert list(sequential_batches(finished_store, rows[:0], 5)) == []


def test_a_batch_that_is_kept_never_changes(finished_store: Store, fbanks: Arrays, hogs: Arrays) -> None:
    kept: list[Batch] = []
    views: list[tuple[str, Any]] = []
    for step, batch in enumerate(Loader(finished_store, finished_store.rows(), 3).batches(num_steps=80)):
        key = batch.keys[1]
        if step % 5 == 0:
            kept.append(batch)
        elif step % 5 == 1:
            views.append((key, batch.fbank[1]))
        elif step % 5 == 2:
            views.append((key, torch.from_numpy(batch.fbank)[1]))
        elif step % 5 == 3:
            views.append((key, batch.fbank[1:].view(np.int16)[0].view(np.float16)))
        del batch
    for batch in kept:
        assert_right(batch, finished_store, fbanks, hogs)
    for key, view in views:
        assert (np.asarray(view) == fbanks[key]).all()


def test_memory_is_used_again_when_it_is_dropped(finished_store: Store) -> None:
    addresses: list[int] = []
    for batch in Loader(finished_store, finished_store.rows(), 4).batches(num_steps=60):
        addresses.append(batch.fbank.ctypes.data)
        del batch
    # 3 wait, one is being filled, one is the consumer's, and one it is handing back.
    assert len(set(addresses)) <= 6


def test_two_readers_of_one_loader_at_a_time(finished_store: Store, fbanks: Arrays, hogs: Arrays) -> None:
    loader = Loader(finished_store, finished_store.rows(), 5)
    for one, other in zip(loader.batches(num_steps=60), loader.batches(7, num_steps=60), strict=True):
        assert not np.shares_memory(one.fbank, other.fbank)
        assert_right(one, finished_store, fbanks, hogs)
        assert_right(other, finished_store, fbanks, hogs)


def test_a_new_loader_goes_on_where_another_was(finished_store: Store) -> None:
    rows = finished_store.rows(split="train")
    uninterrupted = list(Loader(finished_store, rows, 4, seed=5).batches(num_steps=9))
    resumed = list(Loader(finished_store, rows, 4, seed=5).batches(6, num_steps=3))
    assert all(same(one, other) for one, other in zip(uninterrupted[6:], resumed, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batches_of_one_process(finished_store: Store, world_size: int) -> None:
    rows = finished_store.rows()
    alone = list(Loader(finished_store, rows, 4).batches(num_steps=7))
    ranks = [
        list(Loader(finished_store, rows, 4 // world_size, rank=rank, world_size=world_size).batches(num_steps=7))
        for rank in range(world_size)
    ]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert (np.concatenate([part.fbank for part in parts]) == whole.fbank).all()
        assert [key for part in parts for key in part.keys] == whole.keys


def test_no_clips_are_refused(finished_store: Store) -> None:
    with pytest.raises(InputError, match=r"no clip of .*tiny is in the part asked for; see `featurestore info`"):
        Loader(finished_store, finished_store.rows(split="nowhere"), 4)


def test_a_consumer_that_stops_leaves_no_thread(finished_store: Store) -> None:
    with closing(Loader(finished_store, finished_store.rows(), 4).batches()) as batches:
        next(batches)
        assert "read-ahead" in background_threads()
    assert background_threads() == []
    for _ in Loader(finished_store, finished_store.rows(), 4).batches():
        break
    assert background_threads() == []


def test_descriptors_are_closed(finished_store: Store) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        list(sequential_batches(finished_store, finished_store.rows(), 4))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_process_can_end_in_the_middle(finished_store: Store) -> None:
    script = (
        "import sys; from pathlib import Path; from featurestore.store import Store; "
        "from featurestore.loader import Loader; store = Store(Path(sys.argv[1])); "
        "batches = Loader(store, store.rows(), 4).batches(); print(len(next(batches).keys))"
    )
    command = [sys.executable, "-c", script, str(finished_store.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


def test_more_shards_than_may_be_open(
    finished_store: Store, fbanks: Arrays, hogs: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.reader.MAX_OPEN_SHARDS", 1)
    for batch in Loader(finished_store, finished_store.rows(), 22).batches(num_steps=60):
        assert_right(batch, finished_store, fbanks, hogs)


def entries_with_size(store: Store, shard: int, size: int) -> tuple[ShardEntry, ...]:
    """The index's entries, of which one names another size."""
    entries = list(store.shards)
    entries[shard] = entries[shard].model_copy(update={"tar_size": size})
    return tuple(entries)


def test_a_truncated_tar_names_shard_and_clip(store_copy: Path) -> None:
    store = Store(store_copy)
    row = int(store.rows()[-1])
    tar = tar_path(store, row // 5)
    size = tar.stat().st_size
    os.truncate(tar, int(store.fbank_offset[row]) + 1000)
    key = store.clip(row).key
    with pytest.raises(InputError, match=rf"{tar.name} has \d+ bytes, and its index says {size}"):
        list(sequential_batches(store, store.rows(), 4))
    # As if it were cut while it is open.
    store.shards = entries_with_size(store, row // 5, tar.stat().st_size)
    with pytest.raises(InputError, match=rf"ends inside clip {key}: run `featurestore verify`"):
        list(Loader(store, store.rows(), 4).batches(num_steps=6))


def test_a_removed_tar_is_named(store_copy: Path) -> None:
    store = Store(store_copy)
    tar_path(store, 2).unlink()
    batches = sequential_batches(store, store.rows(), 5)
    with pytest.raises(InputError, match=r"tiny-000002\.tar is missing; run `featurestore repair`"):
        list(batches)


def test_good_batches_come_out_before_an_error(store_copy: Path) -> None:
    store = Store(store_copy)
    tar_path(store, 4).unlink()
    batches = sequential_batches(store, store.rows(), 5)
    assert [len(next(batches).rows) for _ in range(3)] == [5, 5, 5]
    with pytest.raises(InputError, match=r"tiny-000004"):
        list(batches)


def test_an_unreadable_shard_is_named(store_copy: Path) -> None:
    store = Store(store_copy)
    tar_path(store, 0).unlink()
    tar_path(store, 0).mkdir()
    store.shards = entries_with_size(store, 0, tar_path(store, 0).stat().st_size)
    key = store.clip(int(store.rows()[0])).key
    with pytest.raises(InputError, match=rf"tiny-000000\.tar can't be read \(Is a directory\) inside clip {key}: run"):
        list(sequential_batches(store, store.rows()[:1], 1))


def edit_offset(index: Path, row: int, change: int) -> None:
    table = pq.read_table(index)
    offsets = table["fbank_offset"].to_pylist()
    offsets[row] += change
    column = table.schema.get_field_index("fbank_offset")
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array(offsets, pa.int64())), index)


def test_an_index_that_makes_no_sense_comes_out_as_an_error(store_copy: Path) -> None:
    """The error is found in the background before the first batch: the consumer must not wait forever."""
    edit_offset(store_copy / "index.parquet", 0, 16)
    store = Store(store_copy)
    with pytest.raises(InputError, match=r"copy: fbank and HOG don't lie side by side; run `featurestore verify`"):
        next(sequential_batches(store, store.rows(), 5))


def test_a_store_whose_folder_moved(finished_store: Store, tmp_path: Path, fbanks: Arrays, hogs: Arrays) -> None:
    moved = Store(Path(shutil.copytree(finished_store.root, tmp_path / "a" / "b")))
    for batch in sequential_batches(moved, moved.rows(), 22):
        assert_right(batch, finished_store, fbanks, hogs)


def test_a_damaged_cache_comes_out_as_an_error(store_copy: Path, fbank_stats: Any) -> None:
    store = Store(store_copy)
    path = Path(build_teacher(store, fbank_stats(), "stats").cache.path)
    chunk = path / "embedding/c/3/0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"stats\.zarr/embedding is damaged in the rows of shard 3"):
        list(sequential_batches(store, store.rows(), 5, TeacherCache(store, "stats")))
