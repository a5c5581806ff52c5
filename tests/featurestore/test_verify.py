"""Every kind of damage is found, and named with its shard and clip."""

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.build import build_teacher
from featurestore.store import Store
from featurestore.verify import Problem, verify
from manifests.errors import InputError

SHARD = 1
WHERE = f"shards/tiny-00000{SHARD}.tar"
CHANGED = Problem(WHERE, None, "its sha256 is not the sidecar's")
CHANGED_SIDECAR = Problem(f"shards/tiny-00000{SHARD}.parquet", None, "its sha256 is not the one in SHA256SUMS")


@pytest.fixture
def store(store_copy: Path) -> Store:
    return Store(store_copy)


@pytest.fixture
def row(store: Store) -> int:
    """The second clip that is in the shard."""
    return int(store.rows()[store.shard_of(store.rows()) == SHARD][1])


def key_of(store: Store, row: int) -> str:
    return store.clip(row).key


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def edit_sidecar(store: Store, column: str, position: int, value: Any) -> None:
    path = store.tar(SHARD).with_suffix(".parquet")
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[position] = value
    index = table.schema.get_field_index(column)
    pq.write_table(
        table.set_column(index, table.schema.field(index), pa.array(values, table.schema.types[index])), path
    )


def test_a_clean_store_has_no_problems(store: Store, fbank_stats: Any, waveform_stats: Any) -> None:
    assert verify(store) == []
    build_teacher(store, fbank_stats(), "one", with_tokens=True)
    build_teacher(store, waveform_stats(), "two")
    assert verify(store) == []


def test_verify_changes_nothing(store: Store) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    verify(store)
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before


def test_problems_as_text() -> None:
    assert str(Problem("shards/a.tar", None, "is missing")) == "shards/a.tar: is missing"
    assert str(Problem("shards/a.tar", "k", "its fbank holds NaN")) == "shards/a.tar: clip k: its fbank holds NaN"


def test_flipped_byte(store: Store, row: int) -> None:
    offset = int(store.fbank_offset[row]) + 12345
    value = store.tar(SHARD).read_bytes()[offset]
    overwrite(store.tar(SHARD), offset, bytes([value ^ 1]))
    assert verify(store) == [CHANGED]


def test_nan_in_an_fbank(store: Store, row: int) -> None:
    overwrite(store.tar(SHARD), int(store.fbank_offset[row]) + 2000, np.float16(np.nan).tobytes())
    assert verify(store) == [CHANGED, Problem(WHERE, key_of(store, row), "its fbank holds NaN or Inf")]


def test_infinity_in_a_hog(store: Store, row: int) -> None:
    overwrite(store.tar(SHARD), int(store.hog_offset[row]), np.float16(np.inf).tobytes())
    assert verify(store) == [CHANGED, Problem(WHERE, key_of(store, row), "its hog holds NaN or Inf")]


def test_truncated_tar(store: Store) -> None:
    size = store.tar(SHARD).stat().st_size
    store.tar(SHARD).write_bytes(store.tar(SHARD).read_bytes()[: size // 2])
    assert verify(store) == [Problem(WHERE, None, f"has {size // 2} bytes, its sidecar says {size}")]


def test_missing_tar(store: Store) -> None:
    store.tar(SHARD).unlink()
    assert verify(store) == [Problem(WHERE, None, "the tar or its sidecar is missing")]


def test_missing_sidecar(store: Store) -> None:
    store.tar(SHARD).with_suffix(".parquet").unlink()
    with pytest.raises(InputError, match="lacks the sidecar of shard tiny-000001"):
        Store(store.root)
    assert Problem(WHERE, None, "the tar or its sidecar is missing") in verify(store)


def test_extra_file(store: Store) -> None:
    (store.root / "shards/notes.txt").touch()
    assert verify(store) == [Problem("shards/notes.txt", None, "is not in SHA256SUMS")]


def test_swapped_tars(store: Store) -> None:
    one, other = store.tar(1), store.tar(2)
    if one.stat().st_size != other.stat().st_size:
        one, other = store.tar(2), store.tar(3)
    assert one.stat().st_size == other.stat().st_size
    parked = one.rename(store.root / "parked")
    other.rename(one)
    parked.rename(other)
    problems = verify(store)
    for tar in (one, other):
        mine = [problem for problem in problems if problem.where == f"shards/{tar.name}"]
        assert mine[0].what == "its sha256 is not the sidecar's"
        shard = int(tar.stem[-6:])
        keys = store.keys(store.rows()[store.shard_of(store.rows()) == shard])
        assert [problem.key for problem in mine if problem.what.startswith("the tar lacks")] == keys
        assert sum("that its index lacks" in problem.what for problem in mine) == 3 * 5


def test_edited_offset(store: Store, row: int) -> None:
    offset = int(store.fbank_offset[row])
    edit_sidecar(store, "fbank_offset", row % 5, offset + 2)
    assert verify(Store(store.root)) == [
        CHANGED_SIDECAR,
        Problem(WHERE, key_of(store, row), f"the index places its fbank at {offset + 2}, the tar at {offset}"),
    ]


def test_edited_hog_offset(store: Store, row: int) -> None:
    edit_sidecar(store, "hog_offset", row % 5, None)
    problem = verify(Store(store.root))[1]
    assert (problem.key, problem.what[:32]) == (key_of(store, row), "the index places its hog at None")


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"\xff", b'{"key": "another"}'])
def test_json_of_a_clip(store: Store, row: int, text: bytes) -> None:
    with tarfile.open(store.tar(SHARD)) as tar:
        member = tar.getmember(f"{key_of(store, row)}.json")
    overwrite(store.tar(SHARD), member.offset_data, text.ljust(member.size))
    what = "its JSON names another clip" if b"another" in text else "its JSON can't be read"
    assert verify(store) == [CHANGED, Problem(WHERE, key_of(store, row), what)]


@pytest.mark.parametrize(
    ("find", "replacement", "what"),
    [
        (b"(256, 128)", b"(128, 256)", "its fbank is float16 (128, 256), expected float16 (256, 128)"),
        (b"<f2", b"<i2", "its fbank is int16 (256, 128), expected float16 (256, 128)"),
        (b"(256, 128)", b"(256, 999)", "its fbank is not a readable npy ("),
        (b"\x93NUMPY", b"\x93NUMPX", "its fbank is not a readable npy ("),
        (b"{'descr'", b" 'descr'", "its fbank is not a readable npy ("),
        (b", }", b",  ", "its fbank is not a readable npy ("),
        (b"'<f2'", b"'|O' ", "its fbank is not a readable npy ("),
    ],
)
def test_npy_header(store: Store, row: int, find: bytes, replacement: bytes, what: str) -> None:
    offset = int(store.fbank_offset[row])
    header = store.tar(SHARD).read_bytes()[offset - 128 : offset]
    assert find in header
    overwrite(store.tar(SHARD), offset - 128, header.replace(find, replacement))
    problems = verify(store)
    assert problems[0] == CHANGED
    assert (problems[1].where, problems[1].key) == (WHERE, key_of(store, row))
    assert problems[1].what.startswith(what)


def test_tar_header(store: Store, row: int) -> None:
    overwrite(store.tar(SHARD), 0, b"not a tar at all")
    problems = verify(store)
    assert problems[0] == CHANGED
    assert problems[1].what.startswith("is not a readable tar (")


def test_a_tar_with_another_member(store: Store) -> None:
    """As somebody would who packs the shard again, sidecar and all."""
    with tarfile.open(store.tar(SHARD), "a") as tar:
        tar.addfile(tarfile.TarInfo("stray.txt"), io.BytesIO())
    sidecar = store.tar(SHARD).with_suffix(".parquet")
    content = store.tar(SHARD).read_bytes()
    about = f'{{"tar_sha256": "{hashlib.sha256(content).hexdigest()}", "tar_size": {len(content)}}}'
    pq.write_table(pq.read_table(sidecar).replace_schema_metadata({"shard": about}), sidecar)
    assert verify(Store(store.root)) == [
        CHANGED_SIDECAR,
        Problem(WHERE, None, "its sha256 in SHA256SUMS is not the sidecar's"),
        Problem(WHERE, None, "has a member stray.txt that its index lacks"),
    ]


def test_text_that_is_no_text_in_a_sidecar(store: Store) -> None:
    path = store.tar(SHARD).with_suffix(".parquet")
    pq.write_table(pq.read_table(path), path, compression="none")
    assert b"wav/pcm_16" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"wav/pcm_16", b"wav/pcm\xff16"))
    problems = verify(store)
    assert problems[0] == CHANGED_SIDECAR
    assert problems[1].where == WHERE
    assert problems[1].what.startswith("its sidecar is damaged (")


def test_no_checksums(store: Store) -> None:
    (store.root / "SHA256SUMS").unlink()
    assert verify(store) == [Problem("SHA256SUMS", None, "is missing")]


@pytest.mark.parametrize("content", [b"garbage\n", b"\xff\xfe\n", b"\n"])
def test_garbage_checksums(store: Store, content: bytes) -> None:
    (store.root / "SHA256SUMS").write_bytes(content)
    assert verify(store) == [Problem("SHA256SUMS", None, "is damaged: run the ingest command again")]


def test_checksums_that_lack_a_tar(store: Store) -> None:
    path = store.root / "SHA256SUMS"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if WHERE not in line))
    assert verify(store) == [Problem(WHERE, None, "is not in SHA256SUMS")]


def test_a_wrong_checksum_of_a_tar(store: Store) -> None:
    path = store.root / "SHA256SUMS"
    lines = [f"{'0' * 64}  {WHERE}" if WHERE in line else line for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines) + "\n")
    assert verify(store) == [Problem(WHERE, None, "its sha256 in SHA256SUMS is not the sidecar's")]


def test_damaged_index(store: Store) -> None:
    (store.root / "index.json").write_text("{}")
    assert verify(store) == [Problem("index.json", None, "its sha256 is not the one in SHA256SUMS")]
    (store.root / "index.json").unlink()
    assert verify(store) == [Problem("index.json", None, "is missing")]


def test_missing_teacher_row(store: Store, fbank_stats: Any, row: int) -> None:
    cache = build_teacher(store, fbank_stats(), "stats").cache
    values = cache.read("logits", SHARD)
    values[row % 5, 1] = np.nan
    cache.write(SHARD, {"logits": values})
    assert verify(store) == [Problem("teachers/stats.zarr", key_of(store, row), "its logits is missing or not finite")]


def test_missing_and_torn_teacher_chunks(store: Store, fbank_stats: Any) -> None:
    path = build_teacher(store, fbank_stats(), "stats").cache.path / "embedding/c"
    (path / "0/0").unlink()
    (path / "1/0").write_bytes((path / "1/0").read_bytes()[:10])
    problems = verify(store)
    assert [problem.key for problem in problems[:-1]] == store.keys(store.rows()[store.shard_of(store.rows()) == 0])
    assert "embedding is damaged in the rows of shard 1" in problems[-1].what


def test_unusable_teacher_cache(store: Store) -> None:
    (store.root / "teachers/half.zarr").mkdir(parents=True)
    (problem,) = verify(store)
    assert problem.where == "teachers/half.zarr"
    assert "is not a Zarr v3 group" in problem.what


def test_a_changed_manifest(store_copy: Path) -> None:
    store = Store(store_copy)
    labels = pa.array([["bark"]] * len(store.manifest), store.manifest.table.schema.field("labels").type)
    column = store.manifest.table.schema.get_field_index("labels")
    table = store.manifest.table.set_column(column, store.manifest.table.schema.field("labels"), labels)
    replace(store.manifest, table=table).write(store_copy / "manifest.parquet")
    found = verify(Store(store_copy))
    assert [str(problem) for problem in found] == [
        "manifest.parquet: its rows are not those that store.json names by their hash"
    ]
