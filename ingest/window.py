"""The part of a clip's file that becomes features."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ingest.decode import AudioSource, decode, open_audio
from ingest.ledger import AudioInfo, ClipError, Reason
from ingest.sourcefile import file_sha256
from manifests.clips import Clip

# A file named by an id alone that is hardly longer than the clip is the clip, not the recording it was cut from.
CUT_TOLERANCE_MS = 500


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a clip that becomes features: mono float32 (at most spec.num_samples,), not yet looped.

    `start_ms` is where it begins in the file, and `clip_start_ms` where the clip itself does.
    """

    waveform: NDArray[np.float32]
    start_ms: int
    clip_start_ms: int
    info: AudioInfo


def crop_start_ms(clip: Clip, duration_s: float | None, window_s: float, seed: int) -> int:
    """Where the window begins in the file: a seeded random point of a clip longer than the window, else its start.

    The point depends on (seed, key) alone, so that every teacher and every later run takes the same part.
    """
    first_ms = clip.start_ms or 0
    known_ends_ms = [end for end in (clip.end_ms, duration_s and duration_s * 1000) if end is not None]
    end_ms = min(known_ends_ms, default=0)
    slack_ms = int(end_ms - first_ms - window_s * 1000)
    if slack_ms <= 0:
        return first_ms
    digest = hashlib.sha256(f"{seed}:{clip.key}".encode()).digest()
    return first_ms + int.from_bytes(digest[:8], "big") % (slack_ms + 1)


def read_window(
    path: Path, clip: Clip, sample_rate_hz: int, window_s: float, seed: int, is_cut: bool | None = False
) -> Window:
    """Decodes the clip's window, at most `window_s` long. Raises ClipError.

    `is_cut`: the file holds the clip alone (True), the recording that the clip's times refer to (False), or one of
    them, which its length tells (None).
    """
    with open_audio(path) as source:
        clip = _in_file(clip, is_cut, source.info.duration_s)
        start_ms = crop_start_ms(clip, source.info.duration_s, window_s, seed)
        window = _decode_from(source, start_ms, clip, sample_rate_hz, window_s)
    first_ms = clip.start_ms or 0
    if start_ms > first_ms and window.waveform.size < round(window_s * sample_rate_hz):
        # The container promised more sound than it holds, and the random start fell behind the end.
        with open_audio(path) as source:
            return _decode_from(source, first_ms, clip, sample_rate_hz, window_s)
    return window


def _in_file(clip: Clip, is_cut: bool | None, duration_s: float | None) -> Clip:
    """The clip with its times as they are in the file."""
    if clip.start_ms is None or clip.end_ms is None:
        return clip
    length_ms = clip.end_ms - clip.start_ms
    if is_cut is None:
        is_cut = duration_s is not None and duration_s * 1000 <= length_ms + CUT_TOLERANCE_MS
    return replace(clip, start_ms=0, end_ms=length_ms) if is_cut else clip


def _decode_from(source: AudioSource, start_ms: int, clip: Clip, sample_rate_hz: int, window_s: float) -> Window:
    length_s = window_s if clip.end_ms is None else min(window_s, (clip.end_ms - start_ms) / 1000)
    waveform = decode(source, sample_rate_hz, start_ms / 1000, length_s)
    return Window(waveform, start_ms, clip.start_ms or 0, source.info)


def source_sha256(path: Path) -> str:
    """The sha256 of a clip's file. Raises ClipError when it can't be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise ClipError(Reason.UNREADABLE, error.strerror or str(error)) from error
