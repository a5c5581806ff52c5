"""A store that grew: its older snapshots stay what they were, and shards that aren't full lie in its middle."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from featurestore.batches import Batch
from featurestore.build import build_teacher
from featurestore.cachefiles import write_cache_checksums
from featurestore.loader import Loader, sequential_batches
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.verify import verify
from featurestore.verifyshard import Problem
from manifests.errors import InputError

SHARD_ROWS = [5, 5, 2, 5, 5, 1, 1]
FIRST_ROWS = [0, 5, 10, 12, 17, 22, 23]


@pytest.fixture
def first(grown_store: Store) -> Store:
    """The store as it was before anything was appended."""
    return Store(grown_store.root.parent / "first")


def numbers(store: Store, rows: NDArray[np.int64]) -> list[int]:
    return sorted(int(key.removeprefix("clip")) for key in store.keys(rows))


def test_three_snapshots(grown_store: Store) -> None:
    known = [(s.number, s.num_parts, s.num_shards, s.num_clips_asked, s.num_clips) for s in grown_store.file.snapshots]
    assert known == [(1, 1, 3, 12, 11), (2, 2, 6, 23, 22), (3, 3, 7, 23, 23)]
    assert grown_store.snapshot.number == 3
    for number in (0, 4):
        with pytest.raises(InputError, match=rf"tiny has no snapshot {number}; it has: 1 to 3"):
            Store(grown_store.root, number)


def test_shards_that_are_not_full(grown_store: Store) -> None:
    rows = [grown_store.rows_of_shard(shard) for shard in range(7)]
    assert [len(some) for some in rows] == SHARD_ROWS
    assert [int(some[0]) for some in rows] == FIRST_ROWS
    for shard, some in enumerate(rows):
        assert grown_store.shard_of(some).tolist() == [shard] * len(some)
        assert grown_store.teacher_rows(some).tolist() == [5 * shard + position for position in range(len(some))]
        assert [grown_store.ledger(row)["key"] for row in some.tolist()] == grown_store.keys(some)
    assert grown_store.shard_of(np.array([23, 11, 12, 0])).tolist() == [6, 2, 3, 0]


def test_a_clip_that_was_tried_again_counts_once(grown_store: Store) -> None:
    assert numbers(grown_store, grown_store.rows()) == list(range(23))
    assert numbers(grown_store, grown_store.rows(asked=True)) == list(range(23))
    assert [len(grown_store.rows(fold=fold, asked=True)) for fold in (1, 2, 3)] == [8, 8, 7]
    failed, mended = np.flatnonzero(np.array(grown_store.column("key").to_pylist()) == "clip07")
    assert grown_store.ok[[failed, mended]].tolist() == [False, True]
    assert grown_store.ledger(int(failed))["reason"] == "not_audio"
    assert grown_store.ledger(int(mended))["reason"] is None
    assert mended == 23


def test_an_old_snapshot_is_the_store_as_it_was(grown_store: Store, first: Store) -> None:
    old = Store(grown_store.root, 1)
    assert old.snapshot == first.snapshot
    assert len(old) == 11
    assert (old.ok == first.ok).all()
    assert (old.fbank_offset == first.fbank_offset).all()
    assert (old.hog_offset == first.hog_offset).all()
    for name in ("key", "source", "labels", "split", "fold"):
        assert old.column(name).to_pylist() == first.column(name).to_pylist()
    assert old.rows(asked=True).tolist() == list(range(12))
    assert numbers(old, old.rows()) == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]
    assert numbers(old, old.rows(split="test")) == [0, 4, 8]
    assert [old.clip(row) for row in range(12)] == [first.clip(row) for row in range(12)]


def test_the_first_shards_are_the_same_files(grown_store: Store, first: Store) -> None:
    for shard in range(3):
        for name in (first.tar_name(shard), first.file.sidecar_name(shard)):
            assert (grown_store.root / name).read_bytes() == (first.root / name).read_bytes()


def same(one: Batch, other: Batch) -> bool:
    return one.keys == other.keys and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("rows", "fbank", "hog", "labels")
    )


def test_an_old_snapshot_gives_the_same_batches(grown_store: Store, first: Store) -> None:
    loaders = [Loader(store, store.rows(), 4, seed=2) for store in (Store(grown_store.root, 1), first)]
    pairs = list(zip(*(loader.batches(num_steps=9) for loader in loaders), strict=True))
    assert len(pairs) == 9
    assert all(same(*pair) for pair in pairs)


@pytest.mark.parametrize("snapshot", [1, 2, 3])
def test_every_clip_once_an_epoch(grown_store: Store, snapshot: int) -> None:
    store = Store(grown_store.root, snapshot)
    rows = store.rows()
    stream = np.concatenate([batch.rows for batch in Loader(store, rows, len(rows)).batches(num_steps=3)])
    for epoch in np.split(stream, 3):
        assert sorted(epoch.tolist()) == rows.tolist()


def test_batches_of_all_parts_hold_the_sounds_that_their_keys_name(
    grown_store: Store, fbanks: dict[str, NDArray[Any]]
) -> None:
    """The finished store was ingested at once, from the same sounds but for clip07."""
    for batch in sequential_batches(grown_store, grown_store.rows(), 6):
        for key, fbank in zip(batch.keys, batch.fbank, strict=True):
            assert key == "clip07" or (fbank == fbanks[key]).all()
        assert (batch.labels.argmax(1) == [int(key.removeprefix("clip")) % 3 for key in batch.keys]).all()


def test_a_mean_and_deviation_for_each_snapshot(grown_store: Store) -> None:
    for number in (1, 2, 3):
        store = Store(grown_store.root, number)
        (batch,) = sequential_batches(store, store.rows(), 30)
        values = batch.fbank.astype(np.float64)
        assert store.snapshot.mean == pytest.approx(values.mean(), rel=1e-9)
        assert store.snapshot.std == pytest.approx(values.std(), rel=1e-6)


def test_a_cache_grows_with_the_store(growing: Any, waveform_stats: Any) -> None:
    growing.ingest_first()
    teacher = waveform_stats()
    first = build_teacher(Store(growing.root), teacher, "stats")
    assert (first.num_rows, first.failures) == (11, [])
    before = first.cache.embeddings(np.arange(12))
    growing.append()
    growing.mend_clip07()

    old, new = Store(growing.root, 1), Store(growing.root)
    np.testing.assert_array_equal(TeacherCache(old, "stats").embeddings(np.arange(12)), before)
    with pytest.raises(InputError, match=r"stats\.zarr was made from snapshot 1, and lacks the clips that were append"):
        TeacherCache(new, "stats")
    assert verify(new.location) == []

    again = waveform_stats()
    result = build_teacher(new, again, "stats")
    assert (result.num_rows, result.failures) == (23, [])
    # A probe of one, and only the 12 clips that came.
    assert sum(len(batch) for batch in again.batches) == 1 + 12
    assert result.cache.attributes.snapshot == 3
    for store in (Store(growing.root, 1), Store(growing.root, 2), Store(growing.root)):
        cache = TeacherCache(store, "stats")
        np.testing.assert_array_equal(cache.embeddings(np.arange(12)), before)
        assert np.isfinite(cache.embeddings(store.rows())).all()
    assert verify(new.location) == []


def test_a_cache_is_checked_for_the_snapshots_that_it_has_room_for(grown_copy: Path, fbank_stats: Any) -> None:
    new = Store(grown_copy)
    cache = build_teacher(Store(grown_copy, 2), fbank_stats(), "stats").cache
    assert verify(new.location) == []
    values = cache.shard_values(3)
    values["embedding"][1] = np.nan
    cache.write(3, values)
    write_cache_checksums(new, "stats")
    key = new.clip(int(new.rows_of_shard(3)[1])).key
    lost = Problem("teachers/stats.zarr", key, "its embedding is missing or not finite")
    assert verify(new.location) == [lost]
    # Rows that were only made room for are read as if they were there.
    build_teacher(Store(grown_copy, 2), fbank_stats(), "stats")
    assert verify(new.location) == []
    group = zarr.open_group(grown_copy / "teachers/stats.zarr", mode="r+")
    for name in ("embedding", "logits"):
        group[name].resize((7 * 5, *group[name].shape[1:]))
    write_cache_checksums(new, "stats")
    assert {problem.what for problem in verify(new.location)} == {
        f"its {output} is missing or not finite" for output in ("embedding", "logits")
    }


@pytest.mark.parametrize(("name", "value"), [("snapshot", 4), ("snapshot", 2), ("store_fingerprint", "0" * 64)])
def test_a_cache_of_no_snapshot(grown_copy: Path, fbank_stats: Any, name: str, value: object) -> None:
    cache = build_teacher(Store(grown_copy, 1), fbank_stats(), "stats").cache
    zarr.open_group(cache.path, mode="r+").attrs.update({name: value})
    write_cache_checksums(Store(grown_copy), "stats")
    (problem,) = verify(Store(grown_copy).location)
    assert problem.where == "teachers/stats.zarr"
    assert "was made from another content of the store: it names snapshot" in problem.what


def test_a_grown_cache_is_the_one_made_at_once(grown_copy: Path, fbank_stats: Any) -> None:
    old, new = Store(grown_copy, 1), Store(grown_copy)
    build_teacher(old, fbank_stats(), "grown")
    grown = build_teacher(new, fbank_stats(), "grown").cache
    once = build_teacher(new, fbank_stats(), "once").cache
    for shard in range(7):
        for output in ("embedding", "logits"):
            np.testing.assert_array_equal(grown.read(output, shard), once.read(output, shard))
    # The older snapshot's own build finds nothing to do, and takes nothing away.
    teacher = fbank_stats()
    build_teacher(old, teacher, "grown")
    assert len(teacher.batches) == 1
    assert np.isfinite(TeacherCache(new, "grown").embeddings(new.rows())).all()
    assert verify(new.location) == []


def test_an_extension_that_was_killed_goes_on(
    grown_copy: Path, fbank_stats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Store(grown_copy, 1), Store(grown_copy)
    build_teacher(old, fbank_stats(), "stats")
    write, calls = TeacherCache.write, iter(range(100))

    def killed(*arguments: Any) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherCache, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            build_teacher(new, fbank_stats(), "stats")
    assert np.isfinite(TeacherCache(old, "stats").embeddings(old.rows())).all()
    teacher = fbank_stats()
    result = build_teacher(new, teacher, "stats")
    assert (result.num_rows, result.failures) == (23, [])
    assert sum(len(batch) for batch in teacher.batches) == 1 + 2  # shards 5 and 6, of a clip each
    assert verify(new.location) == []


def test_clips_of_a_part_are_found_where_it_came_from(growing: Any, tmp_path: Path, waveform_stats: Any) -> None:
    """Each part has sources of its own; here the second one's lie in another folder."""
    growing.ingest_first()
    elsewhere = Path(shutil.copytree(growing.corpus, tmp_path / "elsewhere"))
    with (elsewhere / "clips.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    known = {row[0] for row in rows[:12]}
    for name in known:
        (elsewhere / name).unlink()
    with (elsewhere / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows[12:]])
    original, growing.corpus = growing.corpus, elsewhere
    store = growing.append()
    assert len(store) == 22
    assert store.sources_of_shard(2).address == str(original)
    assert store.sources_of_shard(3).address == str(elsewhere)
    assert build_teacher(store, waveform_stats(), "stats").failures == []
