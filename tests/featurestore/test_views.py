"""Augmented views: the same ones always, and the same for a teacher of waveforms as for a student of fbanks."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from featurestore.views import NUM_SEAM_FRAMES, View, apply_to_fbank, apply_to_waveform, view_of
from ingest.fbank import ENERGY_FLOOR
from ingest.featurise import window_fbank
from manifests.geometry import FbankSpec

SPEC = FbankSpec(num_frames=256)
# Of the shards' float16, for values of up to 16 in magnitude.
FLOAT16_STEP = 2**-7
FLOOR = math.log(ENERGY_FLOOR)


def noise(num_samples: int) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(0).standard_normal(num_samples)).astype(np.float32)


def test_a_view_is_the_same_for_ever() -> None:
    assert view_of("clip07", 1, 3, 1024) == View(roll_frames=208, gain_db=pytest.approx(-5.502960294239065))


@pytest.mark.parametrize("other", [("clip08", 1, 3), ("clip07", 2, 3), ("clip07", 1, 4)])
def test_a_view_depends_on_key_number_and_seed(other: tuple[str, int, int]) -> None:
    view, another = view_of("clip07", 1, 3, 1024), view_of(*other, 1024)
    assert view.roll_frames != another.roll_frames
    assert view.gain_db != another.gain_db


def test_views_are_uniform() -> None:
    views = [view_of(f"clip{number}", number % 4, 0, 256) for number in range(6000)]
    rolls, gains = np.array([view.roll_frames for view in views]), np.array([view.gain_db for view in views])
    assert set(rolls.tolist()) == set(range(256))
    # Within four standard errors.
    assert rolls.mean() == pytest.approx(127.5, abs=4 * 73.9 / 6000**0.5)
    assert gains.mean() == pytest.approx(0, abs=4 * 3.46 / 6000**0.5)
    assert -6 <= gains.min() < -5.9 < 5.9 < gains.max() <= 6
    assert abs(np.corrcoef(rolls, gains)[0, 1]) < 4 / 6000**0.5


@pytest.mark.parametrize("num_samples", [SPEC.num_samples, 16_000, 7_001])
@pytest.mark.parametrize("view", [View(0, 0.0), View(1, 0.0), View(100, 4.5), View(255, -6.0)])
def test_both_paths_lead_to_the_same_view(num_samples: int, view: View) -> None:
    waveform = noise(num_samples)
    heard = window_fbank(apply_to_waveform(waveform, view, 16_000, SPEC), SPEC).astype(np.float32)
    seen = apply_to_fbank(window_fbank(waveform, SPEC), view)
    assert seen.shape == heard.shape == (256, 128)
    wrong = np.flatnonzero((np.abs(heard - seen) > 2 * FLOAT16_STEP).any(1))
    # Only the frames where the window's end meets its beginning.
    assert set(wrong) <= {(view.roll_frames - 1 - frame) % 256 for frame in range(NUM_SEAM_FRAMES)}


def test_whole_frames_move_and_nothing_else_does() -> None:
    click = np.zeros(SPEC.num_samples, np.float32)
    click[160 * 50 + 200] = 1.0
    loudest = window_fbank(click, SPEC).sum(1).argmax()
    moved = window_fbank(apply_to_waveform(click, View(230, 0.0), 16_000, SPEC), SPEC).sum(1).argmax()
    assert (loudest, moved) == (50, (50 + 230) % 256)


def test_another_rate_gives_the_same_view() -> None:
    waveform = noise(2 * SPEC.num_samples)
    view = View(77, 3.0)
    faster, slower = (apply_to_waveform(waveform[::step], view, 32_000 // step, SPEC) for step in (1, 2))
    assert len(faster) == 2 * SPEC.num_samples
    assert (faster[::2] == slower).all()


def test_a_gain_is_a_gain() -> None:
    waveform = noise(SPEC.num_samples)
    louder = apply_to_waveform(waveform, View(0, 6.0), 16_000, SPEC)
    circle = 256 * 160
    np.testing.assert_allclose(louder[:circle], waveform[:circle] * 10**0.3, rtol=1e-6)
    fbank = np.linspace(-10, 3, 256 * 128, dtype=np.float32).reshape(256, 128)
    np.testing.assert_allclose(apply_to_fbank(fbank, View(0, 6.0)), fbank + 0.6 * math.log(10), atol=1e-5)


@pytest.mark.parametrize("gain_db", [-6.0, 6.0])
def test_silence_stays_at_the_floor(gain_db: float) -> None:
    silence = np.zeros(SPEC.num_samples, np.float32)
    view = View(9, gain_db)
    heard = window_fbank(apply_to_waveform(silence, view, 16_000, SPEC), SPEC)
    seen = apply_to_fbank(window_fbank(silence, SPEC), view)
    np.testing.assert_allclose(heard, FLOOR, atol=FLOAT16_STEP)
    np.testing.assert_allclose(seen, FLOOR, atol=1e-6)


def test_what_falls_below_the_floor_is_at_it() -> None:
    fbank = np.full((256, 128), FLOOR + 0.5, np.float32)
    np.testing.assert_allclose(apply_to_fbank(fbank, View(0, -6.0)), FLOOR, atol=1e-6)
    np.testing.assert_allclose(apply_to_fbank(fbank, View(0, -1.0)), FLOOR + 0.5 - 0.1 * math.log(10), atol=1e-5)
