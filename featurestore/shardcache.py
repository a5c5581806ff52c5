"""Shards of an object store on this machine: whole tars in a folder of bounded size."""

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from featurestore.store import Store
from manifests.errors import InputError

CACHE_VARIABLE, CACHE_SIZE_VARIABLE = "ACM_SSKD_CACHE", "ACM_SSKD_CACHE_GB"
DEFAULT_CACHE_GB = 20.0
NUM_DOWNLOADS = 4
_CHUNK_BYTES = 8 << 20
# How often a download looks whether another one has left it room.
_ROOM_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Where shards of object stores are kept on this machine, and how many bytes of them at most."""

    folder: Path
    max_bytes: int

    @classmethod
    def from_environment(cls) -> "CacheOptions":
        """ACM_SSKD_CACHE (default: ~/.cache/acm-sskd) and ACM_SSKD_CACHE_GB (default: 20). Raises InputError."""
        text = os.environ.get(CACHE_SIZE_VARIABLE, str(DEFAULT_CACHE_GB))
        try:
            max_bytes = int(float(text) * 1e9)
        except (ValueError, OverflowError):
            max_bytes = 0
        if max_bytes <= 0:
            raise InputError(f"{CACHE_SIZE_VARIABLE} is {text!r}; expected a number of gigabytes, such as 20")
        default = Path.home() / ".cache" / "acm-sskd"
        return cls(Path(os.environ.get(CACHE_VARIABLE, default)), max_bytes)


class CachedShards:
    """Whole tars, downloaded ahead, checked against their sha256, and the longest unused dropped when room is short.

    Several processes may share a cache: a tar is downloaded once, and one that is dropped stays readable where it is
    open. A download counts with its full size from its beginning on.
    """

    def __init__(self, store: Store, options: CacheOptions) -> None:
        """Raises InputError when the cache can't be written."""
        self._store, self._max_bytes, self._top = store, options.max_bytes, options.folder
        digest = hashlib.sha256(str(store.location).encode()).hexdigest()[:12]
        self._folder = options.folder / f"{store.file.dataset}-{digest}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the cache {self._folder} can't be made ({error.strerror}); set {CACHE_VARIABLE} to another folder"
            ) from error
        self._pool = ThreadPoolExecutor(NUM_DOWNLOADS, "shard-download")
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._under_way: dict[int, Future[Path]] = {}

    def open(self, shard: int) -> int:
        """A descriptor of a shard's tar. Raises InputError when it can't be had or isn't the one that it must be."""
        while True:
            path = self._request(shard).result()
            descriptor = _open_whole(path, self._store.shards[shard].tar_size)
            if descriptor is not None:
                return descriptor
            path.unlink(missing_ok=True)
            self._forget(shard)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Downloads shards in the background, as many as fit into the cache together."""
        room = self._max_bytes
        for shard in shards:
            room -= self._store.shards[shard].tar_size
            if room < 0:
                return
            self._request(shard)

    def require_room(self, shards: Iterable[int]) -> None:
        """Raises InputError unless the shards fit into the cache together."""
        wanted = sum(self._store.shards[shard].tar_size for shard in shards)
        if wanted > self._max_bytes:
            raise InputError(
                f"the cache {self._top} may hold {self._max_bytes / 1e9:g} GB, and the shards that are mixed with one "
                f"another have {wanted / 1e9:.3g} GB; allow more with {CACHE_SIZE_VARIABLE}"
            )

    def close(self) -> None:
        """Ends the downloads under way; what they have so far is thrown away."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _path(self, shard: int) -> Path:
        # The hash in the name: a shard made anew elsewhere is another file.
        return self._folder / f"{self._store.file.shard_stem(shard)}-{self._store.shards[shard].tar_sha256[:12]}.tar"

    def _request(self, shard: int) -> "Future[Path]":
        with self._lock:
            future = self._under_way.get(shard)
            dropped = future is not None and future.done() and not future.exception() and not self._path(shard).exists()
            if future is None or dropped:
                future = self._under_way[shard] = self._pool.submit(self._fetch, shard)
            return future

    def _forget(self, shard: int) -> None:
        with self._lock:
            self._under_way.pop(shard, None)

    def _fetch(self, shard: int) -> Path:
        self.require_room([shard])
        path = self._path(shard)
        try:
            with _locked(path.with_suffix(".lock")):
                try:
                    os.utime(path)
                except FileNotFoundError:
                    self._download(shard, path)
        except OSError as error:
            self._forget(shard)  # so that the next batch tries again
            raise InputError(
                f"{self._where(shard)} can't be had ({error.strerror or error}); check the connection and the room in "
                f"{self._top}"
            ) from error
        return path

    def _download(self, shard: int, path: Path) -> None:
        expected = self._store.shards[shard]
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)  # of a process that was killed
        self._reserve(part, expected.tar_size)
        try:
            with part.open("r+b") as file:
                if self._copy(shard, file, expected.tar_size) != expected.tar_sha256:
                    raise InputError(
                        f"{self._where(shard)} is not the tar that its index names; run `featurestore verify`, and "
                        "`featurestore repair` to mend it"
                    )
                os.fsync(file.fileno())
            # Under the lock: who counts the tars first and the downloads then would miss one renamed in between.
            with _locked(self._top / ".lock"):
                part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _copy(self, shard: int, file: BinaryIO, num_bytes: int) -> str:
        """Writes the shard's tar to `file`, and returns its sha256."""
        digest = hashlib.sha256()
        name = self._store.tar_name(shard)
        while (done := file.tell()) < num_bytes:
            if self._closed.is_set():
                raise InterruptedError("the loader was closed")
            try:
                chunk = self._store.location.read_range(name, done, min(_CHUNK_BYTES, num_bytes - done))
            except FileNotFoundError as error:
                raise InputError(
                    f"{self._where(shard)} is missing; run `featurestore repair` to make it anew"
                ) from error
            if not chunk:
                break
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        return digest.hexdigest()

    def _where(self, shard: int) -> str:
        return f"{self._store.location}/{self._store.tar_name(shard)}"

    def _reserve(self, part: Path, num_bytes: int) -> None:
        """Makes a file of that size to be filled, as soon as there is room for it."""
        while not self._closed.is_set():
            with _locked(self._top / ".lock"):
                if self._make_room(num_bytes):
                    with part.open("wb") as file:
                        file.truncate(num_bytes)
                    return
            self._closed.wait(_ROOM_POLL_S)
        raise InterruptedError("the loader was closed")

    def _make_room(self, num_bytes: int) -> bool:
        """Drops what was opened longest ago until `num_bytes` more fit; False while downloads under way are in the way.

        The caller holds the lock of the whole cache.
        """
        tars = [(status.st_mtime_ns, path, status.st_size) for path, status in _files(self._top, "tar")]
        parts = [status.st_size for part, status in _files(self._top, "part") if not _remove_if_stale(part)]
        excess = sum(size for _, _, size in tars) + sum(parts) + num_bytes - self._max_bytes
        for _, path, size in sorted(tars):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size
        return excess <= 0


def _files(top: Path, ending: str) -> Iterator[tuple[Path, os.stat_result]]:
    for path in top.glob(f"*/*.{ending}"):
        with suppress(FileNotFoundError):
            yield path, path.stat()


def _remove_if_stale(part: Path) -> bool:
    """Removes a download whose process was killed: nobody holds its lock."""
    with part.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        part.unlink(missing_ok=True)
        return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process or thread holds the lock."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open_whole(path: Path, num_bytes: int) -> int | None:
    """Opens a file and marks it as used now; None where it was just dropped, or the disk has lost a part of it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size == num_bytes:
        os.utime(descriptor)
        return descriptor
    os.close(descriptor)
    return None
