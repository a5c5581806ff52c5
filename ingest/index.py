"""What is written when a snapshot is closed: an index of all shards, checksums, and what other people's tools read."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ingest.layout import (
    CHECKSUM_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    STORE_FILE,
    WIDS_FILE,
    Snapshot,
    StoreFile,
    store_text,
)
from ingest.location import Location
from ingest.sidecar import Sidecar
from manifests.errors import InputError, first_line

# The ledgers' columns that opening a store takes; the others stay in the sidecars.
COLUMNS = ("key", "ok", "reason", "detail", "fbank_offset", "hog_offset", "num_frames")


class ShardEntry(BaseModel):
    """One shard in the index: hashes and size of its files, and the sums that mean and deviation come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tar_sha256: str
    tar_size: int
    sidecar_sha256: str
    num_clips: int  # in the tar
    fbank_sum: float
    fbank_sum_sq: float


_ENTRIES = TypeAdapter(tuple[ShardEntry, ...])


@dataclass(frozen=True)
class Index:
    """index.parquet: COLUMNS of the ledgers of all published shards, in the manifest's order, and an entry a shard.

    A later index begins with an earlier one's rows and entries, so it serves older snapshots as well.
    """

    table: pa.Table
    shards: tuple[ShardEntry, ...]


def shard_entry(sidecar: Sidecar, sidecar_content: bytes) -> ShardEntry:
    """The index's entry of a shard."""
    ledger = sidecar.ledger
    return ShardEntry(
        tar_sha256=sidecar.tar_sha256,
        tar_size=sidecar.tar_size,
        sidecar_sha256=hashlib.sha256(sidecar_content).hexdigest(),
        num_clips=int(np.sum(ledger["ok"].to_numpy())),
        fbank_sum=float(np.nansum(ledger["fbank_sum"].to_numpy())),
        fbank_sum_sq=float(np.nansum(ledger["fbank_sum_sq"].to_numpy())),
    )


def extended(index: Index | None, ledgers: list[pa.Table], entries: list[ShardEntry]) -> Index:
    """The index with further shards."""
    tables = [*([] if index is None else [index.table]), *(ledger.select(COLUMNS) for ledger in ledgers)]
    shards = (*(() if index is None else index.shards), *entries)
    return Index(pa.concat_tables(tables).combine_chunks(), shards)


def write_index(location: Location, index: Index) -> None:
    about = json.dumps([entry.model_dump() for entry in index.shards])
    buffer = io.BytesIO()
    pq.write_table(index.table.replace_schema_metadata({"shards": about}), buffer)
    location.write(INDEX_FILE, buffer.getvalue())


def open_table(location: Location, name: str) -> pa.NativeFile:
    """A file for Parquet's reader: in place on this machine's disks, so that columns not asked for cost nothing.

    Raises OSError.
    """
    # An empty file can't be mapped.
    if location.folder is not None and location.size(name):
        return pa.memory_map(str(location.folder / name))
    return pa.BufferReader(location.read(name))


def read_index(location: Location, *, columns: tuple[str, ...] = COLUMNS) -> Index:
    """Reads index.parquet; raises InputError where it is missing or damaged, OSError where the place can't be read."""
    where = f"{location}/{INDEX_FILE}"
    remedy = "run `featurestore repair` to make it anew from the shards"
    try:
        opened = open_table(location, INDEX_FILE)
    except FileNotFoundError as error:
        raise InputError(f"{where} is missing; {remedy}") from error
    try:
        file = pq.ParquetFile(opened)
        shards = _ENTRIES.validate_json(file.schema_arrow.metadata[b"shards"])
        table = file.read(columns=list(columns)).replace_schema_metadata(None)
        table.validate(full=True)
        return Index(table.select(columns), shards)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, ValidationError) as error:
        raise InputError(f"{where} is damaged ({first_line(error)}); {remedy}") from error


def last_rows(keys: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Of each key's rows the last one, which says what came of a clip that was tried again."""
    codes = keys.combine_chunks().dictionary_encode().indices.to_numpy()
    last = np.zeros(int(codes.max(initial=-1)) + 1, np.int64)
    last[codes] = np.arange(len(codes))
    is_last: NDArray[np.bool_] = last[codes] == np.arange(len(codes))
    return is_last


def make_snapshot(store: StoreFile, index: Index, number: int) -> Snapshot:
    """The snapshot of all parts of a store whose shards are in the index."""
    content = [store.recipe(), [part.manifest_sha256 for part in store.parts]]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for entry in index.shards:
        digest.update(entry.tar_sha256.encode())
    num_clips = sum(entry.num_clips for entry in index.shards)
    num_values = num_clips * store.fbank.num_frames * store.fbank.num_mel_bins
    mean = sum(entry.fbank_sum for entry in index.shards) / num_values
    mean_sq = sum(entry.fbank_sum_sq for entry in index.shards) / num_values
    return Snapshot(
        number=number,
        num_parts=len(store.parts),
        num_shards=len(index.shards),
        num_rows=store.num_rows,
        num_clips_asked=int(np.sum(last_rows(index.table["key"]))),
        num_clips=num_clips,
        mean=mean,
        std=float(np.sqrt(max(mean_sq - mean * mean, 0.0))),
        fingerprint=digest.hexdigest(),
    )


def wids_index(store: StoreFile, index: Index) -> str:
    """The index of wids-style readers."""
    shards = [
        {"url": store.tar_name(shard), "nsamples": entry.num_clips, "filesize": entry.tar_size}
        for shard, entry in enumerate(index.shards)
    ]
    content = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": store.dataset, "shardlist": shards}
    return json.dumps(content, indent=1) + "\n"


def checksums(location: Location, store: StoreFile, index: Index, described: Sequence[str]) -> str:
    """For `sha256sum -c`. The shards' hashes were taken as they were written; `described` are further small files."""
    sums = {}
    for shard, entry in enumerate(index.shards):
        sums[store.tar_name(shard)] = entry.tar_sha256
        sums[store.sidecar_name(shard)] = entry.sidecar_sha256
    for name in (MANIFEST_FILE, INDEX_FILE, WIDS_FILE, *described):
        sums[name] = hashlib.sha256(location.read(name)).hexdigest()
    # Written last, so that it vouches for the checksums' being there.
    sums[STORE_FILE] = hashlib.sha256(store_text(store).encode()).hexdigest()
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def read_checksums(location: Location) -> dict[str, str]:
    """SHA256SUMS: names to hashes. Raises InputError where it is missing or not such a file."""
    where = f"{location}/{CHECKSUM_FILE}"
    try:
        text = location.read(CHECKSUM_FILE).decode()
    except FileNotFoundError as error:
        raise InputError(f"{where} is missing; run the ingest command again") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is damaged; run the ingest command again") from error
    # Not splitlines, for which a damaged end of a line may still be one.
    lines = [line.split("  ", 1) for line in text.removesuffix("\n").split("\n")]
    if any(len(line) != 2 or len(line[0]) != 64 for line in lines) or not text.endswith("\n"):
        raise InputError(f"{where} is damaged; run the ingest command again")
    return {name: digest for digest, name in lines}
