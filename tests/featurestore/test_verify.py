"""Every kind of damage is found, and named with its shard and clip."""

import io
import json
import shutil
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
from featurestore.verify import verify
from featurestore.verifyshard import Problem
from ingest.layout import CHECKSUM_FILE, SHARD_FOLDER
from ingest.location import LocalFolder
from manifests.clips import Manifest
from manifests.errors import InputError
from manifests.parts import ManifestFile, write_manifests

SHARD = 1
TAR, SIDECAR = f"{SHARD_FOLDER}/tiny-00000{SHARD}.tar", f"{SHARD_FOLDER}/tiny-00000{SHARD}.parquet"
CHANGED = Problem(TAR, None, "its sha256 is not the sidecar's", SHARD)
CRC = "its bytes are not those that were written (CRC-32)"
SUMS = "its sha256 is not the one in SHA256SUMS"
SIDECAR_CHANGED = [Problem(SIDECAR, None, SUMS), Problem(SIDECAR, None, "its sha256 is not the index's", SHARD)]


@pytest.fixture
def store(store_copy: Path) -> Store:
    return Store(store_copy)


@pytest.fixture
def row(store: Store) -> int:
    """The second clip that is in the shard."""
    return int(store.rows()[store.shard_of(store.rows()) == SHARD][1])


def found(store: Store) -> list[Problem]:
    return verify(store.location)


def of_clip(store: Store, row: int, *whats: str) -> list[Problem]:
    """The problems of a shard of which one clip has changed."""
    return [CHANGED, *(Problem(TAR, store.clip(row).key, what, SHARD) for what in (CRC, *whats))]


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def edit_sidecar(store: Store, column: str, position: int, value: Any) -> None:
    path = store.root / SIDECAR
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[position] = value
    index = table.schema.get_field_index(column)
    pq.write_table(
        table.set_column(index, table.schema.field(index), pa.array(values, table.schema.types[index])), path
    )


def swap(one: Path, other: Path) -> None:
    parked = one.rename(one.with_name("parked"))
    other.rename(one)
    parked.rename(other)


def test_a_clean_store_has_no_problems(store: Store, fbank_stats: Any, waveform_stats: Any) -> None:
    assert found(store) == []
    build_teacher(store, fbank_stats(), "one", with_tokens=True)
    build_teacher(store, waveform_stats(), "two")
    assert found(store) == []


def test_a_grown_store_has_no_problems(grown_store: Store) -> None:
    assert found(grown_store) == []
    assert found(Store(grown_store.root.parent / "first")) == []


def test_verify_changes_nothing(store: Store) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    verify(store.location)
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before


def test_problems_as_text() -> None:
    assert str(Problem("shards/a.tar", None, "is missing")) == "shards/a.tar: is missing"
    assert str(Problem("shards/a.tar", "k", "its fbank holds NaN")) == "shards/a.tar: clip k: its fbank holds NaN"


def test_no_store_or_an_unfinished_one(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none is not a store: it has no store\.json"):
        verify(LocalFolder(tmp_path / "none"))
    path = store.root / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"snapshots": []}))
    with pytest.raises(InputError, match=r"copy is not finished; run its ingest command again"):
        found(store)


def test_flipped_byte(store: Store, row: int) -> None:
    offset = int(store.fbank_offset[row]) + 12345
    value = (store.root / TAR).read_bytes()[offset]
    overwrite(store.root / TAR, offset, bytes([value ^ 1]))
    assert found(store) == of_clip(store, row)


def test_nan_in_an_fbank(store: Store, row: int) -> None:
    overwrite(store.root / TAR, int(store.fbank_offset[row]) + 2000, np.float16(np.nan).tobytes())
    assert found(store) == of_clip(store, row, "its fbank holds NaN or Inf")


def test_infinity_in_a_hog(store: Store, row: int) -> None:
    overwrite(store.root / TAR, int(store.hog_offset[row]), np.float16(np.inf).tobytes())
    assert found(store) == of_clip(store, row, "its hog holds NaN or Inf")


def test_torn_tar(store: Store, row: int) -> None:
    """It ends inside the shard's second clip: the first one is still whole."""
    size, kept = (store.root / TAR).stat().st_size, int(store.hog_offset[row])
    with (store.root / TAR).open("r+b") as file:
        file.truncate(kept)
    problems = found(store)
    assert problems[:2] == [Problem(TAR, None, f"has {kept} bytes, its sidecar says {size}", SHARD), CHANGED]
    keys = store.keys(store.rows()[store.shard_of(store.rows()) == SHARD])
    assert list(dict.fromkeys(problem.key for problem in problems[2:])) == keys[1:]


def test_bytes_behind_the_end(store: Store) -> None:
    with (store.root / TAR).open("ab") as file:
        file.write(b"more")
    assert [problem.what.split(" bytes")[0] for problem in found(store)][-1].startswith("holds something behind its la")


def test_missing_tar(store: Store) -> None:
    (store.root / TAR).unlink()
    assert found(store) == [Problem(TAR, None, "is missing", SHARD)]


def test_missing_sidecar(store: Store) -> None:
    (store.root / SIDECAR).unlink()
    assert set(found(store)) == {Problem(SIDECAR, None, "is missing"), Problem(SIDECAR, None, "is missing", SHARD)}


@pytest.mark.parametrize("name", ["notes.txt", "shards/tiny-000009.tar", "teachers/notes.txt", "teachers/a/b"])
def test_extra_file(store: Store, name: str) -> None:
    (store.root / name).parent.mkdir(parents=True, exist_ok=True)
    (store.root / name).touch()
    (problem,) = found(store)
    assert (problem.where, problem.shard) == (name, None)
    assert problem.what.endswith("it doesn't belong to the store")


@pytest.mark.parametrize("name", ["raw/ab/x.m4a", "lists/eval.csv", "source/a.wav", ".lock", "shards/.x.partial"])
def test_files_beside_the_store_are_none_of_its_problems(store: Store, name: str) -> None:
    (store.root / name).parent.mkdir(parents=True, exist_ok=True)
    (store.root / name).touch()
    assert found(store) == []


def test_shards_of_an_unfinished_append_are_no_problems(growing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = growing.ingest_first()
    with monkeypatch.context() as patch:
        patch.setattr("ingest.book.Book.close", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            growing.append()
    assert (growing.root / "shards/tiny-000005.tar").exists()
    assert found(store) == []


def test_swapped_tars(store: Store) -> None:
    swap(store.root / TAR, store.root / "shards/tiny-000002.tar")
    problems = found(store)
    for shard in (SHARD, 2):
        mine = [problem for problem in problems if problem.shard == shard]
        assert {problem.where for problem in mine} == {f"shards/tiny-00000{shard}.tar"}
        keys = store.keys(store.rows()[store.shard_of(store.rows()) == shard])
        assert list(dict.fromkeys(problem.key for problem in mine if problem.key)) == keys
    assert {problem.shard for problem in problems} == {SHARD, 2}


def test_swapped_sidecars(store: Store) -> None:
    swap(store.root / SIDECAR, store.root / "shards/tiny-000002.parquet")
    problems = found(store)
    assert {problem.shard for problem in problems} == {None, SHARD, 2}
    assert Problem(SIDECAR, None, "names other clips than the manifest", SHARD) in problems
    assert Problem(SIDECAR, None, "names another tar than the index", SHARD) in problems
    assert CHANGED in problems


def test_swapped_shards(store: Store) -> None:
    """Tar and sidecar together: each pair is right by itself."""
    for ending in ("tar", "parquet"):
        swap(store.root / f"shards/tiny-00000{SHARD}.{ending}", store.root / f"shards/tiny-000002.{ending}")
    problems = found(store)
    for shard in (SHARD, 2):
        whats = [problem.what for problem in problems if problem.where == f"shards/tiny-00000{shard}.parquet"]
        assert whats == [
            SUMS,
            "names other clips than the manifest",
            "its sha256 is not the index's",
            "names another tar than the index",
            "differs from the index",
        ]


def test_edited_offset(store: Store, row: int) -> None:
    offset = int(store.fbank_offset[row])
    edit_sidecar(store, "fbank_offset", row % 5, offset + 2)
    assert found(store) == [
        *SIDECAR_CHANGED,
        Problem(SIDECAR, None, "differs from the index", SHARD),
        Problem(TAR, store.clip(row).key, "its fbank is not where the index places it", SHARD),
    ]


@pytest.mark.parametrize("value", [None, 7])
def test_edited_hog_offset(store: Store, row: int, value: int | None) -> None:
    edit_sidecar(store, "hog_offset", row % 5, value)
    assert found(store)[-1] == Problem(TAR, store.clip(row).key, "its hog is not where the index places it", SHARD)


@pytest.mark.parametrize(("column", "value"), [("sample_offset", 512), ("sample_size", 1024), ("sample_crc32", 1)])
def test_edited_place_of_a_sample(store: Store, row: int, column: str, value: int) -> None:
    edit_sidecar(store, column, row % 5, value)
    problems = found(store)
    assert problems[:2] == SIDECAR_CHANGED
    assert Problem(TAR, store.clip(row).key, CRC, SHARD) in problems


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"\xff", b'{"key": "another"}'])
def test_json_of_a_clip(store: Store, row: int, text: bytes) -> None:
    with tarfile.open(store.root / TAR) as tar:
        member = tar.getmember(f"{store.clip(row).key}.json")
    overwrite(store.root / TAR, member.offset_data, text.ljust(member.size))
    what = "its JSON names another clip" if b"another" in text else "its JSON can't be read"
    assert found(store) == of_clip(store, row, what)


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
    header = (store.root / TAR).read_bytes()[offset - 128 : offset]
    assert find in header
    overwrite(store.root / TAR, offset - 128, header.replace(find, replacement))
    problems = found(store)
    assert problems[:2] == of_clip(store, row)
    assert (problems[2].where, problems[2].key) == (TAR, store.clip(row).key)
    assert problems[2].what.startswith(what)


def test_tar_header(store: Store, row: int) -> None:
    """The other clips of the shard are as they were, and aren't named."""
    with tarfile.open(store.root / TAR) as tar:
        offset = tar.getmember(f"{store.clip(row).key}.fbank.npy").offset
    overwrite(store.root / TAR, offset, b"not a tar at all")
    problems = found(store)
    assert problems[:2] == of_clip(store, row)
    assert problems[2].what.startswith("its members can't be read (")
    assert len(problems) == 3


def test_a_tar_with_another_member(store: Store) -> None:
    """As somebody would who packs the shard again."""
    with tarfile.open(store.root / TAR, "a") as tar:
        tar.addfile(tarfile.TarInfo("stray.txt"), io.BytesIO())
    problems = found(store)
    assert problems[0] == CHANGED
    assert problems[-1].what.startswith("holds something behind its last clip")


def test_text_that_is_no_text_in_a_sidecar(store: Store) -> None:
    path = store.root / SIDECAR
    pq.write_table(pq.read_table(path), path, compression="none")
    assert b"wav/pcm_16" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"wav/pcm_16", b"wav/pcm\xff16"))
    problems = found(store)
    assert problems[0] == SIDECAR_CHANGED[0]
    assert (problems[1].where, problems[1].shard) == (SIDECAR, SHARD)
    assert "is damaged (" in problems[1].what


def test_no_checksums(store: Store) -> None:
    (store.root / CHECKSUM_FILE).unlink()
    (problem,) = found(store)
    assert problem.where == CHECKSUM_FILE
    assert "SHA256SUMS is missing" in problem.what


@pytest.mark.parametrize("content", [b"garbage\n", b"\xff\xfe\n", b"\n", b""])
def test_garbage_checksums(store: Store, content: bytes) -> None:
    (store.root / CHECKSUM_FILE).write_bytes(content)
    (problem,) = found(store)
    assert problem.where == CHECKSUM_FILE
    assert "is damaged" in problem.what


def edit_checksums(store: Store, name: str, old: str, new: str) -> None:
    path = store.root / CHECKSUM_FILE
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line.replace(old, new, 1) if line.endswith(f"  {name}\n") else line for line in lines))


@pytest.mark.parametrize("name", [TAR, SIDECAR, "store.json", "manifest.parquet", "index.parquet"])
def test_checksums_that_lack_a_file(store: Store, name: str) -> None:
    path = store.root / CHECKSUM_FILE
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.endswith(f" {name}\n")))
    assert found(store) == [Problem(CHECKSUM_FILE, None, f"doesn't list {name}")]


def test_a_wrong_checksum_of_a_tar(store: Store) -> None:
    digest = store.shards[SHARD].tar_sha256
    edit_checksums(store, TAR, digest, "0" * 64)
    assert found(store) == [Problem(CHECKSUM_FILE, None, f"its sha256 of {TAR} is not the index's")]


@pytest.mark.parametrize("name", ["store.json", "manifest.parquet", SIDECAR, "index.json"])
def test_a_digit_of_a_checksum(store: Store, name: str) -> None:
    """It is the checksum that was damaged: a file that changes changes its whole hash."""
    (line,) = [line for line in (store.root / CHECKSUM_FILE).read_text().splitlines() if line.endswith(f" {name}")]
    edit_checksums(store, name, line[:1], "f" if line[0] == "e" else "e")
    assert found(store) == [Problem(CHECKSUM_FILE, None, f"its sha256 of {name} is damaged")]


@pytest.mark.parametrize("name", ["index.json", "README.md", "croissant.json"])
def test_what_is_derived(store: Store, name: str) -> None:
    (store.root / name).write_text("{}")
    assert found(store) == [Problem(name, None, SUMS)]
    (store.root / name).unlink()
    assert found(store) == [Problem(name, None, "is missing")]


def test_an_edited_index(store: Store) -> None:
    table = pq.read_table(store.root / "index.parquet")
    column = table.schema.get_field_index("num_frames")
    changed = pa.array([1] * 23, pa.int32())
    pq.write_table(table.set_column(column, table.schema.field(column), changed), store.root / "index.parquet")
    assert found(store) == [Problem("index.parquet", None, SUMS)]
    # Without checksums it is still another than the sidecars say.
    (store.root / CHECKSUM_FILE).unlink()
    whats = {problem.what for problem in found(store) if problem.where.endswith(".parquet")}
    assert whats == {"differs from the index"}


def test_missing_teacher_row(store: Store, fbank_stats: Any, row: int) -> None:
    cache = build_teacher(store, fbank_stats(), "stats").cache
    values = cache.read("logits", SHARD).copy()
    values[row % 5, 1] = np.nan
    cache.write(SHARD, {"logits": values})
    changed, nan = found(store)
    assert changed.where == f"teachers/stats.zarr/logits/c/{SHARD}/0"
    assert nan == Problem("teachers/stats.zarr", store.clip(row).key, "its logits is missing or not finite")


def test_missing_and_torn_teacher_chunks(store: Store, fbank_stats: Any) -> None:
    path = Path(build_teacher(store, fbank_stats(), "stats").cache.path) / "embedding/c"
    (path / "0/0").unlink()
    (path / "1/0").write_bytes((path / "1/0").read_bytes()[:10])
    problems = found(store)
    assert [(problem.where, problem.what) for problem in problems[:2]] == [
        ("teachers/stats.zarr/embedding/c/0/0", "is missing"),
        ("teachers/stats.zarr/embedding/c/1/0", "is not the file that SHA256SUMS beside it names"),
    ]
    assert [problem.key for problem in problems[2:-1]] == store.keys(store.rows()[store.shard_of(store.rows()) == 0])
    assert "embedding is damaged in the rows of shard 1" in problems[-1].what


def test_swapped_teacher_chunks(store: Store, fbank_stats: Any) -> None:
    """Each is whole by itself, and holds a row for every clip."""
    cache = build_teacher(store, fbank_stats(), "stats").cache
    one, other = [shard for shard in range(4) if store.ok[store.rows_of_shard(shard)].all()][:2]
    before = [cache.read("embedding", shard) for shard in range(5)]
    folder = Path(cache.path) / "embedding/c"
    swap(folder / str(one), folder / str(other))
    chunks = [f"teachers/stats.zarr/embedding/c/{shard}/0" for shard in (one, other)]
    assert [problem.where for problem in found(store)] == chunks
    teacher = fbank_stats()
    again = build_teacher(store, teacher, "stats").cache
    assert [len(batch) for batch in teacher.batches] == [1, 5, 5]
    for shard, values in enumerate(before):
        np.testing.assert_array_equal(again.read("embedding", shard), values)
    assert found(store) == []


def test_swapped_arrays_and_teachers(store: Store, fbank_stats: Any) -> None:
    for name in ("one", "two"):
        build_teacher(store, fbank_stats(), name)
    teachers = store.root / "teachers"
    other = fbank_stats()
    other.provenance = {"checkpoint_sha256": "2" * 64}
    build_teacher(store, other, "three")
    swap(teachers / "one.zarr", teachers / "three.zarr")
    whats = [(problem.where, problem.what.split("one.zarr ")[-1].split("three.zarr ")[-1]) for problem in found(store)]
    assert whats == [
        ("teachers/one.zarr", "is the cache 'three' under another name; give it its name back"),
        ("teachers/three.zarr", "is the cache 'one' under another name; give it its name back"),
    ]
    swap(teachers / "one.zarr", teachers / "three.zarr")
    assert found(store) == []
    swap(teachers / "one.zarr/embedding/c", teachers / "one.zarr/logits/c")
    assert {problem.where.rsplit("/", 2)[0] for problem in found(store)} == {
        "teachers/one.zarr/embedding/c",
        "teachers/one.zarr/logits/c",
    }


def test_extra_and_unlisted_teacher_files(store: Store, fbank_stats: Any) -> None:
    folder = Path(build_teacher(store, fbank_stats(), "stats").cache.path)
    (folder / "embedding/c/9").mkdir()
    (folder / "embedding/c/9/0").touch()
    (problem,) = found(store)
    assert problem.where == "teachers/stats.zarr/embedding/c/9/0"
    shutil.rmtree(folder / "embedding/c/9")
    (folder / CHECKSUM_FILE).unlink()
    (problem,) = found(store)
    assert problem.where == "teachers/stats.zarr"
    assert "SHA256SUMS is missing" in problem.what
    build_teacher(store, fbank_stats(), "stats")
    assert found(store) == []


def test_pieces_of_a_killed_build(store: Store, fbank_stats: Any) -> None:
    """They are named, and the next build removes them and lists none."""
    folder = Path(build_teacher(store, fbank_stats(), "stats").cache.path)
    pieces = [folder / "embedding/c/0/0.0123456789abcdef.partial", folder / ".SHA256SUMS.0123456789abcdef.partial"]
    for piece in pieces:
        piece.write_bytes(b"piece")
    (problem,) = found(store)
    assert problem.where == f"teachers/stats.zarr/{pieces[0].relative_to(folder)}"
    build_teacher(store, fbank_stats(), "stats")
    assert not any(piece.exists() for piece in pieces)
    assert ".partial" not in (folder / CHECKSUM_FILE).read_text()
    assert found(store) == []


def test_unusable_teacher_cache(store: Store) -> None:
    (store.root / "teachers/half.zarr").mkdir(parents=True)
    problems = found(store)
    assert {problem.where for problem in problems} == {"teachers/half.zarr"}
    assert "is not a Zarr v3 group" in problems[-1].what


def rewrite_manifest(store: Store, change: Any) -> None:
    path = store.root / "manifest.parquet"
    (manifest,) = ManifestFile(pa.BufferReader(path.read_bytes()), "here").manifests()
    write_manifests([change(manifest)], path)


def test_changed_labels(store: Store) -> None:
    def all_bark(manifest: Manifest) -> Manifest:
        column = manifest.table.schema.get_field_index("labels")
        labels = pa.array([["bark"]] * len(manifest), manifest.table.schema.types[column])
        return replace(manifest, table=manifest.table.set_column(column, manifest.table.schema.field("labels"), labels))

    rewrite_manifest(store, all_bark)
    assert found(store) == [Problem("manifest.parquet", None, SUMS)]
    (store.root / CHECKSUM_FILE).unlink()
    assert found(store)[1:] == [
        Problem("manifest.parquet", None, "the rows of part 1 are not those that store.json names by their hash")
    ]


def test_clips_in_another_order(store: Store) -> None:
    def reversed_rows(manifest: Manifest) -> Manifest:
        return replace(manifest, table=manifest.table.take(list(range(22, -1, -1))))

    rewrite_manifest(store, reversed_rows)
    (store.root / CHECKSUM_FILE).unlink()
    whats = [problem.what for problem in found(store) if problem.where == SIDECAR]
    assert whats == ["names other clips than the manifest"]
