"""The batched filter bank against torchaudio's and the shards' own."""

import pytest
import torch
import torchaudio.compliance.kaldi as kaldi
from torch import Tensor

from featurestore.teachers.kaldi import KaldiFbank
from ingest.fbank import fbank
from manifests.geometry import FbankSpec


def sounds(num_samples: int, scale: float = 1.0) -> Tensor:
    """Noise, and a tone in less noise, with an offset."""
    noise = torch.randn(2, num_samples, generator=torch.Generator().manual_seed(num_samples))
    tone = (torch.arange(num_samples) * 0.3).sin() * 0.4
    return scale * torch.stack([0.1 * noise[0], 0.05 + tone + 0.003 * noise[1]])


@pytest.mark.parametrize("window", ["hanning", "povey"])
@pytest.mark.parametrize(("num_samples", "scale"), [(400, 1.0), (559, 2.0**15), (560, 1.0), (16_000, 2.0**15)])
def test_it_is_torchaudios(window: str, num_samples: int, scale: float) -> None:
    waveforms = sounds(num_samples, scale)
    expected = torch.stack(
        [
            kaldi.fbank(one[None], window_type=window, num_mel_bins=128, sample_frequency=16_000.0, dither=0.0)
            for one in waveforms
        ]
    )
    torch.testing.assert_close(KaldiFbank(window)(waveforms), expected, atol=1e-4, rtol=0)


def test_it_is_the_shards() -> None:
    waveforms = sounds(41_200)
    spec = FbankSpec(num_frames=256)
    expected = torch.stack([fbank(one, spec) for one in waveforms])
    found = KaldiFbank("hanning")(waveforms - waveforms.mean(1, keepdim=True))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("num_samples", [0, 1, 399])
def test_less_than_a_frame_gives_none(num_samples: int) -> None:
    assert KaldiFbank("povey")(sounds(num_samples)).shape == (2, 0, 128)


def test_silence_is_the_floor() -> None:
    energies = KaldiFbank("povey")(torch.zeros(1, 800))
    torch.testing.assert_close(energies, torch.full((1, 3, 128), -15.9424), atol=1e-4, rtol=0)


def test_a_lower_precision_of_the_network_leaves_it_alone() -> None:
    waveforms = sounds(4_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = KaldiFbank("hanning")(waveforms)
    torch.testing.assert_close(lowered, KaldiFbank("hanning")(waveforms), atol=0, rtol=0)
