"""One export in all formats, of a run on the store, that the tests of files share."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from featurestore.store import Store
from training.config import RunConfig
from training.export.save import Export, export_model

EVALUATION = {
    "teacher": None,
    "split": "test",
    "mean_average_precision": 0.4321,
    "accuracy": 0.6,
    "feature_spread": 0.5,
    "num_evaluated": 5,
    "num_listed": 6,
    "num_classes_evaluated": 3,
    "num_classes": 3,
    "mean_auc": 0.7,
    "d_prime": None,
    "num_unlabelled": 0,
    "keys_sha256": "0" * 64,
}


@dataclass(frozen=True)
class Done:
    """An export, its folder, and the checkpoint that was exported."""

    export: Export
    folder: Path
    checkpoint: Path


@pytest.fixture(scope="session")
def run_folder(
    checkpoint_path: Path, store: Store, config: RunConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of one iteration on the store; for reading only."""
    run = tmp_path_factory.mktemp("runs") / "tiny-micro"
    (run / "iter1/distill").mkdir(parents=True)
    shutil.copy(checkpoint_path, run / "iter1/distill/last.pt")
    (run / "iter1/eval.json").write_text(json.dumps(EVALUATION))
    (run / "config.json").write_text(config.model_copy(update={"initialise": "/home/me/vit.pt"}).model_dump_json())
    about = {"store": str(store.root), "dataset": "tiny", "snapshot": 1, "fingerprint": store.snapshot.fingerprint}
    (run / "store.json").write_text(json.dumps({**about, "others": []}))
    return run


@pytest.fixture(scope="session")
def done(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All formats of the run's model; for reading only."""
    checkpoint, out = run_folder / "iter1/distill/last.pt", tmp_path_factory.mktemp("exports") / "tiny"
    return Done(export_model(checkpoint, [], out), out, checkpoint)


@pytest.fixture(scope="session")
def waveform() -> np.ndarray:
    """A tone in noise, a second of it."""
    time_s = np.arange(16_000) / 16_000
    noise = np.random.default_rng(3).standard_normal(16_000)
    return (0.3 * np.sin(2 * np.pi * 440 * time_s) + 0.02 * noise).astype(np.float32)
