"""A store's tars as open files: where they lie, or, of an object store, from a bounded cache on this machine."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from featurestore.shardcache import CachedShards, CacheOptions
from featurestore.store import Store
from manifests.errors import InputError


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
        path, expected_size = self._folder / self._store.tar_name(shard), self._store.shards[shard].tar_size
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise InputError(f"{path} is missing; run `featurestore repair` to make it anew") from error
        except OSError as error:
            raise InputError(f"{path} can't be opened ({error.strerror}); run `featurestore verify`") from error
        size = os.fstat(descriptor).st_size
        if size != expected_size:
            os.close(descriptor)
            raise InputError(
                f"{path} has {size} bytes, and its index says {expected_size}: it is damaged; run "
                "`featurestore verify`, and `featurestore repair` to mend it"
            )
        return descriptor

    def require_room(self, shards: Iterable[int]) -> None:
        """They lie where they are."""

    def prefetch(self, shards: Iterable[int]) -> None:
        """The system reads ahead by itself."""

    def close(self) -> None:
        """Nothing is held."""
