"""Checks a store against itself: hashes, members, shapes, values, index against tar, teacher caches."""

import hashlib
from collections.abc import Iterator

from featurestore.verifyshard import Expected, Problem, check_shard
from featurestore.verifyteachers import check_teachers
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
from ingest.soundness import is_slip
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
    listed = _read_sums(location, problems)
    if listed is not None:
        problems += _check_sums(location, store, listed, index)
    # What was changed since it was written can't bear witness against the shards.
    wrong = {problem.where for problem in problems}
    index, parts = None if INDEX_FILE in wrong else index, None if MANIFEST_FILE in wrong else parts
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
        problems += check_teachers(location)
    return problems


def _read_index(location: Location, problems: list[Problem]) -> Index | None:
    try:
        return read_index(location)
    except InputError as error:
        problems.append(Problem(INDEX_FILE, None, str(error)))
        return None


def _read_sums(location: Location, problems: list[Problem]) -> dict[str, str] | None:
    try:
        return read_checksums(location)
    except InputError as error:
        problems.append(Problem(CHECKSUM_FILE, None, str(error)))
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


def _check_sums(location: Location, store: StoreFile, listed: dict[str, str], index: Index | None) -> Iterator[Problem]:
    """Files that SHA256SUMS lists (but for the tars, which are hashed with their members) or lacks."""
    there = {name for name in location.files() if not _is_beside(name)}
    tar_sums = {} if index is None else {store.tar_name(k): entry.tar_sha256 for k, entry in enumerate(index.shards)}
    for name, digest in listed.items():
        if name.endswith(".tar"):
            if tar_sums.get(name, digest) != digest:
                yield Problem(CHECKSUM_FILE, None, f"its sha256 of {name} is not the index's")
        elif name not in there:
            yield Problem(name, None, "is missing")
        elif (found := hashlib.sha256(location.read(name)).hexdigest()) != digest:
            yield _wrong_sum(name, found, digest)
    published = set(_shard_files(store, range(store.num_shards_published)))
    pending = set(_shard_files(store, range(store.num_shards_published, store.num_shards)))
    required = {*published, STORE_FILE, MANIFEST_FILE, INDEX_FILE}
    for name in sorted(required - listed.keys()):
        yield Problem(CHECKSUM_FILE, None, f"doesn't list {name}")
    for name in sorted(there - listed.keys() - pending - required - {CHECKSUM_FILE}):
        yield Problem(name, None, f"is not in {CHECKSUM_FILE}: it doesn't belong to the store")


def _wrong_sum(name: str, found: str, listed: str) -> Problem:
    """A file that changes gets another hash altogether; one that differs in a digit or two was damaged itself."""
    if is_slip(found, listed):
        return Problem(CHECKSUM_FILE, None, f"its sha256 of {name} is damaged")
    return Problem(name, None, f"its sha256 is not the one in {CHECKSUM_FILE}")


def _shard_files(store: StoreFile, shards: range) -> list[str]:
    return [name for shard in shards for name in (store.tar_name(shard), store.sidecar_name(shard))]


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
