"""AST's log-mel filter bank, equal to `torchaudio.compliance.kaldi.fbank` within 1e-3 and about three times as fast."""

from functools import cache

import torch
import torchaudio.compliance.kaldi as kaldi
from torch import Tensor

from manifests.geometry import FbankSpec

FFT_SIZE = 512
# Kaldi takes the logarithm of max(energy, epsilon of float32): the floor is -15.94.
ENERGY_FLOOR = torch.finfo(torch.float32).eps
# The mel banks are nearly empty matrices: over blocks of 32 bins only the FFT bins that a block covers are multiplied.
MEL_BLOCK = 32
# Frames are done in blocks whose buffers malloc hands out again without asking the system for fresh pages.
FRAME_BLOCK = 512


@cache
def _window(spec: FbankSpec) -> Tensor:
    return torch.hann_window(spec.frame_length, periodic=False)


def mel_banks(spec: FbankSpec) -> Tensor:
    """Kaldi's triangles over the FFT's bins but for the Nyquist one, where they are 0: (num_mel_bins, FFT_SIZE / 2)."""
    rate_hz, low_hz, high_hz = float(spec.sample_rate_hz), float(spec.low_hz), float(spec.high_hz)
    banks: Tensor = kaldi.get_mel_banks(spec.num_mel_bins, FFT_SIZE, rate_hz, low_hz, high_hz, 100.0, -500.0, 1.0)[0]
    return banks


@cache
def _mel_blocks(spec: FbankSpec) -> list[tuple[int, int, Tensor]]:
    """The mel banks as (first FFT bin, last + 1, weights (bins, MEL_BLOCK)) per block of mel bins."""
    blocks = []
    for block in torch.split(mel_banks(spec), MEL_BLOCK):
        used = block.sum(0).nonzero().flatten()
        start, stop = int(used[0]), int(used[-1]) + 1
        blocks.append((start, stop, block[:, start:stop].T.contiguous()))
    return blocks


def fbank(waveform: Tensor, spec: FbankSpec) -> Tensor:
    """Log-mel energies of a waveform: hanning window, 25/10 ms, no dither, preemphasis .97 (Gong et al. 2021).

    `waveform`: (num_samples,) float32, mono, `spec.sample_rate_hz`, [-1, 1]; its mean is removed first. Returns
    (T, num_mel_bins) float32, not normalised, T = spec.frames_of(num_samples).
    """
    waveform = waveform - waveform.mean()
    frames = waveform.unfold(0, spec.frame_length, spec.frame_shift)[: spec.num_frames]  # (T, frame_length), a view
    energies = torch.empty(len(frames), spec.num_mel_bins)
    padded = torch.zeros(FRAME_BLOCK, FFT_SIZE)
    spectrum = torch.empty(FRAME_BLOCK, FFT_SIZE // 2 + 1, dtype=torch.complex64)
    for start in range(0, len(frames), FRAME_BLOCK):
        block = frames[start : start + FRAME_BLOCK]
        _windowed(block, spec, out=padded[: len(block), : spec.frame_length])
        torch.fft.rfft(padded[: len(block)], out=spectrum[: len(block)])
        _mel_energies(spectrum[: len(block)], spec, out=energies[start : start + FRAME_BLOCK])
    return energies.clamp_(min=ENERGY_FLOOR).log_()


def _windowed(frames: Tensor, spec: FbankSpec, out: Tensor) -> None:
    """Frames (T, frame_length) less their means, preemphasised and windowed, into `out` of the same shape."""
    centred = frames - frames.mean(1, keepdim=True)
    # A frame's first sample has no predecessor, but there the hanning window is 0.
    out[:, 0] = 0.0
    # Two roundings as in Kaldi, and not sub's alpha, which fuses them: where noise leaves a mel band almost empty, the
    # logarithm would show the difference.
    torch.sub(centred[:, 1:], centred[:, :-1] * spec.preemphasis, out=out[:, 1:])
    out *= _window(spec)


def _mel_energies(spectrum: Tensor, spec: FbankSpec, out: Tensor) -> None:
    """Mel energies (T, num_mel_bins) of a complex spectrum (T, FFT_SIZE / 2 + 1), into `out`."""
    power = spectrum.real.square().add_(spectrum.imag.square())
    for index, (start, stop, weights) in enumerate(_mel_blocks(spec)):
        torch.mm(power[:, start:stop], weights, out=out[:, index * MEL_BLOCK : (index + 1) * MEL_BLOCK])
