"""Augmented views of a clip that a teacher and a student can both have: a teacher of its waveform, a student of its
stored fbank.

A view rolls the clip's window in time, by whole frames, and makes it louder or softer. What the two paths don't share:
the two frames at the seam, which see the window's end and its beginning at once, and energies just below the fbank's
floor, which a gain may lift above it where the stored fbank has nothing but the floor.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manifests.geometry import FbankSpec

MAX_GAIN_DB = 6.0
# Frames, at most, that differ between the two paths: an analysis frame of 25 ms reaches over the next two.
NUM_SEAM_FRAMES = 2
# That of ingest/fbank.py, which needs torch, and readers do without.
FLOOR = math.log(np.finfo(np.float32).eps)
# What float16 makes of the floor is at most this far above it.
FLOOR_ROUNDING = 2**-8


@dataclass(frozen=True, slots=True)
class View:
    """How a view differs from the clip: `roll_frames` in [0, num_frames), `gain_db` in [-6, 6]."""

    roll_frames: int
    gain_db: float


def view_of(key: str, view: int, seed: int, num_frames: int) -> View:
    """The view number `view` of a clip: uniform draws that depend on nothing but the arguments."""
    digest = hashlib.sha256(f"{seed}:{view}:{key}".encode()).digest()
    share = int.from_bytes(digest[8:16], "big") / 2**64
    return View(int.from_bytes(digest[:8], "big") % num_frames, MAX_GAIN_DB * (2 * share - 1))


def apply_to_fbank(fbank: NDArray[np.floating], view: View) -> NDArray[np.float32]:
    """The view of an fbank (T, F), natural logarithms of power, not normalised; float32 of the same shape.

    What is at the floor stays there: the lowest mel bands, for instance, are so narrow that some are always empty.
    """
    rolled = np.roll(fbank.astype(np.float32), view.roll_frames, 0)
    louder = np.maximum(rolled + view.gain_db * math.log(10) / 10, FLOOR)
    return np.where(rolled > FLOOR + FLOOR_ROUNDING, louder, FLOOR).astype(np.float32)


def apply_to_waveform(
    waveform: NDArray[np.float32], view: View, sample_rate_hz: int, spec: FbankSpec
) -> NDArray[np.float32]:
    """The view of a clip's window (num_samples,), which is looped first, as in the stored fbank.

    Returns as many samples as the whole window has at `sample_rate_hz`, float32, up to 2 in magnitude where the clip is
    up to 1. The circle that is rolled has one frame shift for each frame, so that whole frames fall onto whole frames.
    """
    rate_ratio = sample_rate_hz / spec.sample_rate_hz
    num_samples = round(spec.num_samples * rate_ratio)
    circle = np.resize(waveform, num_samples)[: round(spec.num_frames * spec.frame_shift * rate_ratio)]
    rolled = np.roll(circle, round(view.roll_frames * spec.frame_shift * rate_ratio))
    return np.resize(rolled, num_samples) * np.float32(10 ** (view.gain_db / 20))
