"""Kernels and position tables made to fit another patch size or grid: for weights that were trained on images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_matrix(old: int, new: int) -> Tensor:
    """(new, old) float32: what bicubic resizing does to a line of `old` pixels; antialiased where it gets shorter."""
    lines = torch.eye(old)[None, None]  # each column is a line with one pixel lit
    resized: Tensor = F.interpolate(lines, size=(new, old), mode="bicubic", antialias=True)
    return resized[0, 0]


def resize_kernel(kernel: Tensor, size: int) -> Tensor:
    """Kernels (D, C, h, w) for patches of `size` x `size`: PI-resize of FlexiViT (Beyer et al. 2023, section 3.4).

    Resized like pictures, kernels would answer to a larger patch with a larger sum. These answer to a resized patch as
    the old ones did to the patch: exactly where patches grow, in the least squares where they shrink. Resizing works
    on rows and columns apart, and so does its pseudo-inverse.
    """
    over_rows, over_columns = (torch.linalg.pinv(resize_matrix(old, size)) for old in kernel.shape[2:])  # (old, size)
    resized: Tensor = over_rows.T @ kernel @ over_columns
    return resized


def resize_positions(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A table (rows, columns, D) for another grid, (*size, D): bicubic, antialiased where it gets smaller."""
    picture = table.permute(2, 0, 1)[None]  # (1, D, rows, columns)
    resized: Tensor = F.interpolate(picture, size=size, mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0)
