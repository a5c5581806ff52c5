"""SimAM, an attention without parameters (Yang et al., ICML 2021), over the patches of a clip."""

import torch
from torch import Tensor

REGULARISER = 1e-4


def parameter_free_attention(tokens: Tensor) -> Tensor:
    """Tokens (B, L, D) of a whole grid, each times a gate in (.62, 1): the higher the further it is from the mean.

    gate = sigmoid((x - mean)^2 / (4 (variance + 1e-4)) + .5), mean and variance per clip and channel over the L > 1
    patches. The paper's variance is over L, and its published code's, as here, over L - 1
    (github.com/ZjjConan/SimAM).
    """
    squared = (tokens - tokens.mean(1, keepdim=True)).square()
    variance = squared.sum(1, keepdim=True) / (tokens.shape[1] - 1)  # (B, 1, D)
    return tokens * torch.sigmoid(squared / (4 * (variance + REGULARISER)) + 0.5)
