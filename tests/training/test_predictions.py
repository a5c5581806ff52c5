"""predictions.parquet: what it holds, that it is whole or absent, and that it is read back."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.errors import InputError
from training.predictions import Origin, Predictions, read_predictions, write_predictions

ORIGIN = Origin("a" * 64, "b" * 64)
SAID = Predictions(
    split="fold 1",
    label_ids=["x", "y", "/m/0é"],
    keys=["one", "two"],
    scores=np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], np.float32),
    labels=np.array([[0, 1, 1], [1, 0, 0]], np.float32),
    num_listed=4,
    num_unlabelled=1,
    feature_spread=0.5,
)


def test_the_columns_and_what_the_file_says_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    write_predictions(path, SAID, ORIGIN)
    table = pq.read_table(path)
    assert table.schema.field("key").type == pa.string()
    assert table.schema.field("labels").type == pa.list_(pa.int32())
    assert table.schema.field("scores").type == pa.list_(pa.float32(), 3)
    assert table["key"].to_pylist() == ["one", "two"]
    assert table["labels"].to_pylist() == [[1, 2], [0]]
    assert table["scores"].to_pylist() == SAID.scores.tolist()
    metadata = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
    assert json.loads(metadata["vocabulary"]) == ["x", "y", "/m/0é"]
    assert (metadata["checkpoint_sha256"], metadata["store_fingerprint"]) == ("a" * 64, "b" * 64)
    assert metadata["split"] == "fold 1"


@pytest.mark.parametrize("said", [SAID, replace(SAID, feature_spread=None)])
def test_it_is_read_back(said: Predictions, tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.parquet", said, ORIGIN)
    found, origin = read_predictions(tmp_path / "p.parquet")
    assert origin == ORIGIN
    np.testing.assert_array_equal(found.scores, said.scores)
    np.testing.assert_array_equal(found.labels, said.labels)
    for field in fields(Predictions):
        if field.name not in ("scores", "labels"):
            assert getattr(found, field.name) == getattr(said, field.name)


def test_an_older_file_stays_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_predictions(path, SAID, ORIGIN)
    before = path.read_bytes()
    with pytest.raises(pa.ArrowInvalid):  # a key too few
        write_predictions(path, replace(SAID, keys=["one"]), ORIGIN)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no table")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    for name in ("absent", "text", "other.parquet"):
        with pytest.raises(InputError, match=rf"{name} can't be read as predictions"):
            read_predictions(tmp_path / name)
