"""The cache of downloads: a record comes after its file, and vouches for it."""

import hashlib
import json
from pathlib import Path

import pytest

from ingest.ledger import Reason
from ingest.location import LocalFolder
from ingest.rawcache import RawCache, RawEntry

ID, OTHER_CASE = "zzLK8kDqlr0", "ZZlk8kdQLR0"
SOUND = bytes(range(256)) * 20


@pytest.fixture
def media(tmp_path: Path) -> Path:
    path = tmp_path / "media.m4a"
    path.write_bytes(SOUND)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "raw"


@pytest.fixture
def cache(root: Path) -> RawCache:
    return RawCache(LocalFolder(root))


def test_where_a_recording_lies(cache: RawCache, root: Path, media: Path) -> None:
    folder = hashlib.sha256(ID.encode()).hexdigest()[:4]
    entry = cache.add(ID, media, "140")
    assert entry == RawEntry(
        id=ID,
        file=f"{folder}/{ID}.m4a",
        size=len(SOUND),
        sha256=hashlib.sha256(SOUND).hexdigest(),
        format="140",
    )
    assert cache.find(ID) == entry
    assert (root / folder / f"{ID}.m4a").read_bytes() == SOUND
    assert json.loads((root / folder / f"{ID}.json").read_text()) == {
        name: value for name, value in entry.model_dump().items() if value is not None
    }
    assert sorted(path.name for path in (root / folder).iterdir()) == [f"{ID}.json", f"{ID}.m4a"]


def test_ids_that_differ_in_case_lie_apart(cache: RawCache, media: Path) -> None:
    cache.add(ID, media, "140")
    assert cache.find(OTHER_CASE) is None
    cache.fail(OTHER_CASE, Reason.REMOVED, "gone")
    first, second = cache.find(ID), cache.find(OTHER_CASE)
    assert first is not None
    assert first.file is not None
    assert second == RawEntry(id=OTHER_CASE, reason=Reason.REMOVED, detail="gone")


def test_a_file_without_an_extension(cache: RawCache, media: Path) -> None:
    entry = cache.add(ID, media.rename(media.with_suffix("")), "0")
    assert str(entry.file).endswith(f"/{ID}.bin")


def test_a_failure_is_followed_by_a_file_and_the_other_way_round(cache: RawCache, media: Path) -> None:
    cache.fail(ID, Reason.NETWORK, "no answer")
    added = cache.add(ID, media, "140")
    assert (cache.find(ID), added.reason) == (added, None)
    cache.fail(ID, Reason.REMOVED, "gone")
    assert cache.find(ID) == RawEntry(id=ID, reason=Reason.REMOVED, detail="gone")


def test_a_drop_keeps_what_was_there(cache: RawCache, root: Path, media: Path) -> None:
    entry = cache.add(ID, media, "140")
    cache.drop(ID)
    assert cache.find(ID) == entry.model_copy(update={"file": None})
    assert not list(root.rglob("*.m4a"))
    cache.drop(ID)
    cache.drop(OTHER_CASE)
    assert cache.find(OTHER_CASE) is None


@pytest.mark.parametrize("damage", ["no file", "cut", "grown", "text", "empty", "another", "schema"])
def test_what_is_damaged_is_as_if_it_were_not_there(cache: RawCache, root: Path, media: Path, damage: str) -> None:
    entry = cache.add(ID, media, "140")
    assert entry.file is not None
    file, record = root / entry.file, (root / entry.file).with_suffix(".json")
    match damage:
        case "no file":
            file.unlink()
        case "cut":
            file.write_bytes(SOUND[:-1])
        case "grown":
            file.write_bytes(SOUND + b"x")
        case "text":
            record.write_text("{")
        case "empty":
            record.write_bytes(b"")
        case "another":
            record.write_text(record.read_text().replace(f'"id":"{ID}"', f'"id":"{OTHER_CASE}"'))
        case "schema":
            record.write_text(record.read_text().replace('"size"', '"length"'))
    assert cache.find(ID) is None
    media.write_bytes(SOUND)
    assert cache.add(ID, media, "140") == entry
    assert cache.find(ID) == entry
    cache.forget(ID)
    assert cache.find(ID) is None


def test_state(cache: RawCache, root: Path) -> None:
    assert cache.read_state() == {}
    cache.write_state({"num_blocks": 2, "paused_until": 1e9})
    assert cache.read_state() == {"num_blocks": 2, "paused_until": 1e9}
    for damage in ("", "[]", "\xff"):
        (root / "fetching.json").write_bytes(damage.encode("latin-1"))
        assert cache.read_state() == {}
