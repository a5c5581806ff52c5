"""Stores made of the clips of others: the same samples in their places, and no half of one that passes for whole."""

import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from featurestore import cli, copyshard
from featurestore.copying import Choice
from featurestore.repair import repair
from featurestore.selection import choose_rows
from featurestore.store import Store
from featurestore.verify import verify
from ingest.job import ingest
from ingest.location import LocalFolder
from ingest.plan import IngestOptions
from manifests.clips import make_manifest
from manifests.errors import InputError
from tests.featurestore.noisestores import (  # noqa: F401
    VOCABULARY_A,
    a_fixture,
    all_of,
    b_fixture,
    copied,
    copy,
    files,
    of_key,
    store_of_noise,
    taught,
)

BOTH = [("/m/dog", "Dog"), ("/m/rain", "Rain"), ("/m/cat", "Cat")]
# Which of a ledger's columns tell where a clip lies, and so change in a copy.
PLACES = ("fbank_offset", "hog_offset", "audio_offset", "sample_offset", "sample_size", "sample_crc32")


def members(*stores: Store) -> dict[str, bytes]:
    """All members of all tars, by tarfile alone."""
    found = {}
    for store in stores:
        for path in sorted((store.root / "shards").glob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    assert content is not None
                    assert member.name not in found
                    found[member.name] = content.read()
    return found


def ledger(store: Store) -> dict[str, dict[str, Any]]:
    rows = {key: store.ledger(row) for row, key in enumerate(store.column("key").to_pylist())}
    return {key: {name: value for name, value in row.items() if name not in PLACES} for key, row in rows.items()}


def labels_by_key(store: Store) -> dict[str, set[str]]:
    """The ids that the label vectors stand for."""
    rows = store.rows()
    vectors = store.labels(rows)
    return {
        key: {store.file.vocabulary.ids[position] for position in np.flatnonzero(vector)}
        for key, vector in zip(store.keys(rows), vectors, strict=True)
    }


def test_a_subset_has_the_same_samples(a: Store, tmp_path: Path) -> None:
    store = copy([Choice(a, choose_rows(a, split="train"))], tmp_path / "copy")
    assert verify(store.location) == []
    kept = {f"a{number:02d}" for number in range(11) if number % 3}
    whole = members(a)
    assert members(store) == {name: whole[name] for name in whole if name.partition(".")[0] in kept - {"a02"}}
    assert len(members(store)) == 4 * 6
    rows = ledger(a)
    assert ledger(store) == {key: rows[key] for key in kept}
    assert (rows["a02"]["ok"], rows["a02"]["reason"]) == (False, "not_audio")
    # The clips' order is that of their store.
    assert store.column("key").to_pylist() == [key for key in a.column("key").to_pylist() if key in kept]
    assert [clip.clips_per_shard for clip in (a.file, store.file)] == [4, 4]
    snapshot = store.snapshot
    assert (snapshot.num_clips, snapshot.num_clips_asked, snapshot.num_shards, len(store)) == (6, 7, 2, 6)
    assert (store.splits, store.folds) == (["train"], [1, 2])


def test_mean_and_deviation_are_the_copys(a: Store, tmp_path: Path) -> None:
    store = copy([Choice(a, choose_rows(a, fold=2))], tmp_path / "copy")
    values = [np.frombuffer(content[128:], "<f2") for name, content in members(store).items() if "fbank" in name]
    values64 = np.concatenate(values).astype(np.float64)
    assert len(values) == 5
    assert (store.snapshot.mean, store.snapshot.std) == pytest.approx((values64.mean(), values64.std()))


def test_a_clip_that_was_tried_again_comes_once(grown_store: Store, tmp_path: Path) -> None:
    store = copy(all_of(grown_store), tmp_path / "copy", "tiny")
    assert verify(store.location) == []
    assert sorted(store.column("key").to_pylist()) == [f"clip{number:02d}" for number in range(23)]
    assert (len(store), store.snapshot.num_clips_asked) == (23, 23)
    assert members(store) == members(grown_store)
    assert [part.num_clips_asked for part in store.file.parts] == [11, 11, 1]
    old = copy([Choice(first := Store(grown_store.root, 1), first.rows(asked=True))], tmp_path / "old")
    assert (len(old), old.snapshot.num_clips_asked, old.file.clips_per_shard) == (11, 12, 5)


def test_merged(a: Store, b: Store, tmp_path: Path) -> None:
    store = copy(all_of(a, b), tmp_path / "copy", "a+b")
    assert verify(store.location) == []
    assert [(label.id, label.name) for label in store.file.vocabulary.labels] == BOTH
    assert (store.file.clips_per_shard, store.snapshot.num_shards) == (4, 3 + 2)
    whole, found = members(a, b), members(store)
    assert list(found) == list(whole)
    names, positions = dict(BOTH), {label_id: position for position, (label_id, _) in enumerate(BOTH)}
    for name, content in found.items():
        if not name.endswith(".json"):
            assert content == whole[name], name
            continue
        before, about = json.loads(whole[name]), json.loads(content)
        labels = about["labels"]
        assert about["label_indices"] == [positions[label_id] for label_id in labels]
        assert about["label_names"] == [names[label_id] for label_id in labels]
        assert list(about) == list(before)
        changed = ("label_indices", "label_names")
        assert {**about, **{key: before[key] for key in changed}} == before
    assert labels_by_key(store) == {**labels_by_key(a), **labels_by_key(b)}
    assert ledger(store) == {**ledger(a), **ledger(b)}


def test_the_order_of_stores_gives_the_order_of_labels(a: Store, b: Store, tmp_path: Path) -> None:
    store = copy(all_of(b, a), tmp_path / "copy")
    assert [label.name for label in store.file.vocabulary.labels] == ["Cat", "Rainfall", "Dog"]
    assert labels_by_key(store) == {**labels_by_key(a), **labels_by_key(b)}
    assert verify(store.location) == []


def test_a_merge_of_a_store_of_several_parts(grown_store: Store, make_store: Any, tmp_path: Path) -> None:
    other = make_store(["bell", "siren"], clips_per_shard=2)
    choices = [Choice(grown_store, grown_store.rows(split="train", asked=True)), *all_of(other)]
    with pytest.raises(InputError, match=r"the clip clip01 is in .*tiny and in .*own; leave it out of one"):
        copy(choices, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    kept = choices[0].rows[~np.isin(grown_store.keys(choices[0].rows), ["clip00", "clip01"])]
    store = copy([Choice(grown_store, kept), choices[1]], tmp_path / "copy")
    assert verify(store.location) == []
    assert [part.num_clips_asked for part in store.file.parts] == [7, 8, 1, 2]
    assert labels_by_key(store)["clip01"] == {"siren"}
    again = copy(all_of(store), tmp_path / "again")
    assert verify(again.location) == []
    assert members(again) == members(store)


@pytest.mark.parametrize(
    ("options", "what"), [({"num_frames": 512}, "fbank"), ({"keep_audio": False}, "keep_audio")], ids=["fbank", "audio"]
)
def test_stores_of_different_kinds(a: Store, tmp_path: Path, options: dict[str, Any], what: str) -> None:
    other = store_of_noise(tmp_path, "c", 3, VOCABULARY_A, **options)
    with pytest.raises(InputError, match=rf"differ in {what} \(.*only stores of one kind can be merged"):
        copy(all_of(a, other), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_nothing_to_copy(a: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no clip was chosen"):
        copy([Choice(a, np.zeros(0, np.int64))], tmp_path / "copy")
    with pytest.raises(InputError, match="all of the 1 clips chosen have failed"):
        copy([Choice(a, np.array([of_key(a, "a02")]))], tmp_path / "copy")
    with pytest.raises(InputError, match="'my birds' can't be a dataset's name"):
        copy(all_of(a), tmp_path / "copy", "my birds")
    assert not (tmp_path / "copy").exists()


def test_a_target_that_holds_another_store(a: Store, b: Store, tmp_path: Path) -> None:
    copied(b, tmp_path / "b")
    before = files(tmp_path / "b")
    with pytest.raises(InputError, match="holds another store; choose another folder"):
        copy(all_of(a), tmp_path / "b")
    copy([Choice(a, choose_rows(a, fold=1))], tmp_path / "copy")
    with pytest.raises(InputError, match="holds another store"):
        copy([Choice(a, choose_rows(a, fold=2))], tmp_path / "copy")
    assert files(tmp_path / "b") == before
    assert verify(LocalFolder(tmp_path / "copy")) == []


@pytest.mark.parametrize("target", ["store", "store/shards", "store/teachers/x", "store/../store", ".", "link"])
def test_a_target_in_a_source(a: Store, tmp_path: Path, target: str) -> None:
    store = copied(a, tmp_path / "store")
    (tmp_path / "link").symlink_to(tmp_path / "store")
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"is, holds or lies in the store .*store, which is to be copied"):
        copy(all_of(store), tmp_path / target, store.file.dataset)
    assert files(tmp_path) == before
    assert len(copy(all_of(store), tmp_path / "store2")) == 10  # a name that only begins the same


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["sample", "short tar", "no tar", "sidecar", "no sidecar"])
def test_a_damaged_source(a: Store, tmp_path: Path, damage: str) -> None:
    store = copied(a, tmp_path / "store")
    tar, sidecar = store.root / store.tar_name(1), store.root / store.file.sidecar_name(1)
    row = next(int(row) for row in store.rows() if store.shard_of(np.array([row]))[0] == 1)
    place, whole = store.ledger(row), files(store.root)
    expected = {
        "sample": rf"clip {place['key']} is damaged; run `featurestore repair`",
        "short tar": r"clip a\d\d is damaged; run `featurestore repair`",
        "no tar": r"a-000001.tar can't be read \(No such file or directory\); run `featurestore repair`",
        "sidecar": r"a-000001.parquet is damaged; run `featurestore repair`",
        "no sidecar": r"a-000001.parquet can't be read \(No such file or directory\); run `featurestore repair`",
    }
    match damage:
        case "sample":
            flip(tar, place["fbank_offset"] + 1000)
        case "short tar":
            tar.write_bytes(tar.read_bytes()[:200_000])
        case "sidecar":
            flip(sidecar, sidecar.stat().st_size // 3)
        case _:
            (tar if damage == "no tar" else sidecar).unlink()
    store = Store(store.root)
    with pytest.raises(InputError, match=expected[damage]):
        copy(all_of(store), tmp_path / "copy", "a")
    with pytest.raises(InputError, match=r"the store .*copy is not finished"):
        Store(tmp_path / "copy")
    assert not list((tmp_path / "copy").rglob("*.partial"))
    (store.root / tar.relative_to(store.root)).write_bytes(whole["shards/a-000001.tar"])
    sidecar.write_bytes(whole["shards/a-000001.parquet"])
    assert files(copy(all_of(Store(store.root)), tmp_path / "copy", "a").root) == files(
        copy(all_of(a), tmp_path / "clean", "a").root
    )


def test_a_copy_that_is_run_again(a: Store, b: Store, tmp_path: Path) -> None:
    store = copy(all_of(a, b), tmp_path / "copy")
    before = files(store.root)
    times = {path: path.stat().st_mtime_ns for path in (store.root / "shards").iterdir()}
    copy(all_of(a, b), tmp_path / "copy")
    assert files(store.root) == before
    assert {path: path.stat().st_mtime_ns for path in (store.root / "shards").iterdir()} == times
    for name in ("shards/copy-000001.tar", "shards/copy-000004.parquet"):
        (store.root / name).unlink()
    copy(all_of(a, b), tmp_path / "copy")
    assert files(store.root) == before


def test_a_source_that_has_changed(tmp_path: Path) -> None:
    source = store_of_noise(tmp_path / "a", "a", 4, VOCABULARY_A)
    store = copy(all_of(source), tmp_path / "copy")
    before = files(store.root)
    shutil.rmtree(source.root)
    soundfile.write(tmp_path / "a/sounds/a03.wav", np.full(16_000, 0.1), 16_000)
    manifest_of_others = store_of_noise(tmp_path / "other", "a", 4, VOCABULARY_A, seed=0)
    soundfile.write(tmp_path / "other/sounds/a03.wav", np.random.default_rng(99).standard_normal(16_000) / 9, 16_000)
    shutil.rmtree(manifest_of_others.root)
    (store.root / store.tar_name(0)).unlink()
    clips = [store.clip(row) for row in range(4)]
    manifest = make_manifest("a", clips, VOCABULARY_A, tmp_path / "other/sounds")
    ingest(manifest, source.root, IngestOptions(num_frames=256, num_workers=0, keep_audio=True))
    with pytest.raises(InputError, match=r"has changed since .*copy was made of it: copy-000000 would come to other"):
        copy(all_of(Store(source.root)), tmp_path / "copy")
    del before[store.tar_name(0)]
    assert files(store.root) == before


class Counting(LocalFolder):
    """Keeps account of what is read of the tars."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.num_bytes: list[int] = []

    def read_range(self, name: str, start: int, num_bytes: int) -> bytes:
        self.num_bytes.append(num_bytes)
        return super().read_range(name, start, num_bytes)


def test_neighbours_are_read_together(a: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = Counting(a.root)
    store = Store(location)
    whole = files(copy(all_of(store), tmp_path / "one", "a").root)
    assert len(location.num_bytes) == 3  # one a tar
    total, location.num_bytes = sum(location.num_bytes), []
    monkeypatch.setattr(copyshard, "MAX_READ_BYTES", max(total // 5, 200_000))
    assert files(copy(all_of(store), tmp_path / "two", "a").root) == whole
    assert sum(location.num_bytes) == total
    assert 4 <= len(location.num_bytes) < 10
    location.num_bytes = []
    sparse = copy([Choice(store, store.rows()[::2])], tmp_path / "three", "a")
    assert verify(sparse.location) == []
    assert sum(location.num_bytes) < 0.7 * total


@dataclass(frozen=True)
class Damaged:
    store: Store
    before: dict[str, bytes]


def damaged(store: Store) -> Damaged:
    """Something wrong with every shard: a tar of other bytes, none, or no sidecar."""
    before = files(store.root)
    for shard in range(store.snapshot.num_shards):
        tar, sidecar = store.root / store.tar_name(shard), store.root / store.file.sidecar_name(shard)
        if shard % 3 == 0:
            flip(tar, tar.stat().st_size // 2)
        else:
            (tar if shard % 3 == 1 else sidecar).unlink()
    return Damaged(store, before)


def test_a_merged_store_is_repaired_from_the_sources(a: Store, b: Store, tmp_path: Path) -> None:
    broken = damaged(copy(all_of(a, b), tmp_path / "copy"))
    result = repair(broken.store.location)
    assert (len(result.rebuilt), result.left) == (5, [])
    assert files(broken.store.root) == broken.before


def test_a_subset_of_a_grown_store_is_repaired(grown_store: Store, tmp_path: Path) -> None:
    rows = choose_rows(grown_store, labels=["bell"])
    assert "clip07" in grown_store.keys(rows)
    broken = damaged(copy([Choice(grown_store, rows)], tmp_path / "copy"))
    assert repair(broken.store.location).left == []
    assert files(broken.store.root) == broken.before


def test_a_store_of_another_seed_can_only_be_copied_again(a: Store, tmp_path: Path) -> None:
    """The random part of a clip that is longer than the window depends on its store's seed."""
    other = store_of_noise(tmp_path / "c", "c", 4, VOCABULARY_A, seed=5)
    store = copy(all_of(a, other), tmp_path / "copy")
    before = files(store.root)
    last = store.snapshot.num_shards - 1
    (store.root / store.tar_name(last)).unlink()
    with pytest.raises(
        InputError, match=rf"{store.file.shard_stem(last)} can't be made anew with the bytes that its snapshot names"
    ):
        repair(store.location)
    copy(all_of(a, other), tmp_path / "copy")
    assert files(store.root) == before


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def featurestore(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the console script's function in this process; returns exit status, output and errors."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["featurestore", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return command


def test_the_commands(featurestore: Command, a: Store, b: Store, fbank_stats: Any, tmp_path: Path) -> None:
    store = taught(a, tmp_path / "a", fbank_stats())
    (tmp_path / "keys.txt").write_text("a01\n\n# of the second shard\na04  # and this one\n")
    status, out, _ = featurestore("subset", store.root, "--keys", tmp_path / "keys.txt", "--to", tmp_path / "two")
    assert (status, out) == (0, f"{tmp_path / 'two'}: 2 of 2 clips in 1 shards\n")
    assert Store(tmp_path / "two").file.dataset == "a"
    assert Store(tmp_path / "two").teachers == ["one"]
    status, out, _ = featurestore("merge", store.root, b.root, "--to", tmp_path / "both")
    first, second = out.splitlines()
    assert (status, first) == (0, f"{tmp_path / 'both'}: 16 of 18 clips in 5 shards")
    assert second.startswith("teacher caches left behind: one (they differ, ")
    assert Store(tmp_path / "both").file.dataset == "a+b"
    (tmp_path / "both/shards/a+b-000004.tar").unlink()
    status, out, _ = featurestore("repair", tmp_path / "both", "--workers", "0")
    assert (status, out) == (0, f"{tmp_path / 'both'}: 1 problems found; made anew: a+b-000004\n")
    assert featurestore("verify", tmp_path / "both")[0] == 0
    status, out, err = featurestore("subset", store.root, "--label", "Cat", "--to", tmp_path / "cats")
    assert (status, out) == (2, "")
    assert err == f"error: {store.root} has no label 'Cat'; it has 2: Dog, Rain, ...\n"
    status, _, err = featurestore("merge", store.root, b.root, "--to", tmp_path / "both", "--name", "../up")
    assert (status, err.startswith("error: '../up' can't be a dataset's name")) == (2, True)
