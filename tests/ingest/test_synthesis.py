"""The demo corpus's sounds: ranges, determinism, noise under every event, and a difficulty that is worth learning."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ingest import synthesis
from ingest.synthesis import DURATION_S, SAMPLE_RATES_HZ, SOUNDS, synthesise, write_demo_audio
from manifests.clips import Clip, Sources, make_manifest
from manifests.demo import CLASSES, demo_manifest
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary

RATE_HZ = 16_000


def _clip(label: str, *seed: int, sample_rate_hz: int = RATE_HZ) -> npt.NDArray[np.float32]:
    return synthesise(label, np.random.default_rng([CLASSES.index(label), *seed]), sample_rate_hz)


def _noise_only(patch: pytest.MonkeyPatch, label: str, *seed: int) -> npt.NDArray[np.float32]:
    with patch.context() as context:
        context.setattr(synthesis, "SNR_DB", (-200.0, -200.0))
        return _clip(label, *seed)


def _event_only(patch: pytest.MonkeyPatch, label: str, *seed: int) -> npt.NDArray[np.float32]:
    with patch.context() as context:
        context.setattr(synthesis, "SNR_DB", (200.0, 200.0))
        return _clip(label, *seed)


def _frame_levels(waveform: npt.NDArray[np.float32], num_frame: int = 320) -> npt.NDArray[np.float64]:
    """Root mean square of each 20 ms, relative to the whole's: (num_frames,)."""
    frames = waveform[: waveform.size // num_frame * num_frame].reshape(-1, num_frame).astype(np.float64)
    return np.sqrt(np.mean(frames**2, axis=1) / np.mean(frames**2))


def _log_bands(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log energies in 40 bands, even in octaves from 60 Hz to 8 kHz, of each 32 ms: (num_frames, 40)."""
    frames = waveform[: waveform.size // 512 * 512].reshape(-1, 512)
    power = np.abs(np.fft.rfft(frames * np.hanning(512))) ** 2
    edges = np.unique(np.geomspace(2, 257, 41).astype(int))
    return np.log(np.add.reduceat(power, edges[:-1], axis=1) + 1e-10)


def _features(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Mean spectrum without the clip's level, and each band's standard deviation in time."""
    bands = _log_bands(waveform)
    return np.concatenate([bands.mean(0) - bands.mean(), bands.std(0)])


def test_every_class_has_a_sound() -> None:
    assert tuple(SOUNDS) == CLASSES


@pytest.mark.parametrize("sample_rate_hz", SAMPLE_RATES_HZ)
@pytest.mark.parametrize("label", CLASSES)
def test_a_clip_is_mono_finite_in_range_and_one_to_four_seconds(label: str, sample_rate_hz: int) -> None:
    for seed in range(3):
        waveform = _clip(label, seed, sample_rate_hz=sample_rate_hz)
        assert waveform.dtype == np.float32
        assert waveform.ndim == 1
        assert np.isfinite(waveform).all()
        assert 10 ** (-30 / 20) * 0.999 <= np.abs(waveform).max() <= 1.0
        assert DURATION_S[0] - 1e-3 <= waveform.size / sample_rate_hz <= DURATION_S[1] + 1e-3


@pytest.mark.parametrize("label", CLASSES)
def test_a_clip_is_a_function_of_its_generator(label: str) -> None:
    np.testing.assert_array_equal(_clip(label, 0), _clip(label, 0))
    assert _clip(label, 0).tobytes() != _clip(label, 1).tobytes()


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(InputError, match=r"'trombone' is not a demo class.*bark"):
        synthesise("trombone", np.random.default_rng(0), RATE_HZ)


@pytest.mark.parametrize("label", CLASSES)
def test_noise_lies_under_the_whole_event(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        noise, event = (_frame_levels(render(monkeypatch, label, seed)) for render in (_noise_only, _event_only))
        assert noise.size == event.size
        assert noise[event > 0.1].min() > 0.05
        # 30 dB is the highest SNR, and the background wanders and fluctuates by some 15 dB around its mean.
        assert 20 * np.log10(_frame_levels(_clip(label, seed)).min()) > -50


@pytest.mark.parametrize("label", CLASSES)
def test_a_class_differs_from_its_own_background(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num_clips = 12
    pairs = [(_clip(label, seed), _noise_only(monkeypatch, label, seed)) for seed in range(num_clips)]
    difference = np.array([_features(mixture) - _features(noise) for mixture, noise in pairs])
    t_values = difference.mean(0) / (difference.std(0, ddof=1) / np.sqrt(num_clips))
    # |t| > 5 with 11 degrees of freedom has p < 5e-4, so that chance in one of the 68 features has p < 0.04.
    assert np.abs(t_values).max() > 5


def test_the_corpus_is_neither_trivial_nor_hopeless(tmp_path: Path) -> None:
    clips = list(demo_manifest(tmp_path).clips())
    features = np.array([_features(_clip(clip.labels[0], *clip.key.encode())) for clip in clips])
    labels = np.array([clip.labels[0] for clip in clips])
    is_train = np.array([clip.split == "train" for clip in clips])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(features[is_train], labels[is_train])
    assert 0.5 < classifier.score(features[~is_train], labels[~is_train]) < 0.95


def test_files_depend_on_seed_and_key_and_not_on_order(tmp_path: Path) -> None:
    shuffled = demo_manifest(tmp_path / "a", num_clips=24, seed=0)
    otherwise = demo_manifest(tmp_path / "b", num_clips=24, seed=1)
    write_demo_audio(shuffled, seed=5)
    write_demo_audio(otherwise, seed=5)
    write_demo_audio(replace(otherwise, sources=Sources(kind="files", address=str(tmp_path / "c"))), seed=6)
    for clip in shuffled.clips():
        first, again, other = ((tmp_path / folder / clip.source).read_bytes() for folder in "abc")
        assert first == again
        assert first != other


def test_files_are_16_bit_mono_wav_at_various_rates(tmp_path: Path) -> None:
    manifest = demo_manifest(tmp_path, num_clips=36)
    write_demo_audio(manifest, seed=0)
    infos = [soundfile.info(tmp_path / clip.source) for clip in manifest.clips()]
    assert {(info.format, info.subtype, info.channels) for info in infos} == {("WAV", "PCM_16", 1)}
    assert {info.samplerate for info in infos} == set(SAMPLE_RATES_HZ)
    assert all(0.999 <= info.duration <= 4.001 for info in infos)
    assert {path.name for path in (tmp_path / "audio").iterdir()} == {f"{clip.key}.wav" for clip in manifest.clips()}


def test_only_missing_files_are_written(tmp_path: Path) -> None:
    manifest = demo_manifest(tmp_path, num_clips=3)
    write_demo_audio(manifest, seed=0)
    kept, lost, _ = (tmp_path / clip.source for clip in manifest.clips())
    before = lost.read_bytes()
    kept.write_bytes(b"mine")
    lost.unlink()
    write_demo_audio(manifest, seed=0)
    assert kept.read_bytes() == b"mine"
    assert lost.read_bytes() == before


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (Clip(key="a", source="../a.wav", labels=("bark",)), "outside"),
        (Clip(key="a", source="a.wav", labels=("trombone",)), "not a demo class"),
        (Clip(key="a", source="a.wav"), "not a demo class"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path: Path, clip: Clip, message: str) -> None:
    root = tmp_path / "root"
    manifest = make_manifest("other", [clip], Vocabulary.from_names(["bark", "trombone"]), root)
    with pytest.raises(InputError, match=message):
        write_demo_audio(manifest, seed=0)
    assert not list(tmp_path.rglob("*.wav"))
