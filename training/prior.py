"""The HOG prior: how much a patch's gradient statistics count, equation (1)."""

import torch
from torch import Tensor


def saliency(gradient_magnitude: Tensor) -> Tensor:
    """S = exp(-(x - mu)^2 / sigma^2), equation (1).

    `gradient_magnitude`: (B, L) x, a patch's mean gradient magnitude; mu and sigma^2 are its mean and variance over the
    clip's patches. Returns S (B, L) in (0, 1]; 1 everywhere in a clip without variance.
    """
    mean = gradient_magnitude.mean(1, keepdim=True)
    variance = gradient_magnitude.var(1, keepdim=True, correction=0)
    deviation = (gradient_magnitude - mean).square()
    # Not "where it is greater": what isn't finite must show in the loss.
    return torch.where(variance == 0, 1.0, torch.exp(-deviation / variance.clamp(min=torch.finfo(variance.dtype).tiny)))
