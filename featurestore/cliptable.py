"""All clips of a store as one table, for pandas, polars, duckdb and whatever else reads Arrow."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from featurestore.store import Store
from ingest.index import read_index
from ingest.ledger import SCHEMA as LEDGER_SCHEMA
from ingest.sidecar import read_sidecar
from manifests.clips import SCHEMA as MANIFEST_SCHEMA
from manifests.errors import InputError

# Of the index, which is one file; the ledgers' other columns lie in a file a shard.
INDEX_COLUMNS = ("ok", "reason", "detail")
DEFAULT_COLUMNS = (
    *("row", "key", "labels", "label_names", "split", "fold", "ok", "reason", "detail"),
    *("shard", "window_s", "source", "start_ms", "end_ms"),
)
LEDGER_COLUMNS = tuple(name for name in LEDGER_SCHEMA.names if name not in DEFAULT_COLUMNS)


def clip_table(store: Store, columns: Sequence[str] | None = None) -> pa.Table:
    """A row for every clip asked for, those that failed among them (`ok` is false, and `reason` says why).

    `row` is the clip's row of the store; `labels` are ids; `window_s` is the length of the sound in the window, before
    it is repeated to fill it. `columns`: these of DEFAULT_COLUMNS and LEDGER_COLUMNS, in this order; the latter are in
    a file a shard, and take as many reads. Raises InputError for a column that there isn't.
    """
    names = list(DEFAULT_COLUMNS if columns is None else columns)
    known = (*DEFAULT_COLUMNS, *LEDGER_COLUMNS)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"a store's table has no column {unknown[0]!r}; it has: {', '.join(known)}")
    found = {
        **_of_manifest(store, [name for name in names if name in MANIFEST_SCHEMA.names]),
        **_of_index(store, names),
        **_of_sidecars(store, [name for name in names if name in LEDGER_COLUMNS]),
        **_derived(store, names),
    }
    table = pa.table({name: found[name] for name in names})
    rows = store.rows(asked=True)
    return table if len(rows) == len(table) else table.take(pa.array(rows))


def _of_manifest(store: Store, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    return {name: store.column(name) for name in names}


def _of_index(store: Store, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    wanted = [name for name in INDEX_COLUMNS if name in names]
    if "window_s" in names:
        wanted.append("num_frames")
    if not wanted:
        return {}
    index = read_index(store.location, columns=tuple(wanted)).table.slice(0, store.snapshot.num_rows)
    found = {name: index[name] for name in wanted}
    if "window_s" in names:
        found["window_s"] = _window_s(store, index["num_frames"])
    return found


def _window_s(store: Store, num_frames: pa.ChunkedArray) -> pa.Array:
    """Seconds that so many frames cover: a shift each, but for the last one, which is a whole frame."""
    spec, failed = store.file.fbank, num_frames.is_null().to_numpy()
    frames = num_frames.fill_null(0).to_numpy()
    seconds = (spec.frame_length + (frames - 1) * spec.frame_shift) / spec.sample_rate_hz
    return pa.array(seconds.astype(np.float32), mask=failed)


def _of_sidecars(store: Store, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    if not names:
        return {}
    pieces = []
    for shard in range(store.snapshot.num_shards):
        sidecar = read_sidecar(store.location, store.file.sidecar_name(shard))
        if sidecar is None:
            raise InputError(
                f"{store.location} lacks the sidecar of shard {store.file.shard_stem(shard)}; run `featurestore repair`"
            )
        pieces.append(sidecar.ledger.select(names))
    table = pa.concat_tables(pieces)
    return {name: table[name] for name in names}


def _derived(store: Store, names: Sequence[str]) -> dict[str, pa.Array]:
    rows = np.arange(store.snapshot.num_rows)
    found = {}
    if "row" in names:
        found["row"] = pa.array(rows)
    if "shard" in names:
        found["shard"] = pa.array(store.shard_of(rows).astype(np.int32))
    if "label_names" in names:
        owners, positions = store.label_pairs(rows)
        ends = np.cumsum(np.bincount(owners, minlength=len(rows)))
        label_names = pa.array(store.file.vocabulary.names, pa.string()).take(pa.array(positions))
        found["label_names"] = pa.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), label_names)
    return found
