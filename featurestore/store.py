"""An open store: which clips its snapshot holds, their labels, and where their arrays lie in the shards."""

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ingest.index import last_rows, open_table, read_index
from ingest.layout import MANIFEST_FILE, STORE_FILE, TEACHER_FOLDER, Snapshot, StoreFile, read_store_file
from ingest.location import Location, open_location
from ingest.sidecar import read_sidecar
from ingest.sources import ClipSources, open_sources
from manifests.clips import Clip, Sources
from manifests.errors import InputError
from manifests.parts import ManifestFile

# Sidecars, of half a megabyte, are read again only when a caller jumps between more shards than these.
MAX_SIDECARS_IN_MEMORY = 64


class Store:
    """A snapshot of a store, opened for reading.

    A clip is named by its row: the row of the manifest and of the index. Clips that failed have rows too; `ok` tells
    them apart. Only the columns that are asked for are read, so that two million rows open in a second.
    """

    def __init__(self, address: Location | Path | str, snapshot: int | None = None) -> None:
        """Opens the store at `address`, in its last snapshot or the one of that number.

        Raises InputError when there is none, or it is unfinished or damaged.
        """
        self.location = open_location(address)
        self.file: StoreFile = read_store_file(self.location)
        self.snapshot: Snapshot = _choose_snapshot(self.location, self.file, snapshot)
        num_rows = self.snapshot.num_rows
        try:
            content = open_table(self.location, MANIFEST_FILE)
        except OSError as error:
            raise InputError(
                f"{self.location}/{MANIFEST_FILE} can't be read ({error.strerror or error}); run the ingest command "
                "again"
            ) from error
        self._manifest = ManifestFile(content, f"{self.location}/{MANIFEST_FILE}")
        index = read_index(self.location, columns=("key", "ok", "fbank_offset", "hog_offset"))
        self._index = index.table.slice(0, num_rows)
        self.shards = index.shards[: self.snapshot.num_shards]
        self._check(num_rows)
        self._index = self._index.drop_columns(["key"]).combine_chunks()
        self._shard_rows = list(self.file.shard_rows())[: self.snapshot.num_shards]
        self._first_row = np.array([first for _, first, _ in self._shard_rows], np.int64)
        self.ok: NDArray[np.bool_] = self._index["ok"].to_numpy()
        self._sources: dict[int, ClipSources] = {}
        self._sidecar = lru_cache(MAX_SIDECARS_IN_MEMORY)(self._read_sidecar)

    def _check(self, num_rows: int) -> None:
        expected = [part.num_clips_asked for part in self.file.parts[: self.snapshot.num_parts]]
        if self._manifest.part_sizes[: len(expected)] != expected or self._index.num_rows != num_rows:
            raise InputError(
                f"{self.location}: {MANIFEST_FILE} and {STORE_FILE} disagree; run the ingest command again"
            )
        same_clips = self._index["key"].equals(pa.chunked_array([self._keys]))
        if len(self.shards) != self.snapshot.num_shards or not same_clips:
            raise InputError(
                f"{self.location}: the index and {MANIFEST_FILE} name other clips; run `featurestore verify`"
            )

    def __len__(self) -> int:
        """Clips in the shards."""
        return self.snapshot.num_clips

    @property
    def root(self) -> Path:
        """The store's folder. Raises InputError for a store that is not on this machine's disks."""
        if self.location.folder is None:
            raise InputError(
                f"{self.location} is no folder on this machine, which is needed here; copy the store to one"
            )
        return self.location.folder

    @property
    def num_classes(self) -> int:
        return len(self.file.vocabulary)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the manifest, a value a row."""
        return self._manifest.columns(name, num_rows=self.snapshot.num_rows)[name]

    @cached_property
    def fbank_offset(self) -> NDArray[np.int64]:
        """Offset of each row's fbank data in its tar, -1 where the clip failed."""
        return self._offsets("fbank_offset")

    @cached_property
    def hog_offset(self) -> NDArray[np.int64]:
        """Offset of each row's HOG data in its tar, -1 where the clip failed."""
        return self._offsets("hog_offset")

    def _offsets(self, column: str) -> NDArray[np.int64]:
        offsets: NDArray[np.int64] = self._index[column].fill_null(-1).to_numpy()
        return offsets

    def clip(self, row: int) -> Clip:
        """The manifest's clip of a row."""
        (found,) = self._clips.slice(row, 1).to_pylist()
        return Clip(**{**found, "labels": tuple(found["labels"])})

    @cached_property
    def _clips(self) -> pa.Table:
        return self._manifest.columns(num_rows=self.snapshot.num_rows)

    def sources(self, row: int) -> ClipSources:
        """What finds the source of a row's clip. Raises InputError when the sources' folder is gone."""
        part, _, _ = self._shard_rows[int(self.shard_of(np.array([row]))[0])]
        if part not in self._sources:
            self._sources[part] = open_sources(self._manifest.sources[part])
        return self._sources[part]

    def sources_of_shard(self, shard: int) -> Sources:
        """Where the sources of a shard's clips are found."""
        return self._manifest.sources[self._shard_rows[shard][0]]

    def ledger(self, row: int) -> dict[str, Any]:
        """All that a row's sidecar says of its clip, by the ledger's columns."""
        shard = int(self.shard_of(np.array([row]))[0])
        (found,) = self._sidecar(shard).slice(row - int(self._first_row[shard]), 1).to_pylist()
        return dict(found)

    def _read_sidecar(self, shard: int) -> pa.Table:
        sidecar = read_sidecar(self.location, self.file.sidecar_name(shard))
        if sidecar is None:
            raise InputError(
                f"{self.location} lacks the sidecar of shard {self.file.shard_stem(shard)}; run `featurestore repair`"
            )
        return sidecar.ledger

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        keys: list[str] = self._keys.take(pa.array(rows)).to_pylist()
        return keys

    @cached_property
    def _keys(self) -> pa.Array:
        return self.column("key").combine_chunks()

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Multi-hot labels (len(rows), num_classes), in the vocabulary's order."""
        owners, columns = self.label_pairs(rows)
        labels = np.zeros((len(rows), self.num_classes), np.float32)
        labels[owners, columns] = 1.0
        return labels

    def label_pairs(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The same as pairs: places in `rows`, ascending, and labels as places in the vocabulary."""
        starts, positions = self._label_lists
        counts = starts[rows + 1] - starts[rows]
        owners = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return owners, positions[np.repeat(starts[rows], counts) + within]

    @cached_property
    def _label_lists(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The labels of row r are positions[starts[r] : starts[r + 1]]."""
        counts, positions = [], []
        for lists in self._manifest.labels():
            names = lists.flatten()
            lookup = np.array(self.file.vocabulary.indices(names.dictionary.to_pylist()), np.int32)
            counts.append(lists.value_lengths().to_numpy())
            positions.append(lookup[names.indices.to_numpy()])
        starts = np.concatenate([[0], np.cumsum(np.concatenate(counts), dtype=np.int64)])
        return starts[: len(self.ok) + 1], np.concatenate(positions)

    @property
    def is_multi_label(self) -> bool:
        """Whether some clip has more than one label."""
        starts, _ = self._label_lists
        return bool((np.diff(starts) > 1).any())

    def rows(self, *, split: str | None = None, fold: int | None = None, asked: bool = False) -> NDArray[np.int64]:
        """Rows of the clips of a split and fold (None: of all); with `asked` those that failed as well, once each."""
        chosen = self._asked if asked else self.ok.copy()
        if split is not None:
            chosen &= pc.equal(self.column("split"), split).fill_null(False).to_numpy()
        if fold is not None:
            chosen &= self.column("fold").fill_null(-1).to_numpy() == fold
        return np.flatnonzero(chosen)

    @property
    def _asked(self) -> NDArray[np.bool_]:
        """One row of every clip: the last one, of a clip that was tried again."""
        one_part = self.snapshot.num_parts == 1
        return np.ones(len(self.ok), bool) if one_part else last_rows(self.column("key"))

    @cached_property
    def splits(self) -> list[str]:
        return sorted(name for name in self.column("split").unique().to_pylist() if name is not None)

    @cached_property
    def folds(self) -> list[int]:
        return sorted(fold for fold in self.column("fold").unique().to_pylist() if fold is not None)

    def shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shards in which rows lie."""
        return np.searchsorted(self._first_row, rows, side="right") - 1

    def rows_of_shard(self, shard: int) -> NDArray[np.int64]:
        """A shard's rows, of clips that failed too."""
        _, first, stop = self._shard_rows[shard]
        return np.arange(first, stop)

    def teacher_rows(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of teacher arrays: shard number x clips_per_shard + position, so that a chunk is one shard's."""
        shards = self.shard_of(rows)
        teacher_rows: NDArray[np.int64] = shards * self.file.clips_per_shard + rows - self._first_row[shards]
        return teacher_rows

    def tar_name(self, shard: int) -> str:
        return self.file.tar_name(shard)

    def teacher_name(self, name: str) -> str:
        """Where the cache of a teacher lies in the store."""
        return f"{TEACHER_FOLDER}/{name}.zarr"

    @property
    def teachers(self) -> list[str]:
        """Names of the teacher caches."""
        folders = self.location.folders(TEACHER_FOLDER)
        return [Path(folder).stem for folder in folders if folder.endswith(".zarr")]


def _choose_snapshot(location: Location, file: StoreFile, number: int | None) -> Snapshot:
    if not file.snapshots:
        raise InputError(f"the store {location} is not finished; run its ingest command again to go on")
    if number is None:
        return file.snapshots[-1]
    for snapshot in file.snapshots:
        if snapshot.number == number:
            return snapshot
    raise InputError(f"{location} has no snapshot {number}; it has: 1 to {file.snapshots[-1].number}")
