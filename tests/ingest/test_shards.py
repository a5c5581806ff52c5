"""Shards as others read them: tar, numpy, sha256sum, webdataset."""

import gc
import hashlib
import io
import json
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from ingest.featurise import featurise, window_fbank
from ingest.job import ingest
from ingest.layout import Part, StoreFile, read_store_file
from ingest.ledger import SCHEMA, LedgerRow, Reason
from ingest.location import LocalFolder
from ingest.plan import IngestOptions
from ingest.shards import ShardTask, write_shard
from ingest.sidecar import Sidecar, read_sidecar
from ingest.sources import SourceFile, Unavailable
from ingest.window import read_window
from manifests.clips import Clip, Manifest, make_manifest
from manifests.errors import InputError
from manifests.geometry import FbankSpec, HogSpec
from manifests.vocabulary import Label, Vocabulary

SPEC = FbankSpec(num_frames=256)
VOCABULARY = Vocabulary(labels=(Label(id="/m/1", name="Purr"), Label(id="/m/0", name="Bark")))


def store_of(num_clips: int, keep_audio: bool = False) -> StoreFile:
    return StoreFile(
        dataset="s",
        clips_per_shard=num_clips,
        seed=0,
        keep_audio=keep_audio,
        fbank=SPEC,
        hog=HogSpec(),
        vocabulary=VOCABULARY,
        versions={},
        parts=(Part(num_clips_asked=num_clips, manifest_sha256="", wanted_sha256=""),),
    )


def task_of(root: Path, source_root: Path, clips: list[Clip], keep_audio: bool = False) -> ShardTask:
    sources = tuple(SourceFile(str(source_root), clip.source) for clip in clips)
    return ShardTask(str(root), store_of(len(clips), keep_audio), 0, "recipe", tuple(clips), sources)


def run(task: ShardTask) -> Path:
    """Makes a shard; returns its tar."""
    assert sum(progress.num_done for progress in write_shard(task)) == len(task.clips)
    return Path(task.location) / "shards" / "s-000000.tar"


def make(root: Path, source_root: Path, clips: list[Clip], keep_audio: bool = False) -> Path:
    """Writes one shard of files; returns its tar."""
    return run(task_of(root, source_root, clips, keep_audio))


def sidecar_of(tar: Path) -> Sidecar:
    sidecar = read_sidecar(LocalFolder(tar.parent), f"{tar.stem}.parquet")
    assert sidecar is not None
    return sidecar


def ledger_of(tar: Path) -> list[dict[str, Any]]:
    return sidecar_of(tar).ledger.to_pylist()  # type: ignore[no-any-return]


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
    store = read_store_file(LocalFolder(store_root))
    for shard in range(store.num_shards):
        yield store, shard


def test_the_same_input_gives_the_same_bytes(sounds: Path, tmp_path: Path) -> None:
    clips = [Clip(f"k{i}", f"{i}.wav", labels=("/m/0",)) for i in range(3)]
    first = make(tmp_path / "a", sounds, clips, keep_audio=True)
    second = make(tmp_path / "b", sounds, clips, keep_audio=True)
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".parquet").read_bytes() == second.with_suffix(".parquet").read_bytes()
    assert len(list(first.parent.iterdir())) == 2


def test_members_lie_side_by_side_with_nothing_of_the_machine(store_root: Path, corpus: Manifest) -> None:
    for store, shard in shards_of(store_root):
        with tarfile.open(store_root / store.tar_name(shard), "r:") as archive:
            infos = archive.getmembers()
        keys = corpus.table["key"].to_pylist()
        of_shard = keys[shard * store.clips_per_shard : (shard + 1) * store.clips_per_shard]
        assert [info.name for info in infos] == [
            f"{key}.{part}" for key in of_shard for part in ("fbank.npy", "hog.npy", "json")
        ]
        kinds = {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode, i.type) for i in infos}
        assert kinds == {(0, 0, 0, "", "", 0o444, tarfile.REGTYPE)}


def test_offsets_point_at_the_arrays(store_root: Path) -> None:
    for store, shard in shards_of(store_root):
        tar = store_root / store.tar_name(shard)
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
        parts = members(store_root / store.tar_name(shard))
        for key in {name.partition(".")[0] for name in parts}:
            clip = clips[key]
            window = read_window(corpus.root / clip.source, clip, 16_000, 2.575, store.seed)
            assert np.array_equal(
                np.load(io.BytesIO(parts[f"{key}.fbank.npy"])), window_fbank(window.waveform, store.fbank)
            )
            features = featurise(clip, corpus.root / clip.source, store)
            assert np.array_equal(np.load(io.BytesIO(parts[f"{key}.hog.npy"])), features.hog)
            assert np.isfinite(features.fbank).all()


def test_sha256sum_agrees(store_root: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=store_root, capture_output=True, text=True, check=True
    )
    checked = {line.partition(":")[0] for line in done.stdout.splitlines()}
    everything = {path.relative_to(store_root).as_posix() for path in store_root.rglob("*") if path.is_file()}
    assert checked == everything - {"SHA256SUMS", ".lock"}
    assert {"store.json", "manifest.parquet", "index.parquet", "index.json", "shards/tiny-000002.parquet"} < checked


def test_the_sidecar_holds_the_tar_s_hash_and_size(store_root: Path) -> None:
    for store, shard in shards_of(store_root):
        content = (store_root / store.tar_name(shard)).read_bytes()
        sidecar = sidecar_of(store_root / store.tar_name(shard))
        assert (sidecar.tar_sha256, sidecar.tar_size) == (hashlib.sha256(content).hexdigest(), len(content))
        assert sidecar.ledger.schema == SCHEMA


# webdataset leaves its tars to the garbage collector to close.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards(store_root: Path, corpus: Manifest) -> None:
    import webdataset

    urls = [str(path) for path in sorted((store_root / "shards").glob("*.tar"))]
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(urls), webdataset.tarfile_to_samples(), webdataset.decode()
    )
    samples = {sample["__key__"]: sample for sample in pipeline}
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode()
    assert [sample["__key__"] for sample in dataset] == list(samples)
    assert list(samples) == corpus.table["key"].to_pylist()
    for clip in corpus.clips():
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
        tar = store_root / store.tar_name(shard)
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
        tar = tmp_path / "s" / store.tar_name(shard)
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
    task = task_of(tmp_path, sounds, list(clips))
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
    with pytest.raises(
        InputError, match=r"s-000000\.parquet is damaged .* or delete it and run the ingest command again"
    ):
        read_sidecar(LocalFolder(tmp_path), path.name)


def test_no_sidecar_is_none(tmp_path: Path) -> None:
    assert read_sidecar(LocalFolder(tmp_path), "none.parquet") is None


def test_each_sample_has_its_place_and_its_checksums(store_root: Path) -> None:
    for store, shard in shards_of(store_root):
        tar = store_root / store.tar_name(shard)
        content, parts, end = tar.read_bytes(), members(tar), 0
        for row in ledger_of(tar):
            assert row["sample_offset"] == end
            end += row["sample_size"]
            sample = content[row["sample_offset"] : end]
            assert zlib.crc32(sample) == row["sample_crc32"]
            with tarfile.open(fileobj=io.BytesIO(sample), mode="r:") as archive:
                assert [name.partition(".")[0] for name in archive.getnames()] == [row["key"]] * 3
            array = np.load(io.BytesIO(parts[f"{row['key']}.fbank.npy"]))
            assert row["fbank_sha256"] == hashlib.sha256(array.tobytes()).hexdigest()
        assert content[end:] == bytes(-(end + 1024) % tarfile.RECORDSIZE + 1024)


def test_a_clip_without_a_file_is_a_row(sounds: Path, tmp_path: Path) -> None:
    task = task_of(tmp_path / "s", sounds, [Clip("a", "id1"), Clip("b", "1.wav")])
    sources = (Unavailable(Reason.PRIVATE, "it is private"), task.sources[1])
    rows = ledger_of(run(replace(task, sources=sources)))
    assert [(row["ok"], row["reason"], row["detail"]) for row in rows] == [
        (False, "private", "it is private"),
        (True, None, None),
    ]


def test_a_settled_clip_fails_again_without_a_try(sounds: Path, tmp_path: Path) -> None:
    """A published shard doesn't change, though the clip could be had by now."""
    clips = [Clip(f"k{i}", f"{i}.wav") for i in range(3)]
    (sounds / "1.wav").rename(tmp_path / "away.wav")
    before = run(task := task_of(tmp_path / "a", sounds, clips))
    (row,) = (row for row in ledger_of(before) if not row["ok"])
    assert (row["key"], row["reason"]) == ("k1", "missing")
    (tmp_path / "away.wav").rename(sounds / "1.wav")
    settled = {"k1": LedgerRow("k1", ok=False, reason="missing", detail=row["detail"])}
    again = run(replace(task, location=str(tmp_path / "b"), settled=settled, tar_sha256=sidecar_of(before).tar_sha256))
    assert again.read_bytes() == before.read_bytes()
    assert again.with_suffix(".parquet").read_bytes() == before.with_suffix(".parquet").read_bytes()


def test_a_published_shard_is_not_made_with_other_bytes(sounds: Path, tmp_path: Path) -> None:
    tar = run(task := task_of(tmp_path, sounds, [Clip("a", "0.wav"), Clip("b", "1.wav")]))
    published = replace(task, tar_sha256=sidecar_of(tar).tar_sha256)
    whole = tar.read_bytes()
    tar.with_suffix(".parquet").unlink()
    tar.write_bytes(whole[:1000])
    run(published)
    assert tar.read_bytes() == whole
    noise(sounds, "1.wav", 20_005)
    run(published)  # whole samples are copied
    assert tar.read_bytes() == whole
    tar.write_bytes(bytes(len(whole)))
    store = task.store.model_copy(update={"versions": {"python": "3.0", "numpy": "0.1"}})
    with pytest.raises(
        InputError, match="s-000000 can't be made anew with the bytes that its snapshot names"
    ) as caught:
        run(replace(published, store=store))
    assert f"numpy 0.1 then, {np.__version__} now" in str(caught.value)
    assert "python" not in str(caught.value)
    assert tar.read_bytes() == bytes(len(whole))
    assert sidecar_of(tar).ledger.num_rows == 2
    assert not list(tmp_path.rglob("*.partial"))


def test_a_clip_in_a_shard_is_not_lost(sounds: Path, tmp_path: Path) -> None:
    tar = run(task := task_of(tmp_path, sounds, [Clip("a", "0.wav"), Clip("b", "1.wav")]))
    whole = tar.read_bytes()
    at = whole.index(b"b.fbank.npy") + 2000
    before = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    (sounds / "1.wav").unlink()
    run(task)  # whole samples are copied
    assert tar.read_bytes() == whole
    tar.write_bytes(before)
    with pytest.raises(InputError, match=r"clip b is in s-000000 and can't be had any more \(missing: no such file\);"):
        run(task)
    assert tar.read_bytes() == before
    tar.with_suffix(".parquet").unlink()
    assert [row["ok"] for row in ledger_of(run(task))] == [True, False]
