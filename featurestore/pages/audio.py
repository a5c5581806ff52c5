"""A clip's window of sound, small enough for a page."""

import io

import numpy as np
import soundfile
from numpy.typing import NDArray

from featurestore.store import Store
from featurestore.waveforms import read_waveform
from ingest.ledger import ClipError
from manifests.errors import InputError


def window_as_mp3(store: Store, row: int) -> bytes | str:
    """The window that the fbank of `row` was made from, as MP3, which every browser plays; or why it can't be had."""
    sample_rate_hz = store.file.fbank.sample_rate_hz
    entry = store.ledger(row)
    try:
        if entry["audio_offset"] is not None:
            waveform = _from_shard(store, row, entry["audio_offset"], entry["audio_size"])
        else:
            waveform = read_waveform(store, row, sample_rate_hz)
    except (ClipError, InputError, OSError, soundfile.LibsndfileError) as error:
        return str(error)
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.clip(-1.0, 1.0), sample_rate_hz, format="MP3", subtype="MPEG_LAYER_III")
    return buffer.getvalue()


def _from_shard(store: Store, row: int, offset: int, size: int) -> NDArray[np.float32]:
    name = store.tar_name(int(store.shard_of(np.array([row]))[0]))
    samples, _ = soundfile.read(io.BytesIO(store.location.read_range(name, offset, size)), dtype="float32")
    waveform: NDArray[np.float32] = samples
    return waveform
