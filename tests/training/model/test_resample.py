"""Kernels and positions resampled, against the plain definitions over whole pictures."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.model.resample import resize_kernel, resize_matrix, resize_positions


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def resized(pictures: Tensor, size: int) -> Tensor:
    return F.interpolate(pictures, size=(size, size), mode="bicubic", antialias=True)


def whole_matrix(old: tuple[int, int], new: int) -> Tensor:
    """(new * new, old * old): what resizing does to each pixel of a picture, lit alone."""
    pixels = torch.eye(old[0] * old[1]).reshape(-1, 1, *old)
    return resized(pixels, new).flatten(1).T


@pytest.mark.parametrize("old", [(14, 14), (8, 8), (16, 16), (20, 20), (6, 9)])
def test_kernels_are_multiplied_with_the_pseudo_inverse(old: tuple[int, int]) -> None:
    kernel, new = rand(3, 2, *old), 16
    slow = torch.linalg.pinv(whole_matrix(old, new).double().T) @ kernel.double().flatten(2)[..., None]
    torch.testing.assert_close(resize_kernel(kernel, new), slow.reshape(3, 2, new, new).float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("old", [8, 14])
def test_a_larger_patch_gets_the_answer_of_the_patch(old: int) -> None:
    patches, kernel = rand(5, 1, old, old), rand(3, 1, old, old)
    answers = torch.einsum("nchw,dchw->nd", patches, kernel)
    ours = torch.einsum("nchw,dchw->nd", resized(patches, 16), resize_kernel(kernel, 16))
    torch.testing.assert_close(ours, answers, rtol=1e-3, atol=1e-3)
    as_a_picture = torch.einsum("nchw,dchw->nd", resized(patches, 16), resized(kernel, 16))
    assert (as_a_picture - answers).abs().max() > 1


def test_a_line_that_grows_keeps_its_level() -> None:
    assert resize_matrix(14, 16).shape == (16, 14)
    torch.testing.assert_close(resize_matrix(14, 16).sum(1), torch.ones(16))
    torch.testing.assert_close(resize_matrix(5, 5), torch.eye(5))


def test_positions_keep_rows_and_columns() -> None:
    """A ramp over the columns alone stays one, whatever the number of rows."""
    table = torch.arange(10.0)[None, :, None].expand(4, 10, 3) * torch.tensor([1.0, 2.0, -1.0])
    larger = resize_positions(table, (6, 20))
    assert larger.shape == (6, 20, 3)
    torch.testing.assert_close(larger, larger[:1].expand(6, -1, -1))
    middle = torch.arange(10.0, 33.0)[:10] / 2 - 0.25  # columns 10 to 15 of 20 lie at 4.75, 5.25, ...
    torch.testing.assert_close(larger[0, 10:16, 0], middle[:6])
    torch.testing.assert_close(larger[..., 1], 2 * larger[..., 0])
    channel = resized(table[..., 2][None, None], 7)[0, 0]
    torch.testing.assert_close(resize_positions(table, (7, 7))[..., 2], channel)
