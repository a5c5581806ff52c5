"""An open store: its rows, labels and keys, and what is said when it can't be opened."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from featurestore.store import Store
from ingest.index import Index, read_index, write_index
from ingest.layout import StoreFile, choose_store
from ingest.location import LocalFolder
from ingest.objectstore import ObjectFolder
from ingest.sources import SourceFile
from manifests.errors import InputError

MakeStore = Callable[..., Store]
FAILED = "clip07"


def key_number(key: str) -> int:
    return int(key.removeprefix("clip"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_all_clips_have_rows_and_one_failed(finished_store: Store) -> None:
    asked, there = finished_store.rows(asked=True), finished_store.rows()
    assert asked.tolist() == list(range(23))
    assert sorted(finished_store.keys(asked)) == [f"clip{number:02d}" for number in range(23)]
    assert finished_store.keys(np.setdiff1d(asked, there)) == [FAILED]
    assert len(finished_store) == 22
    assert finished_store.ledger(int(np.setdiff1d(asked, there)[0]))["reason"] == "not_audio"


def test_rows_by_split_and_fold(finished_store: Store) -> None:
    """The corpus: clip n is 'test' where n % 4 == 0, and of fold n % 3 + 1."""

    def numbers(**part: Any) -> list[int]:
        return sorted(key_number(key) for key in finished_store.keys(finished_store.rows(**part)))

    assert finished_store.splits == ["test", "train"]
    assert finished_store.folds == [1, 2, 3]
    assert numbers(split="test") == [0, 4, 8, 12, 16, 20]
    assert numbers(fold=2) == [1, 4, 10, 13, 16, 19, 22]
    assert numbers(fold=2, asked=True) == [1, 4, 7, 10, 13, 16, 19, 22]
    assert numbers(split="test", fold=2) == [4, 16]
    assert numbers(split="nowhere") == numbers(fold=9) == []


def test_clips_and_shards_of_rows(finished_store: Store) -> None:
    rows = finished_store.rows(asked=True)
    assert [finished_store.clip(row).key for row in rows.tolist()] == finished_store.keys(rows)
    assert finished_store.keys(np.array([4, 0, 4])) == [finished_store.clip(row).key for row in (4, 0, 4)]
    assert finished_store.shard_of(np.array([0, 4, 5, 22])).tolist() == [0, 0, 1, 4]
    assert finished_store.tar_name(4) == "shards/tiny-000004.tar"
    assert [finished_store.rows_of_shard(shard).tolist() for shard in (1, 4)] == [[5, 6, 7, 8, 9], [20, 21, 22]]
    assert finished_store.teacher_rows(np.array([0, 4, 22])).tolist() == [0, 4, 22]


def test_the_ledger_is_the_sidecars(finished_store: Store) -> None:
    for shard in range(5):
        table = pq.read_table(finished_store.root / f"shards/tiny-{shard:06d}.parquet")
        for row, expected in zip(finished_store.rows_of_shard(shard).tolist(), table.to_pylist(), strict=True):
            assert finished_store.ledger(row) == expected


def test_columns_and_sources(finished_store: Store) -> None:
    assert finished_store.column("key").to_pylist() == finished_store.keys(np.arange(23))
    clip = finished_store.clip(3)
    corpus = finished_store.root.parent / "corpus"
    assert finished_store.sources(3).find(clip) == SourceFile(str(corpus), clip.source)


def test_offsets_stand_for_failed_clips_too(finished_store: Store) -> None:
    failed = ~finished_store.ok
    assert finished_store.fbank_offset[failed].tolist() == finished_store.hog_offset[failed].tolist() == [-1]
    assert (finished_store.fbank_offset[~failed] > 0).all()
    assert (finished_store.hog_offset[~failed] > finished_store.fbank_offset[~failed]).all()


def slow_labels(store: Store, rows: list[int]) -> list[list[float]]:
    ids = store.file.vocabulary.ids
    return [[float(label in store.clip(row).labels) for label in ids] for row in rows]


def test_single_labels(finished_store: Store) -> None:
    rows = [3, 22, 0, 3, *range(23)]
    labels = finished_store.labels(np.array(rows))
    assert labels.dtype == np.float32
    assert labels.tolist() == slow_labels(finished_store, rows)
    assert (labels.sum(1) == 1).all()
    assert finished_store.num_classes == 3
    assert not finished_store.is_multi_label
    # Clip n has label n % 3 of (bark, bell, rain).
    expected = [key_number(key) % 3 for key in finished_store.keys(np.array(rows))]
    assert labels.argmax(1).tolist() == expected


def test_several_labels_and_none(make_store: MakeStore) -> None:
    store = make_store(["rain;bark", "", "bell", "bark;bell;rain"], "labels")
    rows = [2, 0, 3, 1, 1]
    labels = store.labels(np.array(rows))
    assert labels.tolist() == slow_labels(store, rows)
    expected = {"clip00": [1, 0, 1], "clip01": [0, 0, 0], "clip02": [0, 1, 0], "clip03": [1, 1, 1]}
    assert labels.tolist() == [expected[key] for key in store.keys(np.array(rows))]
    assert store.is_multi_label


def test_labels_in_several_pieces(grown_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of millions of clips are read; each piece numbers the labels in its own way."""
    monkeypatch.setattr("manifests.parts._ROWS_A_PIECE", 5)
    for snapshot in (1, 3):
        store = Store(grown_store.root, snapshot)
        rows = list(range(len(store.ok)))[::-1]
        assert store.labels(np.array(rows)).tolist() == slow_labels(store, rows)


def test_reading_needs_no_torch(finished_store: Store) -> None:
    """Which takes five seconds and half a gigabyte to import."""
    script = (
        "import sys; from featurestore.loader import sequential_batches; from featurestore.store import Store; "
        "store = Store(sys.argv[1]); batches = sequential_batches(store, store.rows(), 4); "
        "print(sum(len(batch.keys) for batch in batches)); "
        "sys.exit('torch' in sys.modules or 'av' in sys.modules or 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(finished_store.root)], capture_output=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, b"22\n"), done.stderr


def test_no_labels_at_all(make_store: MakeStore) -> None:
    store = make_store(["", ""], "labels")
    assert store.labels(np.array([1, 0])).shape == (2, 0)
    assert store.num_classes == 0


def test_no_rows_are_fine(finished_store: Store) -> None:
    none = finished_store.rows(split="nowhere")
    assert finished_store.keys(none) == []
    assert finished_store.labels(none).shape == (0, 3)


def test_unfinished_store(store_copy: Path) -> None:
    edit_json(store_copy / "store.json", snapshots=[])
    with pytest.raises(InputError, match=r"copy is not finished; run its ingest command again"):
        Store(store_copy)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path} is not a store: it has no store.json; make one"):
        Store(tmp_path)


def test_missing_sidecar_is_named(store_copy: Path) -> None:
    (store_copy / "shards/tiny-000002.parquet").unlink()
    store = Store(store_copy)
    with pytest.raises(InputError, match=r"lacks the sidecar of shard tiny-000002; run `featurestore repair`"):
        store.ledger(10)
    assert store.ledger(9)["key"] == store.clip(9).key


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', '{"format": 1}', '{"format": 1, "dataset": 3}', "\xff"])
def test_damaged_store_file(store_copy: Path, content: str) -> None:
    (store_copy / "store.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"copy/store\.json(: format None is not one that| is damaged .*again)"):
        Store(store_copy)


def test_format_of_the_future(store_copy: Path) -> None:
    edit_json(store_copy / "store.json", format=2)
    with pytest.raises(InputError, match=r"copy/store\.json: format 2 is not one that this version reads \(format 1\)"):
        Store(store_copy)


REMEDIES = {
    "manifest.parquet": "run the ingest command again",
    "index.parquet": "run `featurestore repair`",
    "shards/tiny-000001.parquet": "run `featurestore repair`",
}


def open_and_read_ledger(root: Path) -> None:
    Store(root).ledger(5)


@pytest.mark.parametrize("name", REMEDIES)
@pytest.mark.parametrize("content", [b"", b"garbage" * 40, b"PAR1" + bytes(60) + b"PAR1"], ids=["", "text", "zeros"])
def test_garbage_parquet(store_copy: Path, name: str, content: bytes) -> None:
    (store_copy / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"(?s)copy/{name} is .*{REMEDIES[name]}"):
        open_and_read_ledger(store_copy)


@pytest.mark.parametrize("name", REMEDIES)
def test_truncated_parquet(store_copy: Path, name: str) -> None:
    path = store_copy / name
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=rf"(?s)copy/{name} is .*{REMEDIES[name]}"):
        open_and_read_ledger(store_copy)


@pytest.mark.parametrize("name", ["manifest.parquet", "index.parquet"])
def test_missing_tables(store_copy: Path, name: str) -> None:
    (store_copy / name).unlink()
    with pytest.raises(InputError, match=rf"copy/{name} (is missing|can't be read \(No such file).*; run "):
        Store(store_copy)


def test_parquet_of_another_kind(store_copy: Path) -> None:
    (store_copy / "manifest.parquet").write_bytes((store_copy / "shards/tiny-000000.parquet").read_bytes())
    with pytest.raises(InputError, match=r"manifest\.parquet is not a readable manifest"):
        Store(store_copy)


def test_an_index_of_other_clips(store_copy: Path) -> None:
    index = read_index(LocalFolder(store_copy))
    order = [1, 0, *range(2, 23)]
    write_index(LocalFolder(store_copy), Index(index.table.take(order), index.shards))
    with pytest.raises(InputError, match=r"index and manifest\.parquet name other clips; run `featurestore verify`"):
        Store(store_copy)
    write_index(LocalFolder(store_copy), Index(index.table, index.shards[:4]))
    with pytest.raises(InputError, match=r"name other clips; run `featurestore verify`"):
        Store(store_copy)
    write_index(LocalFolder(store_copy), Index(index.table.slice(0, 20), index.shards))
    with pytest.raises(InputError, match=r"manifest\.parquet and store\.json disagree|name other clips"):
        Store(store_copy)


def test_store_file_and_manifest_disagree(store_copy: Path) -> None:
    (part,) = json.loads((store_copy / "store.json").read_text())["parts"]
    edit_json(store_copy / "store.json", parts=[part | {"num_clips_asked": 22}])
    with pytest.raises(InputError, match=r"manifest\.parquet and store\.json disagree"):
        Store(store_copy)


def test_choose_store(finished_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_store("elsewhere") == LocalFolder(Path("elsewhere"))
    assert isinstance(choose_store("s3://bucket/store"), ObjectFolder)
    with pytest.raises(InputError, match=r"no store under \./data; make one \(`ingest demo`\)"):
        choose_store(None)
    for name in ("one", "two"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/one/store.json").write_bytes((finished_store.root / "store.json").read_bytes())
    assert choose_store(None) == LocalFolder(Path("data/one"))
    (tmp_path / "data/two/store.json").touch()
    with pytest.raises(InputError, match=r"several stores under \./data: data/one, data/two; choose one"):
        choose_store(None)


def test_recipe_leaves_versions_out(finished_store: Store) -> None:
    file = finished_store.file
    other = StoreFile.model_validate(file.model_dump() | {"versions": {"torch": "0"}})
    assert other.recipe() == file.recipe()
