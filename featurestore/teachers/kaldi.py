"""Kaldi's log-mel filter bank for batches, on the teacher's device; `ingest/fbank.py` is the one of the shards."""

from typing import Literal

import torch
import torchaudio.compliance.kaldi as kaldi
from torch import Tensor, nn
from torch.nn import functional as F

from manifests.geometry import FbankSpec

FFT_SIZE = 512
ENERGY_FLOOR = torch.finfo(torch.float32).eps
POVEY_EXPONENT = 0.85


class KaldiFbank(nn.Module):
    """Log-mel energies of waveforms, as `torchaudio.compliance.kaldi.fbank` without dither; no trained tensors.

    16 kHz, frames of 25 ms every 10 ms that lie wholly inside, less their mean, preemphasis .97, 128 mel from 20 Hz.
    """

    window: Tensor
    mel_basis: Tensor

    def __init__(self, window: Literal["hanning", "povey"]) -> None:
        super().__init__()
        self.spec = spec = FbankSpec()
        shape = torch.hann_window(spec.frame_length, periodic=False)
        self.register_buffer("window", shape if window == "hanning" else shape**POVEY_EXPONENT, persistent=False)
        limits = float(spec.sample_rate_hz), float(spec.low_hz), float(spec.high_hz)
        basis, _ = kaldi.get_mel_banks(spec.num_mel_bins, FFT_SIZE, *limits, 100.0, -500.0, 1.0)
        # Kaldi's banks leave out the Nyquist bin, which the FFT has.
        self.register_buffer("mel_basis", F.pad(basis, (0, 1)).T.contiguous(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Energies (B, T, 128) of waveforms (B, num_samples); T is 0 for less than 400 samples."""
        spec = self.spec
        if waveform.shape[1] < spec.frame_length:
            return waveform.new_empty(len(waveform), 0, spec.num_mel_bins)
        # The logarithm of a nearly empty band needs float32, whatever precision the network runs in.
        with torch.autocast(waveform.device.type, enabled=False):
            frames = waveform.unfold(1, spec.frame_length, spec.frame_shift)
            frames = frames - frames.mean(2, keepdim=True)
            # A frame's first sample has no predecessor, but there both windows are 0. Two roundings, as in Kaldi.
            emphasised = F.pad(frames[..., 1:] - frames[..., :-1] * spec.preemphasis, (1, 0))
            spectrum = torch.fft.rfft(emphasised * self.window, FFT_SIZE)
            power = torch.view_as_real(spectrum).square().sum(-1)  # (B, T, FFT_SIZE / 2 + 1)
            return (power @ self.mel_basis).clamp(min=ENERGY_FLOOR).log()
