"""Repair makes what is damaged anew, to the same bytes, and leaves everything else alone."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.build import build_teacher
from featurestore.repair import repair, teachers_to_build
from featurestore.store import Store
from featurestore.verify import verify
from featurestore.verifyshard import Problem
from ingest.index import read_index
from ingest.layout import CHECKSUM_FILE
from ingest.location import LocalFolder
from manifests.errors import InputError

SHARD = "shards/tiny-000003"
Damage = Callable[[Path], None]


@pytest.fixture
def root(grown_copy: Path) -> Path:
    """A grown store to be damaged; its sources are others' too."""
    return grown_copy


@pytest.fixture
def grown(growing: Any) -> Any:
    """A grown store and its sources, to be damaged."""
    growing.ingest_first()
    growing.append()
    growing.mend_clip07()
    return growing


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def times(root: Path) -> dict[str, int]:
    return {name: (root / name).stat().st_mtime_ns for name in hashes(root)}


def flip(root: Path, name: str, offset: int = 3000) -> None:
    content = bytearray((root / name).read_bytes())
    content[offset % len(content)] ^= 4
    (root / name).write_bytes(content)


def swap(root: Path, one: str, other: str) -> None:
    (root / one).rename(root / "parked")
    (root / other).rename(root / one)
    (root / "parked").rename(root / other)


def swap_shards(root: Path) -> None:
    for ending in (".tar", ".parquet"):
        swap(root, f"{SHARD}{ending}", f"shards/tiny-000004{ending}")


def flip_each(root: Path) -> None:
    for shard in (1, 5, 6):
        flip(root, f"shards/tiny-00000{shard}.tar")


def flip_index_and_tar(root: Path) -> None:
    flip(root, "index.parquet")
    flip(root, f"{SHARD}.tar")


def truncate(root: Path, name: str) -> None:
    (root / name).write_bytes((root / name).read_bytes()[:5000])


def edit_index(root: Path) -> None:
    table = pq.read_table(root / "index.parquet")
    column = table.schema.get_field_index("fbank_offset")
    changed = table.set_column(column, table.schema.field(column), pa.array([1] * table.num_rows, pa.int64()))
    pq.write_table(changed, root / "index.parquet")


DAMAGES: dict[str, tuple[Damage, list[int]]] = {
    "flipped bit in a tar": (lambda root: flip(root, f"{SHARD}.tar"), [3]),
    "flipped bit in the tar's end": (lambda root: flip(root, f"{SHARD}.tar", -1), [3]),
    "torn tar": (lambda root: truncate(root, f"{SHARD}.tar"), [3]),
    "empty tar": (lambda root: (root / f"{SHARD}.tar").write_bytes(b""), [3]),
    "missing tar": (lambda root: (root / f"{SHARD}.tar").unlink(), [3]),
    "flipped bit in a sidecar": (lambda root: flip(root, f"{SHARD}.parquet"), [3]),
    "torn sidecar": (lambda root: truncate(root, f"{SHARD}.parquet"), [3]),
    "missing sidecar": (lambda root: (root / f"{SHARD}.parquet").unlink(), [3]),
    "swapped tars": (lambda root: swap(root, f"{SHARD}.tar", "shards/tiny-000004.tar"), [3, 4]),
    "swapped sidecars": (lambda root: swap(root, f"{SHARD}.parquet", "shards/tiny-000004.parquet"), [3, 4]),
    "swapped shards": (swap_shards, [3, 4]),
    "a shard of each part": (flip_each, [1, 5, 6]),
    "the shard with the clip that failed": (lambda root: (root / "shards/tiny-000001.parquet").unlink(), [1]),
    "flipped bit in the index": (lambda root: flip(root, "index.parquet"), []),
    "another index": (edit_index, []),
    "missing index": (lambda root: (root / "index.parquet").unlink(), []),
    "index and a tar": (flip_index_and_tar, [3]),
    "flipped bit in the checksums": (lambda root: flip(root, CHECKSUM_FILE, 700), []),
    "missing checksums": (lambda root: (root / CHECKSUM_FILE).unlink(), []),
    "missing card": (lambda root: (root / "README.md").unlink(), []),
    "flipped bit in the card": (lambda root: flip(root, "README.md", 100), []),
    "missing wids index": (lambda root: (root / "index.json").unlink(), []),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_same_bytes_again(root: Path, damage: str) -> None:
    before, times_before = hashes(root), times(root)
    break_it, shards = DAMAGES[damage]
    break_it(root)
    result = repair(LocalFolder(root))
    assert result.found != []
    assert result.rebuilt == [f"tiny-{shard:06d}" for shard in shards]
    assert result.left == []
    assert hashes(root) == before
    mended = {f"shards/tiny-{shard:06d}.{ending}" for shard in shards for ending in ("tar", "parquet")}
    changed = {name for name, time in times(root).items() if time != times_before[name]}
    assert {name for name in changed if name.startswith("shards/")} == mended
    assert len(Store(root)) == 23


def test_nothing_to_mend(root: Path) -> None:
    before = times(root)
    result = repair(LocalFolder(root))
    assert (result.found, result.rebuilt, result.left) == ([], [], [])
    assert times(root) == before


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_sources_that_are_gone(grown: Any, ending: str) -> None:
    root = grown.root
    clip = Store(root).clip(12)
    (grown.corpus / clip.source).rename(grown.corpus / "away")
    flip(root, f"{SHARD}.{ending}")
    damaged, times_before = hashes(root), times(root)
    message = rf"^clip {clip.key} is in tiny-000003 and can't be had any more \(missing: no such file\); .* the source$"
    with pytest.raises(InputError, match=message):
        repair(LocalFolder(root))
    assert hashes(root) == damaged
    assert times(root) == times_before
    (grown.corpus / "away").rename(grown.corpus / clip.source)
    assert repair(LocalFolder(root)).left == []


def test_a_source_that_changed(grown: Any) -> None:
    root = grown.root
    (grown.corpus / Store(root).clip(12).source).write_bytes((grown.corpus / "clip00.wav").read_bytes())
    flip(root, f"{SHARD}.tar")
    damaged = hashes(root)
    with pytest.raises(InputError, match=r"tiny-000003 can't be made anew with the bytes .* source has changed"):
        repair(LocalFolder(root))
    assert hashes(root) == damaged


def test_clips_that_failed_stay_failed(root: Path) -> None:
    """clip07 can be had now, but its row in shard 1 says that it couldn't: published shards never change."""
    before = hashes(root)
    for ending in ("tar", "parquet"):
        (root / f"shards/tiny-000001.{ending}").unlink()
    assert repair(LocalFolder(root)).rebuilt == ["tiny-000001"]
    assert hashes(root) == before
    failed = [row for row in range(12) if Store(root, 1).clip(row).key == "clip07"]
    assert Store(root).ledger(failed[0])["reason"] == "not_audio"


def test_index_and_sidecar_damaged(root: Path) -> None:
    flip(root, "index.parquet")
    (root / f"{SHARD}.parquet").unlink()
    damaged = hashes(root)
    with pytest.raises(InputError, match=r"index\.parquet is damaged.*tiny-000003 .* went missing.*restore index"):
        repair(LocalFolder(root))
    assert hashes(root) == damaged


@pytest.mark.parametrize("name", ["store.json", "manifest.parquet"])
@pytest.mark.parametrize("how", ["flipped", "empty"])
def test_what_only_the_lists_can_mend(grown: Any, name: str, how: str) -> None:
    """Following the message's advice: delete both, and run the commands again."""
    root = grown.root
    before = hashes(root)
    if how == "empty":
        (root / name).write_bytes(b"")
    else:
        content = (root / name).read_bytes()
        position = content.index(b'"seed": 0') + 8 if name == "store.json" else content.index(b"clip")
        (root / name).write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    # Not the last one: the clip of another try is tried once more.
    shards = {file: time for file, time in times(root).items() if file.startswith("shards/") and "06." not in file}
    advice = r"run the ingest command again|delete store\.json and manifest\.parquet and nothing else"
    with pytest.raises(InputError, match=advice):
        repair(LocalFolder(root))
    for file in ("store.json", "manifest.parquet"):
        (root / file).unlink(missing_ok=True)
    # clip07 was damaged when it was asked for first.
    mended = (grown.corpus / "clip07.wav").read_bytes()
    grown.ingest_first()
    grown.append()
    (grown.corpus / "clip07.wav").write_bytes(mended)
    grown.mend_clip07()
    assert hashes(root) == before
    assert {file: times(root)[file] for file in shards} == shards
    assert verify(LocalFolder(root)) == []


@pytest.mark.parametrize("damage", ["tar", "index"])
def test_an_append_that_was_killed_goes_on_after_a_repair(
    growing: Any, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing.ingest_first()
    with monkeypatch.context() as patch:
        patch.setattr("ingest.book.Book.close", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            growing.append()
    flip(growing.root, "index.parquet" if damage == "index" else "shards/tiny-000001.tar")
    before = json.loads((growing.root / "store.json").read_text())
    result = repair(LocalFolder(growing.root))
    assert result.left == []
    assert result.rebuilt == ([] if damage == "index" else ["tiny-000001"])
    assert json.loads((growing.root / "store.json").read_text()) == before
    assert len(read_index(LocalFolder(growing.root)).shards) == 3
    assert len(Store(growing.root)) == 11
    assert len(growing.append()) == 22
    assert verify(LocalFolder(growing.root)) == []


def test_an_ingest_mends_what_it_sees(grown: Any) -> None:
    """A plain rerun looks at sizes and sidecars, not at every byte."""
    before = hashes(grown.root)
    truncate(grown.root, f"{SHARD}.tar")
    (grown.root / "shards/tiny-000000.parquet").unlink()
    swap(grown.root, "shards/tiny-000004.tar", "shards/tiny-000005.tar")
    grown.append()
    assert hashes(grown.root) == before


def test_what_repair_leaves(root: Path, fbank_stats: Any) -> None:
    store = Store(root)
    chunk = Path(build_teacher(store, fbank_stats(), "stats").cache.path) / "logits/c/2/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    flip(root, f"{SHARD}.tar")
    (root / "notes.txt").touch()
    result = repair(LocalFolder(root))
    assert result.rebuilt == ["tiny-000003"]
    assert {problem.where.split(".zarr")[0] for problem in result.left} == {"notes.txt", "teachers/stats"}
    assert teachers_to_build(result.left) == ["stats"]
    (root / "notes.txt").unlink()
    build_teacher(store, fbank_stats(), "stats")
    assert verify(store.location) == []


def test_teachers_by_name() -> None:
    problems = [Problem("teachers/b.zarr/c/0", None, ""), Problem("teachers/a.zarr", "k", ""), Problem("x", None, "")]
    assert teachers_to_build(problems) == ["a", "b"]


def test_another_process_at_work(root: Path) -> None:
    location = LocalFolder(root)
    with location.lock("ingest"), pytest.raises(InputError, match="another repair is at work on"):
        repair(location)


def test_a_moved_store_is_mended_from_the_same_sources(grown: Any, tmp_path: Path) -> None:
    moved = Path(shutil.move(grown.root, tmp_path / "moved"))
    before = hashes(moved)
    flip(moved, f"{SHARD}.tar")
    assert repair(LocalFolder(moved)).left == []
    assert hashes(moved) == before
