"""index.parquet and SHA256SUMS say what the shards themselves do."""

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.index import COLUMNS, Index, ShardEntry, last_rows, make_snapshot, read_checksums, read_index, write_index
from ingest.job import ingest
from ingest.location import LocalFolder
from manifests.errors import InputError
from tests.ingest.stores import OPTIONS, assert_sums, files_of, index_of, sidecar_of, store_of, write_sound


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two parts, some of whose clips failed; not to be written to."""
    folder = tmp_path_factory.mktemp("index")
    first = files_of(folder / "sounds", [f"a{i}" for i in range(5)], bad=["a5", "a6"])
    ingest(first, folder / "store", OPTIONS)
    write_sound(folder / "sounds" / "a5.wav")
    ingest(first, folder / "store", replace(OPTIONS, retry_failed=True))
    return folder / "store"


def test_the_index_is_the_sidecars(root: Path) -> None:
    index, store = index_of(root), store_of(root)
    ledgers = [sidecar_of(root, shard).ledger for shard in range(store.num_shards)]
    assert len(ledgers) == 4
    assert index.table.equals(pa.concat_tables(ledgers).select(COLUMNS).combine_chunks())
    for shard, (entry, ledger) in enumerate(zip(index.shards, ledgers, strict=True)):
        tar, sidecar = ((root / name).read_bytes() for name in (store.tar_name(shard), store.sidecar_name(shard)))
        rows = ledger.to_pylist()
        assert entry == ShardEntry(
            tar_sha256=hashlib.sha256(tar).hexdigest(),
            tar_size=len(tar),
            sidecar_sha256=hashlib.sha256(sidecar).hexdigest(),
            num_clips=sum(row["ok"] for row in rows),
            fbank_sum=sum(row["fbank_sum"] or 0.0 for row in rows),
            fbank_sum_sq=sum(row["fbank_sum_sq"] or 0.0 for row in rows),
        )


def test_the_index_by_pyarrow_alone(root: Path) -> None:
    table = pq.read_table(root / "index.parquet")
    assert tuple(table.column_names) == COLUMNS
    assert table.num_rows == 9
    shards = json.loads(table.schema.metadata[b"shards"])
    assert [shard["num_clips"] for shard in shards] == [entry.num_clips for entry in index_of(root).shards]
    offsets = table.filter(table["ok"])["fbank_offset"].to_numpy()
    store = store_of(root)
    tars = [
        (root / store.tar_name(shard)).read_bytes()
        for shard, entry in enumerate(shards)
        for _ in range(entry["num_clips"])
    ]
    values = [np.frombuffer(tar, np.float16, 256 * 128, offset) for tar, offset in zip(tars, offsets, strict=True)]
    assert np.concatenate(values).astype(np.float64).mean() == pytest.approx(store.snapshots[-1].mean, rel=1e-9)


def test_a_clip_tried_again_counts_once_in_a_snapshot(root: Path) -> None:
    store = store_of(root)
    assert [(s.num_parts, s.num_shards, s.num_rows, s.num_clips_asked, s.num_clips) for s in store.snapshots] == [
        (1, 3, 7, 7, 5),
        (2, 4, 9, 7, 6),
    ]
    index = index_of(root)
    assert make_snapshot(store, index, number=2) == store.snapshots[1]
    old = store.model_copy(update={"parts": store.parts[:1]})
    assert make_snapshot(old, Index(index.table.slice(0, 7), index.shards[:3]), number=1) == store.snapshots[0]


@pytest.mark.parametrize(
    ("keys", "last"),
    [
        ([], []),
        (["a"], [True]),
        (["a", "b", "a", "c", "b", "b"], [False, False, True, True, False, True]),
    ],
)
def test_the_last_row_of_each_clip(keys: list[str], last: list[bool]) -> None:
    assert last_rows(pa.chunked_array([pa.array(keys, pa.string())])).tolist() == last
    pieces = pa.chunked_array([pa.array([key], pa.string()) for key in keys], pa.string())
    assert last_rows(pieces).tolist() == last


def test_sha256sum_finds_what_changed(root: Path, tmp_path: Path) -> None:
    assert_sums(root)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(root), str(copy)], check=True)
    names = sorted(read_checksums(LocalFolder(copy)))
    for name in names:
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=copy, capture_output=True, text=True)
        assert [line for line in done.stdout.splitlines() if not line.endswith(": OK")] == [f"{name}: FAILED"]
        (copy / name).write_bytes(content)


def test_checksums_by_name(root: Path) -> None:
    sums = read_checksums(LocalFolder(root))
    assert list(sums) == sorted(sums)
    for name, digest in sums.items():
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    "damage", [b"", b"x", b"\xff\n", b"0" * 64 + b" x\n", b"0" * 63 + b"  x\n", b"0" * 64 + b"  x"]
)
def test_checksums_that_can_t_be_read(tmp_path: Path, damage: bytes) -> None:
    with pytest.raises(InputError, match="SHA256SUMS is missing; run the ingest command again"):
        read_checksums(LocalFolder(tmp_path))
    (tmp_path / "SHA256SUMS").write_bytes(damage)
    with pytest.raises(InputError, match="SHA256SUMS is damaged; run the ingest command again"):
        read_checksums(LocalFolder(tmp_path))


def test_an_index_comes_back_and_its_columns_alone(root: Path, tmp_path: Path) -> None:
    index, location = index_of(root), LocalFolder(tmp_path)
    write_index(location, index)
    assert read_index(location) == index
    assert (tmp_path / "index.parquet").read_bytes() == (root / "index.parquet").read_bytes()
    some = read_index(location, columns=("ok", "key"))
    assert some.table.column_names == ["ok", "key"]
    assert some.shards == index.shards


@pytest.mark.parametrize("about", [None, "[]x", '[{"tar_size": 1}]', "{}"])
def test_an_index_without_its_shards(root: Path, tmp_path: Path, about: str | None) -> None:
    table = pq.read_table(root / "index.parquet")
    pq.write_table(table.replace_schema_metadata(about and {"shards": about}), tmp_path / "index.parquet")
    with pytest.raises(InputError, match=r"index\.parquet is damaged .*; run `featurestore repair`") as caught:
        read_index(LocalFolder(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_index_with_a_damaged_page(root: Path, tmp_path: Path) -> None:
    content = (root / "index.parquet").read_bytes()
    (tmp_path / "index.parquet").write_bytes(content[:4] + bytes(40) + content[44:])
    with pytest.raises(InputError, match=r"index\.parquet is damaged"):
        read_index(LocalFolder(tmp_path))
