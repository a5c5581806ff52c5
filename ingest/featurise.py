"""One clip: file to waveform window to fbank and HOG."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from ingest.decoder import decode_window
from ingest.fbank import fbank
from ingest.hog import hog
from ingest.layout import StoreFile
from ingest.ledger import ClipError, Reason
from ingest.window import Window
from manifests.clips import Clip
from manifests.geometry import FbankSpec

# Below half a step of 16-bit audio nothing can be heard or learned.
SILENCE_PEAK = 2.0**-16
CLIPPING_PEAK = 0.999


@dataclass(frozen=True, slots=True)
class Features:
    """What a shard keeps of a clip: fbank (T, F) and hog (T/16, F/16, 9), both float16, FLAC bytes if asked for."""

    fbank: NDArray[np.float16]
    hog: NDArray[np.float16]
    flac: bytes | None
    window: Window
    num_frames: int
    peak: float
    source_sha256: str


def looped(waveform: NDArray[np.float32], num_samples: int) -> NDArray[np.float32]:
    """The waveform repeated, or cut, to exactly `num_samples`."""
    return np.resize(waveform, num_samples)


def window_fbank(waveform: NDArray[np.float32], spec: FbankSpec) -> NDArray[np.float16]:
    """The store's fbank of a window: looped to spec.num_frames, float16 (T, F)."""
    return fbank(torch.from_numpy(looped(waveform, spec.num_samples)), spec).half().numpy()


def featurise(
    clip: Clip, path: Path, store: StoreFile, is_cut: bool | None = False, sha256: str | None = None
) -> Features:
    """File to features, as the store's recipe says. Raises ClipError with the reason why a clip can't be had.

    `is_cut`: see :func:`ingest.window.read_window`; `sha256`: what the file must come to. The HOG is that of the fbank
    as stored (float16), so that anyone can compute it again from the shard.
    """
    spec = store.fbank
    window_s = spec.num_samples / spec.sample_rate_hz
    window, sha256 = decode_window(path, clip, spec.sample_rate_hz, window_s, store.seed, is_cut, sha256)
    if window.waveform.size < spec.frame_length:
        raise ClipError(Reason.TOO_SHORT, f"{window.waveform.size} samples, less than one frame of {spec.frame_length}")
    peak = float(np.abs(window.waveform).max())
    if store.drop_silent and peak < SILENCE_PEAK:
        raise ClipError(Reason.SILENT, f"nothing in it is louder than {SILENCE_PEAK:.1e} of full scale")
    stored = window_fbank(window.waveform, spec)
    cells = hog(torch.from_numpy(stored).float(), store.hog)
    return Features(
        fbank=stored,
        hog=cells.half().numpy(),
        flac=_flac(window.waveform, spec.sample_rate_hz) if store.keep_audio else None,
        window=window,
        num_frames=spec.frames_of(window.waveform.size),
        peak=peak,
        source_sha256=sha256,
    )


def _flac(waveform: NDArray[np.float32], sample_rate_hz: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.clip(-1.0, 1.0), sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
