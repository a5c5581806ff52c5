"""Mends a damaged store: makes only what is wrong anew, from the sources, to the same bytes."""

from contextlib import suppress
from dataclasses import dataclass

from featurestore.verify import verify
from featurestore.verifyshard import Problem
from ingest.book import Book, read_parts
from ingest.index import read_index
from ingest.job import rebuild
from ingest.layout import INDEX_FILE, MANIFEST_FILE, STORE_FILE, TEACHER_FOLDER, StoreFile, read_store_file
from ingest.location import Location
from manifests.clips import Manifest
from manifests.errors import InputError


@dataclass(frozen=True)
class Repair:
    """What was found, which shards were made anew, and what is still wrong."""

    found: list[Problem]
    rebuilt: list[str]
    left: list[Problem]


def repair(location: Location, *, num_workers: int | None = 0) -> Repair:
    """Mends what `verify` finds: shards from their sources, index and checksums from the shards.

    Raises InputError for what can't be mended here: a damaged manifest, a shard that can't be had with the same bytes.
    """
    with location.lock("repair"):
        found = verify(location)
        store = read_store_file(location)
        parts = _readable_parts(location, store, found)
        shards = sorted({problem.shard for problem in found if problem.shard is not None})
        if found:
            index = None if any(problem.where == INDEX_FILE for problem in found) else read_index(location)
            _mend(Book(location, store, parts, index), shards, num_workers)
        left = verify(location) if found else []
    return Repair(found, [store.shard_stem(shard) for shard in shards], left)


def _readable_parts(location: Location, store: StoreFile, found: list[Problem]) -> list[Manifest]:
    """The manifest's rows, if they are those that store.json names, and that one is as it was written."""
    wrong = next((problem for problem in found if problem.where == STORE_FILE), None)
    with suppress(InputError):
        parts = read_parts(location, store)
        whole = [part.manifest_sha256 for part in store.parts] == [manifest.sha256 for manifest in parts]
        if whole and wrong is None:
            return parts
    wrong = wrong or next(problem for problem in found if problem.where == MANIFEST_FILE)
    raise InputError(
        f"{location}: {wrong}. It can only be made from the lists: delete {STORE_FILE} and {MANIFEST_FILE}, and run the "
        "store's ingest commands again in their order; shards that are whole are kept"
    )


def _mend(book: Book, shards: list[int], num_workers: int | None) -> None:
    if book.index is None and shards:
        raise InputError(
            f"{book.location}: both {INDEX_FILE} and {book.store.shard_stem(shards[0])} are damaged, so that nothing tells "
            "what the shard must be; restore one of them from a copy"
        )
    rebuild(book, shards, num_workers)
    book.forget(shards)
    book.save()
    book.close()


def teachers_to_build(problems: list[Problem]) -> list[str]:
    """Names of the teacher caches among the problems, which only `build-teacher` can mend."""
    prefix = f"{TEACHER_FOLDER}/"
    found = {
        problem.where.removeprefix(prefix).split(".zarr")[0] for problem in problems if problem.where.startswith(prefix)
    }
    return sorted(found)
