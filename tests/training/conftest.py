"""Small finished stores, a very small model, and inputs and checkpoints made from them."""

import csv
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from featurestore.store import Store
from ingest.job import ingest
from ingest.plan import IngestOptions
from manifests.folder import FolderOptions, folder_manifest
from tests.smallmodel import SMALL_MODEL
from training import cli
from training.checkpoint import About, Checkpoint, save_checkpoint
from training.config import DataConfig, ModelConfig, RunConfig, load_config
from training.inputs import Inputs
from training.log import METRICS_FILE
from training.model.networks import Student
from training.seeds import generator_for

NUM_CLIPS, EMPTY_CLIP = 21, 7
LABELS = ("bark", "bell", "rain")
PRESET = f"""
source = "the tests"
checkpoint_every_steps = 2
{SMALL_MODEL}
[multissl.optimiser]
epochs = 2
batch_size = 5
peak_lr = 1e-3

[distill.optimiser]
epochs = 2
batch_size = 5
peak_lr = 1e-3
"""
TINY = ModelConfig(num_frames=256, width=16, depth=1, num_heads=2, mae_width=8, mae_depth=1, mae_num_heads=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on a machine that may be busy: more threads would only wait for one another."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def ingested(
    home: Path,
    label_column: str,
    label_of: Callable[[int], str],
    num_clips: int,
    *,
    to: Path | None = None,
    **options: Any,
) -> Store:
    """A store of tones in noise, a fourth of them in the split "test", in folds 1 to 3; clip07 is an empty file.

    `to`: a store that is there already, and to which those that it lacks are appended.
    """
    corpus = home / "corpus"
    corpus.mkdir()
    rows = []
    for number in range(num_clips):
        rng = np.random.default_rng(number)
        time_s = np.arange(int(16_000 * (1.1, 2.6, 2.0)[number % 3])) / 16_000
        sound = 0.3 * np.sin(2 * np.pi * (200 + 700 * (number % 3)) * time_s) + 0.05 * rng.standard_normal(time_s.size)
        name = f"clip{number:02d}.wav"
        if number == EMPTY_CLIP:
            (corpus / name).touch()
        else:
            soundfile.write(corpus / name, sound, 16_000, subtype="PCM_16")
        rows.append((name, label_of(number), "train" if number % 4 else "test", number % 3 + 1))
    with (corpus / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", label_column, "split", "fold"), *rows])
    manifest = folder_manifest(corpus, FolderOptions(dataset="tiny", labels_csv=corpus / "clips.csv", **options))
    ingest_options = IngestOptions(num_frames=256, clips_per_shard=5, num_workers=0, append=to is not None)
    ingest(manifest, to or home / "store", ingest_options)
    return Store(to or home / "store")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """20 clips of 256 frames of 3 classes, and one that failed: 15 to train on, 5 of "test"; for reading only."""
    home = tmp_path_factory.mktemp("finished")
    return ingested(home, "label", lambda number: LABELS[number % 3], NUM_CLIPS)


@pytest.fixture(scope="session")
def multi_label_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """7 clips with two labels, one label or none; for reading only."""
    home = tmp_path_factory.mktemp("multi")
    return ingested(home, "labels", lambda number: ("bark;rain", "bell", "")[number % 3], 7)


@pytest.fixture(scope="session")
def unlabelled_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """6 clips without labels; for reading only."""
    return ingested(tmp_path_factory.mktemp("unlabelled"), "label", lambda _: "", 6, labels="none")


@pytest.fixture
def growing_store(tmp_path: Path) -> tuple[Store, Callable[[], Store]]:
    """A store of 13 clips, and what makes it grow to those of `store`."""
    homes = tmp_path / "first", tmp_path / "second"
    for home in homes:
        home.mkdir()
    first = ingested(homes[0], "label", lambda number: LABELS[number % 3], 14)
    return first, lambda: ingested(homes[1], "label", lambda number: LABELS[number % 3], NUM_CLIPS, to=first.root)


@pytest.fixture
def own_store(store: Store, tmp_path: Path) -> Store:
    """A copy of the store, for a test that puts teachers' caches into it."""
    return Store(Path(shutil.copytree(store.root, tmp_path / "own-store")))


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    """A model of width 16 and depth 1 over 128 patches."""
    return TINY


@pytest.fixture(scope="session")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset file of the tiny model: 6 steps a stage on the store's 15 training clips."""
    path = tmp_path_factory.mktemp("preset") / "micro.toml"
    path.write_text(PRESET)
    return path


@pytest.fixture(scope="session")
def config(preset: Path) -> RunConfig:
    return load_config(str(preset))


@pytest.fixture
def inputs() -> Inputs:
    """4 clips of noise for the tiny model, with 3 labels and a teacher of 16 and 3 logits."""
    draw = torch.Generator().manual_seed(5)
    labels = torch.eye(3)[[0, 2, 1, 0]]
    return Inputs(
        fbank=torch.randn(4, 256, 128, generator=draw),
        gradient_magnitude=torch.rand(4, 128, generator=draw),
        labels=labels,
        teacher=torch.randn(4, 16, generator=draw),
        teacher_logits=torch.randn(4, 3, generator=draw),
    )


@pytest.fixture(scope="session")
def about(store: Store) -> About:
    """What a checkpoint of a finished distillation on the store says of itself."""
    return About(
        stage="distill",
        iteration=1,
        step=6,
        num_steps=6,
        model=TINY,
        fbank=store.file.fbank,
        mean=store.snapshot.mean,
        std=store.snapshot.std,
        vocabulary=store.file.vocabulary,
        one_label=True,
        teacher_dim=None,
        store_fingerprint=store.snapshot.fingerprint,
        data=DataConfig(),
        seed=0,
        held_out="test",
    )


@pytest.fixture(scope="session")
def student() -> Student:
    """A student of random weights, the one in `checkpoint_path`; for reading only."""
    return Student(TINY, 3, None, generator_for(0, "student")).eval()


@pytest.fixture(scope="session")
def checkpoint_path(about: About, student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "last.pt"
    save_checkpoint(Checkpoint(about, student.state_dict()), path)
    return path


Stream = list[dict[str, Any]]


@pytest.fixture(scope="session")
def read_stream() -> Callable[[Path], Stream]:
    """Reads a run's metrics without the figures of speed."""

    def read(run: Path) -> Stream:
        lines = [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in ("clips_per_s", "data_wait_share")} for line in lines]

    return read


@dataclass(frozen=True)
class Outcome:
    """What a command printed and its exit status."""

    status: int
    out: str
    err: str


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the console script's function in this process."""

    def command(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        status: int | str | None = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        assert isinstance(status, int | None)
        return Outcome(status or 0, captured.out, captured.err)

    return command
