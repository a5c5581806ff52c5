"""A store under the lock: how it is opened, what it adopts, what it refuses, how its parts come and go."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ingest.book import Book, read_parts
from ingest.job import ingest
from ingest.layout import Part, StoreFile
from ingest.ledger import LedgerRow
from ingest.location import LocalFolder
from ingest.opening import open_book
from manifests.clips import Manifest
from manifests.errors import InputError
from tests.ingest.stores import (
    OPTIONS,
    assert_sums,
    contents,
    files_of,
    index_of,
    outcomes,
    parts_of,
    store_of,
    times,
    write_sound,
)

APPEND = replace(OPTIONS, append=True)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sounds")


@pytest.fixture(scope="module")
def first(sounds: Path) -> Manifest:
    return files_of(sounds, ["a0", "a1", "a2", "a3"], bad=["a4"])


@pytest.fixture(scope="module")
def second(sounds: Path) -> Manifest:
    return files_of(sounds, ["b0", "b1"], split="eval")


@pytest.fixture(scope="module")
def whole(first: Manifest, second: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two parts, which are shards of 3 and 2 clips, and one of 2; not to be written to."""
    root = tmp_path_factory.mktemp("whole")
    ingest(first, root, OPTIONS)
    ingest(second, root, APPEND)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "root"))


def opened(root: Path, wanted: Manifest, *, append: bool = False) -> Book:
    return open_book(LocalFolder(root), wanted, store_of(root), append=append)


def test_shards_clips_and_parts(root: Path, first: Manifest, second: Manifest) -> None:
    book = opened(root, first)
    assert [book.part_of(shard) for shard in range(3)] == [0, 0, 1]
    in_order = [*first.clips(), *second.clips()]
    assert [book.clips(shard) for shard in range(3)] == [
        tuple(in_order[:3]),
        tuple(in_order[3:5]),
        tuple(in_order[5:]),
    ]
    assert [book.is_published(shard) for shard in range(3)] == [True] * 3
    assert [book.num_ok(shard) for shard in range(3)] == [
        sum(clip.key != "a4" for clip in book.clips(shard)) for shard in range(3)
    ]
    assert not book.is_retrying


def test_what_is_settled(root: Path, first: Manifest) -> None:
    book = opened(root, first)
    settled = {shard: book.settled(shard) for shard in range(3)}
    failed = {key: row for rows in settled.values() for key, row in rows.items()}
    assert failed.keys() == {"a4"}
    assert (failed["a4"].ok, failed["a4"].reason) == (False, "not_audio")
    shard = next(shard for shard, rows in settled.items() if rows)
    assert failed["a4"] == next(
        LedgerRow(**row) for row in book.required_sidecar(shard).ledger.to_pylist() if not row["ok"]
    )
    unfinished = Book(book.location, book.store.model_copy(update={"snapshots": ()}), book.parts, None)
    assert unfinished.settled(shard) == {}


def test_a_part_comes_and_goes(root: Path, first: Manifest, sounds: Path) -> None:
    before = contents(root)
    book = opened(root, first)
    manifest = files_of(sounds, ["c0", "c1", "c2", "c3"])
    book.add_part(Part(num_clips_asked=4, manifest_sha256=manifest.sha256, wanted_sha256="wanted"), manifest)
    assert [part.num_clips_asked for part in store_of(root).parts] == [5, 2, 4]
    assert [len(part) for part in parts_of(root)] == [5, 2, 4]
    assert (book.part_of(4), book.is_published(3), book.is_retrying) == (2, False, False)
    assert book.clips(4) == tuple(manifest.clips(3))
    assert_sums(root)
    for name in ("s-000003.tar", "s-000003.parquet"):
        (root / "shards" / name).touch()
    book.drop_last_part()
    assert contents(root) == before


def test_a_retried_part_says_so(root: Path, first: Manifest, sounds: Path) -> None:
    book = opened(root, first)
    manifest = files_of(sounds, ["a0"])
    part = Part(num_clips_asked=1, manifest_sha256=manifest.sha256, wanted_sha256=first.sha256)
    book.add_part(part.model_copy(update={"is_retry": True}), manifest)
    assert opened(root, first).is_retrying
    book.drop_last_part()
    book.add_part(part, manifest)
    assert not opened(root, first).is_retrying


def test_a_manifest_with_more_rows_than_store_json_counts(root: Path, first: Manifest, sounds: Path) -> None:
    """As a run leaves it that was killed while it added a part."""
    before = {name: (root / name).read_bytes() for name in ("store.json", "SHA256SUMS")}
    book = opened(root, first)
    manifest = files_of(sounds, ["c0"])
    book.add_part(Part(num_clips_asked=1, manifest_sha256=manifest.sha256, wanted_sha256="wanted"), manifest)
    for name, content in before.items():
        (root / name).write_bytes(content)
    assert [len(part) for part in read_parts(LocalFolder(root), store_of(root))] == [5, 2]
    ingest(first, root, OPTIONS)
    assert_sums(root)


@pytest.mark.parametrize("name", ["README.md", "coverage.csv", "present_eval.txt", "SHA256SUMS", "index.json"])
def test_what_can_be_derived_is_made_again(root: Path, whole: Path, first: Manifest, name: str) -> None:
    (root / name).unlink()
    ingest(first, root, OPTIONS)
    assert contents(root) == contents(whole)


def test_a_manifest_of_several_parts_can_t_be_made_from_one_list(root: Path, first: Manifest) -> None:
    (root / "manifest.parquet").unlink()
    with pytest.raises(InputError, match=r"is missing or not this store's; restore it from a copy") as caught:
        ingest(first, root, OPTIONS)
    assert "delete store.json and manifest.parquet and nothing else" in str(caught.value)


def test_the_manifest_of_a_single_part_is_made_again(first: Manifest, tmp_path: Path) -> None:
    ingest(first, tmp_path, OPTIONS)
    before = contents(tmp_path)
    for damage in (None, b"PAR1"):
        if damage is None:
            (tmp_path / "manifest.parquet").unlink()
        else:
            (tmp_path / "manifest.parquet").write_bytes(damage)
        ingest(first, tmp_path, OPTIONS)
        assert contents(tmp_path) == before


def test_a_manifest_of_another_store_is_refused(root: Path, first: Manifest, tmp_path: Path) -> None:
    ingest(first, tmp_path / "other", OPTIONS)
    shutil.copy(tmp_path / "other" / "manifest.parquet", root)
    with pytest.raises(InputError, match=r"manifest\.parquet is missing or not this store's; restore it"):
        ingest(first, root, OPTIONS)


@pytest.mark.parametrize("damage", [None, b"", b"PAR1"])
def test_an_index_that_is_gone_is_for_repair(root: Path, first: Manifest, damage: bytes | None) -> None:
    (root / "index.parquet").unlink()
    if damage is not None:
        (root / "index.parquet").write_bytes(damage)
    with pytest.raises(InputError, match=r"index\.parquet is (missing|damaged) ?.*; run `featurestore repair`"):
        ingest(first, root, OPTIONS)


def test_whole_shards_are_adopted_where_store_json_is_gone(
    root: Path, whole: Path, first: Manifest, second: Manifest
) -> None:
    for name in ("store.json", "manifest.parquet", "index.parquet"):
        (root / name).unlink()
    before = times(root / "shards")
    ingest(first, root, OPTIONS)
    ingest(second, root, APPEND)
    assert times(root / "shards") == before
    assert contents(root) == contents(whole)


def test_an_adopted_shard_that_isn_t_whole_is_made_anew(root: Path, whole: Path, first: Manifest) -> None:
    for name in ("store.json", "shards/s-000000.parquet", "shards/s-000001.tar"):
        (root / name).unlink()
    ingest(first, root, OPTIONS)
    names = [f"shards/s-00000{shard}.{end}" for shard in range(2) for end in ("tar", "parquet")]
    assert [(root / name).read_bytes() for name in names] == [(whole / name).read_bytes() for name in names]


@pytest.mark.parametrize("change", [{"keep_audio": True}, {"num_frames": 512}, {"drop_silent": True}])
def test_shards_of_another_recipe_are_not_adopted(
    root: Path, first: Manifest, tmp_path: Path, change: dict[str, bool]
) -> None:
    (root / "store.json").unlink()
    for shard in root.glob("shards/s-000002.*"):
        shard.unlink()
    options = replace(OPTIONS, **change)  # type: ignore[arg-type]
    ingest(first, root, options)
    ingest(first, tmp_path / "clean", options)
    assert contents(root / "shards") == contents(tmp_path / "clean" / "shards")
    assert_sums(tmp_path / "clean")


def test_shards_of_other_clips_are_not_adopted(root: Path, tmp_path: Path) -> None:
    (root / "store.json").unlink()
    for shard in root.glob("shards/s-000002.*"):
        shard.unlink()
    other = files_of(tmp_path / "sounds", ["a0", "a1", "a2", "a3", "a5"])
    ingest(other, root, OPTIONS)
    assert outcomes(root) == dict.fromkeys(["a0", "a1", "a2", "a3", "a5"], "ok")
    ingest(other, tmp_path / "clean", OPTIONS)
    assert contents(root / "shards") == contents(tmp_path / "clean" / "shards")


def test_shards_that_others_swapped_are_not_published_again(root: Path, first: Manifest, tmp_path: Path) -> None:
    """A whole shard of the same clips, but with another sound, is not what the snapshot names: it is made anew."""
    sounds = Path(shutil.copytree(first.root, tmp_path / "sounds"))
    write_sound(sounds / "a0.wav", seed=99)
    ingest(files_of(sounds, ["a0", "a1", "a2", "a3"], bad=["a4"]), tmp_path / "other", OPTIONS)
    before = contents(root)
    for name in ("s-000000", "s-000001"):
        for end in ("tar", "parquet"):
            shutil.copy(tmp_path / "other" / "shards" / f"{name}.{end}", root / "shards")
    assert contents(root) != before
    ingest(first, root, OPTIONS)
    assert contents(root) == before


def test_a_snapshot_of_other_shards_is_noticed(root: Path, first: Manifest) -> None:
    about = json.loads((root / "store.json").read_text())
    about["snapshots"][1]["fingerprint"] = "0" * 64
    (root / "store.json").write_text(json.dumps(about))
    (root / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match="its shards are not those that snapshot 2 names; run `featurestore verify`"):
        ingest(first, root, OPTIONS)


def test_forgetting_shards_reads_them_anew(root: Path, first: Manifest) -> None:
    book = opened(root, first)
    index = index_of(root)
    book.forget([])
    assert book.index == index
    book.forget([2, 1])
    assert book.index is not None
    assert (book.index.table.num_rows, book.index.shards) == (3, index.shards[:1])
    assert book.published_index() == index
    book.forget([0])
    assert book.index is None
    assert book.published_index() == index


def test_a_shard_that_went_missing_is_named(root: Path, first: Manifest) -> None:
    book = opened(root, first)
    (root / "shards" / "s-000001.parquet").unlink()
    with pytest.raises(InputError, match=r"s-000001 of .* went missing during the ingest; run it again"):
        book.required_sidecar(1)


def test_a_new_store_is_written_before_anything_else(first: Manifest, whole: Path, tmp_path: Path) -> None:
    new: StoreFile = store_of(whole).model_copy(update={"parts": store_of(whole).parts[:1], "snapshots": ()})
    book = open_book(LocalFolder(tmp_path), first, new, append=True)
    assert sorted(contents(tmp_path)) == ["manifest.parquet", "store.json"]
    assert (store_of(tmp_path), parts_of(tmp_path)) == (new, [first])
    assert book.index is None
