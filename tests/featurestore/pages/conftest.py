"""A store with everything that a report tells: failures, equal sounds, hostile texts, kept audio, a teacher."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from featurestore.build import build_teacher
from featurestore.pages.report import Report, ReportOptions, write_report
from featurestore.store import Store
from ingest.job import ingest
from ingest.plan import IngestOptions
from manifests.folder import FolderOptions, folder_manifest

HOSTILE = "</script><script>console.error('pwned')</script><img src=x onerror=console.error('pwned')> $\\\\frac$"
NUM_SOUNDS = 9


def _write_sounds(corpus: Path) -> None:
    """clip00 .. clip08 of noise of different levels, twin.wav like clip01, broken.wav that is no sound."""
    corpus.mkdir(parents=True)
    rows = [("file", "label", "split")]
    for number in range(NUM_SOUNDS):
        level = (0.5, 0.05, 0.005)[number % 3]
        sound = level * np.random.default_rng(number).uniform(-1, 1, 16_000 * (1 + number % 3))
        soundfile.write(corpus / f"clip{number:02d}.wav", sound, 16_000, subtype="PCM_16")
        label = (("dog", "rain", HOSTILE))[number % 3]
        rows.append((f"clip{number:02d}.wav", label, "te<b>st" if number < 3 else "train"))
    shutil.copy(corpus / "clip01.wav", corpus / "twin.wav")
    for name in ("broken.wav", "gone.wav"):
        (corpus / name).write_text("no sound")
    rows += [("twin.wav", "rain", "train"), ("broken.wav", "dog", "train"), ("gone.wav", "rain", "train")]
    with (corpus / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="session")
def shown_store(tmp_path_factory: pytest.TempPathFactory, fbank_stats: type) -> Store:
    """12 clips asked for, of which broken and gone failed, in shards of 4; twin is clip01 again; teacher fbankstats."""
    home = tmp_path_factory.mktemp("shown")
    _write_sounds(home / "corpus")
    manifest = folder_manifest(
        home / "corpus", FolderOptions(dataset="shown", labels_csv=home / "corpus" / "labels.csv")
    )
    (home / "corpus" / "gone.wav").unlink()
    ingest(manifest, home / "store", IngestOptions(num_frames=256, clips_per_shard=4, num_workers=0, keep_audio=True))
    build_teacher(Store(home / "store"), fbank_stats(), "fbankstats")
    return Store(home / "store")


@pytest.fixture(scope="session")
def report(shown_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of all of the store."""
    return write_report(shown_store, tmp_path_factory.mktemp("reports") / "report", ReportOptions())
