"""Tags of audio files of any length and rate."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from ingest.featurise import window_fbank
from ingest.ledger import ClipError
from training.checkpoint import About, Checkpoint, load_checkpoint, save_checkpoint
from training.model.networks import Student
from training.model.patches import patchify
from training.predict import Predictor, Tag

WINDOW = 400 + 255 * 160  # samples of 256 frames
CPU = torch.device("cpu")
Write = Callable[..., Path]


@pytest.fixture
def predictor(checkpoint_path: Path) -> Predictor:
    return Predictor(load_checkpoint(checkpoint_path), CPU)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a sweep in noise of so many samples."""

    def write(num_samples: int, rate_hz: int = 16_000, num_channels: int = 1) -> Path:
        time_s = np.arange(num_samples) / rate_hz
        noise = np.random.default_rng(0).standard_normal((num_channels, num_samples))
        sound = 0.3 * np.sin(2 * np.pi * (300 + 200 * time_s) * time_s) + 0.02 * noise
        path = tmp_path / f"{num_samples}_{rate_hz}_{num_channels}.wav"
        soundfile.write(path, sound.T, rate_hz, subtype="FLOAT")
        return path

    return write


def by_hand(windows: list[NDArray[np.float32]], student: Student, about: About) -> dict[str, float]:
    fbanks = torch.from_numpy(np.stack([window_fbank(window, about.fbank) for window in windows])).float()
    with torch.no_grad():
        said = student(patchify((fbanks - about.mean) / about.std, student.grid)).logits.softmax(1).mean(0)
    return dict(zip(about.vocabulary.ids, said.tolist(), strict=True))


def found(tags: list[Tag]) -> dict[str, float]:
    probabilities = [tag.probability for tag in tags]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1.0, abs=1e-5)
    return {tag.label_id: tag.probability for tag in tags}


@pytest.mark.parametrize(
    ("num_samples", "num_windows"),
    [
        (400, 1),  # one frame
        (WINDOW // 3, 1),  # looped
        (WINDOW, 1),
        (WINDOW + WINDOW // 2 - 1, 1),  # the rest is left out
        (WINDOW + WINDOW // 2, 2),
        (3 * WINDOW + 7, 3),
        (19 * WINDOW, 19),  # more than are taken at a time
    ],
)
def test_windows_are_averaged(
    num_samples: int, num_windows: int, predictor: Predictor, write: Write, student: Student, about: About
) -> None:
    path = write(num_samples)
    waveform = soundfile.read(path, dtype="float32")[0]
    windows = [waveform[number * WINDOW : (number + 1) * WINDOW] for number in range(num_windows)]
    assert found(predictor.tags(path)) == pytest.approx(by_hand(windows, student, about), abs=1e-4)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 44_100])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_other_rates_and_channels(predictor: Predictor, write: Write, rate_hz: int, num_channels: int) -> None:
    assert len(found(predictor.tags(write(3 * rate_hz, rate_hz, num_channels)))) == 3


def test_several_labels_have_their_own_probabilities(
    about: About, student: Student, tmp_path: Path, write: Write
) -> None:
    save_checkpoint(
        Checkpoint(about.model_copy(update={"one_label": False}), student.state_dict()), tmp_path / "several.pt"
    )
    several = Predictor(load_checkpoint(tmp_path / "several.pt"), CPU)
    path = write(WINDOW)
    fbank = torch.from_numpy(window_fbank(soundfile.read(path, dtype="float32")[0], about.fbank)).float()[None]
    with torch.no_grad():
        logits = student(patchify((fbank - about.mean) / about.std, student.grid)).logits[0]
    expected = dict(zip(about.vocabulary.names, logits.sigmoid().tolist(), strict=True))
    assert {tag.name: tag.probability for tag in several.tags(path)} == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_read(predictor: Predictor, write: Write, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("not a sound")
    (tmp_path / "empty.wav").touch()
    nan = tmp_path / "nan.wav"
    soundfile.write(nan, np.full(5000, np.nan, np.float32), 16_000, subtype="FLOAT")
    for path, message in (
        (tmp_path, "directory"),
        (tmp_path / "text.txt", "."),
        (tmp_path / "empty.wav", "empty"),
        (tmp_path / "absent.wav", "no such file"),
        (write(399), "less than one frame of 25 ms"),
        (nan, "NaN or Inf"),
    ):
        with pytest.raises(ClipError, match=f"(?i){message}"):
            predictor.tags(path)
