"""New stores out of clips of others, without their sources: subsets and merges copy the samples as they are."""

import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.copyteachers import copy_teachers
from featurestore.store import Store
from ingest.book import Book, read_parts
from ingest.index import read_index
from ingest.layout import MANIFEST_FILE, SHARD_FOLDER, STORE_FILE, Part, StoreFile, read_store_file
from ingest.ledger import LedgerRow
from ingest.location import Location
from ingest.progress import ProgressDisplay
from ingest.shards import commit_sidecar
from ingest.tarwriter import TarWriter
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
    damaged, or when `target` holds another store.
    """
    _check(choices)
    vocabulary = _union([choice.store.file.vocabulary for choice in choices])
    origins = [origin for choice in choices for origin in _origins(choice, dataset, vocabulary)]
    if not origins:
        raise InputError("no clip was chosen; choose other labels, keys or splits (`featurestore info` lists them)")
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
        raise InputError(f"{target} can't be written: {error.strerror or error}; run the same command again") from error


@dataclass(frozen=True)
class _Origin:
    """A part of the new store: its manifest, and the rows of `store` that it comes from."""

    store: Store
    rows: NDArray[np.int64]
    manifest: Manifest


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
    for sources, size in zip(file.sources[: store.snapshot.num_parts], file.part_sizes, strict=False):
        rows = choice.rows[(choice.rows >= first) & (choice.rows < first + size)]
        first += size
        if len(rows):
            manifest = Manifest(dataset, vocabulary, sources, store.file.seed, table.take(pa.array(rows)))
            origins.append(_Origin(store, rows, manifest))
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
        parts.append(Part(num_clips_asked=len(origin.manifest), manifest_sha256=sha256, wanted_sha256=sha256))
    largest = max(part.num_clips_asked for part in parts)
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
            recipe_sha256 = book.store.recipe_sha256(part)
            whole = sidecar is not None and book.location.size(book.store.tar_name(shard)) == sidecar.tar_size
            if not whole or sidecar is None or sidecar.recipe_sha256 != recipe_sha256:
                origin = origins[part]
                rows = origin.rows[first - first_rows[part] : stop - first_rows[part]]
                _copy_shard(book, shard, origin.store, rows, recipe_sha256)
            display.advance(stop - first)


def _copy_shard(book: Book, shard: int, source: Store, rows: NDArray[np.int64], recipe_sha256: str) -> None:
    vocabulary = None if source.file.vocabulary == book.store.vocabulary else book.store.vocabulary
    tar_name, sidecar_name = book.store.tar_name(shard), book.store.sidecar_name(shard)
    copied: list[LedgerRow] = []
    with book.location.writing(tar_name) as path:
        with path.open("wb") as file:
            writer = TarWriter(file)
            for row in rows.tolist():
                ledger_row = LedgerRow(**source.ledger(row))
                copied.append(
                    _copy_sample(writer, source, row, ledger_row, vocabulary) if ledger_row.ok else ledger_row
                )
            writer.close()
        book.location.delete(sidecar_name)
    commit_sidecar(book.location, sidecar_name, copied, writer, recipe_sha256)


def _copy_sample(
    writer: TarWriter, source: Store, row: int, old: LedgerRow, vocabulary: Vocabulary | None
) -> LedgerRow:
    """Copies all members of a clip; its JSON is written anew where the labels' positions differ."""
    if old.sample_offset is None or old.sample_size is None:
        raise _damaged(source, old.key)
    tar_name = source.tar_name(int(source.shard_of(np.array([row]))[0]))
    content = source.location.read_range(tar_name, old.sample_offset, old.sample_size)
    if zlib.crc32(content) != old.sample_crc32:
        raise _damaged(source, old.key)
    start = writer.start_sample()
    moved = start - old.sample_offset
    if vocabulary is None:
        writer.copy(content)
    else:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            member = tar.getmember(f"{old.key}.json")
        about = json.loads(content[member.offset_data : member.offset_data + member.size])
        writer.copy(content[: member.offset])
        writer.add(member.name, _relabelled(about, vocabulary))
    return replace(
        old,
        fbank_offset=_moved(old.fbank_offset, moved),
        hog_offset=_moved(old.hog_offset, moved),
        audio_offset=_moved(old.audio_offset, moved),
        sample_offset=start,
        sample_size=writer.size - start,
        sample_crc32=writer.sample_crc32,
    )


def _moved(offset: int | None, by: int) -> int | None:
    return None if offset is None else offset + by


def _relabelled(about: dict[str, Any], vocabulary: Vocabulary) -> bytes:
    return json.dumps({**about, "label_indices": vocabulary.indices(about["labels"])}, ensure_ascii=False).encode()


def _damaged(store: Store, key: str) -> InputError:
    return InputError(f"{store.location}: clip {key} is damaged; run `featurestore repair` first")
