"""What an ingest has done so far, by class and by reason."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ingest.job import ingest
from ingest.location import LocalFolder
from ingest.plan import IngestOptions
from ingest.status import read_status
from manifests.clips import Manifest
from manifests.errors import InputError
from manifests.folder import folder_manifest


def test_a_finished_store(store_root: Path) -> None:
    status = read_status(LocalFolder(store_root))
    assert (status.num_shards_done, status.num_ok, status.num_failed) == (3, 12, 0)
    assert status.asked == status.present == {"chirp": 4, "noise": 4, "tone": 4}
    assert (status.reasons, status.examples) == ({}, {})


def test_an_unfinished_store(corpus: Manifest, store_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(store_root, tmp_path / "s"))
    (root / "shards" / "tiny-000001.parquet").unlink()
    status = read_status(LocalFolder(root))
    keys = corpus.table["labels"].to_pylist()
    expected: dict[str, int] = {}
    for (label,) in keys[:5] + keys[10:]:
        expected[label] = expected.get(label, 0) + 1
    assert (status.num_shards_done, status.num_ok, status.num_failed) == (2, 7, 0)
    assert status.asked == {"chirp": 4, "noise": 4, "tone": 4}
    assert status.present == expected


def test_failures_by_reason(tmp_path: Path) -> None:
    for label, name in (("a", "good"), ("a", "gone"), ("b", "text"), ("b", "text2"), ("b", "short")):
        (tmp_path / "c" / label).mkdir(parents=True, exist_ok=True)
        num_samples = 300 if name == "short" else 9000
        sound = 0.1 * np.random.default_rng(0).standard_normal(num_samples)
        soundfile.write(tmp_path / "c" / label / f"{name}.wav", sound, 16_000)
    for name in ("text", "text2"):
        (tmp_path / "c" / "b" / f"{name}.wav").write_text("no audio")
    manifest = folder_manifest(tmp_path / "c")
    (tmp_path / "c" / "a" / "gone.wav").unlink()
    ingest(manifest, tmp_path / "s", IngestOptions(256, 2, num_workers=0, max_failures=0.9))
    status = read_status(LocalFolder(tmp_path / "s"))
    assert (status.num_shards_done, status.num_ok, status.num_failed) == (3, 1, 4)
    assert status.asked == {"a": 2, "b": 3}
    assert status.present == {"a": 1}
    assert status.reasons == {"not_audio": 2, "missing": 1, "too_short": 1}
    assert status.examples["missing"] == "a_gone (a/gone.wav): no such file"
    assert status.examples["not_audio"].startswith("b_text")
    assert status.examples["too_short"] == "b_short (b/short.wav): 300 samples, less than one frame of 400"


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a store"):
        read_status(LocalFolder(tmp_path))


def test_a_store_whose_manifest_was_not_written_yet(store_root: Path, tmp_path: Path) -> None:
    shutil.copy(store_root / "store.json", tmp_path)
    with pytest.raises(InputError, match=r"manifest\.parquet is missing; run the ingest command again"):
        read_status(LocalFolder(tmp_path))
