"""BEATs' network: patches, a convolution for positions, and post-norm blocks with gated relative position biases.

Chen et al., "BEATs: Audio pre-training with acoustic tokenizers", ICML 2023 (github.com/microsoft/unilm, MIT). Modules
are named as in its files, and every size comes from the file's own configuration.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

MAX_LAYERS = 256
Size = Annotated[int, Field(gt=0)]


class BeatsConfig(BaseModel):
    """What a file's `cfg` says of the network; what it says of training is left out.

    The literals are all that was ever released: another value is another network.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    input_patch_size: Annotated[int, Field(gt=0, le=128)]
    embed_dim: Size
    conv_bias: bool
    encoder_layers: Annotated[int, Field(gt=0, le=MAX_LAYERS)]
    encoder_embed_dim: Size
    encoder_ffn_embed_dim: Size
    encoder_attention_heads: Size
    conv_pos: Size
    conv_pos_groups: Size
    num_buckets: Annotated[int, Field(ge=4)]
    max_distance: Size
    activation_fn: Literal["gelu"]
    layer_norm_first: Literal[False]
    deep_norm: Literal[True]
    relative_position_embedding: Literal[True]
    gru_rel_pos: Literal[True]
    # Files that were only pretrained may leave these out.
    finetuned_model: bool = False
    predictor_class: Size | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "BeatsConfig":
        for divisor in ("encoder_attention_heads", "conv_pos_groups"):
            if self.encoder_embed_dim % getattr(self, divisor):
                raise ValueError(f"encoder_embed_dim {self.encoder_embed_dim} is no multiple of {divisor}")
        if self.max_distance <= self.num_buckets // 4:
            raise ValueError(f"max_distance {self.max_distance} is too small for {self.num_buckets} buckets")
        if self.finetuned_model and self.predictor_class is None:
            raise ValueError("finetuned_model without predictor_class")
        return self

    @property
    def num_classes(self) -> int | None:
        """Classes of the head, None where there is none."""
        return self.predictor_class if self.finetuned_model else None


class PositionalConvolution(nn.Module):
    """A convolution over time of (B, D, L), its weight normed over all but the kernel's steps, then GELU."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        width, self.groups, kernel = config.encoder_embed_dim, config.conv_pos_groups, config.conv_pos
        self.bias = nn.Parameter(torch.empty(width))
        self.weight_g = nn.Parameter(torch.empty(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.empty(width, width // self.groups, kernel))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_g * self.weight_v / self.weight_v.norm(dim=(0, 1), keepdim=True)
        kernel = weight.shape[2]
        # With an even kernel the padding gives a step too many.
        out = F.conv1d(x, weight, self.bias, padding=kernel // 2, groups=self.groups)[..., : x.shape[2]]
        return F.gelu(out)


class Attention(nn.Module):
    """Self-attention whose bias of relative positions (heads, L, L) each query scales by a gate of its own."""

    def __init__(self, config: BeatsConfig, relative_attention_bias: nn.Embedding) -> None:
        super().__init__()
        width, self.num_heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.relative_attention_bias = relative_attention_bias
        self.grep_linear = nn.Linear(width // self.num_heads, 8)
        self.grep_a = nn.Parameter(torch.empty(1, self.num_heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            projected.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )  # (B, heads, L, D / heads)
        a, b = self.grep_linear(q).unflatten(3, (2, 4)).sum(4).sigmoid().chunk(2, dim=3)  # (B, heads, L, 1)
        gate = a * (b * self.grep_a - 1.0) + 2.0
        attended = F.scaled_dot_product_attention(q, k, v, (gate * bias).to(q.dtype))
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention and two linear layers, each added to a scaled shortcut and normed afterwards (deep norm)."""

    def __init__(self, config: BeatsConfig, relative_attention_bias: nn.Embedding) -> None:
        super().__init__()
        width, hidden = config.encoder_embed_dim, config.encoder_ffn_embed_dim
        self.self_attn = Attention(config, relative_attention_bias)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.alpha = (2 * config.encoder_layers) ** 0.25

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(self.alpha * x + self.self_attn(x, bias))
        out: Tensor = self.final_layer_norm(self.alpha * x + self.fc2(F.gelu(self.fc1(x))))
        return out


class Encoder(nn.Module):
    """Tokens (B, L, D) to tokens (B, L, D)."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.num_buckets, self.max_distance = config.num_buckets, config.max_distance
        # One table for all layers; files list it under each.
        table = nn.Embedding(config.num_buckets, config.encoder_attention_heads)
        self.pos_conv = nn.Sequential(PositionalConvolution(config))
        self.layers = nn.ModuleList([Block(config, table) for _ in range(config.encoder_layers)])
        self.layer_norm = nn.LayerNorm(config.encoder_embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer_norm(x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2))
        positions = torch.arange(x.shape[1], device=x.device)
        buckets = relative_buckets(positions[None] - positions[:, None], self.num_buckets, self.max_distance)
        first: Block = self.layers[0]  # type: ignore[assignment]
        bias = first.self_attn.relative_attention_bias(buckets).permute(2, 0, 1)  # (heads, L, L)
        for layer in self.layers:
            x = layer(x, bias)
        return x


def relative_buckets(offset: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket of each offset key - query: half of them a sign, exact below a quarter, then logarithmic."""
    half, exact = num_buckets // 2, num_buckets // 4
    distance = offset.abs()
    scale = (half - exact) / math.log(max_distance / exact)
    far = exact + (torch.log(distance.clamp(min=1).float() / exact) * scale).long()
    return torch.where(distance < exact, distance, far.clamp(max=half - 1)) + half * (offset > 0)


class Beats(nn.Module):
    """Tokens (B, L, D), time-major, of normalised fbanks (B, T, 128); `predictor` is the head, None without one."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        patch, width = config.input_patch_size, config.encoder_embed_dim
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, patch, patch, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj = nn.Linear(config.embed_dim, width) if config.embed_dim != width else nn.Identity()
        self.encoder = Encoder(config)
        self.predictor = nn.Linear(width, config.num_classes) if config.num_classes else None

    def forward(self, fbank: Tensor) -> Tensor:
        patches = self.patch_embedding(fbank[:, None]).flatten(2).transpose(1, 2)  # (B, L, embed_dim)
        tokens: Tensor = self.encoder(self.post_extract_proj(self.layer_norm(patches)))
        return tokens
