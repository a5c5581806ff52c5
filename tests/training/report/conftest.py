"""Run folders as `training run` leaves them, with hostile names and every kind of figure."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.store import Store
from training.checkpoint import About, Checkpoint, save_checkpoint
from training.config import RunConfig
from training.model.networks import MultiSSLNetwork, Student
from training.predictions import Origin, Predictions, write_predictions
from training.seeds import generator_for

HOSTILE = "</script><script>console.error('pwned')</script><img src=x onerror=console.error('pwned')>"
NUM_STEPS = 6
MakeRun = Callable[..., Path]


def lines_of(stage: str, num_steps: int) -> list[dict[str, Any]]:
    """Step s has loss 10 / s, and took a batch of 5 at 10 clips a second, a tenth of it waiting."""
    terms = {"intra_restore": 1.0, "inter_restore": 2.0} if stage.endswith("multissl") else {"classify": 1.0}
    speed = {"learning_rate": 1e-3, "clips_per_s": 10.0, "data_wait_share": 0.1}
    return [
        {"stage": stage, "step": step, "loss": 10 / step, **terms, "gradient_norm": 2.0, **speed}
        for step in range(1, num_steps + 1)
    ]


@pytest.fixture(scope="session")
def make_run(config: RunConfig, about: About, store: Store, student: Student) -> MakeRun:
    """make_run(folder) writes a run of one finished iteration on `store`; `lines` are more of metrics.jsonl."""

    def make(folder: Path, lines: tuple[dict[str, Any], ...] = (), settings: RunConfig = config) -> Path:
        (folder / "iter1" / "multissl").mkdir(parents=True)
        (folder / "iter1" / "distill").mkdir()
        (folder / "config.json").write_text(settings.model_dump_json())
        fingerprint = store.snapshot.fingerprint
        recorded = {"store": str(store.root), "dataset": "tiny", "snapshot": 1, "fingerprint": fingerprint}
        (folder / "store.json").write_text(json.dumps(recorded))
        command = ["training", "run", "--preset", "micro.toml", "--run", HOSTILE]
        call = {"command": command, "device": "cpu", "versions": {"torch": "2"}}
        (folder / "environment.json").write_text(json.dumps([call]))
        metrics = [*lines_of("iter1/multissl", NUM_STEPS), *lines_of("iter1/distill", NUM_STEPS), *lines]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
        network = MultiSSLNetwork(about.model, generator_for(0, "network"))
        multissl = about.model_copy(update={"stage": "multissl"})
        save_checkpoint(Checkpoint(multissl, network.state_dict()), folder / "iter1" / "multissl" / "last.pt")
        save_checkpoint(Checkpoint(about, student.state_dict()), folder / "iter1" / "distill" / "last.pt")
        _evaluate(folder / "iter1", store)
        return folder

    return make


def _evaluate(folder: Path, store: Store) -> None:
    """eval.json and predictions.parquet of 4 clips: 2 of the first class right, 1 of the second taken for the third."""
    figures = {"split": "test", "mean_average_precision": 0.5, "accuracy": 0.75, "feature_spread": 0.9}
    counts = {"num_evaluated": 4, "num_listed": 5}
    (folder / "eval.json").write_text(json.dumps({"teacher": None, **figures, **counts}))
    labels = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    scores = np.eye(3, dtype=np.float32)[[0, 0, 2, 2]]
    keys = ["one", "two", HOSTILE, "four"]
    said = Predictions("test", store.file.vocabulary.ids, keys, scores, labels, 5, 0, 0.9)
    write_predictions(folder / "predictions.parquet", said, Origin("0" * 64, store.snapshot.fingerprint))


@pytest.fixture(scope="session")
def finished_run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; for reading only."""
    return make_run(tmp_path_factory.mktemp("runs") / "finished")
