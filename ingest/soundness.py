"""Tells a store that was damaged from one whose ingest was killed, so that no checksum vouches for damage."""

import hashlib
from collections.abc import Iterator, Mapping

from ingest.book import Book
from ingest.index import Index, make_snapshot, read_checksums, write_index
from ingest.layout import CHECKSUM_FILE, INDEX_FILE, MANIFEST_FILE, SHARD_FOLDER, STORE_FILE, StoreFile, store_text
from manifests.errors import InputError

# Hashes of different files differ in more of their 64 digits.
MAX_DIGITS_OF_A_SLIP = 8
FROM_LISTS = (
    f"restore it from a copy; without one, delete {STORE_FILE} and {MANIFEST_FILE} and nothing else (not "
    f"{SHARD_FOLDER}/, nor raw/), and run the store's ingest commands again in their order: whole shards are kept"
)


def is_slip(found: str, listed: str) -> bool:
    """Whether a hash in SHA256SUMS was itself damaged: a file that changes gets another hash altogether."""
    return sum(one != other for one, other in zip(found, listed, strict=True)) <= MAX_DIGITS_OF_A_SLIP


def make_sound(book: Book) -> None:
    """Compares an opened store with its checksums; an index that isn't the one listed is made anew.

    Raises InputError as :func:`check_lists` and :func:`restore_index`.
    """
    listed = read_listed(book)
    check_lists(book, listed)
    if not _is_as_listed(book, INDEX_FILE, listed):
        restore_index(book)


def read_listed(book: Book) -> dict[str, str]:
    """The hashes in SHA256SUMS; none where it is missing or damaged, since it is made of the other files anyway."""
    try:
        return read_checksums(book.location)
    except InputError:
        return {}


def check_lists(book: Book, listed: Mapping[str, str]) -> None:
    """Raises InputError unless store.json and manifest.parquet are as an ingest left them, finished or killed.

    A manifest whose rows are unharmed is written anew.
    """
    where = book.location
    if not _is_as_listed(book, MANIFEST_FILE, listed):
        if not _has_its_rows(book):
            raise InputError(f"{where}: the rows of {MANIFEST_FILE} aren't those that {STORE_FILE} names; {FROM_LISTS}")
        book.write_manifest()
    if STORE_FILE not in listed:
        return
    hashes = [hashlib.sha256(store_text(store).encode()).hexdigest() for store in _states(book.store, book.index)]
    if not any(is_slip(digest, listed[STORE_FILE]) for digest in hashes):
        raise InputError(
            f"{where}: {STORE_FILE} is not the file that {CHECKSUM_FILE} names, it was damaged; {FROM_LISTS}"
        )


def restore_index(book: Book) -> None:
    """Makes the index of the published shards anew, from their sidecars.

    Raises InputError where they don't come to the fingerprint of the last snapshot.
    """
    snapshot = book.store.snapshots[-1]
    published = book.store.model_copy(update={"parts": book.store.parts[: snapshot.num_parts]})
    try:
        index = Book(book.location, published, book.parts[: snapshot.num_parts], None).published_index()
        if make_snapshot(published, index, snapshot.number).fingerprint != snapshot.fingerprint:
            raise InputError(f"they don't come to the fingerprint of snapshot {snapshot.number}")
    except InputError as error:
        raise InputError(
            f"{book.location}: {INDEX_FILE} is damaged and can't be made of the sidecars in {SHARD_FOLDER}/, so that "
            f"nothing tells what the shards must be ({error}); restore {INDEX_FILE} from a copy"
        ) from error
    write_index(book.location, index)
    book.index = index


def _has_its_rows(book: Book) -> bool:
    return all(part.manifest_sha256 == rows.sha256 for part, rows in zip(book.store.parts, book.parts, strict=True))


def _is_as_listed(book: Book, name: str, listed: Mapping[str, str]) -> bool:
    return name not in listed or is_slip(hashlib.sha256(book.location.read(name)).hexdigest(), listed[name])


def _states(store: StoreFile, index: Index | None) -> Iterator[StoreFile]:
    """What SHA256SUMS may say of store.json, since the two aren't written at once."""
    yield store
    if store.num_shards == store.num_shards_published:
        return
    yield store.model_copy(update={"parts": store.parts[:-1]})
    if index is not None and len(index.shards) == store.num_shards:
        snapshot = make_snapshot(store, index, len(store.snapshots) + 1)
        yield store.model_copy(update={"snapshots": (*store.snapshots, snapshot)})
