"""Files of vision transformers with made-up weights, and what these networks say, computed by hand."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, DEPTH, NUM_HEADS = 16, 2, 2


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made_up(
    num_positions: int, *, patch: int = 16, channels: int = 3, hidden: int = 4 * WIDTH, layer_scale: bool = True
) -> dict[str, Tensor]:
    """The tensors of a ViT with one class token, as timm names them."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + num_positions, WIDTH),
        "patch_embed.proj.weight": (WIDTH, channels, patch, patch),
        "patch_embed.proj.bias": (WIDTH,),
    }
    for block in range(DEPTH):
        inside: dict[str, tuple[int, ...]] = {
            **{f"{norm}.{leaf}": (WIDTH,) for norm in ("norm1", "norm2") for leaf in ("weight", "bias")},
            "attn.qkv.weight": (3 * WIDTH, WIDTH),
            "attn.qkv.bias": (3 * WIDTH,),
            "attn.proj.weight": (WIDTH, WIDTH),
            "attn.proj.bias": (WIDTH,),
            "mlp.fc1.weight": (hidden, WIDTH),
            "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (WIDTH, hidden),
            "mlp.fc2.bias": (WIDTH,),
            **({"ls1.gamma": (WIDTH,), "ls2.gamma": (WIDTH,)} if layer_scale else {}),
        }
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in inside.items()}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,), "head.weight": (5, WIDTH), "head.bias": (5,)}
    return {name: 0.3 * rand(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}


def features(state: Mapping[str, Tensor], image: Tensor, positions: Tensor) -> Tensor:
    """Normed tokens (B, rows * columns, D) of images (B, C, height, width), without the class token."""
    size = state["patch_embed.proj.weight"].shape[2]
    embedded = F.conv2d(image, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=size)
    x = embedded.flatten(2).transpose(1, 2) + positions
    for block in range(DEPTH):
        part = {name.removeprefix(f"blocks.{block}."): tensor for name, tensor in state.items()}
        x = x + part.get("ls1.gamma", torch.ones(WIDTH)) * _attention(part, _norm(part, "norm1", x))
        hidden = _linear(part, "mlp.fc1", _norm(part, "norm2", x))
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + part.get("ls2.gamma", torch.ones(WIDTH)) * _linear(part, "mlp.fc2", hidden)
    return _norm(state, "norm", x)


def _attention(part: Mapping[str, Tensor], x: Tensor) -> Tensor:
    query, key, value = _linear(part, "attn.qkv", x).split(WIDTH, dim=2)
    heads, size = [], WIDTH // NUM_HEADS
    for head in range(NUM_HEADS):
        mine = slice(head * size, (head + 1) * size)
        weights = (query[..., mine] @ key[..., mine].transpose(1, 2) / math.sqrt(size)).softmax(-1)
        heads.append(weights @ value[..., mine])
    return _linear(part, "attn.proj", torch.cat(heads, 2))


def _linear(part: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ part[f"{name}.weight"].T + part[f"{name}.bias"]


def _norm(part: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * part[f"{name}.weight"] + part[f"{name}.bias"]
