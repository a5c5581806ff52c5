"""Tags of audio files of any length and rate, by checkpoints; windows, events and what becomes of broken files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from ingest.featurise import window_fbank
from manifests.vocabulary import Vocabulary
from training.checkpoint import About, Checkpoint, save_checkpoint
from training.checkpointtagger import load_checkpoint_tagger
from training.filewindows import windows_of
from training.hearing import HeardWindow, HearingOptions
from training.model.networks import Student
from training.model.patches import patchify
from training.parts import Failure
from training.predict import EventFinder, FileTagger, FileTags, TagOptions
from training.tagfiles import Tagging, tag_files

WINDOW = 400 + 255 * 160  # samples of 256 frames
CPU = torch.device("cpu")
Write = Callable[..., Path]


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


def tagged(checkpoint: Path, files: list[Path]) -> list[FileTags | Failure]:
    tagger = load_checkpoint_tagger(checkpoint, CPU)
    options = TagOptions(top=100)
    said: list[FileTags | Failure] = []
    tag_files(files, Tagging(tagger, windows_of(tagger, None), HearingOptions(2, 4), options, "table"), said.append)
    return said


def by_hand(path: Path, num_windows: int, student: Student, about: About) -> dict[str, float]:
    waveform: NDArray[np.float32] = soundfile.read(path, dtype="float32")[0]
    windows = [waveform[number * WINDOW : (number + 1) * WINDOW] for number in range(num_windows)]
    fbanks = torch.from_numpy(np.stack([window_fbank(window, about.fbank) for window in windows])).float()
    with torch.no_grad():
        logits = student(patchify((fbanks - about.mean) / about.std, student.grid)).logits
    said = (logits.softmax(1) if about.one_label else logits.sigmoid()).mean(0)
    return dict(zip(about.vocabulary.ids, said.tolist(), strict=True))


def found(said: FileTags | Failure) -> dict[str, float]:
    assert isinstance(said, FileTags)
    probabilities = [tag.probability for tag in said.tags]
    assert probabilities == sorted(probabilities, reverse=True)
    return {tag.label_id: tag.probability for tag in said.tags}


def test_windows_are_averaged_in_the_order_of_the_files(
    checkpoint_path: Path, write: Write, student: Student, about: About
) -> None:
    num_windows = {
        400: 1,  # one frame
        19 * WINDOW: 19,  # more than wait at a time
        WINDOW // 3: 1,  # looped
        WINDOW: 1,
        WINDOW + WINDOW // 2 - 1: 1,  # the rest is left out
        WINDOW + WINDOW // 2: 2,
        3 * WINDOW + 7: 3,
    }
    files = [write(num_samples) for num_samples in num_windows]
    all_said = tagged(checkpoint_path, files)
    for said, path, number in zip(all_said, files, num_windows.values(), strict=True):
        assert said.file == str(path)
        assert found(said) == pytest.approx(by_hand(path, number, student, about), abs=1e-4)
        assert isinstance(said, FileTags)
        assert said.num_windows == number


def test_other_rates_and_channels(checkpoint_path: Path, write: Write) -> None:
    files = [write(3 * rate_hz, rate_hz, channels) for rate_hz in (8_000, 11_025, 44_100) for channels in (1, 2)]
    for said in tagged(checkpoint_path, files):
        assert sum(found(said).values()) == pytest.approx(1.0, abs=1e-5)


def test_several_labels_have_their_own_probabilities(
    about: About, student: Student, tmp_path: Path, write: Write
) -> None:
    several = about.model_copy(update={"one_label": False})
    save_checkpoint(Checkpoint(several, student.state_dict()), tmp_path / "several.pt")
    path = write(WINDOW)
    (said,) = tagged(tmp_path / "several.pt", [path])
    assert found(said) == pytest.approx(by_hand(path, 1, student, several), abs=1e-4)


def test_what_cannot_be_read(checkpoint_path: Path, write: Write, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("not a sound")
    (tmp_path / "empty.wav").touch()
    nan = tmp_path / "nan.wav"
    soundfile.write(nan, np.full(5000, np.nan, np.float32), 16_000, subtype="FLOAT")
    whole = write(WINDOW)
    expected = {
        tmp_path / "text.txt": "not_audio",
        whole: None,
        tmp_path / "empty.wav": "not_audio",
        tmp_path / "absent.wav": "missing",
        write(399): "too_short",
        nan: "non_finite",
    }
    said = tagged(checkpoint_path, list(expected))
    assert [None if isinstance(one, FileTags) else one.reason for one in said] == list(expected.values())


def windows(*probabilities: list[float], hop_s: float = 1.0) -> list[HeardWindow]:
    return [
        HeardWindow(0, number * hop_s, number * hop_s + 1.0, np.array(one, np.float32), np.zeros(1, np.float32), None)
        for number, one in enumerate(probabilities)
    ]


VOCABULARY = Vocabulary.from_names(["a", "b", "c"])


@pytest.mark.parametrize(
    ("aggregate", "expected"), [("mean", [("b", 0.5), ("a", 0.4)]), ("max", [("a", 0.8), ("b", 0.5)])]
)
def test_aggregates_by_hand(aggregate: str, expected: list[tuple[str, float]]) -> None:
    tagger = FileTagger(VOCABULARY, TagOptions(top=2, threshold=0.3, aggregate=aggregate, with_windows=True))  # type: ignore[arg-type]
    for window in windows([0.8, 0.5, 0.1], [0.0, 0.5, 0.2]):
        tagger.add(window)
    said = tagger.result("f")
    assert [(tag.name, pytest.approx(tag.probability)) for tag in said.tags] == expected
    assert [[tag.name for tag in window.tags] for window in said.windows] == [["a", "b"], ["b"]]
    assert said.end_s == 2.0


@pytest.mark.parametrize(
    ("hop_s", "expected"),
    [
        (1.0, [(0, 2, "a", 0.9), (1, 2, "b", 0.6), (3, 4, "a", 0.5)]),
        (0.5, [(0, 1.5, "a", 0.9), (0.5, 1.5, "b", 0.6), (1.5, 2.5, "a", 0.5)]),  # overlapping windows
        (0.25, [(0, 1.75, "a", 0.9), (0.25, 1.25, "b", 0.6)]),  # the fourth overlaps the second
        (2.0, [(0, 1, "a", 0.7), (2, 3, "a", 0.9), (2, 3, "b", 0.6), (6, 7, "a", 0.5)]),  # with gaps: nothing to merge
    ],
)
def test_events_by_hand(hop_s: float, expected: list[tuple[float, float, str, float]]) -> None:
    finder = EventFinder(VOCABULARY, threshold=0.5)
    for window in windows([0.7, 0.4, 0], [0.9, 0.6, 0], [0.1, 0.2, 0], [0.5, 0, 0.49], hop_s=hop_s):
        assert window.probabilities is not None
        finder.add(window.start_s, window.end_s, window.probabilities)
    events = [(one.start_s, one.end_s, one.tag.name, round(one.tag.probability, 4)) for one in finder.finish()]
    assert events == expected
