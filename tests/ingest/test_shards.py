"""Shards as others read them: tar, numpy, sha256sum, webdataset."""

import gc
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from ingest.featurise import featurise, read_window, window_fbank
from ingest.job import IngestOptions, ingest
from ingest.layout import StoreFile, read_store_file, sidecar_path, tar_path
from ingest.ledger import SCHEMA
from ingest.shards import ShardTask, read_sidecar, write_shard
from manifests.clips import Clip, Manifest, make_manifest
from manifests.errors import InputError
from manifests.geometry import FbankSpec, HogSpec
from manifests.vocabulary import Label, Vocabulary

SPEC = FbankSpec(num_frames=256)
VOCABULARY = Vocabulary(labels=(Label(id="/m/1", name="Purr"), Label(id="/m/0", name="Bark")))


def store_of(num_clips: int, keep_audio: bool = False) -> StoreFile:
    return StoreFile(
        dataset="s",
        num_clips_asked=num_clips,
        clips_per_shard=num_clips,
        seed=0,
        keep_audio=keep_audio,
        manifest_sha256="",
        fbank=SPEC,
        hog=HogSpec(),
        vocabulary=VOCABULARY,
        versions={},
    )


def make(root: Path, source_root: Path, clips: list[Clip], keep_audio: bool = False) -> Path:
    """Writes one shard; returns its tar."""
    (root / "shards").mkdir(parents=True, exist_ok=True)
    task = ShardTask(root, source_root, store_of(len(clips), keep_audio), 0, tuple(clips))
    assert sum(progress.num_done for progress in write_shard(task)) == len(clips)
    return root / "shards" / "s-000000.tar"


def ledger_of(tar: Path) -> list[dict[str, Any]]:
    sidecar = read_sidecar(tar.with_suffix(".parquet"))
    assert sidecar is not None
    return sidecar.ledger.to_pylist()


def members(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar, "r:") as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]


def noise(root: Path, name: str, num_samples: int, level: float = 0.1) -> Path:
    rng = np.random.default_rng(num_samples)
    path = root / name
    soundfile.write(path, level * rng.standard_normal(num_samples), 16_000, subtype="FLOAT")
    return path


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    root = tmp_path / "sounds"
    root.mkdir()
    for number in range(3):
        noise(root, f"{number}.wav", 20_000 + number)
    return root


def shards_of(store_root: Path) -> Iterator[tuple[StoreFile, int]]:
    store = read_store_file(store_root)
    for shard in range(store.num_shards):
        yield store, shard


def test_the_same_input_gives_the_same_bytes(sounds: Path, tmp_path: Path) -> None:
    clips = [Clip(f"k{i}", f"{i}.wav", labels=("/m/0",)) for i in range(3)]
    first = make(tmp_path / "a", sounds, clips, keep_audio=True)
    second = make(tmp_path / "b", sounds, clips, keep_audio=True)
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".parquet").read_bytes() == second.with_suffix(".parquet").read_bytes()
    assert len(list(first.parent.iterdir())) == 2


def test_members_lie_side_by_side_with_nothing_of_the_machine(store_root: Path) -> None:
    for store, shard in shards_of(store_root):
        with tarfile.open(tar_path(store_root, store, shard), "r:") as archive:
            infos = archive.getmembers()
        keys = Manifest.read(store_root / "manifest.parquet").table["key"].to_pylist()
        of_shard = keys[shard * store.clips_per_shard : (shard + 1) * store.clips_per_shard]
        assert [info.name for info in infos] == [
            f"{key}.{part}" for key in of_shard for part in ("fbank.npy", "hog.npy", "json")
        ]
        kinds = {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode, i.type) for i in infos}
        assert kinds == {(0, 0, 0, "", "", 0o444, tarfile.REGTYPE)}


def test_offsets_point_at_the_arrays(store_root: Path) -> None:
    for store, shard in shards_of(store_root):
        tar = tar_path(store_root, store, shard)
        content, parts = tar.read_bytes(), members(tar)
        for row in ledger_of(tar):
            for name, size, shape in (("fbank", 256 * 128, (256, 128)), ("hog", 16 * 8 * 9, (16, 8, 9))):
                loaded = np.load(io.BytesIO(parts[f"{row['key']}.{name}.npy"]), allow_pickle=False)
                viewed = np.frombuffer(content, np.float16, size, row[f"{name}_offset"]).reshape(shape)
                assert loaded.dtype == np.float16
                assert np.array_equal(viewed, loaded)


def test_arrays_are_the_clip_s_features(store_root: Path, corpus: Manifest) -> None:
    clips = {clip.key: clip for clip in corpus.clips()}
    for store, shard in shards_of(store_root):
        parts = members(tar_path(store_root, store, shard))
        for key in {name.partition(".")[0] for name in parts}:
            clip = clips[key]
            window = read_window(corpus.root / clip.source, clip, 16_000, 2.575, store.seed)
            assert np.array_equal(
                np.load(io.BytesIO(parts[f"{key}.fbank.npy"])), window_fbank(window.waveform, store.fbank)
            )
            features = featurise(clip, corpus.root, store.fbank, store.hog, store.seed, False)
            assert np.array_equal(np.load(io.BytesIO(parts[f"{key}.hog.npy"])), features.hog)
            assert np.isfinite(features.fbank).all()


def test_sha256sum_agrees(store_root: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=store_root, capture_output=True, text=True, check=True
    )
    checked = {line.partition(":")[0] for line in done.stdout.splitlines()}
    assert checked == {"index.json", *(f"shards/tiny-00000{i}.{end}" for i in range(3) for end in ("tar", "parquet"))}


def test_the_sidecar_holds_the_tar_s_hash_and_size(store_root: Path) -> None:
    for store, shard in shards_of(store_root):
        content = tar_path(store_root, store, shard).read_bytes()
        sidecar = read_sidecar(sidecar_path(store_root, store, shard))
        assert sidecar is not None
        assert (sidecar.tar_sha256, sidecar.tar_size) == (hashlib.sha256(content).hexdigest(), len(content))
        assert sidecar.ledger.schema == SCHEMA


# webdataset leaves its tars to the garbage collector to close.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards(store_root: Path) -> None:
    import webdataset

    urls = [str(path) for path in sorted((store_root / "shards").glob("*.tar"))]
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(urls), webdataset.tarfile_to_samples(), webdataset.decode()
    )
    samples = {sample["__key__"]: sample for sample in pipeline}
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    assert [sample["__key__"] for sample in dataset] == list(samples)
    manifest = Manifest.read(store_root / "manifest.parquet")
    assert list(samples) == manifest.table["key"].to_pylist()
    for clip in manifest.clips():
        sample = samples[clip.key]
        assert sample["json"]["labels"] == list(clip.labels)
        parts = members(Path(sample["__url__"]))
        for name in ("fbank.npy", "hog.npy"):
            assert np.array_equal(sample[name], np.load(io.BytesIO(parts[f"{clip.key}.{name}"])))
    del pipeline, dataset, samples, sample
    gc.collect()


def test_json_names_labels_by_id_name_and_position(sounds: Path, tmp_path: Path) -> None:
    clip = Clip("k0", "0.wav", 250, 1000, labels=("/m/0", "/m/1"), split="train", fold=4)
    about = json.loads(members(make(tmp_path / "s", sounds, [clip]))["k0.json"])
    assert about == {
        "key": "k0",
        "labels": ["/m/0", "/m/1"],
        "label_names": ["Bark", "Purr"],
        "label_indices": [1, 0],
        "split": "train",
        "fold": 4,
        "source": "0.wav",
        "source_sha256": hashlib.sha256((sounds / "0.wav").read_bytes()).hexdigest(),
        "start_ms": 250,
        "num_frames": 1 + (12_000 - 400) // 160,
    }


def test_failed_clips_are_rows_with_a_reason_and_not_in_the_tar(sounds: Path, tmp_path: Path) -> None:
    (sounds / "text.wav").write_text("no audio")
    (sounds / "empty.wav").touch()
    (sounds / "folder.wav").mkdir()
    soundfile.write(sounds / "short.wav", np.zeros(399), 16_000)
    soundfile.write(sounds / "nan.wav", np.full(9000, np.nan), 16_000, subtype="FLOAT")
    soundfile.write(sounds / "cut.flac", np.random.default_rng(0).uniform(-1, 1, 90_000), 16_000)
    (sounds / "cut.flac").write_bytes((sounds / "cut.flac").read_bytes()[:60_000])
    expected = {
        "0.wav": None,
        "text.wav": "not_audio",
        "empty.wav": "not_audio",
        "gone.wav": "missing",
        "1.wav": None,
        "folder.wav": "unreadable",
        "../x.wav": "unreadable",
        "short.wav": "too_short",
        "nan.wav": "non_finite",
        "cut.flac": "decode",
        "2.wav": None,
    }
    clips = [Clip(f"k{i:02d}", source) for i, source in enumerate(expected)]
    tar = make(tmp_path / "s", sounds, clips)
    rows = ledger_of(tar)
    assert [row["key"] for row in rows] == [clip.key for clip in clips]
    assert [row["reason"] for row in rows] == list(expected.values())
    good = [row["key"] for row in rows if row["ok"]]
    assert good == ["k00", "k04", "k10"]
    assert {name.partition(".")[0] for name in members(tar)} == set(good)
    for row in rows:
        assert row["ok"] == (row["reason"] is None) == (row["fbank_offset"] is not None)
        assert row["ok"] or (row["detail"] and str(tmp_path) not in row["detail"])


def test_a_shard_of_failures_is_an_empty_tar(tmp_path: Path) -> None:
    tar = make(tmp_path / "s", tmp_path, [Clip("a", "gone.wav")])
    assert members(tar) == {}
    assert [row["reason"] for row in ledger_of(tar)] == ["missing"]


def test_what_the_ledger_measures(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "square.wav", np.tile([0.5, -0.5], (4000, 1)).reshape(-1, 2), 8000, subtype="PCM_24")
    soundfile.write(tmp_path / "silent.wav", np.full(50_000, 2.0**-17), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "loud.wav", np.resize([1.0, 0.0], 41_200), 16_000, subtype="FLOAT")
    rows = ledger_of(make(tmp_path / "s", tmp_path, [Clip(k, f"{k}.wav") for k in ("square", "silent", "loud")]))
    facts = [(r["codec"], r["source_rate_hz"], r["num_channels"], r["duration_s"]) for r in rows]
    assert facts == [("wav/pcm_24", 8000, 2, 0.5), ("wav/float", 16_000, 1, 3.125), ("wav/float", 16_000, 1, 2.575)]
    # The square's channels cancel each other.
    assert [(r["silent"], r["short"], r["clipped"]) for r in rows] == [
        (True, True, False),
        (True, False, False),
        (False, False, True),
    ]
    assert [r["num_frames"] for r in rows] == [1 + (8000 - 400) // 160, 256, 256]
    assert rows[1]["peak"] == rows[1]["rms"] == 2.0**-17
    assert rows[2]["rms"] == pytest.approx(np.sqrt(0.5), rel=1e-6)
    assert 0 <= rows[1]["crop_start_ms"] <= 550


def test_ledger_sums_are_the_fbank_s(store_root: Path) -> None:
    for store, shard in shards_of(store_root):
        tar = tar_path(store_root, store, shard)
        parts = members(tar)
        for row in ledger_of(tar):
            values = np.load(io.BytesIO(parts[f"{row['key']}.fbank.npy"])).astype(np.float64)
            assert row["fbank_sum"] == pytest.approx(values.sum(), rel=1e-12)
            assert row["fbank_sum_sq"] == pytest.approx(np.square(values).sum(), rel=1e-12)


def test_kept_audio_is_the_window(corpus: Manifest, tmp_path: Path) -> None:
    store = ingest(corpus, tmp_path / "s", IngestOptions(256, 5, keep_audio=True, num_workers=0))
    clips = {clip.key: clip for clip in corpus.clips()}
    num_seen = 0
    for shard in range(store.num_shards):
        tar = tar_path(tmp_path / "s", store, shard)
        content, parts = tar.read_bytes(), members(tar)
        for row in ledger_of(tar):
            flac = parts[f"{row['key']}.flac"]
            assert content[row["audio_offset"] :][: row["audio_size"]] == flac
            kept, rate_hz = soundfile.read(io.BytesIO(flac), dtype="float32")
            clip = clips[row["key"]]
            window = read_window(corpus.root / clip.source, clip, 16_000, 2.575, store.seed)
            assert (rate_hz, row["crop_start_ms"]) == (16_000, window.start_ms)
            np.testing.assert_allclose(kept, window.waveform.clip(-1, 1), atol=1.01 / 2**15)
            num_seen += 1
    assert num_seen == 12


def test_the_longest_key_and_letters_of_the_world(sounds: Path, tmp_path: Path) -> None:
    keys = ["k" * 90, "é-ü_音"]
    make_manifest("s", [Clip(key, "0.wav") for key in keys], VOCABULARY, sounds)  # both are allowed
    parts = members(make(tmp_path / "s", sounds, [Clip(key, "0.wav") for key in keys]))
    assert list(parts) == [f"{key}.{end}" for key in keys for end in ("fbank.npy", "hog.npy", "json")]


def test_a_remade_shard_has_no_sidecar_until_it_is_whole(sounds: Path, tmp_path: Path) -> None:
    clips = tuple(Clip(f"k{i:02d}", f"{i % 3}.wav") for i in range(25))
    (tmp_path / "shards").mkdir()
    task = ShardTask(tmp_path, sounds, store_of(25), 0, clips)
    first = [(progress.num_done, (tmp_path / "shards" / "s-000000.parquet").exists()) for progress in write_shard(task)]
    assert first == [(10, False), (10, False), (5, True)]
    # Left in the middle, the new tar is dropped and the old shard stands.
    again = write_shard(replace(task, clips=clips[::-1]))
    next(again)
    again.close()
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["s-000000.parquet", "s-000000.tar"]
    assert [row["key"] for row in ledger_of(tmp_path / "shards" / "s-000000.tar")] == [clip.key for clip in clips]


@pytest.mark.parametrize("damage", ["cut", "text", "other"])
def test_a_damaged_sidecar_is_named(store_root: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s-000000.parquet"
    if damage == "other":
        pq.write_table(pq.read_table(store_root / "manifest.parquet"), path)
    else:
        whole = next((store_root / "shards").glob("*.parquet")).read_bytes()
        path.write_bytes(whole[:-100] if damage == "cut" else b"text")
    with pytest.raises(InputError, match=r"s-000000\.parquet is damaged .* delete it and run the ingest command again"):
        read_sidecar(path)


def test_no_sidecar_is_none(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path / "none.parquet") is None
