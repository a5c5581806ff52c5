"""Teacher caches go along with copied clips, so that nothing has to be computed again."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featurestore.cachefiles import OF_THE_STORE, Output, cache_lock, write_cache_checksums
from featurestore.store import Store
from featurestore.teachercache import TeacherCache, create_cache
from manifests.errors import InputError


def copy_teachers(target: Store, origins: Sequence[tuple[Store, NDArray[np.int64]]]) -> list[str]:
    """Copies the caches that all `origins` have alike into `target`, whose rows are theirs one behind the other.

    An origin is a store and rows of it. Returns the names of the caches copied.
    """
    stores = list(dict.fromkeys(store for store, _ in origins))
    common = set.intersection(*(set(store.teachers) for store in stores))
    return [name for name in sorted(common) if _copy(name, target, origins, stores)]


def _copy(
    name: str, target: Store, origins: Sequence[tuple[Store, NDArray[np.int64]]], stores: Sequence[Store]
) -> bool:
    try:
        caches = {store: TeacherCache(store, name) for store in stores}
    except InputError:
        return False  # stale or damaged where it comes from: `featurestore verify` there says which
    first = caches[stores[0]]
    if any(_kind(cache) != _kind(first) for cache in caches.values()):
        return False
    update = {"store_fingerprint": target.snapshot.fingerprint, "snapshot": target.snapshot.number}
    shapes: dict[Output, tuple[int, ...]] = {output: first.row_shape(output) for output in first.outputs}
    with cache_lock(target, name):
        copy = create_cache(target, name, first.attributes.model_copy(update=update), shapes)
        for shard in range(target.snapshot.num_shards):
            store, rows = _origin_rows(target.rows_of_shard(shard), origins)
            values = copy.shard_values(shard)
            for output, array in values.items():
                array[: len(rows)] = caches[store].gather(output, rows)
            copy.write(shard, values)
        write_cache_checksums(target, name)
    return True


def _kind(cache: TeacherCache) -> tuple[object, ...]:
    attributes = cache.attributes.model_dump(mode="json", exclude=set(OF_THE_STORE))
    return attributes, [(output, cache.row_shape(output)) for output in cache.outputs]


def _origin_rows(
    rows: NDArray[np.int64], origins: Sequence[tuple[Store, NDArray[np.int64]]]
) -> tuple[Store, NDArray[np.int64]]:
    """Where the rows of one shard of the copy come from: a shard lies in one part, and so in one origin."""
    first = 0
    for store, origin_rows in origins:
        if rows[0] < first + len(origin_rows):
            return store, origin_rows[rows - first]
        first += len(origin_rows)
    raise ValueError(f"row {rows[0]} is behind the last of {first}")
