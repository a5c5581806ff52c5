"""Mends a damaged store: makes only what is wrong anew, from the sources, to the same bytes."""

from dataclasses import dataclass

from featurestore.verify import verify
from featurestore.verifyshard import Problem
from ingest.book import Book, read_parts
from ingest.index import read_index
from ingest.job import rebuild
from ingest.layout import TEACHER_FOLDER, StoreFile, read_store_file
from ingest.location import Location
from ingest.soundness import make_sound, restore_index
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
        shards = sorted({problem.shard for problem in found if problem.shard is not None})
        store = read_store_file(location)
        if found:
            _mend(_open(location, store), shards, num_workers)
        left = verify(location) if found else []
    return Repair(found, [store.shard_stem(shard) for shard in shards], left)


def _open(location: Location, store: StoreFile) -> Book:
    """The store with an index that can be trusted. Raises InputError where its lists or its index are lost."""
    book = Book(location, store, read_parts(location, store), None)
    try:
        book.index = read_index(location)
    except InputError:
        restore_index(book)
    make_sound(book)
    return book


def _mend(whole: Book, shards: list[int], num_workers: int | None) -> None:
    # Of an append that has not come to its end nothing is published here; it goes on from where it is.
    store = whole.store
    whole.forget(range(store.num_shards_published, store.num_shards))
    published = store.model_copy(update={"parts": store.parts[: store.snapshots[-1].num_parts]})
    book = Book(whole.location, published, whole.parts[: len(published.parts)], whole.index)
    rebuild(book, shards, num_workers)
    book.forget(shards)
    book.close()
    if published != store:
        Book(book.location, store, whole.parts, book.index).save()


def teachers_to_build(problems: list[Problem]) -> list[str]:
    """Names of the teacher caches among the problems, which only `build-teacher` can mend."""
    prefix = f"{TEACHER_FOLDER}/"
    found = {
        problem.where.removeprefix(prefix).split(".zarr")[0] for problem in problems if problem.where.startswith(prefix)
    }
    return sorted(found)
