"""A store grows by parts and snapshots; what was published never changes."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingest.job import ingest
from ingest.location import LocalFolder
from ingest.status import read_status
from manifests.clips import Clip, Manifest, make_manifest
from manifests.errors import InputError
from manifests.folder import folder_manifest
from manifests.vocabulary import Vocabulary
from tests.ingest.stores import (
    OPTIONS,
    VOCABULARY,
    assert_sums,
    clip_of,
    contents,
    files_of,
    fingerprint,
    index_of,
    outcomes,
    parts_of,
    sidecar_of,
    store_of,
    times,
    write_sound,
)

APPEND = replace(OPTIONS, append=True)
TRAIN, EVAL = [f"a{i}" for i in range(7)], [f"eval{i}" for i in range(4)]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sounds")


@pytest.fixture(scope="module")
def train(sounds: Path) -> Manifest:
    return files_of(sounds, TRAIN)


@pytest.fixture(scope="module")
def held_out(sounds: Path) -> Manifest:
    return files_of(sounds, EVAL, split="eval")


@pytest.fixture(scope="module")
def first(train: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the first split; not to be written to."""
    root = tmp_path_factory.mktemp("first")
    ingest(train, root, OPTIONS)
    return root


@pytest.fixture(scope="module")
def grown(first: Path, held_out: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of both splits; not to be written to."""
    root = Path(shutil.copytree(first, tmp_path_factory.mktemp("grown") / "s"))
    ingest(held_out, root, APPEND)
    return root


@pytest.fixture
def copy(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "copy"))


@pytest.fixture
def copy_of_grown(grown: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(grown, tmp_path / "copy"))


def error_of(manifest: Manifest, root: Path, options: object = APPEND) -> str:
    before = contents(root)
    with pytest.raises(InputError) as caught:
        ingest(manifest, root, options)  # type: ignore[arg-type]
    assert contents(root) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_snapshots(first: Path, grown: Path, train: Manifest, held_out: Manifest) -> None:
    store = store_of(grown)
    assert [(part.num_clips_asked, part.manifest_sha256) for part in store.parts] == [
        (7, train.sha256),
        (4, held_out.sha256),
    ]
    old, new = store.snapshots
    assert (old,) == store_of(first).snapshots
    assert (old.number, old.num_parts, old.num_shards, old.num_rows, old.num_clips_asked, old.num_clips) == (
        *(1, 1, 3),
        *(7, 7, 7),
    )
    assert (new.number, new.num_parts, new.num_shards, new.num_rows, new.num_clips_asked, new.num_clips) == (
        *(2, 2, 5),
        *(11, 11, 11),
    )
    assert [fingerprint(grown, snapshot) for snapshot in (old, new)] == [old.fingerprint, new.fingerprint]
    assert parts_of(grown) == [train, held_out]


def test_the_means_are_those_of_each_snapshot_s_values(grown: Path) -> None:
    store = store_of(grown)
    for snapshot in store.snapshots:
        arrays = []
        for shard in range(snapshot.num_shards):
            content = (grown / store.tar_name(shard)).read_bytes()
            offsets = sidecar_of(grown, shard).ledger["fbank_offset"].to_pylist()
            arrays += [np.frombuffer(content, np.float16, 256 * 128, offset) for offset in offsets]
        values = np.concatenate(arrays).astype(np.float64)
        assert values.size == snapshot.num_clips * 256 * 128
        assert snapshot.mean == pytest.approx(values.mean(), rel=1e-9)
        assert snapshot.std == pytest.approx(values.std(), rel=1e-9)


def test_what_was_published_is_still_there_byte_for_byte(first: Path, grown: Path) -> None:
    assert contents(first / "shards").items() < contents(grown / "shards").items()
    old, new = index_of(first), index_of(grown)
    assert new.table.slice(0, 7).equals(old.table)
    assert new.shards[:3] == old.shards
    assert new.table["key"].to_pylist() == [clip.key for part in parts_of(grown) for clip in part.clips()]
    assert_sums(grown)


def test_the_new_shards_are_as_in_a_store_of_their_own(grown: Path, held_out: Manifest, tmp_path: Path) -> None:
    ingest(held_out, tmp_path, OPTIONS)
    for shard in range(2):
        alone, appended = (root / f"shards/s-{number:06d}" for root, number in ((tmp_path, shard), (grown, 3 + shard)))
        assert alone.with_suffix(".tar").read_bytes() == appended.with_suffix(".tar").read_bytes()
        assert alone.with_suffix(".parquet").read_bytes() == appended.with_suffix(".parquet").read_bytes()


def test_the_same_commands_again_do_nothing(copy_of_grown: Path, train: Manifest, held_out: Manifest) -> None:
    before = times(copy_of_grown)
    for manifest, options in ((held_out, APPEND), (train, OPTIONS), (train, APPEND), (held_out, OPTIONS)):
        assert ingest(manifest, copy_of_grown, options) == store_of(copy_of_grown)
        assert times(copy_of_grown) == before


@pytest.mark.parametrize("command", ["first", "second"])
def test_either_command_makes_what_is_gone(
    copy_of_grown: Path, grown: Path, train: Manifest, held_out: Manifest, command: str
) -> None:
    for name in ("s-000000.tar", "s-000002.parquet", "s-000004.tar"):
        (copy_of_grown / "shards" / name).unlink()
    ingest(train if command == "first" else held_out, copy_of_grown, OPTIONS)
    assert contents(copy_of_grown) == contents(grown)


def test_each_part_is_made_from_its_own_sources(copy: Path, sounds: Path, train: Manifest, tmp_path: Path) -> None:
    held_out = files_of(tmp_path / "elsewhere", [f"far{i}" for i in range(4)])
    ingest(held_out, copy, APPEND)
    before = contents(copy)
    assert [part.root for part in parts_of(copy)] == [sounds, tmp_path / "elsewhere"]
    for name in ("s-000001.tar", "s-000003.tar"):
        (copy / "shards" / name).unlink()
    ingest(train, copy, OPTIONS)
    assert contents(copy) == before


def test_a_corpus_that_moved_moves_its_own_part(copy_of_grown: Path, sounds: Path, tmp_path: Path) -> None:
    moved = files_of(Path(shutil.copytree(sounds, tmp_path / "moved")), TRAIN)
    store = store_of(copy_of_grown)
    assert ingest(moved, copy_of_grown, OPTIONS) == store
    assert [part.root for part in parts_of(copy_of_grown)] == [tmp_path / "moved", sounds]
    assert_sums(copy_of_grown)


def test_only_what_is_new_is_asked_for(copy: Path, sounds: Path) -> None:
    overlapping = files_of(sounds, ["a5", "a6", "b0", "b1"])
    store = ingest(overlapping, copy, APPEND)
    assert [part.num_clips_asked for part in store.parts] == [7, 2]
    assert {clip.key for clip in parts_of(copy)[1].clips()} == {"b0", "b1"}
    assert store.parts[1].wanted_sha256 == overlapping.sha256 != store.parts[1].manifest_sha256
    assert store.parts[1].manifest_sha256 == files_of(sounds, ["b0", "b1"]).sha256
    before = times(copy)
    assert ingest(overlapping, copy, APPEND) == store
    assert ingest(overlapping, copy, OPTIONS) == store
    assert times(copy) == before


def test_a_list_without_anything_new_adds_nothing(copy: Path, sounds: Path) -> None:
    before = times(copy)
    assert len(ingest(files_of(sounds, ["a3", "a1"]), copy, APPEND).parts) == 1
    assert times(copy) == before


@pytest.mark.parametrize(
    "change", [{"source": "a1.wav"}, {"start_ms": 5}, {"end_ms": 300}, {"labels": ()}, {"split": "eval"}, {"fold": 1}]
)
def test_a_clip_that_differs_is_refused(copy: Path, sounds: Path, change: dict[str, object]) -> None:
    files_of(sounds, ["b0"])
    changed = make_manifest("s", [replace(clip_of("a0"), **change), clip_of("b0")], VOCABULARY, sounds)  # type: ignore[arg-type]
    text = error_of(changed, copy)
    assert f"{copy} has a clip a0 already, with another source, time, label or split; leave it out" in text


def test_a_store_of_another_recipe_is_refused(copy: Path, sounds: Path, held_out: Manifest) -> None:
    end = "Choose another folder with --store: only clips of the same kind can be appended"
    assert f"it differs in fbank. {end}" in error_of(held_out, copy, replace(APPEND, num_frames=512))
    assert f"it differs in clips_per_shard. {end}" in error_of(held_out, copy, replace(APPEND, clips_per_shard=4))
    other = make_manifest("s", [Clip("b", "a0.wav")], Vocabulary.from_names(["else"]), sounds)
    assert f"it differs in vocabulary. {end}" in error_of(other, copy)
    assert f"it differs in dataset. {end}" in error_of(make_manifest("t", [clip_of("a0")], VOCABULARY, sounds), copy)


def test_an_unfinished_store_is_refused(sounds: Path, tmp_path: Path, held_out: Manifest) -> None:
    (tmp_path / "sounds").mkdir()
    unfinished = files_of(tmp_path / "sounds", ["c0", "c1"], bad=["c2"])
    store = tmp_path / "store"
    store.mkdir()
    with pytest.raises(InputError, match="stopped: 1 of 3 clips failed"):
        ingest(unfinished, store, replace(OPTIONS, max_failures=0.0))
    text = error_of(held_out, store)
    assert text == (
        f"{store} has an unfinished ingest; run its command again to the end before you append to it (with "
        "--max-failures 1 it ends with what can be had)"
    )
    ingest(unfinished, store, OPTIONS)
    assert [snapshot.num_clips for snapshot in ingest(held_out, store, APPEND).snapshots] == [2, 6]


def test_an_append_that_fails_too_often_is_not_published(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    bad = files_of(tmp_path / "sounds", ["b0"], bad=["b1", "b2"])
    for _ in range(2):
        with pytest.raises(InputError, match=r"stopped: 2 of 3 clips failed, more than --max-failures 0\.5"):
            ingest(bad, copy, APPEND)
    store = store_of(copy)
    assert (len(store.parts), len(store.snapshots), store.num_shards_published) == (2, 1, 3)
    assert fingerprint(copy, store.snapshots[0]) == store.snapshots[0].fingerprint
    write_sound(tmp_path / "sounds" / "b1.wav")
    store = ingest(bad, copy, replace(APPEND, retry_failed=True))
    assert [snapshot.num_clips for snapshot in store.snapshots] == [7, 9]
    assert_sums(copy)


def test_an_append_of_which_nothing_comes_is_undone(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    bad = files_of(tmp_path / "sounds", [], bad=["b1", "b2"])
    text = error_of(bad, copy)  # and the store is as it was
    assert "not one of 2 clips could be had: for instance b" in text
    write_sound(tmp_path / "sounds" / "b1.wav")
    assert [snapshot.num_clips for snapshot in ingest(bad, copy, APPEND).snapshots] == [7, 8]


@pytest.mark.parametrize(
    ("num_first", "num_second", "given", "rows"),
    [
        # Smaller and larger than the first, with the option that the first was given, and without it.
        (7, 2, 3, [3, 3, 1, 2]),
        (2, 7, 3, [2, 3, 3, 1]),
        (7, 2, None, [3, 3, 1, 2]),
        (2, 7, None, [2, 3, 3, 1]),
    ],
)
def test_the_shards_are_as_large_as_the_first_ones(
    sounds: Path, tmp_path: Path, num_first: int, num_second: int, given: int | None, rows: list[int]
) -> None:
    keys = [f"n{i}" for i in range(9)]
    ingest(files_of(sounds, keys[:num_first]), tmp_path, OPTIONS)
    more = files_of(sounds, keys[-num_second:])
    store = ingest(more, tmp_path, replace(APPEND, clips_per_shard=given))
    assert [stop - first for _, first, stop in store.shard_rows()] == rows
    assert [sidecar_of(tmp_path, shard).ledger.num_rows for shard in range(store.num_shards)] == rows


def test_a_clip_that_was_missing_is_found_by_an_append(tmp_path: Path) -> None:
    sounds, root = tmp_path / "sounds", tmp_path / "store"
    manifest = files_of(sounds, ["a0", "a1", "a2"])
    (sounds / "a1.wav").rename(tmp_path / "away.wav")
    assert ingest(manifest, root, OPTIONS).snapshots[0].num_clips == 2
    (tmp_path / "away.wav").rename(sounds / "a1.wav")
    before = contents(root / "shards")
    assert len(ingest(manifest, root, OPTIONS).snapshots) == 1
    store = ingest(manifest, root, APPEND)
    assert [(s.num_shards, s.num_rows, s.num_clips_asked, s.num_clips) for s in store.snapshots] == [
        (1, 3, 3, 2),
        (2, 4, 3, 3),
    ]
    assert before.items() < contents(root / "shards").items()
    assert outcomes(root) == {"a0": "ok", "a1": "ok", "a2": "ok"}
    status = read_status(LocalFolder(root))
    assert (status.num_asked, status.num_ok, status.num_failed) == (3, 3, 0)
    assert_sums(root)
    assert len(ingest(manifest, root, APPEND).snapshots) == 2


def test_an_append_that_is_stopped_leaves_the_published_part_alone(copy: Path, train: Manifest, tmp_path: Path) -> None:
    """Its list, run again, neither needs nor publishes the clips of the other one."""
    (tmp_path / "sounds").mkdir()
    bad = files_of(tmp_path / "sounds", ["b0"], bad=["b1", "b2"])
    with pytest.raises(InputError, match="stopped: 2 of 3 clips failed"):
        ingest(bad, copy, APPEND)
    (copy / "shards" / "s-000001.tar").unlink()
    store = ingest(train, copy, OPTIONS)
    assert (len(store.parts), len(store.snapshots)) == (2, 1)
    assert (copy / "shards" / "s-000001.tar").exists()
    store = ingest(bad, copy, replace(APPEND, max_failures=1.0))
    assert [snapshot.num_clips for snapshot in store.snapshots] == [7, 8]


def test_a_clip_whose_key_was_changed_by_a_new_file_is_known(tmp_path: Path) -> None:
    """Where two files of a folder share a name, both get another key, and one of them was there before."""
    write_sound(tmp_path / "c" / "x" / "a.wav", 1)
    ingest(folder_manifest(tmp_path / "c"), tmp_path / "s", OPTIONS)
    write_sound(tmp_path / "c" / "x" / "a.flac", 2)
    changed = folder_manifest(tmp_path / "c")
    assert "x_a" not in changed.table["key"].to_pylist()
    store = ingest(changed, tmp_path / "s", APPEND)
    assert [part.num_clips_asked for part in store.parts] == [1, 1]
    assert [part.table["source"].to_pylist() for part in parts_of(tmp_path / "s")] == [["x/a.wav"], ["x/a.flac"]]
