"""The exported graph against the fbank that shards are made with and the network that was trained."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ingest.featurise import window_fbank
from manifests.geometry import FbankSpec
from training.checkpoint import About, Checkpoint
from training.config import ModelConfig
from training.export.graph import LogMel, WaveformModel, trace
from training.model.networks import MultiSSLNetwork, Student
from training.model.patches import patchify
from training.seeds import generator_for

SPEC = FbankSpec(num_frames=256)
WINDOW = SPEC.num_samples


def sound(num_samples: int, level: float = 0.3, seed: int = 0) -> np.ndarray:
    """A sweep with an offset, in noise that is 60 dB softer."""
    time_s = np.arange(num_samples) / 16_000
    noise = np.random.default_rng(seed).standard_normal(num_samples)
    sweep = np.sin(2 * np.pi * (100 + 900 * time_s) * time_s)
    return (level * (sweep + 1e-3 * noise) + 0.05).astype(np.float32)


@pytest.mark.parametrize("num_samples", [400, 401, 7_777, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_the_fbank_is_that_of_shards(num_samples: int) -> None:
    waveform = sound(num_samples)
    expected = window_fbank(waveform, SPEC).astype(np.float32)
    found = LogMel(SPEC)(torch.from_numpy(waveform)[None])[0].numpy()
    assert found.shape == (256, 128)
    # Equal but for a last digit of float16 here and there.
    np.testing.assert_allclose(found, expected, rtol=2**-10, atol=2e-3)
    assert (found == expected).mean() > 0.95


@pytest.mark.parametrize("level", [0.0, 1e-5, 1.0])
def test_silence_and_full_scale(level: float) -> None:
    waveform = sound(WINDOW, level)
    expected = window_fbank(waveform, SPEC).astype(np.float32)
    found = LogMel(SPEC)(torch.from_numpy(waveform)[None])[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=2**-9, atol=5e-3)


def test_the_dft_is_that_of_the_window() -> None:
    fbank, frame = LogMel(SPEC), np.random.default_rng(1).standard_normal(400)
    frame[0] = 0.0
    expected = np.fft.rfft(frame * np.hanning(400), 512)[:256]
    given = torch.from_numpy(frame[1:]).float()
    np.testing.assert_allclose((given @ fbank.cosines).numpy(), expected.real, atol=2e-5)
    np.testing.assert_allclose((given @ fbank.sines).numpy(), -expected.imag, atol=2e-5)


def by_hand(waveform: np.ndarray, student: Student, about: About, spec: FbankSpec) -> tuple[torch.Tensor, ...]:
    """Logits (C,) and pooled features (D,) of one window."""
    fbank = torch.from_numpy(window_fbank(waveform, spec))[None].float()
    with torch.no_grad():
        said = student(patchify((fbank - about.mean) / about.std, student.grid))
    return said.logits[0], said.pooled[0]


@pytest.mark.parametrize("one_label", [True, False])
def test_a_traced_student_says_what_the_student_says(about: About, student: Student, one_label: bool) -> None:
    about = about.model_copy(update={"one_label": one_label})
    model = WaveformModel(Checkpoint(about, student.state_dict()))
    assert model.output_names == ("probabilities", "logits", "embedding")
    run = trace(model).module()
    for num_clips, num_samples in ((1, 500), (3, 20_001), (2, 2 * WINDOW)):
        batch = np.stack([sound(num_samples, 0.1 + 0.2 * place, place) for place in range(num_clips)])
        probabilities, logits, embedding = run(torch.from_numpy(batch))
        for place, waveform in enumerate(batch):
            own_logits, own_pooled = by_hand(waveform, student, about, SPEC)
            expected = own_logits.softmax(0) if one_label else own_logits.sigmoid()
            torch.testing.assert_close(probabilities[place], expected, atol=1e-3, rtol=0)
            torch.testing.assert_close(logits[place], own_logits, atol=2e-3, rtol=0)
            torch.testing.assert_close(embedding[place], own_pooled, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [{"num_frames": 512}, {"num_frames": 1024}, {"parameter_free_attention": True}, {"recompute": True}],
    ids=str,
)
def test_every_kind_of_model(about: About, tiny: ModelConfig, changes: dict[str, int]) -> None:
    model = tiny.model_copy(update=changes)
    spec = about.fbank.model_copy(update={"num_frames": model.num_frames})
    about = about.model_copy(update={"model": model, "fbank": spec, "teacher_dim": 8})
    student = Student(model, 3, 8, generator_for(0, "student")).eval()
    run = trace(WaveformModel(Checkpoint(about, student.state_dict()))).module()
    waveform = sound(spec.num_samples // 2 + 77)
    _, logits, embedding = run(torch.from_numpy(waveform)[None])
    own_logits, own_pooled = by_hand(waveform, student, about, spec)
    torch.testing.assert_close(logits[0], own_logits, atol=2e-3, rtol=0)
    torch.testing.assert_close(embedding[0], own_pooled, atol=2e-3, rtol=0)


def test_without_a_classifier_there_is_the_embedding(about: About, tiny: ModelConfig) -> None:
    network = MultiSSLNetwork(tiny, generator_for(0, "multissl")).eval()
    about = about.model_copy(update={"stage": "multissl"})
    model = WaveformModel(Checkpoint(about, network.state_dict()))
    assert model.output_names == ("embedding",)
    waveform = sound(WINDOW)
    (embedding,) = model(torch.from_numpy(waveform)[None])
    fbank = torch.from_numpy(window_fbank(waveform, SPEC))[None].float()
    with torch.no_grad():
        expected = network.aft(patchify((fbank - about.mean) / about.std, tiny.grid)).mean(1)
    torch.testing.assert_close(embedding, expected, atol=1e-3, rtol=0)


def test_nothing_of_this_machine_is_in_the_graph(about: About, student: Student) -> None:
    program = trace(WaveformModel(Checkpoint(about, student.state_dict())))
    assert not any("stack_trace" in node.meta for node in program.graph.nodes)
    assert str(Path(__file__).parents[3]) not in str([node.meta for node in program.graph.nodes])
