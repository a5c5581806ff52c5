"""The table of all clips, against rows that are looked up one by one."""

from typing import Any

import duckdb
import numpy as np
import polars
import pytest

import featurestore
from featurestore import OpenStore
from featurestore.cliptable import DEFAULT_COLUMNS, LEDGER_COLUMNS
from featurestore.store import Store
from ingest.ledger import SCHEMA
from manifests.errors import InputError


@pytest.fixture
def store(finished_store: Store) -> OpenStore:
    return featurestore.open(finished_store.root)


def expected(store: OpenStore, row: int) -> dict[str, Any]:
    clip, ledger = store.clip(row), store.ledger(row)
    names = {label.id: label.name for label in store.vocabulary.labels}
    return {
        "row": row,
        **{name: getattr(clip, name) for name in ("key", "source", "start_ms", "end_ms", "split", "fold")},
        "labels": list(clip.labels),
        "label_names": [names[label] for label in clip.labels],
        **{name: ledger[name] for name in ("ok", "reason", "detail")},
        "shard": next(n for n in range(store.snapshot.num_shards) if row in store.rows_of_shard(n)),
        # Frames of 25 ms, one every 10 ms.
        "window_s": pytest.approx(0.025 + 0.01 * (ledger["num_frames"] - 1)) if ledger["ok"] else None,
    }


def test_a_row_for_every_clip_asked_for(store: OpenStore) -> None:
    table = store.table()
    assert table.column_names == list(DEFAULT_COLUMNS)
    assert table.to_pylist() == [expected(store, row) for row in range(23)]
    (failed,) = table.filter(~table["ok"].to_numpy()).to_pylist()
    assert (failed["key"], failed["window_s"]) == ("clip07", None)


@pytest.mark.parametrize(("snapshot", "num_rows"), [(1, 12), (2, 23), (3, 24)])
def test_of_a_snapshot(grown_store: Store, snapshot: int, num_rows: int) -> None:
    store = featurestore.open(grown_store.root, snapshot)
    assert store.snapshot.num_rows == num_rows
    table = store.table().to_pylist()
    assert table == [expected(store, row) for row in store.rows(asked=True).tolist()]
    # A clip that was tried again is there once.
    assert sum(clip["key"] == "clip07" for clip in table) == 1
    assert [clip["ok"] for clip in table if clip["key"] == "clip07"] == [snapshot == 3]


def test_several_labels_and_none(make_store: Any) -> None:
    store = featurestore.open(make_store(["rain;bark", "", "bell"], "labels").root)
    table = {clip["key"]: clip["label_names"] for clip in store.table(["key", "label_names"]).to_pylist()}
    assert table == {"clip00": ["rain", "bark"], "clip01": [], "clip02": ["bell"]}


def test_columns_of_the_ledgers(store: OpenStore) -> None:
    table = store.table(["rms", "key", "codec", "duration_s"])
    assert table.column_names == ["rms", "key", "codec", "duration_s"]
    for row, clip in enumerate(table.to_pylist()):
        ledger = store.ledger(row)
        assert clip == {name: ledger[name] for name in ("rms", "key", "codec", "duration_s")}
    assert set(SCHEMA.names) <= {*DEFAULT_COLUMNS, *LEDGER_COLUMNS}
    assert store.table(SCHEMA.names).to_pylist() == [store.ledger(row) for row in range(23)]


def test_a_column_that_there_is_not(store: OpenStore) -> None:
    with pytest.raises(InputError, match=r"table has no column 'loudness'; it has: row, key, labels, .*codec"):
        store.table(["key", "loudness"])


def test_it_chooses_what_is_loaded(store: OpenStore) -> None:
    table = store.table(["row", "fold", "ok"])
    rows = table.filter(table["ok"].to_numpy() & (table["fold"].to_numpy() == 1))["row"].to_numpy()
    assert np.array_equal(rows, store.rows(fold=1))
    assert np.array_equal(store.loader(3, rows=rows).rows, store.rows(fold=1))


def test_in_pandas(store: OpenStore) -> None:
    frame = store.table().to_pandas()
    assert frame.groupby("split")["ok"].sum().to_dict() == {"test": 6, "train": 16}
    assert frame.explode("label_names")["label_names"].value_counts().to_dict() == {"bark": 8, "bell": 8, "rain": 7}


def test_in_polars(store: OpenStore) -> None:
    frame = polars.from_arrow(store.table())
    counts = frame.explode("label_names").group_by("label_names").len().to_dicts()
    assert {count["label_names"]: count["len"] for count in counts} == {"bark": 8, "bell": 8, "rain": 7}
    assert frame.filter(~polars.col("ok"))["key"].to_list() == ["clip07"]


def test_in_duckdb(store: OpenStore) -> None:
    clips = store.table()
    asked = "select label, count(*) from (select unnest(label_names) as label from clips) group by label order by label"
    assert duckdb.sql(asked).fetchall() == [("bark", 8), ("bell", 8), ("rain", 7)]
    assert duckdb.sql("select key from clips where not ok").fetchall() == [("clip07",)]
    assert len(clips) == 23
