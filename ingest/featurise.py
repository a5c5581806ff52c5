"""One clip: file to waveform window to fbank and HOG."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from ingest.decode import AudioSource, decode, open_audio
from ingest.fbank import fbank
from ingest.hog import hog
from ingest.ledger import AudioInfo, ClipError, Reason
from manifests.clips import Clip
from manifests.geometry import FbankSpec, HogSpec

# Below half a step of 16-bit audio nothing can be heard or learned.
SILENCE_PEAK = 2.0**-16
CLIPPING_PEAK = 0.999


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a clip that becomes features: mono float32 (at most spec.num_samples,), not yet looped."""

    waveform: NDArray[np.float32]
    start_ms: int
    info: AudioInfo


@dataclass(frozen=True, slots=True)
class Features:
    """What a shard keeps of a clip: fbank (T, F) and hog (T/16, F/16, 9), both float16, FLAC bytes if asked for."""

    fbank: NDArray[np.float16]
    hog: NDArray[np.float16]
    flac: bytes | None
    window: Window
    num_frames: int
    source_sha256: str


def source_path(root: Path, source: str) -> Path:
    """Where a clip's file lies. Raises ClipError when `source` would leave `root`."""
    path = (root / source).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ClipError(Reason.UNREADABLE, "the path leaves the corpus's folder")
    return path


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


def read_window(path: Path, clip: Clip, sample_rate_hz: int, window_s: float, seed: int) -> Window:
    """Decodes the clip's window, at most `window_s` long. Raises ClipError."""
    with open_audio(path) as source:
        start_ms = crop_start_ms(clip, source.info.duration_s, window_s, seed)
        window = _decode_from(source, start_ms, clip, sample_rate_hz, window_s)
    first_ms = clip.start_ms or 0
    if start_ms > first_ms and window.waveform.size < round(window_s * sample_rate_hz):
        # The container promised more sound than it holds, and the random start fell behind the end.
        with open_audio(path) as source:
            return _decode_from(source, first_ms, clip, sample_rate_hz, window_s)
    return window


def _decode_from(source: AudioSource, start_ms: int, clip: Clip, sample_rate_hz: int, window_s: float) -> Window:
    length_s = window_s if clip.end_ms is None else min(window_s, (clip.end_ms - start_ms) / 1000)
    return Window(decode(source, sample_rate_hz, start_ms / 1000, length_s), start_ms, source.info)


def looped(waveform: NDArray[np.float32], num_samples: int) -> NDArray[np.float32]:
    """The waveform repeated, or cut, to exactly `num_samples`."""
    return np.resize(waveform, num_samples)


def window_fbank(waveform: NDArray[np.float32], spec: FbankSpec) -> NDArray[np.float16]:
    """The store's fbank of a window: looped to spec.num_frames, float16 (T, F)."""
    return fbank(torch.from_numpy(looped(waveform, spec.num_samples)), spec).half().numpy()


def featurise(clip: Clip, root: Path, spec: FbankSpec, hog_spec: HogSpec, seed: int, keep_audio: bool) -> Features:
    """File to features. Raises ClipError with the reason why a clip can't be had.

    The HOG is that of the fbank as stored (float16), so that anyone can compute it again from the shard.
    """
    path = source_path(root, clip.source)
    window = read_window(path, clip, spec.sample_rate_hz, spec.num_samples / spec.sample_rate_hz, seed)
    if window.waveform.size < spec.frame_length:
        raise ClipError(Reason.TOO_SHORT, f"{window.waveform.size} samples, less than one frame of {spec.frame_length}")
    stored = window_fbank(window.waveform, spec)
    cells = hog(torch.from_numpy(stored).float(), hog_spec)
    return Features(
        fbank=stored,
        hog=cells.half().numpy(),
        flac=_flac(window.waveform, spec.sample_rate_hz) if keep_audio else None,
        window=window,
        num_frames=spec.frames_of(window.waveform.size),
        source_sha256=source_sha256(path),
    )


def _flac(waveform: NDArray[np.float32], sample_rate_hz: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.clip(-1.0, 1.0), sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def source_sha256(path: Path) -> str:
    """The sha256 of a clip's file. Raises ClipError when it can't be read."""
    try:
        return file_sha256(path)
    except OSError as error:
        raise ClipError(Reason.UNREADABLE, error.strerror or str(error)) from error


def file_sha256(path: Path) -> str:
    """The sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
