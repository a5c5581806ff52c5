"""One clip of a store, as its shard holds it."""

import io
import json
import tarfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manifests.errors import InputError

if TYPE_CHECKING:
    from featurestore.openstore import OpenStore

MAX_RATE_HZ = 1_000_000


@dataclass(frozen=True, eq=False)
class Sample:
    """A clip: fbank (T, F) float16, not normalised; hog (T/16, F/16, 9) float16; and what is known of it.

    `labels` are ids, `label_names` and `label_indices` the same by name and by place in the vocabulary; `source` is a
    path or an id; `ledger` holds what the ingest found, by the columns of the shard's sidecar (docs/formats.md):
    `codec`, `duration_s` of the source file, `peak`, `rms`, `silent` and so on.
    """

    key: str
    row: int
    fbank: NDArray[np.float16] = field(repr=False)
    hog: NDArray[np.float16] = field(repr=False)
    labels: tuple[str, ...]
    label_names: tuple[str, ...]
    label_indices: tuple[int, ...]
    split: str | None
    fold: int | None
    source: str
    ledger: dict[str, Any] = field(repr=False)
    _store: "OpenStore" = field(repr=False)

    def waveform(self, sample_rate_hz: int = 16000) -> NDArray[np.float32]:
        """The sound that the fbank was made from, (num_samples,) mono in [-1, 1], not looped.

        It is read from the source, or, where that is gone, from the KEY.flac of `--keep-audio`. Raises InputError
        where there is neither, and for a rate that isn't a whole number of Hz from 1 to MAX_RATE_HZ.
        """
        if not isinstance(sample_rate_hz, int | np.integer) or not 1 <= sample_rate_hz <= MAX_RATE_HZ:
            raise InputError(f"a sample rate is a whole number of Hz from 1 to {MAX_RATE_HZ}, not {sample_rate_hz!r}")
        # Decoders take a second to import, and most who want a sample want its features.
        from featurestore.waveforms import read_waveform
        from ingest.ledger import ClipError

        try:
            return read_waveform(self._store, self.row, sample_rate_hz)
        except ClipError as error:
            raise InputError(
                f"{self._store.location}: the sound of clip {self.key} can't be had ({error}); bring its source back, "
                "or ingest with --keep-audio"
            ) from error

    def embedding(self, teacher: str) -> NDArray[np.float32]:
        """The pooled embedding (D,) in the cache of that name, NaN where the cache lacks the clip.

        Raises InputError where there is no such cache; `store.teachers` has the names of those there are.
        """
        embedding: NDArray[np.float32] = self._store.teacher(teacher).embeddings(np.array([self.row]))[0]
        return embedding


def read_sample(store: "OpenStore", row: int) -> Sample:
    """The clip of a row that is ok, by one read of its members. Raises InputError where they are damaged."""
    ledger = store.ledger(row)
    name = store.tar_name(int(store.shard_of(np.array([row]))[0]))
    try:
        content = store.location.read_range(name, ledger["sample_offset"], ledger["sample_size"])
    except OSError as error:
        # An object store's error has the address and what is the matter in its text, and no strerror.
        trouble = f"{store.location}/{name} can't be read ({error.strerror})" if error.strerror else str(error)
        raise InputError(f"{trouble}; run `featurestore verify`") from error
    if zlib.crc32(content) != ledger["sample_crc32"]:
        raise InputError(
            f"{store.location}/{name}: clip {ledger['key']} is damaged; run `featurestore repair` to make it anew"
        )
    members = _members(content)
    about = json.loads(members["json"])
    return Sample(
        key=about["key"],
        row=row,
        fbank=_array(members["fbank.npy"]),
        hog=_array(members["hog.npy"]),
        labels=tuple(about["labels"]),
        label_names=tuple(about["label_names"]),
        label_indices=tuple(about["label_indices"]),
        split=about["split"],
        fold=about["fold"],
        source=about["source"],
        ledger=ledger,
        _store=store,
    )


def _members(content: bytes) -> dict[str, bytes]:
    """The members of one clip by what follows its key, which has no dot."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        return {
            member.name.partition(".")[2]: content[member.offset_data : member.offset_data + member.size]
            for member in tar
        }


def _array(content: bytes) -> NDArray[np.float16]:
    array: NDArray[np.float16] = np.load(io.BytesIO(content), allow_pickle=False)
    return array
