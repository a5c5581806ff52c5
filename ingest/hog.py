"""Histograms of oriented gradients per 16x16 patch: scikit-image's cells before block normalisation."""

from functools import cache

import torch
from torch import Tensor

from manifests.geometry import HogSpec


def interpolate_empty_bin(fbank: Tensor, spec: HogSpec) -> Tensor:
    """The fbank (T, F) with its empty mel bin replaced by the mean of its neighbours.

    With 128 mels on a 512-point FFT mel bin 3 covers no FFT bin and stays at the floor: a false edge for gradients.
    """
    filled = fbank.clone()
    empty = spec.interpolated_mel_bin
    filled[:, empty] = (fbank[:, empty - 1] + fbank[:, empty + 1]) / 2
    return filled


def hog_cells(image: Tensor, spec: HogSpec) -> Tensor:
    """Unsigned-orientation histograms of gradient magnitude, divided by a cell's pixels.

    `image`: (T, F) float32, both multiples of `spec.cell_size`. Returns (T/16, F/16, num_orientations) float32; the sum
    over orientations is the cell's mean gradient magnitude. Gradients are x[i+1] - x[i-1], 0 on the border (Dalal and
    Triggs 2005; skimage.feature.hog). Rows of the image are time frames.
    """
    num_orientations, cell = spec.num_orientations, spec.cell_size
    along_time, along_freq = torch.zeros_like(image), torch.zeros_like(image)
    torch.sub(image[2:], image[:-2], out=along_time[1:-1])
    torch.sub(image[:, 2:], image[:, :-2], out=along_freq[:, 1:-1])
    magnitude = (along_time * along_time).addcmul_(along_freq, along_freq).sqrt_()
    # atan2 is in (-pi, pi]; adding one turn of the unsigned circle makes every angle positive before the remainder.
    sector = torch.atan2(along_time, along_freq, out=along_time).mul_(num_orientations / torch.pi).floor_()
    sector = sector.add_(num_orientations).remainder_(num_orientations)
    num_time, num_freq = image.shape[0] // cell, image.shape[1] // cell
    bins = sector.add_(_first_bin(num_time, num_freq, spec)).to(torch.int32)
    histogram = torch.bincount(
        bins.flatten(), weights=magnitude.flatten(), minlength=num_time * num_freq * num_orientations
    )
    return histogram.float().div_(cell * cell).reshape(num_time, num_freq, num_orientations)


@cache
def _first_bin(num_time: int, num_freq: int, spec: HogSpec) -> Tensor:
    """The number of the first bin of each pixel's cell, (T, F); float32 holds such integers exactly."""
    rows = torch.arange(num_time).repeat_interleave(spec.cell_size) * num_freq
    columns = torch.arange(num_freq).repeat_interleave(spec.cell_size)
    return (rows[:, None] + columns[None, :]).float() * spec.num_orientations


def hog(fbank: Tensor, spec: HogSpec) -> Tensor:
    """The store's HOG of an fbank (T, F) float32: empty bin interpolated, then :func:`hog_cells`."""
    return hog_cells(interpolate_empty_bin(fbank, spec), spec)
