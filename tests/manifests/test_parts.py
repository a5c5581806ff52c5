"""manifest.parquet: the manifests of a store's parts come back as they were written, or not at all."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.clips import SCHEMA, Clip, Manifest, Sources, make_manifest
from manifests.errors import InputError
from manifests.parts import ManifestFile, write_manifests
from manifests.vocabulary import Label, Vocabulary

VOCABULARY = Vocabulary(labels=(Label(id="/m/1", name="Dog"), Label(id="/m/0", name="Cat, wild")))
FILES = Sources(kind="files", address="/data")
DOWNLOADS = Sources(kind="raw_cache", address="s3://bucket/raw")

clips = st.builds(
    Clip,
    key=st.text("abcdefghé_@=,+", min_size=1, max_size=20),
    source=st.text(st.characters(codec="utf-8")),
    start_ms=st.none() | st.integers(0, 1000),
    end_ms=st.none() | st.integers(1001, 2000),
    labels=st.lists(st.sampled_from(VOCABULARY.ids), unique=True).map(tuple),
    split=st.none() | st.sampled_from(["train", "test"]),
    fold=st.none() | st.integers(0, 9),
)
clip_lists = st.lists(clips, min_size=1, unique_by=lambda clip: clip.key)


def manifest_of(clips: list[Clip], sources: Sources = FILES, seed: int = 7) -> Manifest:
    return make_manifest("set", clips, VOCABULARY, sources, seed=seed)


def opened(path: Path) -> ManifestFile:
    return ManifestFile(pa.BufferReader(path.read_bytes()), str(path))


PARTS = [
    manifest_of([Clip(f"a{i}", f"{i}.wav", labels=("/m/0",)) for i in range(5)]),
    manifest_of([Clip("b", "--PJHxphWEs", 30_000, 40_000, split="eval")], DOWNLOADS),
    manifest_of([Clip("c", "x.wav", fold=3), Clip("a0", "0.wav")]),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_manifests(PARTS, tmp_path / "m.parquet")
    return tmp_path / "m.parquet"


@given(parts=st.lists(st.tuples(clip_lists, st.sampled_from([FILES, DOWNLOADS])), min_size=1, max_size=3))
def test_parts_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[list[Clip], Sources]]
) -> None:
    manifests = [manifest_of(clips, sources) for clips, sources in parts]
    path = tmp_path_factory.getbasetemp() / "round_trip.parquet"
    write_manifests(manifests, path)
    content = path.read_bytes()
    read = opened(path).manifests()
    assert read == manifests
    write_manifests(read, path)
    assert path.read_bytes() == content
    assert [manifest.sha256 for manifest in read] == [manifest.sha256 for manifest in manifests]


def test_what_a_file_says_without_its_rows(path: Path) -> None:
    file = opened(path)
    assert (file.dataset, file.seed, file.vocabulary) == ("set", 7, VOCABULARY)
    assert (file.part_sizes, len(file)) == ([5, 1, 2], 8)
    assert file.sources == [FILES, DOWNLOADS, FILES]


def test_columns(path: Path) -> None:
    file = opened(path)
    keys = [clip.key for part in PARTS for clip in part.clips()]
    assert file.columns("key").column_names == ["key"]
    assert file.columns("key")["key"].to_pylist() == keys
    assert file.columns("fold", "key", num_rows=6).num_rows == 6
    assert file.columns().schema == SCHEMA
    assert [clip.key for clip in file.manifests()[2].clips()] == keys[6:]


def test_one_part_is_written_as_it_was_before(tmp_path: Path) -> None:
    """The same rows give the same bytes, whatever pieces they lie in."""
    (first, _, _) = PARTS
    in_pieces = pa.concat_tables([first.table.slice(0, 2), first.table.slice(2)])
    for name, table in (("a", first.table), ("b", in_pieces)):
        manifest = Manifest(first.dataset, first.vocabulary, first.sources, first.seed, table)
        write_manifests([manifest], tmp_path / name)
    assert pq.read_table(tmp_path / "a").equals(pq.read_table(tmp_path / "b"))


ABOUT: dict[str, Any] = {
    "dataset": "d",
    "seed": 0,
    "labels": [],
    "parts": [{"num_clips": 1, "sources": {"kind": "files", "address": "/"}}],
}


@pytest.mark.parametrize(
    "about",
    [
        None,
        {},
        {**ABOUT, "parts": [{"num_clips": 1, "sources": {"kind": "tapes", "address": "/"}}]},
        {**ABOUT, "parts": []},
        {**ABOUT, "labels": [{"id": "a"}]},
    ],
)
def test_what_is_no_manifest_by_its_description(tmp_path: Path, about: dict[str, Any] | None) -> None:
    path = tmp_path / "m.parquet"
    table = pa.Table.from_pylist([{"key": "a", "source": "a", "labels": []}], schema=SCHEMA)
    pq.write_table(table.replace_schema_metadata({"manifest": json.dumps(ABOUT)}), path)
    assert opened(path).part_sizes == [1]
    pq.write_table(table.replace_schema_metadata({"manifest": json.dumps(about)} if about is not None else None), path)
    with pytest.raises(
        InputError, match=r"m\.parquet is not a readable manifest .*; run the ingest command again"
    ) as e:
        opened(path)
    assert "\n" not in str(e.value)


def test_what_is_no_manifest_by_its_rows(path: Path, tmp_path: Path) -> None:
    for table in (pa.table({"x": [1]}), SCHEMA.empty_table()):
        pq.write_table(table.replace_schema_metadata({"manifest": json.dumps(ABOUT)}), tmp_path / "other.parquet")
        with pytest.raises(InputError, match=r"its columns are others|it has 0 rows and names 1"):
            opened(tmp_path / "other.parquet")
    content = path.read_bytes()
    for damaged in (b"", b"{}", content[:-20], content[:-9] + b"\xff" + content[-8:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"m\.parquet is not a readable manifest"):
            opened(path)


def test_damage_among_the_rows_is_found_when_they_are_read(path: Path) -> None:
    content = path.read_bytes()
    for damaged in (content[20:], content[:4] + bytes(56) + content[60:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"m\.parquet is not a readable manifest"):
            opened(path).columns("key")
