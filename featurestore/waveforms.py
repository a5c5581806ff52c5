"""A clip's waveform once more, at a teacher's rate: from its source, or from the KEY.flac in its shard."""

import io

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from featurestore.store import Store
from ingest.decode import decode, open_audio
from ingest.ledger import ClipError, Reason
from ingest.sources import local_source
from ingest.window import source_sha256


def read_waveform(store: Store, row: int, sample_rate_hz: int) -> NDArray[np.float32]:
    """The window of audio that the fbank of `row` was made from, mono float32, not looped.

    The source comes first, since it may hold more than the 16 kHz of KEY.flac. Raises ClipError when neither is at
    hand, or when the source is no longer the file that the shard was made from.
    """
    entry = store.ledger(row)
    clip, spec = store.clip(row), store.file.fbank
    window_s = spec.num_samples / spec.sample_rate_hz
    if clip.end_ms is not None:
        # In the file's own time, in which a file cut from a longer one begins at 0.
        length_ms = clip.end_ms - (clip.start_ms or 0)
        window_s = min(window_s, (entry["clip_start_ms"] + length_ms - entry["crop_start_ms"]) / 1000)
    try:
        with local_source(store.sources(row).find(clip)) as path, open_audio(path) as source:
            if source_sha256(path) != entry["source_sha256"]:
                raise ClipError(Reason.UNREADABLE, f"{path} has changed since it was ingested")
            return decode(source, sample_rate_hz, entry["crop_start_ms"] / 1000, window_s)
    except ClipError as error:
        if error.reason is Reason.MISSING and entry["audio_offset"] is not None:
            return _from_shard(store, row, entry["audio_offset"], entry["audio_size"], sample_rate_hz)
        raise


def _from_shard(store: Store, row: int, offset: int, size: int, sample_rate_hz: int) -> NDArray[np.float32]:
    name = store.tar_name(int(store.shard_of(np.array([row]))[0]))
    try:
        content = store.location.read_range(name, offset, size)
        samples, rate_hz = soundfile.read(io.BytesIO(content), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise ClipError(Reason.DECODE, f"its FLAC in {name}: {error.error_string}") from error
    except OSError as error:
        raise ClipError(Reason.UNREADABLE, f"{name}: {error.strerror or error}") from error
    resampled: NDArray[np.float32] = soxr.resample(samples, rate_hz, sample_rate_hz, quality="HQ")
    return resampled
