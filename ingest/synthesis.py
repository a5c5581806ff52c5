"""The demo corpus's sounds: procedural events over background noise, each a pure function of its generator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from ingest.atomic import atomic_path
from manifests.clips import Clip, Manifest
from manifests.errors import InputError

Waveform = npt.NDArray[np.float64]

# All pitches stay under the lowest rate's 8 kHz, so that a class sounds the same at each rate.
SAMPLE_RATES_HZ = (16_000, 22_050, 32_000, 44_100)
DURATION_S = (1.0, 4.0)
# Set so that logistic regression on pooled log-mels is right on about 7 of 10 clips: not at chance, not at 100 %.
SNR_DB = (8.0, 30.0)
PEAK_DB = (-30.0, -1.0)


def write_demo_audio(manifest: Manifest, seed: int) -> None:
    """Writes the files of a `manifests.demo` manifest that are missing, as 16-bit mono WAV at various sample rates.

    A file depends on (`seed`, key) alone. Raises InputError for a label that is no demo class, or a source outside the
    manifest's root.
    """
    root = manifest.root.resolve()
    for clip in manifest.clips():
        path = (root / clip.source).resolve()
        if not path.is_relative_to(root):
            raise InputError(f"clip {clip.key}: {clip.source} is outside {root}; sources must lie under it")
        try:
            if not path.exists():
                _write_clip(path, clip, seed)
        except (OSError, soundfile.LibsndfileError) as error:
            raise InputError(
                f"{path} can't be written ({error}); make room or mend the folder and run the same command again"
            ) from error


def _write_clip(path: Path, clip: Clip, seed: int) -> None:
    rng = np.random.default_rng([seed, *clip.key.encode()])
    sample_rate_hz = int(rng.choice(SAMPLE_RATES_HZ))
    waveform = synthesise(" ".join(clip.labels), rng, sample_rate_hz)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        soundfile.write(temporary, waveform, sample_rate_hz, format="WAV", subtype="PCM_16")


@dataclass(frozen=True, slots=True)
class Canvas:
    """What a sound is drawn on: where its random numbers come from, its length and its rate."""

    rng: np.random.Generator
    num_samples: int
    sample_rate_hz: int

    @property
    def time_s(self) -> Waveform:
        return np.arange(self.num_samples) / self.sample_rate_hz


def synthesise(label: str, rng: np.random.Generator, sample_rate_hz: int) -> npt.NDArray[np.float32]:
    """One clip of the class `label`: (num_samples,), mono in [-1, 1], 1 to 4 s, its event somewhere within noise.

    Raises InputError when `label` is not one of `manifests.demo.CLASSES`.
    """
    if label not in SOUNDS:
        raise InputError(f"{label!r} is not a demo class; expected one of {', '.join(SOUNDS)}")
    num_samples = round(rng.uniform(*DURATION_S) * sample_rate_hz)
    num_event = round(rng.uniform(0.5, 1.0) * num_samples)
    onset = int(rng.integers(num_samples - num_event + 1))
    mixture = _unit(_background(Canvas(rng, num_samples, sample_rate_hz)))
    # 10 ms at both ends, so that an event cut short doesn't click.
    fade = np.minimum(1.0, np.arange(1, num_event + 1) / (0.01 * sample_rate_hz))
    event = _unit(SOUNDS[label](Canvas(rng, num_event, sample_rate_hz)) * fade * fade[::-1])
    mixture[onset : onset + num_event] += event * 10 ** (rng.uniform(*SNR_DB) / 20)
    mixture *= 10 ** (rng.uniform(*PEAK_DB) / 20) / np.abs(mixture).max()
    return mixture.astype(np.float32)


def _background(canvas: Canvas) -> Waveform:
    """Noise whose spectrum falls as 1/f^slope, from white (0) to past pink (1.5), and whose level wanders."""
    slope = canvas.rng.uniform(0.0, 1.5)
    return _noise(canvas, lambda hz: np.maximum(hz, 40.0) ** (-slope / 2)) * _wander(canvas, 2.0, 0.5, 1.5)


def _bark(canvas: Canvas) -> Waveform:
    """Bursts of a falling pitch with breath, through two formants."""
    rng = canvas.rng
    pitch_hz, formant_hz = rng.uniform(250, 600), rng.uniform(600, 1300)

    def throat(hz: Waveform) -> Waveform:
        return _band(hz, formant_hz, 0.4) + 0.5 * _band(hz, 2.3 * formant_hz, 0.3)

    def burst() -> Waveform:
        num = round(rng.uniform(0.1, 0.3) * canvas.sample_rate_hz)
        voice = _tone(canvas, pitch_hz * np.linspace(1.3, 0.7, num), [1.0] * 8)
        breath = rng.uniform(0.5, 2.0) * rng.standard_normal(num)
        return _filtered(voice + breath, canvas.sample_rate_hz, throat) * np.hanning(num)

    return _repeat(canvas, burst, rng.uniform(0.25, 0.7), jitter=0.3)


def _beeps(canvas: Canvas) -> Waveform:
    """A steady tone switched on and off at an even rate."""
    pitch_hz = np.full(canvas.num_samples, canvas.rng.uniform(500, 2400))
    beats = canvas.time_s * canvas.rng.uniform(1.5, 7.0)
    switch = np.clip(20 * (canvas.rng.uniform(0.4, 0.7) - beats % 1.0), 0.0, 1.0)
    return switch * _tone(canvas, pitch_hz, [1.0, 0.0, canvas.rng.uniform(0.0, 0.4)])


def _bell(canvas: Canvas) -> Waveform:
    """Strikes of inharmonic partials, the higher the sooner gone."""
    rng, time_s = canvas.rng, canvas.time_s[:, None]
    ratios = np.array([0.5, 1.0, 1.19, 1.56, 2.0, 2.66, 3.01, 4.1]) * rng.uniform(0.98, 1.02, 8)
    cycles = rng.uniform(300, 1300) * ratios * time_s
    partials = np.sin(2 * np.pi * cycles) * np.exp(-time_s * ratios / rng.uniform(0.3, 1.2))
    strike = np.sum(partials * rng.uniform(0.2, 1.0, 8), axis=1)
    return _repeat(canvas, lambda: strike, rng.uniform(0.6, 2.0), jitter=0.1)


def _bird(canvas: Canvas) -> Waveform:
    """Short whistled sweeps, up or down."""
    rng = canvas.rng
    centre_hz = rng.uniform(1800, 5000)

    def chirp() -> Waveform:
        num = round(rng.uniform(0.04, 0.2) * canvas.sample_rate_hz)
        octaves = np.linspace(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), num)
        return _tone(canvas, centre_hz * 2**octaves, [1.0]) * np.hanning(num)

    return _repeat(canvas, chirp, rng.uniform(0.1, 0.4), jitter=0.5)


def _clock(canvas: Canvas) -> Waveform:
    """Ticks of a small hard body, almost even."""
    body_hz, decay_s = canvas.rng.uniform(700, 4500), canvas.rng.uniform(0.004, 0.02)
    return _repeat(canvas, lambda: _tap(canvas, body_hz, decay_s), canvas.rng.uniform(0.15, 0.5), jitter=0.05)


def _crackle(canvas: Canvas) -> Waveform:
    """Sparse clicks of very unequal strength, as of a fire."""
    return _clicks(canvas, canvas.rng.uniform(10, 80), canvas.rng.uniform(1000, 4500))


def _engine(canvas: Canvas) -> Waveform:
    """Many harmonics of a low, drifting rate of firing."""
    firing_hz = canvas.rng.uniform(30, 110) * _wander(canvas, 1.0, 0.8, 1.25)
    levels = canvas.rng.uniform(0.2, 1.0, 30) / np.arange(1, 31) ** canvas.rng.uniform(0.2, 1.0)
    return _tone(canvas, firing_hz, levels.tolist())


def _knock(canvas: Canvas) -> Waveform:
    """Taps on a larger body than a clock's, unevenly spaced."""
    body_hz, decay_s = canvas.rng.uniform(150, 1100), canvas.rng.uniform(0.01, 0.05)
    return _repeat(canvas, lambda: _tap(canvas, body_hz, decay_s), canvas.rng.uniform(0.15, 0.5), jitter=0.5)


def _rain(canvas: Canvas) -> Waveform:
    """Hiss with drops: so many clicks that they blend."""
    centre_hz = canvas.rng.uniform(1500, 5000)
    drops = _unit(_clicks(canvas, canvas.rng.uniform(100, 600), centre_hz))
    return _unit(_noise(canvas, lambda hz: _band(hz, centre_hz, 1.0))) + canvas.rng.uniform(0.5, 2.0) * drops


def _siren(canvas: Canvas) -> Waveform:
    """A reedy tone that climbs and falls over half an octave or more."""
    rng = canvas.rng
    cycles = canvas.time_s * rng.uniform(0.3, 3.0) + rng.uniform()
    octaves = rng.uniform(0.25, 0.8) * np.sin(2 * np.pi * cycles)
    return _tone(canvas, rng.uniform(600, 1300) * 2**octaves, [1.0, rng.uniform(0.1, 0.6), 0.2])


def _whistle(canvas: Canvas) -> Waveform:
    """A held tone with vibrato."""
    octaves = canvas.rng.uniform(0.02, 0.2) * np.sin(2 * np.pi * canvas.time_s * canvas.rng.uniform(3.0, 8.0))
    return _tone(canvas, canvas.rng.uniform(600, 2200) * 2**octaves, [1.0, canvas.rng.uniform(0.0, 0.3)])


def _wind(canvas: Canvas) -> Waveform:
    """Low noise in gusts, which are brighter the stronger they blow."""
    centre_hz = canvas.rng.uniform(150, 800)
    calm = _unit(_noise(canvas, lambda hz: _band(hz, centre_hz, 0.7)))
    gust = _unit(_noise(canvas, lambda hz: _band(hz, 2.5 * centre_hz, 0.7)))
    strength = _wander(canvas, 2.0, 0.1, 1.0)
    return strength * ((1 - strength) * calm + strength * gust)


SOUNDS: dict[str, Callable[[Canvas], Waveform]] = {
    "bark": _bark,
    "beeps": _beeps,
    "bell": _bell,
    "bird": _bird,
    "clock": _clock,
    "crackle": _crackle,
    "engine": _engine,
    "knock": _knock,
    "rain": _rain,
    "siren": _siren,
    "whistle": _whistle,
    "wind": _wind,
}


def _unit(waveform: Waveform) -> Waveform:
    """Scaled to a root mean square of 1."""
    return waveform / float(np.sqrt(np.mean(waveform**2)))


def _wander(canvas: Canvas, rate_hz: float, low: float, high: float) -> Waveform:
    """Straight lines between values drawn from [low, high] `rate_hz` times a second."""
    beats = canvas.time_s * rate_hz
    values = canvas.rng.uniform(low, high, int(beats[-1]) + 2)
    return np.interp(beats, np.arange(values.size), values)


def _tone(canvas: Canvas, frequency_hz: Waveform, levels: Sequence[float]) -> Waveform:
    """The harmonics of a moving `frequency_hz` (num_samples,), the k-th at levels[k - 1]."""
    phase = 2 * np.pi * np.cumsum(frequency_hz) / canvas.sample_rate_hz
    tone = np.zeros_like(phase)
    for harmonic, level in enumerate(levels, 1):
        tone += level * np.sin(harmonic * phase)
    return tone


def _band(frequency_hz: Waveform, centre_hz: float, width_octaves: float) -> Waveform:
    """A band-pass gain: a Gaussian over octaves whose standard deviation is `width_octaves`."""
    octaves = np.log2(np.maximum(frequency_hz, 1.0) / centre_hz)
    return np.exp(-0.5 * np.square(octaves / width_octaves))


def _filtered(waveform: Waveform, sample_rate_hz: int, gain: Callable[[Waveform], Waveform]) -> Waveform:
    """`waveform` with its spectrum times gain(frequency in Hz)."""
    # The next power of two: an FFT of the length itself, often with a large prime factor, is several times slower.
    num_fft = 1 << (waveform.size - 1).bit_length()
    frequency_hz = np.linspace(0.0, sample_rate_hz / 2, num_fft // 2 + 1)
    return np.fft.irfft(np.fft.rfft(waveform, num_fft) * gain(frequency_hz), num_fft)[: waveform.size]


def _noise(canvas: Canvas, gain: Callable[[Waveform], Waveform]) -> Waveform:
    return _filtered(canvas.rng.standard_normal(canvas.num_samples), canvas.sample_rate_hz, gain)


def _clicks(canvas: Canvas, rate_hz: float, centre_hz: float) -> Waveform:
    """Band-passed impulses at random times, their strengths heavy-tailed."""
    num_clicks = round(rate_hz * canvas.num_samples / canvas.sample_rate_hz)
    impulses = np.zeros(canvas.num_samples)
    starts = canvas.rng.integers(canvas.num_samples, size=num_clicks)
    impulses[starts] = canvas.rng.standard_exponential(num_clicks) ** 1.5
    return _filtered(impulses, canvas.sample_rate_hz, lambda hz: _band(hz, centre_hz, 1.0))


def _tap(canvas: Canvas, body_hz: float, decay_s: float) -> Waveform:
    """A struck body: a decaying resonance and a shorter burst of noise, of any strength from half to full."""
    time_s = np.arange(round(8 * decay_s * canvas.sample_rate_hz)) / canvas.sample_rate_hz
    ring = np.sin(2 * np.pi * body_hz * time_s) * np.exp(-time_s / decay_s)
    thud = 0.5 * canvas.rng.standard_normal(time_s.size) * np.exp(-time_s / (0.2 * decay_s))
    return canvas.rng.uniform(0.5, 1.0) * (ring + thud)


def _repeat(canvas: Canvas, grain: Callable[[], Waveform], period_s: float, *, jitter: float) -> Waveform:
    """One grain() after another, their starts `period_s` apart give or take the share `jitter`, cut at the end."""
    out, start = np.zeros(canvas.num_samples), 0
    while start < canvas.num_samples:
        part = grain()[: canvas.num_samples - start]
        out[start : start + part.size] += part
        start += round(period_s * canvas.rng.uniform(1 - jitter, 1 + jitter) * canvas.sample_rate_hz)
    return out
