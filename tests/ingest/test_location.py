"""What every location promises, a folder and an object store alike."""

import pickle
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.location import LocalFolder, Location, open_location
from ingest.objectclient import Patience, connect
from ingest.objectstore import PART_BYTES, ObjectFolder
from manifests.errors import InputError
from tests.s3server import flaky_s3_fixture, s3_fixture, s3_server_fixture  # noqa: F401

NAMES = st.lists(
    st.text("ab.-_= é%#+", min_size=1, max_size=6).filter(lambda part: part.strip(". ")), min_size=1, max_size=3
)


@pytest.fixture(params=["path", "file", "s3", "s3-prefix"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "path":
        made = open_location(tmp_path / "store")
    elif request.param == "file":
        made = open_location((tmp_path / "a store").as_uri())
    else:
        bucket: str = request.getfixturevalue("s3")
        made = open_location(bucket if request.param == "s3" else f"{bucket}/a b/c%20d/")
    made.create()
    return made


def test_what_was_written_is_read(location: Location) -> None:
    location.write("a.txt", "é\n")
    location.write("sub/b", b"\x00\xff")
    with location.writing("sub/c.bin") as path:
        path.write_bytes(b"0123456789")
    assert location.read("a.txt") == b"\xc3\xa9\n"
    assert location.read("sub/b") == b"\x00\xff"
    assert location.child("sub").read("c.bin") == b"0123456789"
    assert location.files() == ["a.txt", "sub/b", "sub/c.bin"]
    assert location.folders() == ["sub"]
    assert (location.size("sub/c.bin"), location.size("sub"), location.size("x/y"), location.size("a.txt/b")) == (
        10,
        *[None] * 3,
    )
    assert location.exists("sub/b")
    assert not location.exists("b")


@pytest.mark.parametrize(
    ("start", "num_bytes", "expected"),
    [(0, 10, b"0123456789"), (3, 4, b"3456"), (8, 5, b"89"), (9, 1, b"9"), (10, 1, b""), (15, 3, b""), (4, 0, b"")],
)
def test_a_range_ends_where_the_file_does(location: Location, start: int, num_bytes: int, expected: bytes) -> None:
    location.write("a", b"0123456789")
    assert location.read_range("a", start, num_bytes) == expected


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(NAMES.map("/".join), st.binary(max_size=64), max_size=5), data=st.data())
def test_round_trips(location: Location, files: dict[str, bytes], data: st.DataObject) -> None:
    files = {
        name: content for name, content in files.items() if not any(other.startswith(f"{name}/") for other in files)
    }
    top = location.child(uuid.uuid4().hex)
    top.create()
    for name, content in files.items():
        top.write(name, b"old" + content)
        top.write(name, content)
    reopened = open_location(str(top))
    shown = sorted(name for name in files if not any(part.startswith(".") for part in name.split("/")))
    assert reopened.files() == shown
    assert reopened.folders() == sorted({name.split("/")[0] for name in files if "/" in name and name[0] != "."})
    for name, content in files.items():
        assert (reopened.read(name), reopened.size(name)) == (content, len(content))
        start, num_bytes = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 70))
        assert reopened.read_range(name, start, num_bytes) == content[start : start + num_bytes]
        with reopened.local_copy(name) as path:
            assert path.read_bytes() == content
    top.delete_folder("")
    assert [reopened.size(name) for name in files] == [None] * len(files)


def test_empty_files(location: Location) -> None:
    location.write("empty", b"")
    assert (location.read("empty"), location.size("empty"), location.read_range("empty", 0, 5)) == (b"", 0, b"")
    with location.local_copy("empty") as path:
        assert path.read_bytes() == b""


def test_a_file_of_several_parts(location: Location) -> None:
    content = np.random.default_rng(0).bytes(2 * PART_BYTES + 12_345)
    location.write("big.tar", content)
    assert location.size("big.tar") == len(content)
    assert location.read("big.tar") == content
    assert location.read_range("big.tar", PART_BYTES - 5, 10) == content[PART_BYTES - 5 : PART_BYTES + 5]
    with location.local_copy("big.tar") as path:
        assert path.name == "big.tar"
        assert path.read_bytes() == content
    assert location.folder is not None or not path.parent.exists()


@pytest.mark.parametrize(
    "operation",
    [
        lambda location: location.read("sub/x"),
        lambda location: location.read_range("sub/x", 0, 1),
        lambda location: location.read_range("sub/x", 0, 0),
        lambda location: location.local_copy("sub/x").__enter__(),
    ],
)
def test_what_is_not_there(location: Location, operation: Callable[[Location], object]) -> None:
    location.write("sub/y", b"")
    with pytest.raises(FileNotFoundError, match="sub/x"):
        operation(location)


def test_nothing_where_nothing_is(location: Location) -> None:
    assert (location.files("no/where"), location.folders("no/where"), location.size("x")) == ([], [], None)
    location.delete("no/where")
    location.delete_folder("no/where")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_everything_as_it_was(location: Location, error: type[BaseException]) -> None:
    location.write("a", b"old")

    def fail(name: str) -> None:
        with location.writing(name) as path:
            path.write_bytes(b"new")
            raise error

    for name in ("a", "b"):
        with pytest.raises(error):
            fail(name)
    assert location.read("a") == b"old"
    assert location.files() == ["a"]


def test_hidden_files_and_like_names(location: Location) -> None:
    for name in (".a", "s/.b", ".h/c", "s/d", "st/e", "s/t/.u/f"):
        location.write(name, b"1")
    assert location.files() == ["s/d", "st/e"]
    assert location.files("s") == ["s/d"]
    assert location.files_directly_in("s") == ["s/d"]
    assert location.files_directly_in() == []
    assert location.folders() == ["s", "st"]
    assert location.folders("s") == ["s/t"]
    assert location.exists("s/.b")
    location.delete_folder("s")
    assert location.files() == ["st/e"]
    assert not location.exists("s/.b")
    assert not location.exists("s/t/.u/f")
    assert location.exists(".h/c")


def test_only_what_killed_writers_left_is_removed(location: Location) -> None:
    names = (".a.tar.12.partial", "a.tar", "b.partial", ".lock", "s/.c.1.partial")
    for name in names:
        location.write(name, b"")
    location.remove_stale()
    assert [name for name in names if location.exists(name)] == list(names[1:])
    location.remove_stale("s")
    assert [name for name in names if location.exists(name)] == list(names[1:4])


def test_two_writers_of_one_name(location: Location) -> None:
    contents = [bytes([number]) * (PART_BYTES + 1000 * number) for number in (1, 2)]

    def write(content: bytes) -> None:
        for _ in range(2):
            location.write("a", content)
            read.append(location.read("a"))

    read: list[bytes] = []
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 4
    assert all(content in contents for content in [*read, location.read("a")])
    assert location.files() == ["a"]


def test_a_location_goes_through_pickle_and_text(location: Location) -> None:
    location.write("a", b"1")
    for again in (pickle.loads(pickle.dumps(location)), open_location(str(location))):  # noqa: S301
        assert (again, hash(again), again.name, again.read("a")) == (location, hash(location), location.name, b"1")


def test_one_holds_the_lock(location: Location) -> None:
    def lock(work: str, name: str = "") -> None:
        with location.lock(work, name):
            pass

    with location.lock("ingest"):
        with pytest.raises(InputError, match=r"another training is at work on .*; wait for it, or stop it"):
            lock("training")
        lock("build", "beats")
    lock("training")
    assert location.files() == []


def test_zarr(location: Location) -> None:
    group = zarr.open_group(location.zarr_store("teachers/t.zarr"), mode="w", zarr_format=3)
    group.attrs["format"] = 1
    rows = group.create_array("embedding", shape=(10, 3), chunks=(4, 3), dtype="f2", fill_value=float("nan"))
    rows[:4] = np.arange(12).reshape(4, 3)
    read = zarr.open_group(open_location(str(location)).zarr_store("teachers/t.zarr"), mode="r", zarr_format=3)
    array = read["embedding"]
    assert isinstance(array, zarr.Array)
    assert read.attrs["format"] == 1
    assert np.array_equal(array[:4], np.arange(12).reshape(4, 3))
    assert np.isnan(array[4:]).all()
    assert location.files("teachers") == [
        "teachers/t.zarr/embedding/c/0/0",
        "teachers/t.zarr/embedding/zarr.json",
        "teachers/t.zarr/zarr.json",
    ]
    with pytest.raises(FileNotFoundError):
        zarr.open_group(location.zarr_store("teachers/u.zarr"), mode="r", zarr_format=3)


def test_more_files_than_a_page_holds(s3: str) -> None:
    top = open_location(s3)
    store = connect(s3, Patience())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: obstore.put(store, f"many/{number:04d}/x", b""), range(1100)))
    assert top.files() == sorted(f"many/{number:04d}/x" for number in range(1100))
    assert top.folders("many") == [f"many/{number:04d}" for number in range(1100)]
    top.delete_folder("many")
    assert top.files() == []


@pytest.mark.parametrize(
    ("address", "text", "name"),
    [
        ("s3://bucket", "s3://bucket", "bucket"),
        ("S3://bucket//", "s3://bucket", "bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b", "b"),
        ("gs://bucket/a b", "gs://bucket/a b", "a b"),
        ("az://container/a", "az://container/a", "a"),
        ("abfss://box@account.dfs.core.windows.net/", "abfss://box@account.dfs.core.windows.net", "box"),
        ("abfss://box@account.dfs.core.windows.net/a", "abfss://box@account.dfs.core.windows.net/a", "a"),
    ],
)
def test_addresses(address: str, text: str, name: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    location = open_location(address)
    assert isinstance(location, ObjectFolder)
    assert (str(location), location.name, location.folder) == (text, name, None)
    assert str(location.child("x/y")) == f"{text}/x/y"
    assert location.child("x/y").name == "y"
    assert "t.zarr" in str(location.zarr_store("t.zarr"))


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    assert open_location(f"file://{tmp_path}/a%20b/") == LocalFolder(tmp_path / "a b")
    with pytest.raises(InputError, match="file:///data/store"):
        open_location("file://relative/path")


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIAXX:s3cret@bucket/a",
        "s3://s3cret@bucket/a",
        "az://container/a?sig=s3cret",
        "abfss://box:s3cret@account.dfs.core.windows.net/a",
        "https://user:s3cret@host/a",
        "s3:///s3cret",
        "s3:/bucket/s3cret",
    ],
)
def test_addresses_that_are_refused_are_not_repeated(address: str) -> None:
    with pytest.raises(InputError) as refused:
        open_location(address)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("address", ["s3://bucket/a//b", "s3://bucket/../b", "s3://bucket/."])
def test_paths_that_lead_elsewhere(address: str) -> None:
    with pytest.raises(InputError, match="a part of the path"):
        open_location(address)
