"""Which clips are shown, and their arrays, read one by one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurestore.store import Store
from manifests.errors import InputError
from manifests.geometry import PatchGrid

_FLOAT16 = np.dtype("<f2")


@dataclass(frozen=True, slots=True)
class ClipFeatures:
    """fbank (T, F), not normalised, and hog (T/16, F/16, 9), both float16, as in the shard."""

    fbank: NDArray[np.float16]
    hog: NDArray[np.float16]

    @property
    def gradient_magnitude(self) -> NDArray[np.float32]:
        """The mean gradient magnitude of each patch, (T/16, F/16)."""
        magnitude: NDArray[np.float32] = self.hog.astype(np.float32).sum(-1)
        return magnitude


def sample_rows(rows: NDArray[np.int64], num_clips: int, seed: int) -> NDArray[np.int64]:
    """At most `num_clips` of `rows`, ascending; the same ones for the same seed."""
    if len(rows) <= num_clips:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, num_clips, replace=False))


def read_features(store: Store, row: int) -> ClipFeatures:
    """A clip's arrays alone, also out of an object store. Raises InputError when they can't be had."""
    spec, hog = store.file.fbank, store.file.hog
    grid = PatchGrid(num_frames=spec.num_frames)
    fbank_shape = (spec.num_frames, spec.num_mel_bins)
    hog_shape = (grid.num_time, grid.num_freq, hog.num_orientations)
    start, hog_start = int(store.fbank_offset[row]), int(store.hog_offset[row])
    wanted = hog_start - start + int(np.prod(hog_shape)) * _FLOAT16.itemsize
    name = store.tar_name(int(store.shard_of(np.array([row]))[0]))
    try:
        content = store.location.read_range(name, start, wanted)
    except OSError as error:
        raise InputError(f"{store.location}/{name} can't be read ({error}); run `featurestore verify`") from error
    if len(content) != wanted:
        raise InputError(
            f"{store.location}/{name} ends inside clip {store.clip(row).key}; run `featurestore verify`, and "
            "`featurestore repair` to mend it"
        )
    fbank = np.frombuffer(content, _FLOAT16, int(np.prod(fbank_shape)))
    cells = np.frombuffer(content, _FLOAT16, int(np.prod(hog_shape)), hog_start - start)
    return ClipFeatures(fbank.reshape(fbank_shape), cells.reshape(hog_shape))
