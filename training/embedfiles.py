"""`training embed` behind the command line: embeddings of files or windows, to Parquet or Zarr."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ingest.atomic import move_in
from manifests.errors import InputError
from training.embedzarr import row_groups, write_zarr
from training.filewindows import Windows
from training.hearing import FileEnd, HeardWindow, HearingOptions, hear_files
from training.outplace import ZARR
from training.parts import Failure, Parts, open_parts, write_failures
from training.tagger import Tagger

Dtype = Literal["float16", "float32"]
FORMAT = "1"
SUFFIXES = (".parquet", ZARR)
# Rows are handed on, and make a row group, when they take so much.
GROUP_BYTES = 16 << 20


@dataclass(frozen=True)
class Embedding:
    """A model, how it is shown files, and what is kept of what it says; with tokens there is a row a window."""

    tagger: Tagger
    windows: Windows
    hearing: HearingOptions
    dtype: Dtype = "float32"
    per_window: bool = False
    with_tokens: bool = False

    @property
    def about(self) -> dict[str, Any]:
        """Whose embeddings these are, and of what: the metadata of the file."""
        rate_hz = self.tagger.sample_rate_hz
        return {
            "format": FORMAT,
            "acm_sskd": version("acm-sskd"),
            "model": self.tagger.name,
            "provenance": self.tagger.provenance,
            "row": "window" if self.per_window or self.with_tokens else "file: the mean over its windows",
            "sample_rate_hz": rate_hz,
            "window_s": self.windows.window / rate_hz,
            "hop_s": self.windows.hop / rate_hz,
            "embedding_dim": self.tagger.embedding_dim,
            "dtype": self.dtype,
            "tokens": self.with_tokens,
        }

    @property
    def schema(self) -> pa.Schema:
        """A row: file, start_s, end_s, embedding (D), and with tokens a list of L token features (D)."""
        vector = pa.list_(pa.from_numpy_dtype(np.dtype(self.dtype)), self.tagger.embedding_dim)
        fields = [
            pa.field("file", pa.string(), nullable=False),
            pa.field("start_s", pa.float64(), nullable=False),
            pa.field("end_s", pa.float64(), nullable=False),
            pa.field("embedding", vector, nullable=False),
        ]
        if self.with_tokens:
            fields.append(pa.field("tokens", pa.list_(vector), nullable=False))
        return pa.schema(fields, {"embeddings": json.dumps(self.about)})


def write_embeddings(
    files: Sequence[Path], embedding: Embedding, out: Path, began: Callable[[Parts], Callable[[int, str], None]]
) -> tuple[int, list[Failure]]:
    """Writes the embeddings of all files that can be read to `out`, whole or absent, and the others' ledger beside it.

    `began` is told what an earlier call left, and returns what counts files. Returns how many rows there are and what
    failed. Raises InputError where `out` can't be written.
    """

    def hear(left: Sequence[Path]) -> AbstractContextManager[Iterator[HeardWindow | FileEnd]]:
        return hear_files(left, embedding.tagger, embedding.windows, embedding.hearing)

    with open_parts(out, {"what": "embeddings", **embedding.about}, files) as parts:
        parts.write(files, hear, lambda path: _open_part(path, embedding), began(parts))
        place = parts.empty_place(f"result{out.suffix}")
        if out.suffix.lower() == ZARR:
            num_rows = write_zarr(place, parts.paths(), embedding.about)
            if out.exists():
                out.replace(parts.empty_place("replaced"))
        else:
            num_rows = _write_parquet(place, parts.paths(), embedding.schema)
        move_in(place, out)
        write_failures(out, parts.failures)
    return num_rows, parts.failures


class _EmbeddingPart:
    """A :class:`training.parts.PartWriter` of rows of `Embedding.schema`."""

    def __init__(self, writer: pq.ParquetWriter, embedding: Embedding) -> None:
        self._writer, self._embedding = writer, embedding
        self._rows: list[_Row] = []
        self._num_bytes = 0
        self._sum, self._num_windows, self._end_s = np.zeros(embedding.tagger.embedding_dim), 0, 0.0

    def add(self, file: str, window: HeardWindow) -> None:
        if self._embedding.with_tokens and window.tokens is None:
            raise InputError(f"the model {self._embedding.tagger.name!r} has no token features; leave out --tokens")
        if self._embedding.with_tokens or self._embedding.per_window:
            tokens = window.tokens if self._embedding.with_tokens else None
            self._keep(_Row(file, window.start_s, window.end_s, window.embedding, tokens))
        else:
            self._sum += window.embedding
            self._num_windows, self._end_s = self._num_windows + 1, window.end_s

    def end(self, file: str, *, ok: bool) -> None:
        if ok and self._num_windows:
            mean = (self._sum / self._num_windows).astype(np.float32)
            self._keep(_Row(file, 0.0, self._end_s, mean, None))
        self._sum, self._num_windows = np.zeros_like(self._sum), 0

    def flush(self) -> None:
        """Writes the rows that wait as a row group."""
        if self._rows:
            self._writer.write_table(_table(self._rows, self._embedding))
        self._rows, self._num_bytes = [], 0

    def _keep(self, row: "_Row") -> None:
        self._rows.append(row)
        self._num_bytes += row.embedding.nbytes + (0 if row.tokens is None else row.tokens.nbytes)
        if self._num_bytes >= GROUP_BYTES:
            self.flush()


class _Row(NamedTuple):
    """A row before it is written: embedding (D), tokens (L, D) or None."""

    file: str
    start_s: float
    end_s: float
    embedding: NDArray[np.float32]
    tokens: NDArray[np.float32] | None


@contextmanager
def _open_part(path: Path, embedding: Embedding) -> Iterator[_EmbeddingPart]:
    with pq.ParquetWriter(path, embedding.schema, compression="zstd") as writer:
        part = _EmbeddingPart(writer, embedding)
        yield part
        part.flush()


def _table(rows: list[_Row], embedding: Embedding) -> pa.Table:
    columns = [
        pa.array([row.file for row in rows]),
        pa.array([row.start_s for row in rows], pa.float64()),
        pa.array([row.end_s for row in rows], pa.float64()),
        _vectors(np.stack([row.embedding for row in rows]), embedding.dtype),
    ]
    if embedding.with_tokens:
        tokens = [row.tokens for row in rows if row.tokens is not None]
        starts = np.cumsum([0, *(len(one) for one in tokens)])
        columns.append(
            pa.ListArray.from_arrays(pa.array(starts, pa.int32()), _vectors(np.concatenate(tokens), embedding.dtype))
        )
    return pa.Table.from_arrays(columns, schema=embedding.schema)


def _vectors(values: NDArray[np.float32], dtype: Dtype) -> pa.FixedSizeListArray:
    """Vectors (N, D) as a column. Raises InputError where float16 can't hold them."""
    if dtype == "float16" and (largest := float(np.abs(values).max())) > np.finfo(np.float16).max:
        raise InputError(f"an embedding has values up to {largest:.3g}, too large for float16; use --dtype float32")
    flat = np.ascontiguousarray(values, dtype).ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])


def _write_parquet(place: Path, parts: Sequence[Path], schema: pa.Schema) -> int:
    """All parts as one file, in row groups of about GROUP_BYTES; returns the number of rows."""
    waiting, num_rows = list[pa.Table](), 0
    with pq.ParquetWriter(place, schema, compression="zstd") as writer:
        for table in row_groups(parts):
            num_rows += len(table)
            waiting.append(table)
            if sum(one.nbytes for one in waiting) >= GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    return num_rows
