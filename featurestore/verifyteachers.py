"""Checks the teacher caches of a store: every file against its checksum, and a finite value for every clip.

The store may have grown since a cache was built, which then answers for the snapshots that it has room for.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from featurestore.cachefiles import open_arrays, open_group, read_attributes
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.verifyshard import Problem
from ingest.index import read_checksums
from ingest.layout import CHECKSUM_FILE, STORE_FILE, TEACHER_FOLDER
from ingest.location import Location
from manifests.errors import InputError


def check_teachers(location: Location) -> Iterator[Problem]:
    """Everything that is wrong with the teacher caches of a store that is whole itself."""
    try:
        store = Store(location)
    except InputError as error:
        yield Problem(STORE_FILE, None, str(error))
        return
    caches = [store.teacher_name(name) for name in store.teachers]
    for name in location.files(TEACHER_FOLDER):
        if not any(name.startswith(f"{cache}/") for cache in caches):
            yield Problem(name, None, "is in no teacher's cache: it doesn't belong to the store")
    for name in store.teachers:
        yield from _check_sums(location.child(store.teacher_name(name)), store.teacher_name(name))
        yield from _check_rows(store, name)


def _check_sums(folder: Location, where: str) -> Iterator[Problem]:
    try:
        listed = read_checksums(folder)
    except InputError as error:
        what = str(error).split("; run ")[0]
        yield Problem(where, None, f"{what}: run its `featurestore build-teacher` command again to the end")
        return
    there = set(folder.files())
    for name in sorted(listed.keys() - there):
        yield Problem(f"{where}/{name}", None, "is missing")
    for name in sorted(listed.keys() & there):
        if hashlib.sha256(folder.read(name)).hexdigest() != listed[name]:
            yield Problem(f"{where}/{name}", None, f"is not the file that {CHECKSUM_FILE} beside it names")
    for name in sorted(there - listed.keys() - {CHECKSUM_FILE}):
        yield Problem(f"{where}/{name}", None, f"is not in {CHECKSUM_FILE} beside it: the build was not finished")


def _check_rows(newest: Store, name: str) -> Iterator[Problem]:
    where = newest.teacher_name(name)
    try:
        store = Store(newest.location, _last_snapshot_of(newest, name))
        cache = TeacherCache(store, name)
    except InputError as error:
        yield Problem(where, None, str(error))
        return
    for shard in range(store.snapshot.num_shards):
        rows = store.rows_of_shard(shard)
        for output in cache.outputs:
            try:
                values = cache.read(output, shard)[: len(rows)]
            except InputError as error:
                yield Problem(where, None, str(error))
                continue
            bad = ~np.isfinite(values.reshape(len(rows), -1)).all(1) & store.ok[rows]
            for key in store.keys(rows[bad]):
                yield Problem(where, key, f"its {output} is missing or not finite")


def _last_snapshot_of(store: Store, name: str) -> int:
    """The last snapshot that a cache has rows for. Raises InputError when it was built from none of the store's."""
    path = f"{store.location}/{store.teacher_name(name)}"
    group = open_group(store, name, "r")
    attributes = read_attributes(group, path)
    snapshots = {snapshot.number: snapshot for snapshot in store.file.snapshots}
    own = snapshots.get(attributes.snapshot)
    if own is None or own.fingerprint != attributes.store_fingerprint:
        raise InputError(
            f"{path} was made from another content of the store: it names snapshot {attributes.snapshot}, fingerprint "
            f"{attributes.store_fingerprint[:12]}, and there is no such one; delete it and run `featurestore "
            "build-teacher` again"
        )
    num_shards = min(array.shape[0] for array in open_arrays(group, path).values()) // store.file.clips_per_shard
    return max([own.number, *(number for number, one in snapshots.items() if one.num_shards <= num_shards)])
