"""The two masks: bands inside patches (intra) and whole patches (inter)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from manifests.geometry import PatchGrid
from training.distributed import batch_uniforms
from training.model.patches import unpatchify

MAX_BAND = 4
# Of the masked patches 30 % lose a time band, 30 % a frequency band, and the rest both.
TIME_ONLY, FREQ_ONLY = 0.3, 0.3
# Keeps an inverted prior of 0 possible to draw, when nothing else is left.
MIN_PROBABILITY = 1e-6

Sampling = Literal["hog", "inverted", "uniform"]


def intra_mask(num_clips: int, grid: PatchGrid, max_share: float, generator: torch.Generator) -> Tensor:
    """Which pixels the intra view hides: (B, num_frames, num_mel_bins) bool, on the generator's device.

    In each clip a share of the patches, drawn from U(0, max_share], has a band of 1..4 of its 16 rows or columns, or
    both, at a random place.
    """
    num_patches, size = grid.num_patches, grid.patch_size

    def uniform(num: int = num_patches) -> Tensor:
        return batch_uniforms(num_clips, num, generator=generator)

    share = (1.0 - uniform(1)) * max_share
    masked = uniform().argsort(1).argsort(1) < (share * num_patches).ceil()  # (B, L)
    kind = uniform()
    time_band = _band(uniform(), uniform(), size) & (masked & ~_between(kind, TIME_ONLY, FREQ_ONLY))[..., None]
    freq_band = _band(uniform(), uniform(), size) & (masked & (kind >= TIME_ONLY))[..., None]
    pixels = time_band[..., :, None] | freq_band[..., None, :]  # (B, L, 16, 16)
    return unpatchify(pixels, grid)


def _between(kind: Tensor, start: float, length: float) -> Tensor:
    return (kind >= start) & (kind < start + length)


def _band(for_width: Tensor, for_start: Tensor, size: int) -> Tensor:
    """Bands of 1..MAX_BAND of `size` places at a random start, from uniform numbers (B, L): (B, L, size) bool."""
    width = (for_width * MAX_BAND).long() + 1
    start = (for_start * (size - width + 1)).long()
    places = torch.arange(size, device=width.device)
    return (places >= start[..., None]) & (places < (start + width)[..., None])


@dataclass(frozen=True, slots=True)
class InterMask:
    """ids_keep (B, K) int64, ascending: the visible patches; masked (B, L) bool: the others."""

    ids_keep: Tensor
    masked: Tensor


def inter_mask(saliency: Tensor, mask_ratio: float, sampling: Sampling, generator: torch.Generator) -> InterMask:
    """Draws the patches that the inter view hides, without replacement.

    `saliency`: S (B, L) of equation (1), on the generator's device. With sampling "hog" the probability is in
    proportion to S, with "inverted" to 1 - S, with "uniform" equal (Gumbel top-k, Kool et al. 2019).
    """
    num_patches = saliency.shape[1]
    num_masked = min(max(round(mask_ratio * num_patches), 1), num_patches - 1)
    weights = {"hog": saliency, "inverted": 1.0 - saliency, "uniform": torch.ones_like(saliency)}[sampling]
    uniform = batch_uniforms(*saliency.shape, generator=generator)
    exponential = -torch.log1p(-uniform)
    # log w + Gumbel orders like w / exponential; the largest are masked.
    race = exponential / weights.clamp(min=MIN_PROBABILITY)
    order = race.argsort(1)
    masked = torch.zeros_like(saliency, dtype=torch.bool).scatter_(1, order[:, :num_masked], True)
    return InterMask(ids_keep=order[:, num_masked:].sort(1).values, masked=masked)
