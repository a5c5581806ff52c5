"""The axes of spectrograms: seconds to the right, kHz on the mel scale upwards."""

import numpy as np
from numpy.typing import NDArray

from manifests.geometry import FbankSpec

KHZ_TICKS = (0.5, 1.0, 2.0, 4.0, 8.0)
_TIME_STEPS_S = (0.5, 1.0, 2.0)
_MOST_TIME_TICKS = 8


def mel_position(frequency_hz: float, spec: FbankSpec) -> float:
    """Where a frequency lies on the axis of mel bins: 0 is its lower end, 1 its upper one.

    Kaldi's triangles (mel = 1127 ln(1 + f/700)) have num_mel_bins + 2 corners, and bin b is centred on corner b + 1.
    """
    low, high, mel = (1127.0 * np.log1p(hz / 700.0) for hz in (spec.low_hz, spec.high_hz, frequency_hz))
    corner = (mel - low) / (high - low) * (spec.num_mel_bins + 1)
    return float(np.clip((corner - 0.5) / spec.num_mel_bins, 0.0, 1.0))


def khz_ticks(spec: FbankSpec) -> list[tuple[float, str]]:
    """Positions (0: bottom, 1: top) and texts of the frequency axis."""
    return [(mel_position(1000.0 * khz, spec), f"{khz:g}") for khz in KHZ_TICKS]


def time_ticks(spec: FbankSpec) -> list[tuple[float, str]]:
    """Positions (0: left, 1: right) and texts, in seconds, of the time axis."""
    length_s = spec.num_frames * spec.frame_shift_ms / 1000
    step_s = next(step for step in _TIME_STEPS_S if length_s / step <= _MOST_TIME_TICKS or step == _TIME_STEPS_S[-1])
    times_s: NDArray[np.float64] = np.arange(0.0, length_s, step_s)
    return [(time_s / length_s, f"{time_s:g}") for time_s in times_s.tolist()]
