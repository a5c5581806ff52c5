"""A store is brought to its end however often it takes, and two recipes never mix."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ingest.job import ingest
from ingest.layout import StoreFile, read_store_file
from ingest.location import LocalFolder
from ingest.plan import IngestOptions, default_clips_per_shard
from ingest.sidecar import read_sidecar
from manifests.clips import Manifest, make_manifest
from manifests.errors import InputError
from manifests.folder import FolderOptions, folder_manifest
from manifests.parts import ManifestFile

OPTIONS = IngestOptions(num_frames=256, clips_per_shard=5, num_workers=0)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def store_of(root: Path) -> StoreFile:
    return read_store_file(LocalFolder(root))


def parts_of(root: Path) -> list[Manifest]:
    with (root / "manifest.parquet").open("rb") as file:
        return ManifestFile(file, "manifest").manifests()


def times(root: Path) -> dict[str, int]:
    """When files changed, but the lock, which every run opens."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in files}


@pytest.fixture
def copy(store_root: Path, tmp_path: Path) -> Path:
    """A finished store that may be spoilt."""
    return Path(shutil.copytree(store_root, tmp_path / "copy"))


def bad_corpus(root: Path, num_good: int, num_bad: int) -> Manifest:
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(num_good):
        soundfile.write(root / f"good{number:02d}.wav", 0.1 * rng.standard_normal(8000), 16_000)
    for number in range(num_bad):
        (root / f"bad{number:02d}.wav").write_text("no audio")
    return folder_manifest(root, FolderOptions(labels="none"))


def error_of(manifest: Manifest, root: Path, options: IngestOptions = OPTIONS) -> str:
    with pytest.raises(InputError) as caught:
        ingest(manifest, root, options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_a_store_holds(store_root: Path, corpus: Manifest) -> None:
    assert list(contents(store_root)) == [
        ".lock",
        "README.md",
        "SHA256SUMS",
        "coverage.csv",
        "croissant.json",
        "index.json",
        "index.parquet",
        "manifest.parquet",
        "missing.csv",
        "present_all.txt",
        *(f"shards/tiny-00000{shard}.{end}" for shard in range(3) for end in ("parquet", "tar")),
        "store.json",
    ]
    store = store_of(store_root)
    assert (store.dataset, store.num_rows, store.num_shards) == ("tiny", 12, 3)
    assert store.vocabulary.names == ["chirp", "noise", "tone"]
    (part,) = store.parts
    assert (part.num_clips_asked, part.manifest_sha256, part.wanted_sha256) == (12, corpus.sha256, corpus.sha256)
    assert parts_of(store_root) == [corpus]
    assert store.fbank.num_frames == 256


def test_mean_and_std_are_those_of_all_values(store_root: Path) -> None:
    store = store_of(store_root)
    arrays = []
    for shard in range(store.num_shards):
        content = (store_root / "shards" / f"tiny-{shard:06d}.tar").read_bytes()
        sidecar = read_sidecar(LocalFolder(store_root), store.sidecar_name(shard))
        assert sidecar is not None
        offsets = sidecar.ledger["fbank_offset"].to_pylist()
        arrays += [np.frombuffer(content, np.float16, 256 * 128, offset) for offset in offsets]
    values = np.concatenate(arrays).astype(np.float64)
    (snapshot,) = store.snapshots
    assert (snapshot.number, snapshot.num_parts, snapshot.num_shards, snapshot.num_rows) == (1, 1, 3, 12)
    assert (snapshot.num_clips_asked, snapshot.num_clips) == (12, 12)
    assert values.size == 12 * 256 * 128
    assert snapshot.mean == pytest.approx(values.mean(), rel=1e-9)
    assert snapshot.std == pytest.approx(values.std(), rel=1e-9)


def test_the_index_is_of_wids(store_root: Path) -> None:
    index = json.loads((store_root / "index.json").read_text())
    assert (index["__kind__"], index["wids_version"], index["name"]) == ("wids-shard-index-v1", 1, "tiny")
    assert [(shard["url"], shard["nsamples"]) for shard in index["shardlist"]] == [
        ("shards/tiny-000000.tar", 5),
        ("shards/tiny-000001.tar", 5),
        ("shards/tiny-000002.tar", 2),
    ]
    for shard in index["shardlist"]:
        assert shard["filesize"] == (store_root / shard["url"]).stat().st_size


def test_the_fingerprint_is_of_the_recipe_and_the_tars(store_root: Path) -> None:
    store = store_of(store_root)
    recipe = json.dumps([store.recipe(), [store.parts[0].manifest_sha256]], sort_keys=True)
    digest = hashlib.sha256(recipe.encode())
    for path in sorted((store_root / "shards").glob("*.tar")):
        digest.update(hashlib.sha256(path.read_bytes()).hexdigest().encode())
    assert store.snapshots[0].fingerprint == digest.hexdigest()


def test_another_folder_gets_the_same_bytes(corpus: Manifest, store_root: Path, tmp_path: Path) -> None:
    ingest(corpus, tmp_path / "again", OPTIONS)
    assert contents(tmp_path / "again") == contents(store_root)


def test_a_second_run_does_nothing(corpus: Manifest, copy: Path) -> None:
    before, bytes_before = times(copy), contents(copy)
    store = ingest(corpus, copy, OPTIONS)
    assert store == store_of(copy)
    assert times(copy) == before
    assert contents(copy) == bytes_before


@pytest.mark.parametrize(
    "name", ["shards/tiny-000001.parquet", "shards/tiny-000001.tar", "index.json", "SHA256SUMS", "manifest.parquet"]
)
def test_a_file_that_is_gone_is_made_again(corpus: Manifest, copy: Path, store_root: Path, name: str) -> None:
    (copy / name).unlink()
    untouched = times(copy)
    ingest(corpus, copy, OPTIONS)
    assert contents(copy) == contents(store_root)
    stem = name.partition(".")[0]
    assert all(key.startswith(stem) for key, time in untouched.items() if times(copy)[key] != time)


def test_a_cut_tar_is_made_again(corpus: Manifest, copy: Path, store_root: Path) -> None:
    os.truncate(copy / "shards" / "tiny-000002.tar", 1000)
    ingest(corpus, copy, OPTIONS)
    assert contents(copy) == contents(store_root)


def test_what_a_killed_run_left_is_removed(corpus: Manifest, copy: Path, store_root: Path) -> None:
    for name in (".store.json.123.partial", "shards/.tiny-000000.tar.123.partial"):
        (copy / name).write_bytes(b"half")
    ingest(corpus, copy, OPTIONS)
    assert contents(copy) == contents(store_root)


def test_a_corpus_that_moved_is_no_other_recipe(corpus: Manifest, copy: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(corpus.root, tmp_path / "moved" / "tiny"))
    before = contents(copy / "shards")
    store = ingest(folder_manifest(moved), copy, OPTIONS)
    assert len(store.snapshots) == 1
    assert contents(copy / "shards") == before
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=copy, check=True)
    assert [part.root for part in parts_of(copy)] == [moved]
    assert parts_of(copy)[0].sha256 == corpus.sha256


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_frames": 512}, "fbank"),
        ({"clips_per_shard": 4}, "clips_per_shard"),
        ({"keep_audio": True}, "keep_audio"),
    ],
)
def test_another_recipe_is_refused(corpus: Manifest, copy: Path, change: dict[str, object], field: str) -> None:
    before = contents(copy)
    text = error_of(corpus, copy, replace(OPTIONS, **change))  # type: ignore[arg-type]
    assert f"{copy} holds another store: it differs in {field}. Choose another folder with --store" in text
    assert contents(copy) == before


def test_another_corpus_or_seed_is_refused(corpus: Manifest, copy: Path, tmp_path: Path) -> None:
    text = error_of(folder_manifest(corpus.root, seed=1), copy)
    assert "differs in seed. " in text
    assert "differs in vocabulary. Choose" in error_of(bad_corpus(tmp_path / "tiny", 3, 0), copy)
    fewer = make_manifest("tiny", list(corpus.clips())[1:], corpus.vocabulary, corpus.sources)
    text = error_of(fewer, copy)
    assert "differs in the list of clips. Choose another folder with --store, delete this one, or add what is" in text
    assert text.endswith("new with --append")


def test_two_ingests_of_one_store_exclude_each_other(corpus: Manifest, copy: Path) -> None:
    with (copy / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert error_of(corpus, copy) == f"another ingest is at work on {copy}; wait for it, or stop it"
    ingest(corpus, copy, OPTIONS)


def test_too_many_failures_stop_a_run(tmp_path: Path) -> None:
    manifest = bad_corpus(tmp_path / "corpus", 30, 50)
    text = error_of(manifest, tmp_path / "store", replace(OPTIONS, max_failures=0.2))
    assert text.startswith("stopped: ")
    counts = [int(word) for word in text.replace("(", " ").split() if word.isdecimal()]
    failed, done, of_reason = counts[:3]
    assert done == 50  # the first at which the share counts
    assert failed == of_reason > 0.2 * done
    assert "more than --max-failures 0.2 allows" in text
    assert f"({failed} not_audio; for instance bad" in text
    assert text.endswith("Mend the source and run again with --retry-failed, or allow more")
    assert not store_of(tmp_path / "store").snapshots
    # What was made stays: with more allowed the same folder is finished.
    made = times(tmp_path / "store" / "shards")
    assert len(made) == 2 * 10 - 2 or len(made) == 2 * 10
    store = ingest(manifest, tmp_path / "store", replace(OPTIONS, max_failures=0.7))
    assert store.snapshots[0].num_clips == 30
    assert made.items() <= times(tmp_path / "store" / "shards").items()


def test_too_many_failures_of_a_small_corpus_stop_it_at_its_end(tmp_path: Path) -> None:
    manifest = bad_corpus(tmp_path / "corpus", 5, 6)
    text = error_of(manifest, tmp_path / "store")
    assert "stopped: 6 of 11 clips failed, more than --max-failures 0.5 allows (6 not_audio; for instance bad" in text
    assert error_of(manifest, tmp_path / "store") == text
    assert ingest(manifest, tmp_path / "store", replace(OPTIONS, max_failures=0.6)).snapshots[0].num_clips == 5


def test_a_store_without_any_clip_is_no_store(tmp_path: Path) -> None:
    manifest = bad_corpus(tmp_path / "corpus", 0, 3)
    assert "not one of 3 clips could be had" in error_of(
        manifest, tmp_path / "store", replace(OPTIONS, max_failures=1.0)
    )


def test_unpublished_shards_made_again_never_lose_a_clip(tmp_path: Path) -> None:
    manifest = bad_corpus(tmp_path / "corpus", 5, 6)
    store = tmp_path / "store"
    assert "stopped: 6 of 11 clips failed" in error_of(manifest, store)
    before = contents(store / "shards")
    for source in manifest.root.rglob("*.wav"):
        source.write_bytes(b"")
    assert "stopped: 6 of 11 clips failed" in error_of(manifest, store, replace(OPTIONS, retry_failed=True))
    assert [path for path, content in contents(store / "shards").items() if content != before[path]] == [
        path for path in before if path.endswith(".parquet")
    ]  # why the clips failed; those that are there were copied
    for tar in (store / "shards").glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    before = contents(store / "shards")
    text = error_of(manifest, store, replace(OPTIONS, retry_failed=True))
    assert "can't be had any more (not_audio: the file is empty); the shard stays as it is" in text
    assert contents(store / "shards") == before


def test_unpublished_shards_are_made_again_in_place(tmp_path: Path) -> None:
    manifest = bad_corpus(tmp_path / "corpus", 13, 1)
    root, none_may_fail = tmp_path / "store", replace(OPTIONS, max_failures=0.0)
    assert "stopped: 1 of 14 clips failed" in error_of(manifest, root, none_may_fail)
    soundfile.write(tmp_path / "corpus" / "bad00.wav", np.random.default_rng(9).uniform(-0.1, 0.1, 9000), 16_000)
    before = times(root)
    assert "stopped: 1 of 14 clips failed" in error_of(manifest, root, none_may_fail)
    assert times(root) == before
    store = ingest(manifest, root, replace(none_may_fail, retry_failed=True))
    stem = f"shards/corpus-{manifest.table['key'].to_pylist().index('bad00') // 5:06d}"
    assert {name for name, time in before.items() if times(root)[name] != time} == {
        *(f"{stem}.tar", f"{stem}.parquet", "store.json")
    }
    assert (len(store.parts), store.snapshots[0].num_clips) == (1, 14)
    ingest(manifest, tmp_path / "clean", OPTIONS)
    assert contents(root) == contents(tmp_path / "clean")


def test_failures_are_told_beside_the_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ingest(bad_corpus(tmp_path / "corpus", 4, 1), tmp_path / "store", OPTIONS)
    assert capsys.readouterr().err.endswith(" clips/s, 1 failed\n")


def test_progress_is_told(corpus: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ingest(corpus, tmp_path / "store", OPTIONS)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "12/12 clips, " in err
    assert err.endswith(" clips/s, 0 failed\n")
    ingest(corpus, tmp_path / "store", OPTIONS)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("full_at", [1, 4, 9])
def test_a_full_disk_is_one_line_and_loses_nothing(
    corpus: Manifest, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= full_at:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("ingest.atomic.os.fsync", fsync)
        text = error_of(corpus, tmp_path / "store")
    assert f"{tmp_path / 'store'} can't be written: No space left on device; what was finished is kept" in text
    assert not list((tmp_path / "store").rglob("*.partial"))
    ingest(corpus, tmp_path / "store", OPTIONS)
    assert contents(tmp_path / "store") == contents(store_root)


def test_a_place_that_is_no_folder(corpus: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file can't be written: " in error_of(corpus, tmp_path / "file")
    assert "can't be written: Not a directory" in error_of(corpus, tmp_path / "file" / "store")


def test_a_folder_in_the_place_of_a_tar(corpus: Manifest, tmp_path: Path) -> None:
    (tmp_path / "shards" / "tiny-000001.tar" / "x").mkdir(parents=True)
    assert "can't be written: Is a directory" in error_of(corpus, tmp_path)


@pytest.mark.parametrize(
    ("num_clips", "size"), [(1, 50), (240, 50), (801, 51), (2000, 125), (16_000, 1000), (2_000_000, 1000)]
)
def test_clips_per_shard_by_default(num_clips: int, size: int) -> None:
    assert default_clips_per_shard(num_clips) == size
