"""Teachers as taggers: their own golden vectors through the tagger, and what it takes of a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from featurestore.teachers.base import FbankInput, TeacherOutput
from featurestore.teachers.registry import load_teacher
from ingest.featurise import window_fbank
from manifests.errors import InputError
from manifests.geometry import FbankSpec
from manifests.vocabulary import Vocabulary
from training.filewindows import windows_of
from training.hearing import FileEnd, HeardWindow, HearingOptions, hear_files
from training.teachertagger import TeacherTagger

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mn04(shared: Path) -> TeacherTagger:
    return TeacherTagger(load_teacher("efficientat", shared / "data/weights/mn04_as_mAP_432.pt"), CPU)


def test_golden_vectors_of_efficientat(mn04: TeacherTagger, shared: Path) -> None:
    golden = np.load(shared / "golden/mn04.npz")
    said = mn04.hear([mn04.prepare(waveform) for waveform in golden["waveform_32k"]])
    assert said.probabilities is not None
    np.testing.assert_allclose(said.embedding, golden["embedding"], atol=1e-4)
    np.testing.assert_allclose(said.probabilities, 1 / (1 + np.exp(-golden["logits"])), atol=1e-4)
    assert (mn04.sample_rate_hz, mn04.window_samples, mn04.least_samples) == (32_000, 320_000, 800)
    assert mn04.vocabulary is not None
    assert mn04.vocabulary.names[0] == "Speech"


def test_golden_vectors_of_beats(shared: Path) -> None:
    golden = np.load(shared / "golden/beats_tiny.npz")
    tagger = TeacherTagger(load_teacher("beats", shared / "golden/beats_tiny.pt"), CPU)
    said = tagger.hear([tagger.prepare(waveform) for waveform in golden["waveform"]])
    np.testing.assert_allclose(said.embedding, golden["pooled"], atol=1e-3)
    np.testing.assert_allclose(said.tokens, golden["features"], atol=1e-2)
    np.testing.assert_allclose(said.probabilities, golden["probabilities"], atol=1e-4)


def test_a_file_shorter_than_a_window_is_heard_as_it_is(mn04: TeacherTagger, tmp_path: Path) -> None:
    sound = 0.1 * np.random.default_rng(0).standard_normal(32_000 * 13).astype(np.float32)
    for seconds in (3, 13):
        soundfile.write(tmp_path / f"{seconds}.wav", sound[: 32_000 * seconds], 32_000, subtype="FLOAT")
    files = [tmp_path / "3.wav", tmp_path / "13.wav"]
    with hear_files(files, mn04, windows_of(mn04, 5.0), HearingOptions(2, 4)) as items:
        heard = list(items)
    windows = [one for one in heard if isinstance(one, HeardWindow)]
    assert [(one.file, one.start_s, one.end_s) for one in windows] == [(0, 0, 3), (1, 0, 10), (1, 5, 13)]
    assert [one.error for one in heard if isinstance(one, FileEnd)] == [None, None]
    expected = mn04.hear([sound[32_000 * 5 :]])
    np.testing.assert_allclose(windows[2].embedding, expected.embedding[0], atol=1e-4)


class MelMeans:
    """A teacher of fbanks whose logits are the means of 4 of its bands."""

    name, embedding_dim, provenance = "means", 128, {"checkpoint_sha256": "0" * 64}
    input = FbankInput(FbankSpec(num_frames=256))

    def __init__(self, vocabulary: Any) -> None:
        self.vocabulary = vocabulary

    def to(self, device: torch.device) -> "MelMeans":
        return self

    def embed(self, batch: torch.Tensor) -> TeacherOutput:
        means = batch.mean(1)
        return TeacherOutput(means, means[:, :4])


def test_a_teacher_of_fbanks_hears_them_looped() -> None:
    tagger = TeacherTagger(MelMeans(Vocabulary.from_names(["a", "b", "c", "d"])), CPU)
    assert (tagger.sample_rate_hz, tagger.window_samples, tagger.least_samples) == (16_000, 400 + 255 * 160, 400)
    sound = 0.1 * np.random.default_rng(0).standard_normal(9_000).astype(np.float32)
    said = tagger.hear([tagger.prepare(sound)])
    expected = window_fbank(sound, FbankSpec(num_frames=256)).astype(np.float32).mean(0)
    np.testing.assert_allclose(said.embedding[0], expected, rtol=1e-5)
    np.testing.assert_allclose(said.probabilities, 1 / (1 + np.exp(-expected[None, :4])), rtol=1e-4)


def test_logits_that_nobody_names() -> None:
    tagger = TeacherTagger(MelMeans(Vocabulary.from_names(["a", "b"])), CPU)
    with pytest.raises(InputError, match="gives 4 logits and names 2 labels"):
        tagger.hear([tagger.prepare(np.ones(9_000, np.float32))])
