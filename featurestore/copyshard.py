"""One shard of a copy: samples as they lie in the tars of another store, side by side."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from featurestore.store import Store
from ingest.book import Book
from ingest.ledger import LedgerRow, moved
from ingest.sidecar import commit_sidecar
from ingest.tarwriter import TarWriter
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary

# Clips that lie side by side are read together, up to so many bytes: an object store takes its time for each request.
MAX_READ_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class _Sample:
    """Where the members of a clip lie: bytes [start, stop) of a tar of its store."""

    row: LedgerRow
    shard: int
    start: int
    stop: int


def copy_shard(book: Book, shard: int, source: Store, rows: NDArray[np.int64]) -> None:
    """Makes a shard of the clips in the `rows` of `source`; failed ones stay failed, for the same reasons.

    Raises InputError, and leaves what there is, when `source` is damaged there, or the shard is published and comes to
    other bytes.
    """
    ledger = _ledger(source, rows)
    # A clip's JSON names its labels' positions and names, which are the vocabulary's.
    vocabulary = None if source.file.vocabulary == book.store.vocabulary else book.store.vocabulary
    tar_name, sidecar_name = book.store.tar_name(shard), book.store.sidecar_name(shard)
    copied: dict[str, LedgerRow] = {}
    with book.location.writing(tar_name) as path:
        with path.open("wb") as file:
            writer = TarWriter(file)
            for sample, content in _read_samples(source, rows, ledger):
                copied[sample.row.key] = _copy_sample(writer, sample, content, vocabulary)
            writer.close()
        _check_published(book, shard, source, writer.sha256)
        book.location.delete(sidecar_name)
    copied_rows = [copied.get(row.key, row) for row in ledger]
    commit_sidecar(book.location, sidecar_name, copied_rows, writer, book.store.recipe_sha256(book.part_of(shard)))


def _ledger(source: Store, rows: NDArray[np.int64]) -> list[LedgerRow]:
    """The ledger rows, of sidecars that are those of the index."""
    for shard in np.unique(source.shard_of(rows)).tolist():
        name = source.file.sidecar_name(shard)
        try:
            content = source.location.read(name)
        except OSError as error:
            raise _unreadable(source, name, error) from error
        if hashlib.sha256(content).hexdigest() != source.shards[shard].sidecar_sha256:
            raise InputError(f"{source.location}/{name} is damaged; run `featurestore repair` first")
    return [LedgerRow(**source.ledger(row)) for row in rows.tolist()]


def _read_samples(source: Store, rows: NDArray[np.int64], ledger: list[LedgerRow]) -> Iterator[tuple[_Sample, bytes]]:
    """The clips that are in their shards, with the bytes of their members."""
    shards = source.shard_of(rows).tolist()
    samples = [_sample(source, row, shard) for row, shard in zip(ledger, shards, strict=True) if row.ok]
    for run in _runs(samples):
        first, size = run[0], run[-1].stop - run[0].start
        tar_name = source.tar_name(first.shard)
        try:
            content = source.location.read_range(tar_name, first.start, size)
        except OSError as error:
            raise _unreadable(source, tar_name, error) from error
        for sample in run:
            part = content[sample.start - first.start : sample.stop - first.start]
            if zlib.crc32(part) != sample.row.sample_crc32:
                raise _damaged(source, sample.row.key)
            yield sample, part


def _sample(source: Store, row: LedgerRow, shard: int) -> _Sample:
    if row.sample_offset is None or row.sample_size is None:
        raise _damaged(source, row.key)
    return _Sample(row, shard, row.sample_offset, row.sample_offset + row.sample_size)


def _runs(samples: list[_Sample]) -> Iterator[list[_Sample]]:
    """Samples that lie side by side in one tar."""
    run: list[_Sample] = []
    for sample in samples:
        joins = run and (sample.shard, sample.start) == (run[-1].shard, run[-1].stop)
        if run and not (joins and sample.stop - run[0].start <= MAX_READ_BYTES):
            yield run
            run = []
        run.append(sample)
    if run:
        yield run


def _copy_sample(writer: TarWriter, sample: _Sample, content: bytes, vocabulary: Vocabulary | None) -> LedgerRow:
    """Copies all members of a clip; its JSON is written anew where the vocabulary is another."""
    old, start = sample.row, writer.start_sample()
    if vocabulary is None:
        writer.copy(content)
    else:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            member = tar.getmember(f"{old.key}.json")
        writer.copy(content[: member.offset])
        about = content[member.offset_data : member.offset_data + member.size]
        writer.add(member.name, _relabelled(about, vocabulary))
    size = writer.size - start
    return replace(moved(old, start), sample_size=size, sample_crc32=writer.sample_crc32)


def _relabelled(content: bytes, vocabulary: Vocabulary) -> bytes:
    """KEY.json as an ingest with this vocabulary would write it."""
    about = json.loads(content)
    positions = vocabulary.indices(about["labels"])
    names = [vocabulary.labels[position].name for position in positions]
    return json.dumps({**about, "label_names": names, "label_indices": positions}, ensure_ascii=False).encode()


def _check_published(book: Book, shard: int, source: Store, tar_sha256: str) -> None:
    if book.index is not None and book.is_published(shard) and book.index.shards[shard].tar_sha256 != tar_sha256:
        raise InputError(
            f"{source.location} has changed since {book.location} was made of it: {book.store.shard_stem(shard)} would "
            "come to other bytes than its snapshot names, and stays as it is; choose another folder with --to"
        )


def _damaged(source: Store, key: str) -> InputError:
    return InputError(f"{source.location}: clip {key} is damaged; run `featurestore repair` first")


def _unreadable(source: Store, name: str, error: OSError) -> InputError:
    remedy = "run `featurestore repair` first" if isinstance(error, FileNotFoundError) else "run the same command again"
    return InputError(f"{source.location}/{name} can't be read ({error.strerror or error}); {remedy}")
