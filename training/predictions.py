"""What a model says of a part's clips, and predictions.parquet, which keeps it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.atomic import atomic_path
from manifests.errors import InputError

FORMAT = "1"
FILE_NAME = "predictions.parquet"


@dataclass(frozen=True)
class Predictions:
    """Of a part's clips that have a label, in the order of the store's rows: keys (N), probabilities and labels.

    `scores` (N, C) float32 are probabilities, `labels` (N, C) float32 multi-hot, both in the order of `label_ids`.
    `num_listed` are the part's clips in the manifest, with those that failed in ingest; `num_unlabelled` those that are
    left out for want of a label. `feature_spread` is None of an average of several models.
    """

    split: str
    label_ids: list[str]
    keys: list[str]
    scores: NDArray[np.float32]
    labels: NDArray[np.float32]
    num_listed: int
    num_unlabelled: int
    feature_spread: float | None


@dataclass(frozen=True)
class Origin:
    """Which checkpoint said it, and of which store's snapshot."""

    checkpoint_sha256: str
    store_fingerprint: str


def write_predictions(path: Path, predictions: Predictions, origin: Origin) -> None:
    """Writes predictions.parquet, whole or not at all; docs/evaluation.md describes it."""
    num_clips, num_classes = predictions.scores.shape
    owners, positions = np.nonzero(predictions.labels)
    starts = np.searchsorted(owners, np.arange(num_clips + 1))
    scores = np.ascontiguousarray(predictions.scores, np.float32)
    columns = {
        "key": pa.array(predictions.keys, pa.string()),
        "labels": pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(positions, pa.int32())),
        "scores": pa.FixedSizeListArray.from_arrays(pa.array(scores.ravel()), num_classes),
    }
    metadata = {
        "format": FORMAT,
        "vocabulary": json.dumps(predictions.label_ids),
        "checkpoint_sha256": origin.checkpoint_sha256,
        "store_fingerprint": origin.store_fingerprint,
        "split": predictions.split,
        "num_listed": str(predictions.num_listed),
        "num_unlabelled": str(predictions.num_unlabelled),
        "feature_spread": json.dumps(predictions.feature_spread),
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, metadata=metadata), temporary, compression="zstd")


def read_predictions(path: Path) -> tuple[Predictions, Origin]:
    """What :func:`write_predictions` wrote. Raises InputError for another file."""
    try:
        table = pq.read_table(path)
        metadata = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
        label_ids = json.loads(metadata["vocabulary"])
        scores = table["scores"].combine_chunks().flatten().to_numpy().reshape(len(table), len(label_ids))
        found = Predictions(
            split=metadata["split"],
            label_ids=label_ids,
            keys=table["key"].to_pylist(),
            scores=scores,
            labels=_multi_hot(table["labels"].combine_chunks(), len(label_ids)),
            num_listed=int(metadata["num_listed"]),
            num_unlabelled=int(metadata["num_unlabelled"]),
            feature_spread=json.loads(metadata["feature_spread"]),
        )
        return found, Origin(metadata["checkpoint_sha256"], metadata["store_fingerprint"])
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{path} can't be read as predictions ({error}); `training eval RUN` writes them anew"
        ) from error


def _multi_hot(lists: pa.ListArray, num_classes: int) -> NDArray[np.float32]:
    labels = np.zeros((len(lists), num_classes), np.float32)
    owners = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy())
    labels[owners, lists.flatten().to_numpy()] = 1.0
    return labels
