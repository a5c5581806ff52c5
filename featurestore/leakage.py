"""What training must not have heard: recordings and sounds that are on both sides of a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.store import Store
from ingest.shards import read_sidecar
from manifests.errors import InputError

Kind = Literal["recording", "audio"]


@dataclass(frozen=True, slots=True)
class Leak:
    """Two clips of different parts: of one recording, or with equal sound (the same fbank, bit by bit)."""

    kind: Kind
    part: str
    key: str
    other_part: str
    other_key: str

    def __str__(self) -> str:
        what = "are of one recording" if self.kind == "recording" else "sound the same"
        return f"{self.key} ({self.part}) and {self.other_key} ({self.other_part}) {what}"


def find_leaks(stores: Sequence[Store]) -> list[Leak]:
    """Pairs of clips, one for every clip that has an equal in another part; a part is a split, else a fold, of a store.

    Digital silence is left out: it always sounds the same. Raises InputError when there is but one part.
    """
    table = pa.concat_tables([_clips(store, str(store.location) if len(stores) > 1 else "") for store in stores])
    parts = sorted(set(table["part"].to_pylist()))
    if len(parts) < 2:
        raise InputError(
            f"{stores[0].location} has no splits or folds to compare; name a second store: `featurestore leakage A B`"
        )
    return [*_pairs(table, "recording"), *_pairs(table, "audio")]


def _clips(store: Store, prefix: str) -> pa.Table:
    """Of every clip that is in its shard: its key, part, recording and the hash of its sound."""
    rows = np.flatnonzero(store.ok)
    columns = {name: store.column(name).take(pa.array(rows)).to_pylist() for name in ("key", "split", "fold", "source")}
    names = [_part(prefix, split, fold) for split, fold in zip(columns["split"], columns["fold"], strict=True)]
    homes = _homes(store)
    shards = store.shard_of(rows)
    recordings = [homes[shard] + source for shard, source in zip(shards.tolist(), columns["source"], strict=True)]
    hashes = pa.chunked_array([_audio_hashes(store, shard) for shard in range(store.snapshot.num_shards)], pa.string())
    return pa.table(
        {"key": columns["key"], "part": names, "recording": recordings, "audio": hashes.take(pa.array(rows))},
        schema=pa.schema([(name, pa.string()) for name in ("key", "part", "recording", "audio")]),
    )


def _part(prefix: str, split: str | None, fold: int | None) -> str:
    name = split if split is not None else "" if fold is None else f"fold {fold}"
    return ": ".join(part for part in (prefix, name) if part) or "all"


def _homes(store: Store) -> list[str]:
    """Of each shard, what makes its clips' sources comparable with others': ids are YouTube's, paths in a folder."""
    homes = []
    for shard in range(store.snapshot.num_shards):
        sources = store.sources_of_shard(shard)
        homes.append(f"{sources.address}/" if sources.kind == "files" else "youtube:")
    return homes


def _audio_hashes(store: Store, shard: int) -> pa.Array:
    sidecar = read_sidecar(store.location, store.file.sidecar_name(shard))
    if sidecar is None:
        raise InputError(f"{store.location} lacks a sidecar; run `featurestore repair`")
    ledger = sidecar.ledger.select(["fbank_sha256", "silent"]).to_pylist()
    return pa.array([None if row["silent"] else row["fbank_sha256"] for row in ledger], pa.string())


def _pairs(table: pa.Table, kind: Kind) -> list[Leak]:
    """The first clip of every part in which a value of the column `kind` occurs again, and the value's first clip."""
    values = table[kind].combine_chunks().dictionary_encode()
    codes = values.indices.fill_null(-1).to_numpy()
    parts = table["part"].combine_chunks().dictionary_encode()
    part_codes: NDArray[np.int64] = parts.indices.to_numpy().astype(np.int64)
    # One row of every (value, part); a value with several is on several sides.
    rows = np.flatnonzero(codes >= 0)
    _, first = np.unique(codes[rows] * np.int64(len(parts.dictionary)) + part_codes[rows], return_index=True)
    rows = np.sort(rows[first])
    rows = rows[np.argsort(codes[rows], kind="stable")]
    leaks = []
    start = 0
    for position in range(1, len(rows)):
        if codes[rows[position]] != codes[rows[start]]:
            start = position
            continue
        one, other = int(rows[start]), int(rows[position])
        names = [(table["part"][row].as_py(), table["key"][row].as_py()) for row in (one, other)]
        leaks.append(Leak(kind, *names[0], *names[1]))
    return leaks
