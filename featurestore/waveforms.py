"""A clip's waveform once more, at a teacher's rate: from its source, or from the KEY.flac in its shard."""

import io

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from featurestore.store import Store
from ingest.decode import decode, open_audio
from ingest.ledger import TRANSIENT, ClipError, Reason
from ingest.location import open_location
from ingest.sources import SourceFile, local_source
from ingest.window import source_sha256
from manifests.clips import Clip
from manifests.errors import InputError

MAX_CLIPS_LOOKED_FOR = 2000


def read_waveform(store: Store, row: int, sample_rate_hz: int) -> NDArray[np.float32]:
    """The window of audio that the fbank of `row` was made from, mono float32, not looped.

    The source comes first, since it may hold more than the 16 kHz of KEY.flac, which stands in for a source that is
    gone, or no longer the file that the shard was made from. Raises ClipError when neither is at hand; a source that
    may be had another time is not replaced, since the values would depend on the day.
    """
    entry = store.ledger(row)
    clip, spec = store.clip(row), store.file.fbank
    window_s = spec.num_samples / spec.sample_rate_hz
    if clip.end_ms is not None:
        # In the file's own time, in which a file cut from a longer one begins at 0.
        length_ms = clip.end_ms - (clip.start_ms or 0)
        window_s = min(window_s, (entry["clip_start_ms"] + length_ms - entry["crop_start_ms"]) / 1000)
    try:
        with local_source(_find(store, row, clip)) as path, open_audio(path) as source:
            if source_sha256(path) != entry["source_sha256"]:
                raise ClipError(Reason.UNREADABLE, f"{path} has changed since it was ingested")
            return decode(source, sample_rate_hz, entry["crop_start_ms"] / 1000, window_s)
    except ClipError as error:
        if error.reason not in TRANSIENT and entry["audio_offset"] is not None:
            return _from_shard(store, row, entry["audio_offset"], entry["audio_size"], sample_rate_hz)
        raise


def why_no_waveforms(store: Store) -> str | None:
    """Why no clip's waveform can be had; None where some can, for all that is seen without opening a file.

    Looks for one, in each part of the store, among MAX_CLIPS_LOOKED_FOR clips from its beginning to its end.
    """
    if store.file.keep_audio:
        return None
    by_address: dict[str, list[NDArray[np.int64]]] = {}
    for shard in range(store.snapshot.num_shards):
        rows = store.rows_of_shard(shard)
        by_address.setdefault(store.sources_of_shard(shard).address, []).append(rows[store.ok[rows]])
    num_looked_for = 0
    for parts in by_address.values():
        rows = np.concatenate(parts)
        some = rows[:: max(1, -(-len(rows) // MAX_CLIPS_LOOKED_FOR))]
        if any(_is_there(store, row) for row in some.tolist()):
            return None
        num_looked_for += len(some)
    where = ", ".join(by_address)
    return f"of {num_looked_for} clips looked for, no source is in {where}, and the shards hold no KEY.flac"


def _is_there(store: Store, row: int) -> bool:
    try:
        source = _find(store, row, store.clip(row))
        return open_location(source.location).exists(source.name)
    except (ClipError, OSError):
        return False


def _find(store: Store, row: int, clip: Clip) -> SourceFile:
    try:
        return store.sources(row).find(clip)
    except InputError as error:  # the sources' folder is gone
        raise ClipError(Reason.MISSING, str(error)) from error


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
