"""A clip's waveform once more, at a teacher's rate: from its source, or from the KEY.flac in its shard."""

import io

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from featurestore.store import Store
from ingest.decode import decode, open_audio
from ingest.featurise import source_path, source_sha256
from ingest.ledger import ClipError, Reason


def read_waveform(store: Store, row: int, sample_rate_hz: int) -> NDArray[np.float32]:
    """The window of audio that the fbank of `row` was made from, mono float32, not looped.

    The source comes first, since it may hold more than the 16 kHz of KEY.flac. Raises ClipError when neither is at
    hand, or when the source is no longer the file that the shard was made from.
    """
    entry = {name: store.ledger[name][row].as_py() for name in ("crop_start_ms", "audio_offset", "audio_size")}
    clip, spec = store.clip(row), store.file.fbank
    window_s = spec.num_samples / spec.sample_rate_hz
    if clip.end_ms is not None:
        window_s = min(window_s, (clip.end_ms - entry["crop_start_ms"]) / 1000)
    path = source_path(store.manifest.root, clip.source)
    if not path.exists() and entry["audio_offset"] is not None:
        return _from_shard(store, row, entry["audio_offset"], entry["audio_size"], sample_rate_hz)
    with open_audio(path) as source:
        if source_sha256(path) != store.ledger["source_sha256"][row].as_py():
            raise ClipError(Reason.UNREADABLE, f"{path} has changed since it was ingested")
        return decode(source, sample_rate_hz, entry["crop_start_ms"] / 1000, window_s)


def _from_shard(store: Store, row: int, offset: int, size: int, sample_rate_hz: int) -> NDArray[np.float32]:
    tar = store.tar(row // store.file.clips_per_shard)
    try:
        with tar.open("rb") as file:
            file.seek(offset)
            samples, rate_hz = soundfile.read(io.BytesIO(file.read(size)), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise ClipError(Reason.DECODE, f"its FLAC in {tar}: {error.error_string}") from error
    except OSError as error:
        raise ClipError(Reason.UNREADABLE, f"{tar}: {error.strerror}") from error
    resampled: NDArray[np.float32] = soxr.resample(samples, rate_hz, sample_rate_hz, quality="HQ")
    return resampled
