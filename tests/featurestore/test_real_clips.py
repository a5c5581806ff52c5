"""Twenty clips of ESC-10 through EfficientAT: the cache holds what the model says of the sounds."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from numpy.typing import NDArray

from featurestore.build import build_teacher
from featurestore.loader import sequential_batches
from featurestore.store import Store
from featurestore.teachers.efficientat import load_efficientat
from featurestore.verify import verify
from ingest.job import ingest
from ingest.plan import IngestOptions
from manifests.esc50 import esc50_manifest

SHARED = Path(__file__).parents[2].parent / "shared"
ESC10, WEIGHTS = SHARED / "data/esc10", SHARED / "data/weights/mn04_as_mAP_432.pt"
pytestmark = pytest.mark.skipif(
    not (ESC10.is_dir() and WEIGHTS.is_file()), reason=f"needs the real clips and weights of {SHARED}/data"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of every class, in the official layout."""
    root = tmp_path_factory.mktemp("esc10")
    (root / "meta").mkdir()
    (root / "audio").mkdir()
    with (ESC10 / "meta/esc50.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [
        row for fold in ("1", "2") for row in {row["category"]: row for row in rows if row["fold"] == fold}.values()
    ]
    with (root / "meta/esc50.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(kept)
    for row in kept:
        shutil.copy(ESC10 / "audio" / row["filename"], root / "audio")
    return root


def waveform_32k(path: Path) -> NDArray[np.float32]:
    samples, rate_hz = soundfile.read(path, dtype="float32")
    resampled: NDArray[np.float32] = soxr.resample(samples, rate_hz, 32000, quality="HQ")
    return resampled


def test_efficientat_of_real_clips(corpus: Path, tmp_path: Path) -> None:
    ingest(esc50_manifest(corpus, esc10=True), tmp_path, IngestOptions(512, clips_per_shard=8, num_workers=0))
    store = Store(tmp_path)
    assert (len(store), store.num_classes, store.folds) == (20, 10, [1, 2])
    teacher = load_efficientat(WEIGHTS)
    result = build_teacher(store, teacher, "mn04")
    assert (result.num_rows, result.failures) == (20, [])
    assert verify(store.location) == []
    batches = list(sequential_batches(store, store.rows(), 7, result.cache))
    cached = np.concatenate([batch.teacher for batch in batches if batch.teacher is not None])
    # A clip of 5 s is shorter than the window of 512 frames (5.135 s), and isn't looped.
    waveforms = [waveform_32k(corpus / store.clip(row).source) for row in store.rows().tolist()]
    direct = [teacher.embed(torch.from_numpy(waveform)[None]) for waveform in waveforms]
    # Half precision keeps 11 bits.
    embeddings = torch.cat([output.embedding for output in direct])
    np.testing.assert_allclose(cached, embeddings, rtol=2**-10, atol=1e-3)
    logits = torch.cat([output.logits for output in direct if output.logits is not None])
    np.testing.assert_allclose(result.cache.logits(store.rows()), logits, rtol=2**-10, atol=1e-3)
