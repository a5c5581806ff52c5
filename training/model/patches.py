"""Patches of an fbank, their embedding and their positions."""

import math

import torch
from torch import Tensor, nn

from manifests.geometry import PatchGrid


def patchify(fbank: Tensor, grid: PatchGrid) -> Tensor:
    """(B, num_frames, num_mel_bins) to (B, L, 256), time-major: l = num_freq * t + f."""
    # Not len(), which would fix the size of the batch in an exported graph.
    num_clips, size = fbank.shape[0], grid.patch_size
    split = fbank.reshape(num_clips, grid.num_time, size, grid.num_freq, size)
    return split.transpose(2, 3).reshape(num_clips, grid.num_patches, grid.patch_dim)


def unpatchify(patches: Tensor, grid: PatchGrid) -> Tensor:
    """The inverse of :func:`patchify`."""
    size = grid.patch_size
    split = patches.reshape(len(patches), grid.num_time, grid.num_freq, size, size)
    return split.transpose(2, 3).reshape(len(patches), grid.num_frames, grid.num_mel_bins)


def sine_positions(grid: PatchGrid, width: int) -> Tensor:
    """Sines and cosines of a patch's place in time (first half of the width) and frequency: (L, width)."""
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(width // 4) / (width // 4))

    def encode(places: Tensor) -> Tensor:
        angles = places[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)

    time = encode(torch.arange(grid.num_time).float()).repeat_interleave(grid.num_freq, 0)
    freq = encode(torch.arange(grid.num_freq).float()).repeat(grid.num_time, 1)
    return torch.cat([time, freq], 1)


class PatchEmbedding(nn.Module):
    """Patches (B, L, 256) to tokens (B, L, D), without positions; and the learned table of positions (L, D).

    The table starts as sines: on little data a random one has to learn first where the patches are.
    """

    def __init__(self, grid: PatchGrid, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(grid.patch_dim, width)
        self.positions = nn.Parameter(sine_positions(grid, width))

    def forward(self, patches: Tensor) -> Tensor:
        tokens: Tensor = self.project(patches)
        return tokens
