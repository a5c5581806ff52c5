"""Opens a store for an ingest: checks that it is of the same recipe and sound, and asks for what is new."""

import pyarrow as pa
import pyarrow.compute as pc

from ingest.book import Book, read_parts
from ingest.index import read_index
from ingest.layout import MANIFEST_FILE, STORE_FILE, Part, StoreFile, read_store_file
from ingest.location import Location
from ingest.soundness import FROM_LISTS, make_sound
from manifests.clips import Manifest, make_manifest
from manifests.errors import InputError
from manifests.parts import write_manifests


def open_book(location: Location, wanted: Manifest, new: StoreFile, *, append: bool) -> Book:
    """Opens a store for an ingest of `wanted`, or makes it; `new` is how it would be, with one part.

    Raises InputError when the store has another recipe, or lacks clips of `wanted` and `append` isn't set.
    """
    if not location.exists(STORE_FILE):
        book = Book(location, new, [wanted], None)
        book.save()
        return book
    store = read_store_file(location)
    _check_recipe(location, store, new, append)
    known = any(part.wanted_sha256 == wanted.sha256 for part in store.parts)
    if not known and not append:
        raise InputError(
            f"{location} holds another store: it differs in the list of clips. Choose another folder with --store, "
            f"{_delete(location)}, or add what is new with --append"
        )
    parts = _parts(location, store, wanted)
    book = Book(location, store, parts, read_index(location) if store.snapshots else None)
    if store.snapshots:
        make_sound(book)
    # A run that was killed while it closed the store may have left an index of shards that aren't published.
    book.forget(range(store.num_shards_published, store.num_shards))
    if known:
        _move_sources(book, wanted)
    else:
        _append(book, wanted, new.parts[0])
    return book


def _check_recipe(location: Location, store: StoreFile, new: StoreFile, append: bool) -> None:
    ours, theirs = store.recipe(), new.recipe()
    differing = [name for name, value in theirs.items() if ours[name] != value]
    if differing:
        raise InputError(
            f"{location} holds another store: it differs in {', '.join(differing)}. Choose another folder with "
            + ("--store: only clips of the same kind can be appended" if append else f"--store, or {_delete(location)}")
        )


def _delete(location: Location) -> str:
    return (
        "delete this one (but not its raw/, which holds the downloads)"
        if "raw" in location.folders()
        else "delete this one"
    )


def _parts(location: Location, store: StoreFile, wanted: Manifest) -> list[Manifest]:
    try:
        return read_parts(location, store)
    except InputError as error:
        if [part.manifest_sha256 for part in store.parts] == [wanted.sha256]:
            with location.writing(MANIFEST_FILE) as path:
                write_manifests([wanted], path)
            return [wanted]
        raise InputError(f"{location}/{MANIFEST_FILE} is missing or not this store's; {FROM_LISTS}") from error


def _move_sources(book: Book, wanted: Manifest) -> None:
    """The corpus may have moved, and its place is no part of the recipe."""
    moved = [
        Manifest(old.dataset, old.vocabulary, wanted.sources, old.seed, old.table)
        if part.wanted_sha256 == wanted.sha256
        else old
        for part, old in zip(book.store.parts, book.parts, strict=True)
    ]
    if [part.sources for part in moved] != [part.sources for part in book.parts]:
        book.parts = moved
        book.save()


def _append(book: Book, wanted: Manifest, part: Part) -> None:
    """Adds those clips of `wanted` that the store was never asked for."""
    if book.store.num_shards > book.store.num_shards_published:
        raise InputError(
            f"{book.location} has an unfinished ingest; run its command again to the end before you append to it (with "
            "--max-failures 1 it ends with what can be had)"
        )
    known = pa.concat_tables([manifest.table for manifest in book.parts]).combine_chunks()
    at = pc.index_in(wanted.table["key"], known["key"])
    is_known = at.is_valid()
    _refuse_changed(book, wanted.table.filter(is_known), known.take(at.drop_null()))
    new = wanted.table.filter(pc.invert(is_known))
    new = new.filter(pc.invert(_is_renamed(new, known, wanted.table)))
    if len(new):
        manifest = make_manifest(
            wanted.dataset,
            Manifest(wanted.dataset, wanted.vocabulary, wanted.sources, wanted.seed, new).clips(),
            wanted.vocabulary,
            wanted.sources,
            seed=wanted.seed,
        )
        update = {"num_clips_asked": len(manifest), "manifest_sha256": manifest.sha256}
        book.add_part(part.model_copy(update=update), manifest)


def _refuse_changed(book: Book, wanted: pa.Table, known: pa.Table) -> None:
    """Raises InputError where two tables of the same keys differ in anything else."""
    if wanted.equals(known):
        return
    pairs = zip(wanted.to_pylist(), known.to_pylist(), strict=True)
    key = next(new["key"] for new, old in pairs if new != old)
    raise InputError(
        f"{book.location} has a clip {key} already, with another source, time, label or split; leave it out, or ingest "
        "into another store"
    )


def _is_renamed(new: pa.Table, known: pa.Table, wanted: pa.Table) -> pa.ChunkedArray:
    """Which clips are known by a key that the list has no longer: a file of the same name may have come beside one."""
    gone = known.filter(pc.invert(pc.is_in(known["key"], wanted["key"].combine_chunks())))
    return pc.is_in(_place(new), _place(gone).combine_chunks())


def _place(clips: pa.Table) -> pa.ChunkedArray:
    """Source and times of clips, as one text."""
    times = [pc.fill_null(clips[name].cast(pa.string()), "") for name in ("start_ms", "end_ms")]
    return pc.binary_join_element_wise(*times, clips["source"], " ")
