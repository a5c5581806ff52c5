"""An open store: which clips its snapshot holds, their labels, and where their arrays lie in the shards."""

from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ingest.layout import (
    MANIFEST_FILE,
    STORE_FILE,
    TEACHER_FOLDER,
    Snapshot,
    StoreFile,
    read_store_file,
    sidecar_path,
    tar_path,
)
from ingest.shards import read_sidecar
from manifests.clips import Clip, Manifest
from manifests.errors import InputError


class Store:
    """A finished store, opened for reading.

    A clip is named by its row: the row of the manifest, which is shard number x clips_per_shard + position, and also
    the row of every teacher array. Clips that failed have rows too; `ok` tells them apart.
    """

    def __init__(self, root: Path) -> None:
        """Opens the store at `root`. Raises InputError when there is none, or it is unfinished or damaged."""
        self.root = root
        self.file: StoreFile = read_store_file(root)
        if not self.file.snapshots:
            raise InputError(f"the store {root} is not finished; run its ingest command again to go on")
        self.snapshot: Snapshot = self.file.snapshots[-1]
        self.manifest = Manifest.read(root / MANIFEST_FILE)
        if self.manifest.table.num_rows != self.file.num_clips_asked:
            raise InputError(f"{root}: {MANIFEST_FILE} and {STORE_FILE} disagree; run the ingest command again")
        self.ledger = self._read_ledger()
        self.ok: NDArray[np.bool_] = self.ledger["ok"].to_numpy()

    def _read_ledger(self) -> pa.Table:
        parts = []
        self.tar_sizes: list[int] = []
        for shard in range(self.snapshot.num_shards):
            sidecar = read_sidecar(sidecar_path(self.root, self.file, shard))
            if sidecar is None:
                raise InputError(
                    f"{self.root} lacks the sidecar of shard {self.file.shard_stem(shard)}; "
                    "run the ingest command again to make the shard anew"
                )
            parts.append(sidecar.ledger)
            self.tar_sizes.append(sidecar.tar_size)
        ledger = pa.concat_tables(parts).combine_chunks()
        if not ledger["key"].equals(self.manifest.table["key"]):
            raise InputError(
                f"{self.root}: the ledgers and {MANIFEST_FILE} name other clips; delete it and ingest anew"
            )
        return ledger

    def __len__(self) -> int:
        """Clips in the shards."""
        return self.snapshot.num_clips

    @property
    def num_classes(self) -> int:
        return len(self.file.vocabulary)

    @cached_property
    def fbank_offset(self) -> NDArray[np.int64]:
        """Offset of each row's fbank data in its tar, -1 where the clip failed."""
        return self._offsets("fbank_offset")

    @cached_property
    def hog_offset(self) -> NDArray[np.int64]:
        """Offset of each row's HOG data in its tar, -1 where the clip failed."""
        return self._offsets("hog_offset")

    def _offsets(self, column: str) -> NDArray[np.int64]:
        offsets: NDArray[np.int64] = self.ledger[column].fill_null(-1).to_numpy()
        return offsets

    def clip(self, row: int) -> Clip:
        """The manifest's clip of a row."""
        return next(self.manifest.clips(row, row + 1))

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        keys: list[str] = self._keys.take(pa.array(rows)).to_pylist()
        return keys

    @cached_property
    def _keys(self) -> pa.Array:
        return self.manifest.table["key"].combine_chunks()

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Multi-hot labels (len(rows), num_classes), in the vocabulary's order."""
        starts, positions = self._label_lists
        counts = starts[rows + 1] - starts[rows]
        owners = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        labels = np.zeros((len(rows), self.num_classes), np.float32)
        labels[owners, positions[np.repeat(starts[rows], counts) + within]] = 1.0
        return labels

    @cached_property
    def _label_lists(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The labels of row r are positions[starts[r] : starts[r + 1]]."""
        column = self.manifest.table["labels"].combine_chunks()
        starts = np.concatenate([[0], np.cumsum(column.value_lengths().to_numpy(), dtype=np.int64)])
        names = column.flatten().dictionary_encode()
        lookup = np.array(self.file.vocabulary.indices(names.dictionary.to_pylist()), np.int64)
        positions = lookup[names.indices.to_numpy()] if len(names) else np.zeros(0, np.int64)
        return starts, positions

    @property
    def is_multi_label(self) -> bool:
        """Whether some clip has more than one label."""
        starts, _ = self._label_lists
        return bool((np.diff(starts) > 1).any())

    def rows(self, *, split: str | None = None, fold: int | None = None, asked: bool = False) -> NDArray[np.int64]:
        """Rows of the clips of a split and fold (None: of all); with `asked` those that failed as well."""
        table = self.manifest.table
        chosen = np.ones(len(self.ok), bool) if asked else self.ok.copy()
        if split is not None:
            chosen &= np.array(table["split"].to_pylist(), dtype=object) == split
        if fold is not None:
            chosen &= table["fold"].fill_null(-1).to_numpy() == fold
        return np.flatnonzero(chosen)

    @cached_property
    def splits(self) -> list[str]:
        return sorted(name for name in self.manifest.table["split"].unique().to_pylist() if name is not None)

    @cached_property
    def folds(self) -> list[int]:
        return sorted(fold for fold in self.manifest.table["fold"].unique().to_pylist() if fold is not None)

    def shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows // self.file.clips_per_shard

    def tar(self, shard: int) -> Path:
        return tar_path(self.root, self.file, shard)

    def teacher_path(self, name: str) -> Path:
        """Where the cache of a teacher lies."""
        return self.root / TEACHER_FOLDER / f"{name}.zarr"
