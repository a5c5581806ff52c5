"""AST's network: a vision transformer over overlapping patches of a spectrogram, with two class tokens.

Gong, Chung, Glass, "AST: Audio Spectrogram Transformer", Interspeech 2021 (github.com/YuanGongND/ast, BSD 3-clause).
Modules are named as in its files.
"""

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from manifests.geometry import FbankSpec

PATCH_SIZE = 16
NUM_CLASS_TOKENS = 2


class AstSizes(NamedTuple):
    """Sizes of one network; `num_classes` is 0 where there is no head. The strides are in mel bins and in frames."""

    width: int
    hidden: int
    num_layers: int
    num_heads: int
    num_classes: int
    num_frames: int
    frequency_stride: int
    time_stride: int
    norm_eps: float
    head_norm_eps: float

    @property
    def num_frequency(self) -> int:
        """Patches one above the other."""
        return num_patches(FbankSpec().num_mel_bins, self.frequency_stride)

    @property
    def num_time(self) -> int:
        """Patches one behind the other."""
        return num_patches(self.num_frames, self.time_stride)


def num_patches(length: int, stride: int) -> int:
    """Patches that fit into `length` bins or frames, one every `stride`."""
    return (length - PATCH_SIZE) // stride + 1


class Attention(nn.Module):
    """Self-attention over (B, L, D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, D / heads)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and two linear layers, each of the normed input and added to it."""

    def __init__(self, sizes: AstSizes) -> None:
        super().__init__()
        width, hidden = sizes.width, sizes.hidden
        self.norm1, self.norm2 = nn.LayerNorm(width, sizes.norm_eps), nn.LayerNorm(width, sizes.norm_eps)
        self.attn = Attention(width, sizes.num_heads)
        layers = OrderedDict(fc1=nn.Linear(width, hidden), gelu=nn.GELU(), fc2=nn.Linear(hidden, width))
        self.mlp = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Backbone(nn.Module):
    """Normed tokens (B, 2 + L, D), the two class tokens first, of normalised fbanks (B, num_frames, 128)."""

    def __init__(self, sizes: AstSizes) -> None:
        super().__init__()
        width, strides = sizes.width, (sizes.frequency_stride, sizes.time_stride)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.dist_token = nn.Parameter(torch.empty(1, 1, width))
        num_positions = sizes.num_frequency * sizes.num_time + NUM_CLASS_TOKENS
        self.pos_embed = nn.Parameter(torch.empty(1, num_positions, width))
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(1, width, PATCH_SIZE, strides)))
        self.blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.num_layers)))
        self.norm = nn.LayerNorm(width, sizes.norm_eps)

    def forward(self, fbank: Tensor) -> Tensor:
        image = fbank.transpose(1, 2)[:, None]  # (B, 1, 128, num_frames)
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)
        class_tokens = torch.cat([self.cls_token, self.dist_token], 1).expand(len(fbank), -1, -1)
        tokens: Tensor = self.norm(self.blocks(torch.cat([class_tokens, patches], 1) + self.pos_embed))
        return tokens


class Ast(nn.Module):
    """Mean of the class tokens (B, D), logits (B, C) or None, tokens (B, L, D), frequency-major."""

    def __init__(self, sizes: AstSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.v = Backbone(sizes)
        self.mlp_head: nn.Sequential | None = None
        if sizes.num_classes:
            norm = nn.LayerNorm(sizes.width, sizes.head_norm_eps)
            self.mlp_head = nn.Sequential(norm, nn.Linear(sizes.width, sizes.num_classes))

    def forward(self, fbank: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        tokens = self.v(fbank)
        pooled = tokens[:, :NUM_CLASS_TOKENS].mean(1)
        logits = None if self.mlp_head is None else self.mlp_head(pooled)
        return pooled, logits, tokens[:, NUM_CLASS_TOKENS:]
