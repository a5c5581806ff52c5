"""Checks one shard: tar against sidecar against index, and every clip's members, shapes and values."""

import hashlib
import io
import json
import tarfile
import tokenize
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ingest.index import COLUMNS, ShardEntry
from ingest.layout import StoreFile
from ingest.ledger import LedgerRow
from ingest.location import Location
from ingest.sidecar import Sidecar, read_sidecar
from manifests.errors import InputError


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong: in which file, with which clip (None: the whole file), and what; `shard`: of a shard's file."""

    where: str
    key: str | None
    what: str
    shard: int | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.key is None else f"{self.where}: clip {self.key}: {self.what}"


@dataclass(frozen=True, slots=True)
class Expected:
    """What a shard must be: its entry and its rows in the index (None where the index can't be read), and its clips."""

    entry: ShardEntry | None
    index: pa.Table | None
    keys: list[str] | None
    recipe_sha256: str


def check_shard(location: Location, store: StoreFile, shard: int, expected: Expected) -> list[Problem]:
    """Everything that is wrong with a shard. Reads the whole tar into memory."""
    tar_name, sidecar_name = store.tar_name(shard), store.sidecar_name(shard)
    try:
        sidecar = read_sidecar(location, sidecar_name)
    except InputError as error:
        return [Problem(sidecar_name, None, str(error).split("; run ")[0], shard)]
    if sidecar is None:
        return [Problem(sidecar_name, None, "is missing", shard)]
    problems = [
        Problem(sidecar_name, None, what, shard) for what in _check_sidecar(location, sidecar_name, sidecar, expected)
    ]
    try:
        content = location.read(tar_name)
    except FileNotFoundError:
        return [*problems, Problem(tar_name, None, "is missing", shard)]
    rows = [LedgerRow(**row) for row in sidecar.ledger.to_pylist()]
    for key, what in _check_tar(content, sidecar, rows, store):
        problems.append(Problem(tar_name, key, what, shard))
    return problems


def _check_sidecar(location: Location, name: str, sidecar: Sidecar, expected: Expected) -> Iterator[str]:
    if expected.keys is not None and sidecar.ledger["key"].to_pylist() != expected.keys:
        yield "names other clips than the manifest"
    if sidecar.recipe_sha256 != expected.recipe_sha256:
        yield "was made by another recipe than store.json's"
    if expected.entry is None or expected.index is None:
        return
    if hashlib.sha256(location.read(name)).hexdigest() != expected.entry.sidecar_sha256:
        yield "its sha256 is not the index's"
    if (sidecar.tar_sha256, sidecar.tar_size) != (expected.entry.tar_sha256, expected.entry.tar_size):
        yield "names another tar than the index"
    if not sidecar.ledger.select(COLUMNS).combine_chunks().equals(expected.index.combine_chunks()):
        yield "differs from the index"


def _check_tar(
    content: bytes, sidecar: Sidecar, rows: list[LedgerRow], store: StoreFile
) -> Iterator[tuple[str | None, str]]:
    """What is wrong with a tar, by clip where one can be named."""
    if len(content) != sidecar.tar_size:
        yield None, f"has {len(content)} bytes, its sidecar says {sidecar.tar_size}"
    if hashlib.sha256(content).hexdigest() != sidecar.tar_sha256:
        yield None, "its sha256 is not the sidecar's"
    end = 0
    for row in rows:
        if row.ok:
            yield from ((row.key, what) for what in _check_clip(store, row, content))
            if row.sample_offset != end:
                yield row.key, f"lies at {row.sample_offset}, and the clip before it ends at {end}"
            end = (row.sample_offset or 0) + (row.sample_size or 0)
    if content[end:].strip(b"\0"):
        yield None, f"holds something behind its last clip, which ends at {end}"


def _member_names(store: StoreFile, row: LedgerRow) -> list[str]:
    endings = ["fbank.npy", "hog.npy", *(["flac"] if store.keep_audio else []), "json"]
    return [f"{row.key}.{ending}" for ending in endings]


def _check_clip(store: StoreFile, row: LedgerRow, content: bytes) -> Iterator[str]:
    if row.sample_offset is None or row.sample_size is None:
        yield "its ledger row doesn't say where it lies"
        return
    # By itself, so that damage stays with its clip.
    sample = content[row.sample_offset : row.sample_offset + row.sample_size]
    if zlib.crc32(sample) != row.sample_crc32:
        yield "its bytes are not those that were written (CRC-32)"
    try:
        with tarfile.open(fileobj=io.BytesIO(sample), mode="r:") as tar:
            members = {member.name: member for member in tar}
    except tarfile.TarError as error:
        yield f"its members can't be read ({error})"
        return
    if list(members) != _member_names(store, row):
        yield f"the tar has {', '.join(members)} in its place"
        return
    spec, hog = store.fbank, store.hog
    cells = (spec.num_frames // hog.cell_size, spec.num_mel_bins // hog.cell_size, hog.num_orientations)
    shapes = {"fbank": (spec.num_frames, spec.num_mel_bins), "hog": cells}
    for name, offset in (("fbank", row.fbank_offset), ("hog", row.hog_offset)):
        member = members[f"{row.key}.{name}.npy"]
        relative = None if offset is None else offset - row.sample_offset
        yield from _check_array(sample, member, name, shapes[name], relative)
    about = members[f"{row.key}.json"]
    try:
        if json.loads(sample[about.offset_data : about.offset_data + about.size])["key"] != row.key:
            yield "its JSON names another clip"
    except (ValueError, KeyError, TypeError):
        yield "its JSON can't be read"


def _check_array(
    sample: bytes, member: tarfile.TarInfo, name: str, shape: tuple[int, ...], offset: int | None
) -> Iterator[str]:
    """`offset`: where the index places the array's data, from the sample's start."""
    stored = sample[member.offset_data : member.offset_data + member.size]
    try:
        array = np.lib.format.read_array(io.BytesIO(stored), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        yield f"its {name} is not a readable npy ({error})"
        return
    if array.shape != shape or array.dtype != np.float16:
        yield f"its {name} is {array.dtype} {array.shape}, expected float16 {shape}"
    elif not np.isfinite(array).all():
        yield f"its {name} holds NaN or Inf"
    if offset != member.offset_data + member.size - array.nbytes:
        yield f"its {name} is not where the index places it"
