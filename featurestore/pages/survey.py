"""What is said of the whole store: classes, failures, levels, lengths, and clips that sound the same."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.store import Store
from ingest.index import read_index
from ingest.progress import ProgressDisplay
from ingest.sidecar import read_sidecar
from manifests.errors import InputError

MAX_FAILURES = 5_000
MAX_EQUAL_GROUPS = 500
_ROWS_A_BLOCK = 10_000
# Digital silence; what is quieter counts with it, and what is louder than the last edge with the last bar.
_FLOOR_DBFS = -96.0
_LEVEL_EDGES_DBFS = np.arange(_FLOOR_DBFS, 6.1, 6.0)
_DURATION_EDGES_S = np.array([0, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 20, 30, 60, 120, 300, 600, 1800, np.inf])
# So many hexadecimal digits of a sha256 tell two million clips apart.
_HASH_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between edges: counts[i] in [edges[i], edges[i + 1]); the last edge may be infinite."""

    edges: list[float]
    counts: list[int]

    def bars(self) -> Iterator[tuple[str, int]]:
        """What each bar covers, in words, and its count."""
        for (low, high), count in zip(pairwise(self.edges), self.counts, strict=True):
            yield (f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} and more"), count


@dataclass(frozen=True, slots=True)
class Failure:
    """A clip that is not in the store, and why."""

    row: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Survey:
    """asked, present (num_classes,): clips a class; of the failures `failures` holds the first MAX_FAILURES.

    rms and peak are in dB of full scale, of the windows; durations in s, of the sources, and audible in s, of the
    windows before they are repeated. `equal` are rows of clips whose fbanks are equal bit by bit, silence left out;
    `ledger` holds the ledger's rows of the clips that were asked for.
    """

    asked: NDArray[np.int64]
    present: NDArray[np.int64]
    reasons: Counter[str]
    failures: list[Failure]
    histograms: dict[str, Histogram]
    equal: list[list[int]]
    ledger: dict[int, dict[str, Any]] = field(repr=False)


def survey(store: Store, rows: NDArray[np.int64]) -> Survey:
    """Reads all ledgers of a store once; `rows`: the clips whose ledger rows are wanted."""
    asked = store.rows(asked=True)
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in ("rms", "peak", "duration_s", "num_frames")}
    hashes: list[pa.Array] = []
    ledger: dict[int, dict[str, Any]] = {}
    with ProgressDisplay("shards", store.snapshot.num_shards) as display:
        for shard in range(store.snapshot.num_shards):
            table = _ledger(store, shard)
            inside = store.rows_of_shard(shard)
            wanted = rows[(rows >= inside[0]) & (rows <= inside[-1])]
            ledger |= dict(zip(wanted.tolist(), table.take(pa.array(wanted - inside[0])).to_pylist(), strict=True))
            for name, parts in columns.items():
                parts.append(table.filter(table["ok"])[name].to_numpy().astype(np.float32))
            sounds = pc.if_else(pc.invert(table["silent"]), table["fbank_sha256"], pa.scalar(None, pa.string()))
            hashes.append(pc.utf8_slice_codeunits(sounds, 0, _HASH_DIGITS))
            display.advance(1)
    failed = asked[~store.ok[asked]]
    reasons, failures = _failures(store, failed)
    values = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Survey(
        asked=_by_class(store, asked),
        present=_by_class(store, asked[store.ok[asked]]),
        reasons=reasons,
        failures=failures,
        histograms=_histograms(values, store.file.fbank.frame_shift_ms),
        equal=_equal(pa.chunked_array([chunk for part in hashes for chunk in part.chunks], pa.string())),
        ledger=ledger,
    )


def _ledger(store: Store, shard: int) -> pa.Table:
    sidecar = read_sidecar(store.location, store.file.sidecar_name(shard))
    if sidecar is None:
        raise InputError(
            f"{store.location} lacks the sidecar of {store.file.shard_stem(shard)}; run `featurestore repair`"
        )
    return sidecar.ledger


def _by_class(store: Store, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    counts = np.zeros(store.num_classes, np.int64)
    for start in range(0, len(rows), _ROWS_A_BLOCK):
        counts += store.labels(rows[start : start + _ROWS_A_BLOCK]).sum(0, dtype=np.float64).astype(np.int64)
    return counts


def _failures(store: Store, rows: NDArray[np.int64]) -> tuple[Counter[str], list[Failure]]:
    index = read_index(store.location, columns=("key", "ok", "reason", "detail")).table
    reasons = Counter(
        {item["values"]: item["counts"] for item in pc.value_counts(index["reason"].take(pa.array(rows))).to_pylist()}
    )
    listed = rows[:MAX_FAILURES]
    told = index.select(["reason", "detail"]).take(pa.array(listed)).to_pylist()
    failures = [
        Failure(row, one["reason"], one["detail"] or "") for row, one in zip(listed.tolist(), told, strict=True)
    ]
    return reasons, failures


def _histograms(values: dict[str, NDArray[Any]], frame_shift_ms: int) -> dict[str, Histogram]:
    return {
        "rms": _histogram(_dbfs(values["rms"]), _LEVEL_EDGES_DBFS),
        "peak": _histogram(_dbfs(values["peak"]), _LEVEL_EDGES_DBFS),
        "duration": _histogram(values["duration_s"], _DURATION_EDGES_S),
        "audible": _histogram(values["num_frames"] * frame_shift_ms / 1000, _DURATION_EDGES_S),
    }


def _dbfs(amplitude: NDArray[Any]) -> NDArray[Any]:
    """Decibels of full scale, at least those of silence."""
    levels: NDArray[Any] = 20 * np.log10(np.maximum(amplitude, 10 ** (_FLOOR_DBFS / 20)))
    return levels


def _histogram(values: NDArray[Any], edges: NDArray[np.float64]) -> Histogram:
    """Counts of the finite values, without the empty bars at both ends."""
    bins = np.searchsorted(edges, values[np.isfinite(values)], side="right") - 1
    counts = np.bincount(bins.clip(0, len(edges) - 2), minlength=len(edges) - 1)
    used = np.flatnonzero(counts)
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, -1)
    return Histogram(edges[first : last + 2].tolist() if len(used) else [], counts[first : last + 1].tolist())


def _equal(hashes: pa.ChunkedArray) -> list[list[int]]:
    """Rows that share a hash, the first MAX_EQUAL_GROUPS such groups."""
    codes = hashes.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64)
    rows = np.flatnonzero(codes >= 0)
    rows = rows[np.argsort(codes[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(codes[rows], prepend=-1))
    groups: Sequence[NDArray[np.int64]] = [part for part in np.split(rows, starts[1:]) if len(part) > 1]
    return sorted(part.tolist() for part in groups)[:MAX_EQUAL_GROUPS]
