"""An ingest that runs again doesn't vouch for what was damaged meanwhile, and goes on from what a kill left."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from featurestore.repair import repair
from ingest.atomic import atomic_path
from ingest.job import ingest
from ingest.location import LocalFolder
from ingest.soundness import is_slip
from manifests.clips import Manifest
from manifests.errors import InputError
from tests.ingest.stores import OPTIONS, assert_sums, contents, files_of

APPEND = replace(OPTIONS, append=True)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sounds")


@pytest.fixture(scope="module")
def first(sounds: Path) -> Manifest:
    return files_of(sounds, ["a0", "a1", "a2", "a3"])


@pytest.fixture(scope="module")
def second(sounds: Path) -> Manifest:
    return files_of(sounds, ["b0", "b1"])


@pytest.fixture(scope="module")
def whole(first: Manifest, second: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two parts; not to be written to."""
    root = tmp_path_factory.mktemp("whole")
    ingest(first, root, OPTIONS)
    ingest(second, root, APPEND)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "root"))


def flip(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"), [(b'"seed": 0', b'"seed": 1'), (b'"std": ', b'"std":-'), (b'"torch": "2', b'"torch": "3')]
)
def test_damage_to_store_json_is_told(root: Path, first: Manifest, old: bytes, new: bytes) -> None:
    flip(root / "store.json", old, new)
    before = contents(root)
    with pytest.raises(InputError, match=r"store\.json is not the file that SHA256SUMS names|it differs in seed"):
        ingest(first, root, OPTIONS)
    assert contents(root) == before


def test_damage_to_the_manifest_is_told(root: Path, first: Manifest) -> None:
    flip(root / "manifest.parquet", b"a2\x05", b"z2\x05")
    before = contents(root)
    with pytest.raises(InputError, match=r"the rows of manifest\.parquet aren't those .*restore it from a copy"):
        ingest(first, root, OPTIONS)
    assert contents(root) == before


def test_a_damaged_index_is_made_anew(root: Path, whole: Path, first: Manifest) -> None:
    flip(root / "index.parquet", b"a2\x05", b"z2\x05")
    ingest(first, root, OPTIONS)
    assert contents(root) == contents(whole)


def test_a_damaged_index_of_damaged_shards_is_told(root: Path, first: Manifest) -> None:
    flip(root / "index.parquet", b"a2\x05", b"z2\x05")
    (root / "shards" / "s-000001.parquet").unlink()
    with pytest.raises(InputError, match=r"index\.parquet is damaged and can't be made of the sidecars"):
        ingest(first, root, OPTIONS)


@pytest.mark.parametrize("damage", [None, b"", b"no sums", b"slip"])
def test_damaged_checksums_are_made_anew(root: Path, whole: Path, first: Manifest, damage: bytes | None) -> None:
    if damage == b"slip":
        sums = (root / "SHA256SUMS").read_bytes()
        at = sums.index(b"  store.json") - 10
        (root / "SHA256SUMS").write_bytes(sums[:at] + bytes([sums[at] ^ 1]) + sums[at + 1 :])
    elif damage is None:
        (root / "SHA256SUMS").unlink()
    else:
        (root / "SHA256SUMS").write_bytes(damage)
    ingest(first, root, OPTIONS)
    assert contents(root) == contents(whole)


def test_slips() -> None:
    assert is_slip("ab" * 32, "ab" * 32)
    assert is_slip("ab" * 32, "ab" * 31 + "ba")
    assert not is_slip("ab" * 32, "ba" * 32)


class Killed(BaseException):
    """As if the power failed."""


def is_killed(patch: pytest.MonkeyPatch, act: Callable[[], object], after: int) -> bool:
    """Runs `act` until it has written so many files; whether it was killed then."""
    written: list[Path] = []

    @contextmanager
    def counted(path: Path) -> Iterator[Path]:
        if len(written) == after:
            raise Killed
        with atomic_path(path) as temporary:
            yield temporary
        written.append(path)

    with patch.context() as patched, suppress(InputError):
        patched.setattr("ingest.location.atomic_path", counted)
        try:
            act()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("is_had", [True, False], ids=["append", "append of nothing, which is taken back"])
def test_every_state_that_a_kill_leaves_is_sound(
    is_had: bool, whole: Path, first: Manifest, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = files_of(sounds, ["c0", "c1"] if is_had else [], bad=[] if is_had else ["bad"])

    def append(root: Path) -> None:
        with suppress(InputError):
            ingest(third, root, APPEND)

    wanted = Path(shutil.copytree(whole, tmp_path / "wanted"))
    append(wanted)
    for after in range(100):
        root = Path(shutil.copytree(whole, tmp_path / str(after)))
        if not is_killed(monkeypatch, partial(append, root), after):
            break
        repaired = Path(shutil.copytree(root, tmp_path / "repaired", dirs_exist_ok=True))
        assert repair(LocalFolder(repaired)).left == []
        for path in (repaired, root):
            ingest(first, path, OPTIONS)
            append(path)
            assert contents(path) == contents(wanted)
        assert_sums(root)
        shutil.rmtree(repaired)
    assert 5 < after < 99
