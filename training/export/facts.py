"""What is known of an exported model: what every file says of itself, and what its run kept."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from featurestore.store import Store
from ingest.fbank import ENERGY_FLOOR, FFT_SIZE
from ingest.licences import Terms, terms_of
from ingest.sourcefile import file_sha256
from manifests.errors import InputError
from training.checkpoint import Checkpoint
from training.config import RunConfig
from training.evaluate import Evaluation
from training.export.graph import EMBEDDING, LOGITS, PROBABILITIES, WAVEFORM
from training.iterations import EVAL_FILE, read_evaluation
from training.loop import LAST
from training.runfolder import CONFIG_FILE, STORE_FILE, open_recorded_store, read_config

FORMAT = 1
PACKAGE = "acm-sskd"
ONNX_OPSET = 18


def describe(checkpoint: Checkpoint, sha256: str) -> dict[str, Any]:
    """What an exported file says of itself, as JSON knows it; `sha256` is that of the checkpoint's file."""
    about, spec = checkpoint.about, checkpoint.about.window
    width, num_classes = about.model.width, len(about.vocabulary)
    tags = {PROBABILITIES: ["batch", num_classes], LOGITS: ["batch", num_classes]} if about.can_classify else {}
    return {
        "format": FORMAT,
        "labels": [label.model_dump() for label in about.vocabulary.labels] if tags else [],
        "one_label": about.one_label,
        "input": {
            "name": WAVEFORM,
            "shape": ["batch", "num_samples"],
            "dtype": "float32",
            "sample_rate_hz": spec.sample_rate_hz,
            "channels": 1,
            "range": [-1.0, 1.0],
            "window_samples": spec.num_samples,
            "least_samples": spec.frame_length,
            "shorter_than_window": "repeated",
            "longer_than_window": "cut",
        },
        "outputs": {**tags, EMBEDDING: ["batch", width]},
        "preprocessing": {
            **spec.model_dump(mode="json"),
            "fft_size": FFT_SIZE,
            "energy_floor": ENERGY_FLOOR,
            "rounded_to": "float16",
            "mean": about.mean,
            "std": about.std,
        },
        "provenance": {
            "checkpoint_sha256": sha256,
            "store_fingerprint": about.store_fingerprint,
            "other_fingerprints": list(about.other_fingerprints),
            "stage": about.stage,
            "iteration": about.iteration,
            "held_out": about.held_out,
            "package": PACKAGE,
            "package_version": version(PACKAGE),
            "onnx_opset": ONNX_OPSET,
        },
    }


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as far as that is still there: its run's configuration and evaluation, and its data.

    `datasets` are the stores that it was trained on by name, the labelled one first, and the terms of their clips;
    `store` is the labelled one, None where it is out of reach.
    """

    sha256: str
    config: RunConfig | None = None
    evaluation: Evaluation | None = None
    datasets: tuple[tuple[str, Terms], ...] = ()
    store: Store | None = None


def find_origin(path: Path, store_fingerprint: str) -> Origin:
    """The origin of the checkpoint `path`, which was trained on the store of that fingerprint.

    Raises InputError when its run's files are damaged.
    """
    sha256, run = file_sha256(path), path.resolve().parent.parent.parent
    if not ((run / CONFIG_FILE).exists() and (run / STORE_FILE).exists()):
        return Origin(sha256)
    evaluated = path.resolve().parent.parent / EVAL_FILE
    is_evaluated = path.name == LAST and path.parent.name == "distill" and evaluated.exists()
    store = _trained_on(path, store_fingerprint)
    evaluation = read_evaluation(evaluated)[1] if is_evaluated else None
    return Origin(sha256, read_config(run), evaluation, _datasets(run / STORE_FILE, store), store)


def _trained_on(path: Path, fingerprint: str) -> Store | None:
    """The store that the model was trained on, as it was then; None where it is out of reach, or replaced."""
    try:
        store = open_recorded_store(path)
    except (InputError, OSError):
        return None
    return store if store is not None and store.snapshot.fingerprint == fingerprint else None


def _datasets(path: Path, store: Store | None) -> tuple[tuple[str, Terms], ...]:
    """By a run's list of its stores; the lists that clips came from tell of terms where a name doesn't."""
    try:
        content = json.loads(path.read_bytes())
        names = [str(entry["dataset"]) for entry in (content, *content.get("others", []))]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged, it names no dataset; export a copy of the checkpoint alone") from error
    lists = [] if store is None else [name for part in store.file.parts for name in part.lists]
    return tuple((name, terms_of(name, lists if place == 0 else ())) for place, name in enumerate(names))
