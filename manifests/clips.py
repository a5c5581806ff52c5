"""A manifest: one row per clip asked for, in a seeded shuffle, kept as Parquet."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from manifests.errors import InputError
from manifests.vocabulary import Vocabulary

# So many clips are Python objects at a time; the rest of a list lies in Arrow's columns, a tenth of the size.
ROWS_A_BATCH = 1000
# A tar's ustar header holds 100 bytes of name, and KEY.fbank.npy must fit.
MAX_KEY_BYTES = 90
_KEY = re.compile(r"[^\s./\\:\x00-\x1f-][^\s./\\:\x00-\x1f]*")

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("start_ms", pa.int64()),
        pa.field("end_ms", pa.int64()),
        # named as Parquet gives it back: else a table that was read would be written with other bytes
        pa.field("labels", pa.list_(pa.field("element", pa.string())), nullable=False),
        pa.field("split", pa.string()),
        pa.field("fold", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip asked for.

    `source` is a path or an id (see :class:`Sources`); `start_ms` and `end_ms` cut it (None: from the start, to the
    end); `labels` are ids of the manifest's vocabulary.
    """

    key: str
    source: str
    start_ms: int | None = None
    end_ms: int | None = None
    labels: tuple[str, ...] = ()
    split: str | None = None
    fold: int | None = None


class Sources(BaseModel):
    """Where the sounds of a manifest's clips are found; no part of its hash, since they may move.

    files: `Clip.source` is a path below the folder `address`. named_by_id: it is the id of a recording, and the files
    somewhere below `address` are named by it. raw_cache: it is such an id, and `address` (a folder or an object store)
    is a cache of downloads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["files", "named_by_id", "raw_cache"]
    address: str


def read_parquet(path: Path) -> pa.Table:
    """Reads a table from an open file: Arrow would take a path with a ':' for an address."""
    with path.open("rb") as file:
        return pq.read_table(file)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes a table into an open file, as :func:`read_parquet` reads it."""
    with path.open("wb") as file:
        pq.write_table(table, file)


@dataclass(frozen=True)
class Manifest:
    """The clips of a dataset in shard order, their vocabulary, and where their sources are found."""

    dataset: str
    vocabulary: Vocabulary
    sources: Sources
    seed: int
    table: pa.Table

    @property
    def root(self) -> Path:
        """The folder that the files lie in, for the kinds of sources that have one."""
        return Path(self.sources.address)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def clips(self, start: int = 0, stop: int | None = None) -> Iterator[Clip]:
        """The clips of rows [start, stop), in order."""
        length = (len(self) if stop is None else min(stop, len(self))) - start
        for row in self.table.slice(start, length).to_pylist():
            yield Clip(**{**row, "labels": tuple(row["labels"])})

    @cached_property
    def sha256(self) -> str:
        """Hash of the content (rows, order, vocabulary, dataset), the same for every version of Parquet."""
        digest = hashlib.sha256(json.dumps([self.dataset, self.vocabulary.model_dump()]).encode())
        for batch in self.table.to_batches(max_chunksize=ROWS_A_BATCH):
            rows = json.dumps(batch.to_pylist(), sort_keys=True, ensure_ascii=False)[1:-1]
            # Hashed are the rows alone, without the commas between them. No string can look like one: its quotes would
            # be escaped.
            digest.update(rows.replace('}, {"end_ms"', '}{"end_ms"').encode())
        return digest.hexdigest()


def make_manifest(
    dataset: str,
    clips: Iterable[Clip],
    vocabulary: Vocabulary,
    sources: Sources | Path,
    *,
    seed: int = 0,
    where: str = "the list",
) -> Manifest:
    """Checks `clips` and puts them in the seeded shuffle that makes every shard a mixture of classes.

    `sources` may be the folder that the clips' files lie in.

    The order depends on the set of clips and on `seed` alone, not on the order in which they were listed.
    `where` names the list in errors. Raises InputError on an empty list, a bad or repeated key, an unknown label.
    """
    table = _to_table(clips, vocabulary, where)
    if not len(table):
        raise InputError(f"{where} has no clips; at least one is needed")
    by_key = pc.sort_indices(table["key"])
    _refuse_repeats(table, by_key, where)
    order = np.random.default_rng(seed).permutation(len(table))
    table = table.take(by_key.take(order))
    if isinstance(sources, Path):
        sources = Sources(kind="files", address=str(sources.resolve()))
    return Manifest(dataset=dataset, vocabulary=vocabulary, sources=sources, seed=seed, table=table)


def _to_table(clips: Iterable[Clip], vocabulary: Vocabulary, where: str) -> pa.Table:
    """The clips as one piece of columns, in their order, checked one by one."""
    clips = iter(clips)
    batches = []
    while rows := list(islice(clips, ROWS_A_BATCH)):
        for clip in rows:
            _check(clip, vocabulary, where)
        columns = {name: [getattr(clip, name) for clip in rows] for name in SCHEMA.names}
        batches.append(pa.record_batch(columns, schema=SCHEMA))
    return pa.Table.from_batches(batches, schema=SCHEMA).combine_chunks()


def _refuse_repeats(table: pa.Table, by_key: pa.Array, where: str) -> None:
    keys = table["key"].take(by_key)
    same = pc.index(pc.equal(keys[1:], keys[:-1]), True).as_py()
    if same >= 0:
        first, second = table["source"].take(by_key[same : same + 2]).to_pylist()
        raise InputError(
            f"{where}: the key {keys[same].as_py()!r} stands for two clips, {first} and {second}; "
            "keys must be unique: rename one"
        )


def _check(clip: Clip, vocabulary: Vocabulary, where: str) -> None:
    if not _KEY.fullmatch(clip.key) or len(clip.key.encode()) > MAX_KEY_BYTES:
        raise InputError(
            f"{where}: {clip.key!r} (of {clip.source}) can't be a key: a key has 1 to {MAX_KEY_BYTES} bytes, "
            "no space, '.', ':' or slash, and doesn't start with '-'"
        )
    if clip.start_ms is not None and clip.start_ms < 0:
        raise InputError(f"{where}: clip {clip.key} starts at {clip.start_ms} ms; expected 0 or later")
    if clip.end_ms is not None and clip.end_ms <= (clip.start_ms or 0):
        raise InputError(f"{where}: clip {clip.key} ends at {clip.end_ms} ms, which is not after its start")
    try:
        vocabulary.indices(clip.labels)
    except InputError as error:
        raise InputError(f"{where}: clip {clip.key} ({clip.source}): {error}") from error
