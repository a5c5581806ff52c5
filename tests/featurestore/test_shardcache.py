"""The cache of an object store's shards: bounded, checked, shared, filled ahead, and never with a half of a tar."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore import shardcache
from featurestore.batches import Batch
from featurestore.loader import Loader, sequential_batches
from featurestore.order import ClipOrder
from featurestore.shardcache import CachedShards, CacheOptions
from featurestore.shardfiles import open_shard_files
from featurestore.store import Store
from ingest.location import LocalFolder
from manifests.errors import InputError

GENEROUS_BYTES = 1 << 30


class Remote(LocalFolder):
    """A folder that behaves like an object store; notes its reads of shards in a file that processes share."""

    folder = None  # type: ignore[assignment]

    def __init__(self, path: Path, log: Path) -> None:
        super().__init__(path)
        self.log = log
        self.before_read: Callable[[str, int], None] = lambda name, start: None

    def read_range(self, name: str, start: int, num_bytes: int) -> bytes:
        if name.endswith(".tar"):
            with self.log.open("a") as file:
                file.write(json.dumps([name, start]) + "\n")
            self.before_read(name, start)
        return super().read_range(name, start, num_bytes)

    def reads(self) -> list[tuple[int, int]]:
        """(shard, offset) of the reads so far."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(int(name[-10:-4]), start) for name, start in map(json.loads, lines)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.shardcache._CHUNK_BYTES", 1 << 16)


@pytest.fixture
def remote(grown_copy: Path, tmp_path: Path) -> Remote:
    return Remote(grown_copy, tmp_path / "reads")


@pytest.fixture
def store(remote: Remote) -> Store:
    """Seven shards, of up to 340 kB."""
    return Store(remote)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each tar in the cache, and of each download under way; others may rename and delete meanwhile."""
    found: dict[int, tuple[str, int]] = {}
    for path in folder.glob("*/*"):
        with suppress(FileNotFoundError):
            if path.suffix in (".tar", ".part"):
                status = path.stat()
                found[status.st_ino] = (path.name, status.st_size)
    return dict(found.values())


def cached(folder: Path) -> list[int]:
    """Shards that are in the cache."""
    return sorted(int(name.split("-")[1]) for name in sizes(folder) if name.endswith(".tar"))


def size_of(store: Store, *shards: int) -> int:
    return sum(store.shards[shard].tar_size for shard in shards)


def opened(store: Store, folder: Path, max_bytes: int = GENEROUS_BYTES) -> Any:
    return closing(CachedShards(store, CacheOptions(folder, max_bytes)))


def read(files: CachedShards, shard: int) -> bytes:
    descriptor = files.open(shard)
    try:
        return os.pread(descriptor, 1 << 30, 0)
    finally:
        os.close(descriptor)


def local_tar(store: Store, shard: int) -> Path:
    return Path(str(store.location)) / store.tar_name(shard)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_what_is_read_is_what_is_there(store: Store, remote: Remote, folder: Path) -> None:
    with opened(store, folder) as files:
        for _ in range(2):
            for shard in range(7):
                assert read(files, shard) == local_tar(store, shard).read_bytes()
    starts = [start for shard, start in remote.reads() if shard == 0]
    assert starts == list(range(0, size_of(store, 0), 1 << 16))
    # A second reader, of another process maybe, downloads nothing.
    before = len(remote.reads())
    with opened(store, folder) as files:
        assert read(files, 3) == local_tar(store, 3).read_bytes()
    assert len(remote.reads()) == before


def test_a_local_store_has_no_cache(grown_store: Store, folder: Path) -> None:
    files = open_shard_files(grown_store, CacheOptions(folder, 1))
    files.require_room(range(7))
    os.close(files.open(0))
    assert not folder.exists()


def test_the_longest_unused_is_dropped(store: Store, folder: Path) -> None:
    with opened(store, folder, size_of(store, 0, 1, 3)) as files:
        for age_s, shard in ((30, 0), (20, 1), (10, 3)):
            read(files, shard)
            (path,) = folder.glob(f"*/tiny-00000{shard}-*.tar")
            os.utime(path, (time.time() - age_s,) * 2)
        read(files, 0)
        read(files, 4)
        assert cached(folder) == [0, 3, 4]
        # Of shards 5 and 6, of a clip each, both fit in the place of one.
        read(files, 5)
        read(files, 6)
        assert cached(folder) == [0, 4, 5, 6]


def test_a_dropped_shard_stays_readable_where_it_is_open(store: Store, folder: Path) -> None:
    with opened(store, folder, size_of(store, 3)) as files:
        descriptor = files.open(0)
        read(files, 3)
        assert cached(folder) == [3]
        assert os.pread(descriptor, 1 << 30, 0) == local_tar(store, 0).read_bytes()
        os.close(descriptor)
        assert read(files, 0) == local_tar(store, 0).read_bytes()


def shuffled(store: Store, monkeypatch: pytest.MonkeyPatch, window: int, num_steps: int) -> Iterator[Batch]:
    with monkeypatch.context() as patch:
        patch.setattr("featurestore.loader.ClipOrder", partial(ClipOrder, window=window))
        loader = Loader(store, store.rows(), 4, seed=1)
    return loader.batches(num_steps=num_steps)


def test_never_more_than_it_may_hold(
    store: Store, remote: Remote, folder: Path, grown_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs through a cache of three shards, windows of two; the batches are those of the local store."""
    limit = size_of(store, 0, 1, 3) + 1000
    held: list[int] = []
    remote.before_read = lambda *_: held.append(sum(sizes(folder).values()))
    monkeypatch.setenv("ACM_SSKD_CACHE", str(folder))
    monkeypatch.setenv("ACM_SSKD_CACHE_GB", str(limit / 1e9))
    batches = shuffled(store, monkeypatch, 2, 18)
    for ours, theirs in zip(batches, shuffled(grown_store, monkeypatch, 2, 18), strict=True):
        held.append(sum(sizes(folder).values()))
        assert ours.keys == theirs.keys
        assert np.array_equal(ours.fbank, theirs.fbank)
        assert np.array_equal(ours.hog, theirs.hog)
    assert len(held) > 50
    assert max(held) <= limit
    assert max(held) > size_of(store, 0, 1)


def test_a_download_that_ends_while_room_is_counted_is_counted(
    store: Store, remote: Remote, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shard 0's download becomes a tar after the tars were listed and before the downloads are."""
    limit = size_of(store, 1) + 1000
    tars_listed, held = threading.Event(), []
    files_of = shardcache._files

    def slow_listing(top: Path, ending: str) -> Iterator[tuple[Path, os.stat_result]]:
        yield from list(files_of(top, ending))
        if ending == "tar" and list(files_of(top, "part")):
            tars_listed.set()
            time.sleep(0.3)

    def before_read(shard: int, start: int) -> None:
        if shard == 1:
            held.append(sum(sizes(folder).values()))
        elif start + (1 << 16) >= size_of(store, 0):
            tars_listed.wait(30)

    monkeypatch.setattr(shardcache, "_files", slow_listing)
    remote.before_read = lambda name, start: before_read(int(name[-10:-4]), start)
    with opened(store, folder, limit) as files:
        files._request(0)
        wait_until(lambda: bool(sizes(folder)))
        assert read(files, 1) == local_tar(store, 1).read_bytes()
    assert tars_listed.is_set()
    assert max(held) <= limit


def test_descriptors_of_shards_out_of_use_are_closed(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tar that was dropped takes up the disk until nobody has it open any more."""
    monkeypatch.setenv("ACM_SSKD_CACHE", str(folder))
    monkeypatch.setenv("ACM_SSKD_CACHE_GB", str(size_of(store, 0, 1, 3) / 1e9))
    for _ in shuffled(store, monkeypatch, 2, 18):
        links = (os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())  # noqa: PTH115
        open_tars = [link for link in links if str(folder) in link and ".tar" in link]
        assert len(open_tars) <= 4  # two windows, where a batch lies in both


def test_shards_are_downloaded_before_they_are_used(
    store: Store, remote: Remote, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACM_SSKD_CACHE", str(folder))
    first, second = ClipOrder(store.rows(), store.shard_of(store.rows()), snapshot=3, seed=1, window=2).shards_around(0)
    with closing(shuffled(store, monkeypatch, 2, 5)) as batches:
        rows = next(batches).rows
        assert set(store.shard_of(rows).tolist()) <= {*first.tolist(), *second.tolist()}
        wait_until(lambda: {*first.tolist(), *second.tolist()} <= set(cached(folder)))
    order = list(dict.fromkeys(shard for shard, _ in remote.reads()))
    # Four at a time.
    assert set(order[:4]) >= set(first.tolist())


def test_sequential_batches_look_ahead_too(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACM_SSKD_CACHE", str(folder))
    with closing(sequential_batches(store, store.rows(), 2)) as batches:
        assert store.shard_of(next(batches).rows).tolist() == [0, 0]
        wait_until(lambda: cached(folder)[:5] == [0, 1, 2, 3, 4])


def test_another_tar_than_the_index_names_is_refused(store: Store, folder: Path) -> None:
    tar = local_tar(store, 3)
    whole = tar.read_bytes()
    flipped = bytes([whole[70_000] ^ 1])
    for content in (whole[:70_000] + flipped + whole[70_001:], whole[:-1024], local_tar(store, 4).read_bytes()):
        tar.write_bytes(content)
        with (
            opened(store, folder) as files,
            pytest.raises(
                InputError, match=r"tiny-000003\.tar is not the tar that its index names; run `featurestore v"
            ),
        ):
            files.open(3)
        assert sizes(folder) == {}
    tar.unlink()
    with (
        opened(store, folder) as files,
        pytest.raises(InputError, match=r"000003\.tar is missing; run `featurestore re"),
    ):
        files.open(3)
    tar.write_bytes(whole)
    with opened(store, folder) as files:
        assert read(files, 3) == whole


def test_a_connection_that_fails_is_tried_again_with_the_next_batch(store: Store, remote: Remote, folder: Path) -> None:
    failures = iter([OSError("the network is unreachable"), OSError(28, "No space left on device")])

    def fail(name: str, start: int) -> None:
        if start == 1 << 17 and (error := next(failures, None)):
            raise error

    remote.before_read = fail
    with opened(store, folder) as files:
        for reason in ("the network is unreachable", "No space left on device"):
            with pytest.raises(InputError, match=rf"tiny-000000\.tar can't be had \({reason}\); check the connection"):
                files.open(0)
            assert sizes(folder) == {}
        assert read(files, 0) == local_tar(store, 0).read_bytes()


def test_a_failed_prefetch_is_no_failure_yet(store: Store, remote: Remote, folder: Path) -> None:
    down = threading.Event()
    down.set()
    failed = []

    def fail(name: str, start: int) -> None:
        if down.is_set():
            failed.append(name)
            raise OSError("the network is unreachable")

    remote.before_read = fail
    with opened(store, folder) as files:
        files.prefetch([0, 1])
        wait_until(lambda: len(failed) == 2)
        down.clear()
        wait_until(lambda: not files._under_way)
        assert read(files, 1) == local_tar(store, 1).read_bytes()


def test_a_cached_tar_that_the_disk_has_lost_a_part_of_is_fetched_anew(
    store: Store, remote: Remote, folder: Path
) -> None:
    with opened(store, folder) as files:
        read(files, 0)
        for length in (0, 1000):
            (path,) = folder.glob("*/tiny-000000-*.tar")
            os.truncate(path, length)
            before = len(remote.reads())
            assert read(files, 0) == local_tar(store, 0).read_bytes()
            assert len(remote.reads()) > before


def test_a_shard_made_anew_is_another_file(store: Store, remote: Remote, folder: Path) -> None:
    with opened(store, folder) as files:
        read(files, 0)
        entries = list(store.shards)
        entries[0] = entries[0].model_copy(update={"tar_sha256": entries[1].tar_sha256})
        store.shards = tuple(entries)
        with pytest.raises(InputError, match="is not the tar that its index names"):
            files.open(0)


def test_closing_ends_downloads(store: Store, remote: Remote, folder: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def wait(name: str, start: int) -> None:
        if start:
            reached.set()
            go_on.wait(30)

    remote.before_read = wait
    files = CachedShards(store, CacheOptions(folder, GENEROUS_BYTES))
    files.prefetch(range(7))
    assert reached.wait(30)
    files.close()
    go_on.set()
    wait_until(lambda: not any(thread.name.startswith("shard-download") for thread in threading.enumerate()))
    assert sizes(folder) == {}
    assert len({shard for shard, _ in remote.reads()}) <= 4


def test_no_room_for_what_is_wanted_together(store: Store, folder: Path) -> None:
    with opened(store, folder, size_of(store, 0, 1) - 1) as files:
        files.require_room([0])
        with pytest.raises(InputError, match=r"may hold \S+ GB, and the shards .* allow more with ACM_SSKD_CACHE_GB"):
            files.require_room([0, 1])
        files.prefetch([0, 1, 3])
        wait_until(lambda: cached(folder) == [0])
    with opened(store, folder, 1000) as files, pytest.raises(InputError, match="allow more with ACM_SSKD_CACHE_GB"):
        files.open(0)


def test_options_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACM_SSKD_CACHE", "ACM_SSKD_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CacheOptions.from_environment() == CacheOptions(tmp_path / ".cache/acm-sskd", 20_000_000_000)
    monkeypatch.setenv("ACM_SSKD_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("ACM_SSKD_CACHE_GB", "0.5")
    assert CacheOptions.from_environment() == CacheOptions(tmp_path / "here", 500_000_000)
    for text in ("", "much", "-1", "0", "nan", "inf"):
        monkeypatch.setenv("ACM_SSKD_CACHE_GB", text)
        with pytest.raises(InputError, match=rf"ACM_SSKD_CACHE_GB is '{text}'; expected a number of gigabytes"):
            CacheOptions.from_environment()


def test_a_cache_that_cannot_be_made(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/tiny-\w+ can't be made .* set ACM_SSKD_CACHE to another folder"):
        CachedShards(store, CacheOptions(tmp_path / "file", 1))


OTHER_PROCESS = """
import os, runpy, signal, sys
from pathlib import Path
import featurestore.shardcache as shardcache
from featurestore.store import Store

test, root, log, folder, max_bytes, die_at, shards = sys.argv[1:]
shardcache._CHUNK_BYTES = 1 << 16
remote = runpy.run_path(test)["Remote"](Path(root), Path(log))
def die(name, start):
    if start == int(die_at):
        os.kill(os.getpid(), signal.SIGKILL)
remote.before_read = die
store = Store(remote)
files = shardcache.CachedShards(store, shardcache.CacheOptions(Path(folder), int(max_bytes)))
for shard in eval(shards):
    descriptor = files.open(shard)
    content = os.pread(descriptor, 1 << 30, 0)
    os.close(descriptor)
    assert content == (Path(root) / store.tar_name(shard)).read_bytes()
files.close()
"""


def start(remote: Remote, folder: Path, max_bytes: int, die_at: int, shards: list[int]) -> "subprocess.Popen[bytes]":
    arguments = [__file__, str(remote), str(remote.log), str(folder), str(max_bytes), str(die_at), repr(shards)]
    return subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, *arguments])


def test_a_killed_download_leaves_nothing_that_passes_for_whole(store: Store, remote: Remote, folder: Path) -> None:
    limit = size_of(store, 3, 4)
    assert start(remote, folder, limit, 2 << 16, [0]).wait(60) == -signal.SIGKILL
    assert cached(folder) == []
    assert list(sizes(folder).values()) == [size_of(store, 0)]
    again = Path(shutil.copytree(folder, folder.with_name("again")))
    with opened(store, folder, limit) as files:
        # The half stands in nobody's way: with it there would be no room for both of these.
        read(files, 3)
        read(files, 4)
        assert sizes(folder).keys() == {path.name for path in folder.glob("*/*.tar")}
        assert cached(folder) == [3, 4]
    # Begun anew.
    with opened(store, again) as files:
        assert read(files, 0) == local_tar(store, 0).read_bytes()
    assert list(sizes(again)) == [path.name for path in again.glob("*/*.tar")]


def test_two_processes_share_a_cache(store: Store, remote: Remote, folder: Path) -> None:
    processes = [start(remote, folder, GENEROUS_BYTES, -1, list(range(7))) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    reads = remote.reads()
    assert len(reads) == len(set(reads))
    assert {shard for shard, _ in reads} == set(range(7))


def test_two_processes_share_the_room(store: Store, remote: Remote, folder: Path) -> None:
    """Of one shard at a time, which they take away from each other: both come to their end."""
    limit = size_of(store, 3)
    orders = [[0, 1, 3, 4], [4, 3, 1, 0]]
    processes = [start(remote, folder, limit, -1, order) for order in orders]
    held = []
    while any(process.poll() is None for process in processes):
        held.append(sum(sizes(folder).values()))
        time.sleep(0.002)
    assert [process.wait(60) for process in processes] == [0, 0]
    assert max(held) <= limit
