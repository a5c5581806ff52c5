"""Embeddings as a Zarr v3 group: arrays of numbers, and the files' names among its attributes."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

CHUNK_BYTES = 16 << 20


def write_zarr(place: Path, parts: Sequence[Path], about: dict[str, Any]) -> int:
    """Writes the rows of Parquet files to a new group, and returns how many there are.

    Arrays: `embedding` (N, D), `start_s`, `end_s`, `file_index` (N,) into the attribute `files`, and, of parts with
    tokens, `tokens` (N, L, D), NaN behind the last of a window that has fewer, and `num_tokens` (N,).
    """
    num_rows = sum(int(pq.read_metadata(path).num_rows) for path in parts)
    num_tokens = max((_longest(table) for table in row_groups(parts, ["tokens"])), default=0) if about["tokens"] else 0
    group = zarr.open_group(place, mode="w", zarr_format=3)
    files = _fill(group, parts, num_rows, num_tokens, about)
    group.update_attributes({**about, "files": files})
    return num_rows


def _fill(group: zarr.Group, parts: Sequence[Path], num_rows: int, num_tokens: int, about: dict[str, Any]) -> list[str]:
    width, dtype = about["embedding_dim"], about["dtype"]
    arrays = {"embedding": _create(group, "embedding", (num_rows, width), dtype)}
    for name, kind in (("start_s", "float64"), ("end_s", "float64"), ("file_index", "int64")):
        arrays[name] = _create(group, name, (num_rows,), kind)
    if about["tokens"]:
        arrays["tokens"] = _create(group, "tokens", (num_rows, num_tokens, width), dtype)
        arrays["num_tokens"] = _create(group, "num_tokens", (num_rows,), "int32")
    files: list[str] = []
    start = 0
    for table in row_groups(parts):
        rows = slice(start, start + len(table))
        for name, values in _columns(table, files, num_tokens, width).items():
            arrays[name][rows] = values
        start += len(table)
    return files


def _columns(table: pa.Table, files: list[str], num_tokens: int, width: int) -> dict[str, Any]:
    """A row group as arrays; `files` is continued by those that are new, which come one after the other."""
    indices = []
    for file in table["file"].to_pylist():
        if not files or files[-1] != file:
            files.append(file)
        indices.append(len(files) - 1)
    columns: dict[str, Any] = {
        "file_index": np.array(indices),
        "start_s": table["start_s"].to_numpy(),
        "end_s": table["end_s"].to_numpy(),
        "embedding": _flat(table["embedding"]).reshape(len(table), width),
    }
    if "tokens" in table.column_names:
        lists = table["tokens"].combine_chunks()
        values, counts = _flat(lists.flatten()).reshape(-1, width), lists.value_lengths().to_numpy()
        tokens = np.full((len(table), num_tokens, width), np.nan, values.dtype)
        tokens[np.arange(num_tokens) < counts[:, None]] = values
        columns |= {"tokens": tokens, "num_tokens": counts}
    return columns


def _flat(vectors: Any) -> Any:
    array = vectors.combine_chunks() if isinstance(vectors, pa.ChunkedArray) else vectors
    return array.flatten().to_numpy()


def _create(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str) -> Any:
    bytes_a_row = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    num_rows = max(1, min(max(shape[0], 1), CHUNK_BYTES // max(bytes_a_row, 1)))
    fill = 0 if dtype.startswith("int") else np.nan
    return group.create_array(name, shape=shape, chunks=(num_rows, *shape[1:]), dtype=dtype, fill_value=fill)


def row_groups(parts: Sequence[Path], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of Parquet files, one after the other."""
    for path in parts:
        with pq.ParquetFile(path) as part:
            for number in range(part.num_row_groups):
                yield part.read_row_group(number, columns)


def _longest(table: pa.Table) -> int:
    return int(table["tokens"].combine_chunks().value_lengths().to_numpy().max())
