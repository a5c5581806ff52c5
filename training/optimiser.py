"""AdamW over groups of weights: which are decayed, and how fast each layer learns."""

import re

import torch
from torch import nn

from training.config import OptimiserConfig

LR_SCALE = "lr_scale"
_BLOCK = re.compile(r"aft\.transformer\.blocks\.(\d+)\.")


def make_optimiser(
    network: nn.Module, config: OptimiserConfig, peak_lr: float, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over the network's weights, in groups of equal decay and equal share of the learning rate."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    depth = num_blocks(network)
    for name, weight in network.named_parameters():
        # Norms, biases, positions and tokens aren't decayed, as usual for transformers.
        decayed = weight.ndim >= 2 and not name.endswith("positions")
        scale = config.layer_decay ** (depth + 1 - layer_of(name, depth))
        groups.setdefault((scale, decayed), []).append(weight)
    # Those that are decayed first, as checkpoints have them.
    ordered = sorted(groups.items(), key=lambda entry: (not entry[0][1], entry[0][0]))
    return torch.optim.AdamW(
        [
            {"params": weights, "weight_decay": config.weight_decay if decayed else 0.0, LR_SCALE: scale}
            for (scale, decayed), weights in ordered
        ],
        lr=peak_lr,
        betas=config.betas,
        fused=device.type == "cuda",
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Gives each group its share of `rate`."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group[LR_SCALE]


def num_blocks(network: nn.Module) -> int:
    """Blocks of the AFT's transformer."""
    found = [int(match[1]) for name, _ in network.named_parameters() if (match := _BLOCK.match(name))]
    return max(found, default=-1) + 1


def layer_of(name: str, depth: int) -> int:
    """The layer of a weight, as in BEiT (Bao et al. 2022): 0 the embedding, 1..depth the blocks, depth + 1 the rest."""
    if name.startswith("aft.embedding."):
        return 0
    match = _BLOCK.match(name)
    return depth + 1 if match is None else int(match[1]) + 1
