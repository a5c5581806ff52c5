"""Checks the teacher caches of a store: every file against its checksum, and a finite value for every clip."""

import hashlib
from collections.abc import Iterator

import numpy as np

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


def _check_rows(store: Store, name: str) -> Iterator[Problem]:
    where = store.teacher_name(name)
    try:
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
