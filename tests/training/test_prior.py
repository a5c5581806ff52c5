"""Equation (1): S = exp(-(x - mu)^2 / sigma^2)."""

import math

import pytest
import torch

from training.prior import saliency


def test_by_hand() -> None:
    # mu = 2.5 and sigma^2 = 1.25; then mu = 2 and sigma^2 = 12 / 4.
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 1.0, 1.0, 1.0]])
    far, near = math.exp(-2.25 / 1.25), math.exp(-0.25 / 1.25)
    expected = torch.tensor([[far, near, near, far], [math.exp(-9 / 3), *[math.exp(-1 / 3)] * 3]])
    torch.testing.assert_close(saliency(x), expected)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 123.456])
def test_without_variance_it_is_1(value: float) -> None:
    x = torch.full((2, 512), value)
    x[1] = torch.rand(512, generator=torch.Generator().manual_seed(0))
    s = saliency(x)
    assert (s[0] == 1.0).all()
    assert s[1].std() > 0.1


def test_range_and_invariance() -> None:
    x = torch.rand(8, 512, generator=torch.Generator().manual_seed(1)) ** 2
    s = saliency(x)
    assert (s > 0).all()
    assert (s <= 1).all()
    torch.testing.assert_close(saliency(3.7 * x + 11.0), s, rtol=1e-3, atol=1e-4)
    # Patches at the mean count most.
    nearest = (x - x.mean(1, keepdim=True)).abs().argmin(1)
    assert (s.argmax(1) == nearest).all()
