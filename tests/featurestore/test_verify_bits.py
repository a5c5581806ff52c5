"""Any single flipped bit of any file is found, and so is any file that ends too soon."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.build import build_teacher
from featurestore.store import Store
from featurestore.verify import verify
from featurestore.verifyshard import Problem
from ingest.layout import CHECKSUM_FILE, STORE_FILE
from ingest.location import LocalFolder
from manifests.errors import InputError

# So many of every file; half of them in its first and last bytes, where formats keep what matters.
FLIPS, END_BYTES = 6, 64


@pytest.fixture(scope="module")
def root(small_store: Store, fbank_stats: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two parts with a teacher, to be damaged and put right again."""
    root = tmp_path_factory.mktemp("bits") / "tiny"
    shutil.copytree(small_store.root, root)
    build_teacher(Store(root), fbank_stats(), "stats")
    return root


def names_of(root: Path) -> list[str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return sorted(path.relative_to(root).as_posix() for path in files if not path.name.startswith("."))


def flips(name: str, size: int) -> Iterator[tuple[int, int]]:
    """Seeded (byte, bit) of a file."""
    rng = np.random.default_rng(list(name.encode()))
    for number in range(FLIPS):
        near_end = number % 2 and size > 2 * END_BYTES
        offset = int(rng.integers(-END_BYTES, END_BYTES)) % size if near_end else int(rng.integers(size))
        yield offset, int(rng.integers(8))


def found(root: Path) -> list[Problem]:
    """What verify finds; an error that names store.json counts, since nothing can be checked without it."""
    try:
        return verify(LocalFolder(root))
    except InputError as error:
        return [Problem(STORE_FILE if STORE_FILE in str(error) else "nowhere", None, str(error))]


@contextmanager
def content_of(path: Path, content: bytes) -> Iterator[None]:
    """Lets a file have another content for a while."""
    original = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(original)


def flipped(content: bytes, offset: int, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[offset] ^= 1 << bit
    return bytes(damaged)


def clip_at(store: Store, name: str, offset: int) -> str | None:
    """The clip whose sample an offset of a tar lies in."""
    shard = int(Path(name).stem[-6:])
    for row in store.rows_of_shard(shard)[store.ok[store.rows_of_shard(shard)]].tolist():
        entry = store.ledger(row)
        if entry["sample_offset"] <= offset < entry["sample_offset"] + entry["sample_size"]:
            return str(entry["key"])
    return None


def assert_named(store: Store, name: str, offset: int, problems: list[Problem]) -> None:
    where = {problem.where for problem in problems}
    if name == CHECKSUM_FILE:  # a name in it that changed is missing, and another file isn't listed
        assert any(CHECKSUM_FILE in (problem.where, problem.what.split(":")[0][-10:]) for problem in problems)
    elif name.endswith(f".zarr/{CHECKSUM_FILE}"):
        assert {file.split(".zarr")[0] for file in where} == {name.split(".zarr")[0]}
    elif name.endswith(".tar"):
        assert where == {name}
        assert {problem.key for problem in problems} - {None} == {clip_at(store, name, offset)} - {None}
        assert all(problem.shard is not None for problem in problems)
    else:
        assert name in where, problems


def test_every_flipped_bit_is_found(root: Path) -> None:
    store = Store(root)
    names = names_of(root)
    assert len(names) > 25
    assert found(root) == []
    for name in names:
        content = (root / name).read_bytes()
        for offset, bit in flips(name, len(content)):
            with content_of(root / name, flipped(content, offset, bit)):
                problems = found(root)
            assert problems, f"bit {bit} of byte {offset} of {name} ({content[offset]:#x}) goes unnoticed"
            assert_named(store, name, offset, problems)
    assert found(root) == []


def test_every_bit_of_a_short_piece_of_the_checksums(root: Path) -> None:
    """Around a line's end, where Python knows more ends of lines than sha256sum does."""
    path = root / CHECKSUM_FILE
    content = path.read_bytes()
    end = content.index(b"\n")
    for offset in range(end - 1, end + 2):
        for bit in range(8):
            with content_of(path, flipped(content, offset, bit)):
                assert found(root), f"bit {bit} of {content[offset]:#x}"


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_every_torn_file_is_found(root: Path, share: float) -> None:
    for name in names_of(root):
        content = (root / name).read_bytes()
        with content_of(root / name, content[: min(int(share * len(content)), len(content) - 1)]):
            problems = found(root)
        where = {problem.where.split(".zarr")[0] for problem in problems}
        # Checksums that are cut at the end of a line are whole lines, of which some are missing.
        assert name.split(".zarr")[0] in where or (name == CHECKSUM_FILE and problems), name
    assert found(root) == []


def test_every_missing_file_is_found(root: Path) -> None:
    for name in names_of(root):
        path = root / name
        aside = path.rename(root.parent / "aside")
        problems = found(root)
        where = {problem.where for problem in problems}
        expected = name.removesuffix(f"/{CHECKSUM_FILE}") if "/" in name else name
        assert expected in where, name
        aside.rename(path)
    assert found(root) == []


def test_all_pairs_of_swapped_files_are_found(root: Path) -> None:
    """Files of one kind: shards, sidecars, teachers' chunks, texts."""
    names = names_of(root)
    kinds = [
        [name for name in names if name.endswith(ending)] for ending in (".tar", ".parquet", "/0", ".json", ".csv")
    ]
    for kind in kinds:
        for one, other in pairwise(kind):
            contents = (root / one).read_bytes(), (root / other).read_bytes()
            if contents[0] != contents[1]:
                with content_of(root / one, contents[1]), content_of(root / other, contents[0]):
                    where = {problem.where.split(".zarr")[0] for problem in found(root)}
                assert {one.split(".zarr")[0], other.split(".zarr")[0]} <= where or where == {STORE_FILE}
    assert found(root) == []
