"""What training must not have heard: recordings and sounds that are on both sides of a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.store import Store
from ingest.sidecar import read_sidecar
from manifests.errors import InputError

Kind = Literal["recording", "audio", "file"]
_SAYS: dict[Kind, str] = {
    "recording": "are of one recording",
    "audio": "sound the same",
    "file": "are of files with the same content",
}
_SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "part", *_SAYS)])


@dataclass(frozen=True, slots=True)
class Leak:
    """Two clips of different parts, and what they share.

    recording: both are of one video, or of one file. audio: their fbanks are equal, bit by bit. file: the files that
    they are of have the same content, under two names.
    """

    kind: Kind
    part: str
    key: str
    other_part: str
    other_key: str

    def __str__(self) -> str:
        return f"{self.key} ({self.part}) and {self.other_key} ({self.other_part}) {_SAYS[self.kind]}"


def find_leaks(stores: Sequence[Store]) -> list[Leak]:
    """Pairs of clips that share something, in different parts; a part is a split, else a fold, of a store.

    Where k clips share one thing there are k - 1 pairs, so that each of the clips is named. A pair is told once, as the
    first kind that it is. Digital silence always sounds the same: only its recordings count. Raises InputError when
    there is but one part, or a store is named twice.
    """
    _refuse_twice(stores)
    tables = [_clips(store, f"{store.location}" if len(stores) > 1 else "") for store in stores]
    clips = pa.concat_tables(tables).combine_chunks()
    if len(clips["part"].unique()) < 2:
        raise InputError(
            f"{stores[0].location} has no splits or folds to compare; name a second store: `featurestore leakage A B`"
        )
    codes = {name: _codes(clips[name]) for name in ("part", *_SAYS)}
    return [leak for kind in _SAYS for leak in _leaks(clips, codes, kind)]


def _refuse_twice(stores: Sequence[Store]) -> None:
    """A store's parts are told apart by its address: with itself it shares all, and nothing would be said of it."""
    seen: set[str] = set()
    for store in stores:
        folder = store.location.folder
        address = str(store.location) if folder is None else str(folder.resolve())
        if address in seen:
            raise InputError(
                f"{store.location} is named twice; name different stores, or one alone, to compare its splits or folds"
            )
        seen.add(address)


def _clips(store: Store, prefix: str) -> pa.Table:
    """Of every clip that is in its shard: its key, part, and what it may share with others."""
    rows = pa.array(np.flatnonzero(store.ok))
    clips = pa.table({name: store.column(name) for name in ("key", "split", "fold", "source")}).take(rows)
    homes = pa.array(_homes(store)).take(pa.array(store.shard_of(rows.to_numpy())))
    hashes = pa.concat_tables([_hashes(store, shard) for shard in range(store.snapshot.num_shards)]).take(rows)
    columns = {
        "key": clips["key"],
        "part": _parts(prefix, clips["split"], clips["fold"]),
        "recording": pc.binary_join_element_wise(homes, clips["source"].combine_chunks(), ""),
        "audio": hashes["fbank_sha256"],
        "file": hashes["source_sha256"],
    }
    return pa.table(columns, schema=_SCHEMA)


def _parts(prefix: str, splits: pa.ChunkedArray, folds: pa.ChunkedArray) -> pa.ChunkedArray:
    """The names of the parts that clips are in, behind the store's where there are several."""
    folds = pc.binary_join_element_wise("fold", folds.cast(pa.string()), " ")
    names = pc.coalesce(splits, folds)
    if not prefix:
        return pc.fill_null(names, "all")
    return pc.fill_null(pc.binary_join_element_wise(prefix, names, ": "), prefix)


def _homes(store: Store) -> list[str]:
    """Of each shard, what makes its clips' sources comparable with others': ids are YouTube's, paths in a folder."""
    homes = []
    for shard in range(store.snapshot.num_shards):
        sources = store.sources_of_shard(shard)
        homes.append(f"{sources.address}/" if sources.kind == "files" else "youtube:")
    return homes


def _hashes(store: Store, shard: int) -> pa.Table:
    """Of each clip of a shard the hashes of its fbank and of its file, null for digital silence."""
    sidecar = read_sidecar(store.location, store.file.sidecar_name(shard))
    if sidecar is None:
        raise InputError(
            f"{store.location} lacks the sidecar of {store.file.shard_stem(shard)}; run `featurestore repair`"
        )
    is_sound = pc.invert(sidecar.ledger["silent"])
    nothing = pa.scalar(None, pa.string())
    names = ("fbank_sha256", "source_sha256")
    return pa.table({name: pc.if_else(is_sound, sidecar.ledger[name], nothing) for name in names})


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Equal numbers for equal values, -1 for null."""
    indices = column.combine_chunks().dictionary_encode().indices.fill_null(-1)
    codes: NDArray[np.int64] = indices.to_numpy().astype(np.int64)
    return codes


def _leaks(clips: pa.Table, codes: dict[str, NDArray[np.int64]], kind: Kind) -> list[Leak]:
    values, parts = codes[kind], codes["part"]
    rows = np.flatnonzero(values >= 0)
    rows = rows[np.argsort(values[rows], kind="stable")]
    # The clips of one value lie together now; those of another part than its first clip's make it a leak.
    is_first = np.diff(values[rows], prepend=-1) != 0
    value = np.cumsum(is_first) - 1
    first = rows[is_first][value]
    is_elsewhere = parts[rows] != parts[first]
    found, position = np.unique(value[is_elsewhere], return_index=True)
    elsewhere = np.full(is_first.sum(), -1)
    elsewhere[found] = rows[is_elsewhere][position]
    partner = np.where(is_elsewhere, first, elsewhere[value])
    leaks = (partner >= 0) & ~is_first
    for earlier in list(_SAYS)[: list(_SAYS).index(kind)]:
        shared = codes[earlier][rows] >= 0
        leaks &= ~(shared & (codes[earlier][rows] == codes[earlier][partner]))
    names = [clips.select(["part", "key"]).take(pa.array(some[leaks])).to_pydict() for some in (partner, rows)]
    columns = [names[0]["part"], names[0]["key"], names[1]["part"], names[1]["key"]]
    return [Leak(kind, *told) for told in zip(*columns, strict=True)]
