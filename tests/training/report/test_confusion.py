"""Which classes were mixed up."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from featurestore.store import Store
from manifests.errors import InputError
from training.predictions import Origin, Predictions, write_predictions
from training.report.confusion import Confusion, confusion_cells, mixing, worst_confusions
from training.report.read import read_run

NAMES = ["a", "b", "c"]


def test_of_a_run(finished_run: Path, store: Store) -> None:
    found = mixing(read_run(finished_run, "run"))
    assert (found.iteration, found.num_clips, found.names) == (1, 4, store.file.vocabulary.names)
    assert found.matrix == [(0, 0, 2), (1, 2, 1), (2, 2, 1)]
    # Of the second class, its one clip ties with three others; of the third, one of the two best is right.
    assert [(one.average_precision, one.num_clips) for one in found.by_class] == [(0.25, 1), (0.5, 1), (1.0, 2)]
    assert [(pair.count, pair.num_clips) for pair in found.worst] == [(1, 1)]


def test_cells_are_scikit_learns_matrix() -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(3)
    true, scores = draw.integers(0, 5, 200), draw.random((200, 5), np.float32)
    matrix = np.zeros((5, 5), int)
    for row, column, count in confusion_cells(scores, np.eye(5, dtype=bool)[true]):
        matrix[row, column] = count
    np.testing.assert_array_equal(matrix, sklearn_metrics.confusion_matrix(true, scores.argmax(1)))


def test_worst_pairs_of_clips_with_several_labels() -> None:
    """x (a and b) is taken for c, y (a) for c more surely; z's best score is one of its labels."""
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1]], bool)
    scores = np.array([[0.1, 0.2, 0.6], [0.1, 0.2, 0.7], [0.1, 0.2, 0.9]], np.float32)
    assert worst_confusions(["x", "y", "z"], scores, labels, NAMES) == [
        Confusion("a", "c", 2, 3, ["y", "x"]),
        Confusion("b", "c", 1, 1, ["x"]),
    ]


def write(folder: Path, labels: np.ndarray) -> None:
    scores = np.full((len(labels), 3), 0.5, np.float32)
    keys = [f"clip{number}" for number in range(len(labels))]
    said = Predictions("test", NAMES, keys, scores, labels.astype(np.float32), 9, 0, None)
    write_predictions(folder / "iter1" / "predictions.parquet", said, Origin("", ""))


def test_several_labels_have_no_matrix_and_absent_classes_no_precision(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    write(folder, np.array([[1, 1, 0], [1, 0, 0]]))
    found = mixing(read_run(folder, "run"))
    assert found.matrix is None
    assert [(one.name, one.num_clips) for one in found.by_class] == [("b", 1), ("a", 2)]


def test_why_there_are_none(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    write(folder, np.zeros((2, 3)))
    with pytest.raises(InputError, match="holds clips without a label"):
        mixing(read_run(folder, "run"))
    (folder / "iter1" / "predictions.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match="can't be read as predictions"):
        mixing(read_run(folder, "run"))
    (folder / "iter1" / "predictions.parquet").unlink()
    with pytest.raises(InputError, match=r"no evaluation of this run has left a predictions\.parquet"):
        mixing(read_run(folder, "run"))
