"""Pre-norm transformer blocks, as in ViT (Dosovitskiy et al. 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.model.simam import parameter_free_attention

NORM_EPS = 1e-6
MLP_RATIO = 4


class Attention(nn.Module):
    """Multi-head self-attention over (B, L, D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        num_clips, num_tokens, width = tokens.shape
        qkv = self.qkv(tokens).reshape(num_clips, num_tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, L, D / heads) each
        mixed = F.scaled_dot_product_attention(query, key, value)
        attended: Tensor = self.output(mixed.transpose(1, 2).reshape(num_clips, num_tokens, width))
        return attended


class Perceptron(nn.Module):
    """Two linear layers with a GELU between: width - hidden - width."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, features: Tensor) -> Tensor:
        mapped: Tensor = self.contract(F.gelu(self.expand(features)))
        return mapped


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x)); the latter gated by SimAM where `gated` says so.

    Gated blocks want the tokens of the whole grid: the gate compares a patch with all others.
    """

    def __init__(self, width: int, num_heads: int, *, gated: bool = False) -> None:
        super().__init__()
        self.gated = gated
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, num_heads)
        self.perceptron_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.perceptron = Perceptron(width, MLP_RATIO * width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        mapped: Tensor = self.perceptron(self.perceptron_norm(tokens))
        return tokens + (parameter_free_attention(mapped) if self.gated else mapped)


class Transformer(nn.Module):
    """Blocks and a last norm over (B, L, D)."""

    def __init__(self, width: int, depth: int, num_heads: int, *, recompute: bool = False, gated: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.blocks = nn.ModuleList(Block(width, num_heads, gated=gated) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            recompute = self.recompute and torch.is_grad_enabled()
            tokens = checkpoint(block, tokens, use_reentrant=False) if recompute else block(tokens)
        features: Tensor = self.norm(tokens)
        return features


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Weights of linear layers uniform after Glorot, biases 0, as in MAE: right for any width, unlike a fixed .02."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
            nn.init.zeros_(part.bias)
