"""A store's tars as open files: where they lie, or, of an object store, from a bounded cache on this machine."""

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from featurestore.store import Store
from manifests.errors import InputError

CACHE_VARIABLE, CACHE_SIZE_VARIABLE = "ACM_SSKD_CACHE", "ACM_SSKD_CACHE_GB"
DEFAULT_CACHE_GB = 20.0
NUM_DOWNLOADS = 4
_CHUNK_BYTES = 8 << 20


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


class ShardFiles(Protocol):
    """Opens tars for reading."""

    def open(self, shard: int) -> int:
        """A descriptor of a shard's tar. Raises InputError when it can't be had or has another size than it must."""
        ...

    def prefetch(self, shards: Iterable[int]) -> None:
        """Says which shards will be wanted soon."""
        ...

    def require_room(self, shards: Iterable[int]) -> None:
        """Raises InputError unless so many shards can be in use together."""
        ...

    def close(self) -> None: ...


def open_shard_files(store: Store, cache: CacheOptions | None = None) -> ShardFiles:
    """The tars of a store; `cache` is for object stores (None: as the environment says)."""
    if store.location.folder is not None:
        return _LocalShards(store, store.location.folder)
    return CachedShards(store, cache or CacheOptions.from_environment())


class _LocalShards:
    def __init__(self, store: Store, folder: Path) -> None:
        self._store, self._folder = store, folder

    def open(self, shard: int) -> int:
        path = self._folder / self._store.tar_name(shard)
        try:
            return _open(path, self._store.shards[shard].tar_size)
        except FileNotFoundError as error:
            raise InputError(f"{path} is missing; run `featurestore repair` to make it anew") from error

    def require_room(self, shards: Iterable[int]) -> None:
        """They lie where they are."""

    def prefetch(self, shards: Iterable[int]) -> None:
        """The system reads ahead by itself."""

    def close(self) -> None:
        """Nothing is held."""


class CachedShards:
    """Whole tars, downloaded ahead, checked against their sha256, and the longest unused dropped when room is short.

    Several processes may share a cache: a tar is downloaded once, and one that is dropped stays readable where it is
    open.
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
        self._lock = threading.Lock()
        self._under_way: dict[int, Future[Path]] = {}

    def open(self, shard: int) -> int:
        size = self._store.shards[shard].tar_size
        while True:
            path = self._request(shard).result()
            with suppress(FileNotFoundError):  # dropped by another process, just now
                descriptor = _open(path, size)
                path.touch()
                return descriptor
            self._forget(shard)

    def prefetch(self, shards: Iterable[int]) -> None:
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
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _path(self, shard: int) -> Path:
        # The hash in the name: a shard made anew elsewhere is another file.
        return self._folder / f"{self._store.file.shard_stem(shard)}-{self._store.shards[shard].tar_sha256[:12]}.tar"

    def _request(self, shard: int) -> "Future[Path]":
        with self._lock:
            future = self._under_way.get(shard)
            dropped = future is not None and future.done() and not self._path(shard).exists()
            if future is None or dropped:
                future = self._under_way[shard] = self._pool.submit(self._fetch, shard)
            return future

    def _forget(self, shard: int) -> None:
        with self._lock:
            self._under_way.pop(shard, None)

    def _fetch(self, shard: int) -> Path:
        path = self._path(shard)
        try:
            with _locked(path.with_suffix(".lock")):
                if not path.exists():
                    self._make_room(self._store.shards[shard].tar_size)
                    self._download(shard, path)
        except OSError as error:
            self._forget(shard)  # so that the next batch tries again
            raise InputError(
                f"{self._store.location}/{self._store.tar_name(shard)} can't be had ({error.strerror or error}); check "
                f"the connection and the room in {self._top}"
            ) from error
        return path

    def _download(self, shard: int, path: Path) -> None:
        name, entry = self._store.tar_name(shard), self._store.shards[shard]
        part = path.with_suffix(".part")
        digest, size = hashlib.sha256(), 0
        with part.open("wb") as file:
            while size < entry.tar_size:
                chunk = self._store.location.read_range(name, size, min(_CHUNK_BYTES, entry.tar_size - size))
                if not chunk:
                    break
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        if digest.hexdigest() != entry.tar_sha256:
            part.unlink()
            raise InputError(
                f"{self._store.location}/{name} is not the tar that its index names; run `featurestore verify`, and "
                "`featurestore repair` to mend it"
            )
        part.replace(path)

    def _make_room(self, num_bytes: int) -> None:
        """Drops what was opened longest ago, until `num_bytes` more fit."""
        files = []
        for path in self._top.glob("*/*.tar"):
            with suppress(FileNotFoundError):
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        excess = sum(size for _, size, _ in files) + num_bytes - self._max_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(path: Path, expected_size: int) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} can't be opened ({error.strerror}); run `featurestore verify`") from error
    size = os.fstat(descriptor).st_size
    if size != expected_size:
        os.close(descriptor)
        raise InputError(
            f"{path} has {size} bytes, and its index says {expected_size}: it is damaged; run `featurestore verify`, "
            "and `featurestore repair` to mend it"
        )
    return descriptor
