"""Checks a store against itself: hashes, members, shapes, values, index against tar, teacher caches."""

import hashlib
from collections.abc import Iterator

import numpy as np

from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.verifyshard import Expected, Problem, check_shard
from ingest.book import read_parts
from ingest.index import Index, make_snapshot, read_checksums, read_index
from ingest.layout import (
    CHECKSUM_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    SOURCE_FOLDERS,
    STORE_FILE,
    TEACHER_FOLDER,
    StoreFile,
    read_store_file,
)
from ingest.location import Location
from ingest.progress import ProgressDisplay
from manifests.clips import Manifest
from manifests.errors import InputError


def verify(location: Location) -> list[Problem]:
    """Everything that is wrong with the published part of a store; reads all of it.

    Raises InputError where there is no store, or it has no snapshot, or store.json can't be read.
    """
    store = read_store_file(location)
    if not store.snapshots:
        raise InputError(f"the store {location} is not finished; run its ingest command again to go on")
    problems: list[Problem] = []
    index, parts = _read_index(location, problems), _read_parts(location, store, problems)
    problems += _check_sums(location, store, index)
    problems += _check_snapshots(store, index, parts)
    with ProgressDisplay("shards", store.num_shards_published) as display:
        for shard, (part, first, stop) in enumerate(list(store.shard_rows())[: store.num_shards_published]):
            rows = None if index is None else index.table.slice(first, stop - first)
            expected = Expected(
                entry=index.shards[shard] if index is not None and shard < len(index.shards) else None,
                index=rows,
                keys=_keys(parts, store, part, first, stop),
                recipe_sha256=store.recipe_sha256(part),
            )
            problems += check_shard(location, store, shard, expected)
            display.advance(1, f"{len(problems)} problems")
    if not any(problem.where in (STORE_FILE, MANIFEST_FILE, INDEX_FILE) for problem in problems):
        problems += _check_teachers(location)
    return problems


def _read_index(location: Location, problems: list[Problem]) -> Index | None:
    try:
        return read_index(location)
    except InputError as error:
        problems.append(Problem(INDEX_FILE, None, str(error)))
        return None


def _read_parts(location: Location, store: StoreFile, problems: list[Problem]) -> list[Manifest] | None:
    try:
        return read_parts(location, store)
    except InputError as error:
        problems.append(Problem(MANIFEST_FILE, None, str(error)))
        return None


def _keys(parts: list[Manifest] | None, store: StoreFile, part: int, first: int, stop: int) -> list[str] | None:
    if parts is None:
        return None
    offset = sum(earlier.num_clips_asked for earlier in store.parts[:part])
    keys: list[str] = parts[part].table["key"].slice(first - offset, stop - first).to_pylist()
    return keys


def _check_sums(location: Location, store: StoreFile, index: Index | None) -> Iterator[Problem]:
    """The files that SHA256SUMS lists, but for the tars, which are hashed with their members, and files that it lacks."""
    try:
        listed = read_checksums(location)
    except InputError as error:
        yield Problem(CHECKSUM_FILE, None, str(error))
        return
    there = [name for name in location.files() if not _is_beside(name)]
    pending = {
        name
        for shard in range(store.num_shards_published, store.num_shards)
        for name in (store.tar_name(shard), store.sidecar_name(shard))
    }
    entries = () if index is None else index.shards
    recorded = {store.tar_name(shard): entry.tar_sha256 for shard, entry in enumerate(entries)}
    for name, digest in listed.items():
        if name.endswith(".tar"):
            if recorded.get(name, digest) != digest:
                yield Problem(CHECKSUM_FILE, None, f"its sha256 of {name} is not the index's")
        elif name not in there:
            yield Problem(name, None, "is missing")
        elif hashlib.sha256(location.read(name)).hexdigest() != digest:
            yield Problem(name, None, f"its sha256 is not the one in {CHECKSUM_FILE}")
    published = [
        name
        for shard in range(store.num_shards_published)
        for name in (store.tar_name(shard), store.sidecar_name(shard))
    ]
    for name in [*published, STORE_FILE, MANIFEST_FILE, INDEX_FILE]:
        if name not in listed:
            yield Problem(CHECKSUM_FILE, None, f"doesn't list {name}")
    for name in there:
        if name not in listed and name not in pending and name != CHECKSUM_FILE:
            yield Problem(name, None, f"is not in {CHECKSUM_FILE}: it doesn't belong to the store")


def _is_beside(name: str) -> bool:
    """Whether a file is no part of the store proper: a download, or a teacher cache, which is checked by itself."""
    return name.split("/", 1)[0] in (*SOURCE_FOLDERS, TEACHER_FOLDER)


def _check_snapshots(store: StoreFile, index: Index | None, parts: list[Manifest] | None) -> Iterator[Problem]:
    if parts is not None:
        for number, (part, manifest) in enumerate(zip(store.parts, parts, strict=True), start=1):
            if manifest.sha256 != part.manifest_sha256:
                yield Problem(
                    MANIFEST_FILE,
                    None,
                    f"the rows of part {number} are not those that {STORE_FILE} names by their hash",
                )
    if index is None:
        return
    for snapshot in store.snapshots:
        then = store.model_copy(update={"parts": store.parts[: snapshot.num_parts]})
        rows = Index(index.table.slice(0, snapshot.num_rows), index.shards[: snapshot.num_shards])
        if make_snapshot(then, rows, snapshot.number) != snapshot:
            yield Problem(
                INDEX_FILE, None, f"doesn't come to the fingerprint and figures of snapshot {snapshot.number}"
            )


def _check_teachers(location: Location) -> Iterator[Problem]:
    try:
        store = Store(location)
    except InputError as error:
        yield Problem(STORE_FILE, None, str(error))
        return
    for name in store.teachers:
        yield from _check_teacher(store, name)


def _check_teacher(store: Store, name: str) -> Iterator[Problem]:
    where = store.teacher_name(name)
    yield from _check_teacher_sums(store.location.child(where), where)
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


def _check_teacher_sums(folder: Location, where: str) -> Iterator[Problem]:
    try:
        listed = read_checksums(folder)
    except InputError as error:
        yield Problem(where, None, f"{error}: or it was never finished: run its `featurestore build-teacher` again")
        return
    for name, digest in listed.items():
        try:
            wrong = hashlib.sha256(folder.read(name)).hexdigest() != digest
        except FileNotFoundError:
            wrong = True
        if wrong:
            yield Problem(f"{where}/{name}", None, f"is not the file that {CHECKSUM_FILE} names")
