"""New stores out of clips of others, without their sources: subsets and merges copy the samples as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from featurestore.copyshard import copy_shard
from featurestore.copyteachers import copy_teachers
from featurestore.store import Store
from ingest.book import Book, read_parts
from ingest.index import read_index
from ingest.layout import MANIFEST_FILE, SHARD_FOLDER, STORE_FILE, Part, StoreFile, read_store_file
from ingest.location import Location
from ingest.progress import ProgressDisplay
from manifests.clips import Manifest
from manifests.errors import InputError
from manifests.parts import ManifestFile
from manifests.vocabulary import Vocabulary


@dataclass(frozen=True)
class Choice:
    """Clips of one store, as rows in its order; those that failed may be among them, so that coverage stays known."""

    store: Store
    rows: NDArray[np.int64]


def copy_clips(choices: Sequence[Choice], target: Location, dataset: str) -> StoreFile:
    """Makes a store at `target` of the chosen clips; each part of each store becomes a part of it.

    Stopped anywhere, the same call goes on. Raises InputError when the stores don't fit together, share a key, are
    damaged, when none of the clips is in a shard, or when `target` holds another store, or lies in one of them.
    """
    _check(choices)
    _refuse_overlap(choices, target)
    vocabulary = _union([choice.store.file.vocabulary for choice in choices])
    origins = [origin for choice in choices for origin in _origins(choice, dataset, vocabulary)]
    _refuse_nothing(origins)
    _refuse_shared_keys(origins)
    store = _new_store(choices, origins, dataset, vocabulary)
    try:
        target.create()
        with target.lock("copy"):
            for folder in ("", SHARD_FOLDER):
                target.remove_stale(folder)
            book = _open_target(target, store, [origin.manifest for origin in origins])
            _copy_shards(book, origins)
            book.close()
        copy_teachers(Store(target), [(origin.store, origin.rows) for origin in origins])
        return book.store
    except OSError as error:
        trouble = (error.strerror or str(error)).removeprefix(f"{target} ")
        raise InputError(
            f"{target} can't be written: {trouble}; what was finished is kept, make room or mend the place and run the "
            "same command again"
        ) from error


@dataclass(frozen=True)
class _Origin:
    """A part of the new store: its manifest, the rows of `store` that it comes from, and the lists they were in."""

    store: Store
    rows: NDArray[np.int64]
    manifest: Manifest
    lists: Mapping[str, str]


def _check(choices: Sequence[Choice]) -> None:
    first = choices[0].store
    for choice in choices[1:]:
        for name in ("fbank", "hog", "keep_audio"):
            ours, theirs = getattr(first.file, name), getattr(choice.store.file, name)
            if ours != theirs:
                raise InputError(
                    f"{first.location} and {choice.store.location} differ in {name} ({ours} and {theirs}); only stores "
                    "of one kind can be merged: ingest one of them again"
                )


def _refuse_overlap(choices: Sequence[Choice], target: Location) -> None:
    """Published stores don't change, and a store holds no files of another."""
    inside = f"{_whole_address(target)}/"
    for choice in choices:
        outside = f"{_whole_address(choice.store.location)}/"
        if inside.startswith(outside) or outside.startswith(inside):
            raise InputError(
                f"{target} is, holds or lies in the store {choice.store.location}, which is to be copied; choose "
                "another folder with --to"
            )


def _whole_address(location: Location) -> str:
    return location.address if location.folder is None else str(location.folder.resolve())


def _refuse_nothing(origins: Sequence[_Origin]) -> None:
    if not origins:
        raise InputError("no clip was chosen; choose other labels, keys or splits (`featurestore info` lists them)")
    if not any(origin.store.ok[origin.rows].any() for origin in origins):
        num_clips = sum(len(origin.rows) for origin in origins)
        raise InputError(
            f"all of the {num_clips} clips chosen have failed, so that there is nothing to copy; `ingest status` says "
            "why; choose others"
        )


def _union(vocabularies: Sequence[Vocabulary]) -> Vocabulary:
    """The first one's labels in their order, then what the others add."""
    labels = {label.id: label for vocabulary in reversed(vocabularies) for label in vocabulary.labels}
    order = dict.fromkeys(label.id for vocabulary in vocabularies for label in vocabulary.labels)
    return Vocabulary(labels=tuple(labels[label_id] for label_id in order))


def _origins(choice: Choice, dataset: str, vocabulary: Vocabulary) -> list[_Origin]:
    store = choice.store
    where = f"{store.location}/{MANIFEST_FILE}"
    file = ManifestFile(pa.BufferReader(store.location.read(MANIFEST_FILE)), where)
    table = file.columns(num_rows=store.snapshot.num_rows)
    origins, first = [], 0
    for sources, part in zip(file.sources, store.file.parts[: store.snapshot.num_parts], strict=False):
        size = part.num_clips_asked
        rows = choice.rows[(choice.rows >= first) & (choice.rows < first + size)]
        first += size
        if len(rows):
            manifest = Manifest(dataset, vocabulary, sources, store.file.seed, table.take(pa.array(rows)))
            origins.append(_Origin(store, rows, manifest, part.lists))
    return origins


def _refuse_shared_keys(origins: Sequence[_Origin]) -> None:
    seen: dict[str, _Origin] = {}
    for origin in origins:
        for key in origin.manifest.table["key"].to_pylist():
            if seen.setdefault(key, origin) is not origin:
                raise InputError(
                    f"the clip {key} is in {seen[key].store.location} and in {origin.store.location}; leave it out of "
                    "one of them first, with `featurestore subset`"
                )


def _new_store(
    choices: Sequence[Choice], origins: Sequence[_Origin], dataset: str, vocabulary: Vocabulary
) -> StoreFile:
    first = choices[0].store.file
    parts = []
    for origin in origins:
        sha256 = origin.manifest.sha256
        clips = {"num_clips_asked": len(origin.manifest), "manifest_sha256": sha256, "wanted_sha256": sha256}
        parts.append(Part.model_validate({**clips, "lists": origin.lists}))
    largest = max(part.num_clips_asked for part in parts)
    try:
        return StoreFile(
            dataset=dataset,
            clips_per_shard=min(max(choice.store.file.clips_per_shard for choice in choices), largest),
            seed=first.seed,
            keep_audio=first.keep_audio,
            # Silent clips that were left out stay settled; those that were kept must be made again as they are.
            drop_silent=all(choice.store.file.drop_silent for choice in choices),
            fbank=first.fbank,
            hog=first.hog,
            vocabulary=vocabulary,
            versions=first.versions,
            parts=tuple(parts),
        )
    except ValidationError as error:  # all the rest is of stores that are valid
        raise InputError(
            f"{dataset!r} can't be a dataset's name, as it becomes part of file names; give one of letters, digits and "
            "_+=,@- with --name"
        ) from error


def _open_target(target: Location, store: StoreFile, manifests: list[Manifest]) -> Book:
    if not target.exists(STORE_FILE):
        book = Book(target, store, manifests, None)
        book.save()
        return book
    found = read_store_file(target)
    if found.recipe() != store.recipe() or found.parts != store.parts:
        raise InputError(f"{target} holds another store; choose another folder with --to, or delete it")
    return Book(target, found, read_parts(target, found), read_index(target) if found.snapshots else None)


def _copy_shards(book: Book, origins: Sequence[_Origin]) -> None:
    first_rows = np.cumsum([0, *(len(origin.rows) for origin in origins)])
    with ProgressDisplay("clips", book.store.num_rows) as display:
        for shard, (part, first, stop) in enumerate(book.store.shard_rows()):
            sidecar = book.sidecar(shard)
            whole = sidecar is not None and book.location.size(book.store.tar_name(shard)) == sidecar.tar_size
            if not whole or sidecar is None or sidecar.recipe_sha256 != book.store.recipe_sha256(part):
                rows = origins[part].rows[first - first_rows[part] : stop - first_rows[part]]
                copy_shard(book, shard, origins[part].store, rows)
            display.advance(stop - first)
