"""Reads clips from shards by offset: one system call a clip, straight into the batch."""

import os
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from featurestore.shardfiles import ShardFiles
from featurestore.store import Store
from manifests.errors import InputError

MAX_OPEN_SHARDS = 64
# A batch is read in so many parts side by side.
NUM_THREADS = 2
FLOAT16_BYTES = 2


class ShardReader:
    """Reads fbanks and HOG of clips by row; safe to use from several threads."""

    def __init__(self, store: Store, files: ShardFiles) -> None:
        self._store, self._files = store, files
        self._lock = Lock()
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()
        spec, hog = store.file.fbank, store.file.hog
        self.fbank_shape = (spec.num_frames, spec.num_mel_bins)
        cells = (spec.num_frames // hog.cell_size, spec.num_mel_bins // hog.cell_size)
        self.hog_shape = (*cells, hog.num_orientations)
        self._fbank_offset, self._hog_offset = store.fbank_offset, store.hog_offset
        fbank_bytes = int(np.prod(self.fbank_shape)) * FLOAT16_BYTES
        ok = store.ok
        # The padding and headers between a clip's fbank and its HOG, the same for all clips; read and thrown away.
        gaps = self._hog_offset[ok] - self._fbank_offset[ok] - fbank_bytes
        if not len(gaps) or gaps[0] < 0 or (gaps != gaps[0]).any():
            raise InputError(f"{store.location}: fbank and HOG don't lie side by side; run `featurestore verify`")
        self._gap = bytearray(int(gaps[0]))

    def read(
        self,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        fbanks: NDArray[np.float16],
        hogs: NDArray[np.float16],
        pool: ThreadPoolExecutor,
    ) -> None:
        """Reads the clips of `rows` to their `places` in `fbanks` (B, T, F) and `hogs` (B, T/16, F/16, 9), both float16
        and contiguous.
        """
        # In the order of the files, so that the disk sees runs and not jumps.
        order = np.argsort(rows, kind="stable")
        parts = np.array_split(order, NUM_THREADS)
        for done in [pool.submit(self._read_some, rows[part], places[part], fbanks, hogs) for part in parts]:
            done.result()

    def _read_some(
        self,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        fbanks: NDArray[np.float16],
        hogs: NDArray[np.float16],
    ) -> None:
        shards = self._store.shard_of(rows)
        for row, shard, slot in zip(rows.tolist(), shards.tolist(), places.tolist(), strict=True):
            wanted = fbanks[slot].nbytes + len(self._gap) + hogs[slot].nbytes
            buffers = [fbanks[slot].data, self._gap, hogs[slot].data]
            file = self._file(shard)
            try:
                got = os.preadv(file.descriptor, buffers, int(self._fbank_offset[row]))
            except OSError as error:
                raise self._unreadable(row, shard, f"can't be read ({error.strerror})") from error
            if got != wanted:
                raise self._unreadable(row, shard, "ends")

    def _unreadable(self, row: int, shard: int, what: str) -> InputError:
        return InputError(
            f"{self._store.location}/{self._store.tar_name(shard)} {what} inside clip {self._store.clip(row).key}: run "
            "`featurestore verify`, and `featurestore repair` to mend it"
        )

    def _file(self, shard: int) -> "_OpenFile":
        with self._lock:
            file = self._open.get(shard)
            if file is None:
                file = self._open[shard] = _OpenFile(self._files.open(shard))
                if len(self._open) > MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
            return file

    def close_all_but(self, shards: Iterable[int]) -> None:
        """Closes the files of other shards: one that a cache drops takes up room as long as it is open."""
        with self._lock:
            for shard in self._open.keys() - set(shards):
                del self._open[shard]

    def close(self) -> None:
        with self._lock:
            self._open.clear()


class _OpenFile:
    """A descriptor that is closed when nobody holds it: another thread may be about to read from it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)
