"""The Multi-SSL step: three views of a clip, and what they should say of one another (equations 1-10)."""

import torch
from torch import Tensor

from training import losses
from training.config import MultiSSLConfig
from training.inputs import Inputs
from training.masks import inter_mask, intra_mask
from training.model.aft import pool
from training.model.networks import MultiSSLNetwork
from training.model.patches import patchify
from training.prior import saliency

RAW = "raw"


def multissl_losses(
    network: MultiSSLNetwork, inputs: Inputs, config: MultiSSLConfig, generator: torch.Generator
) -> dict[str, Tensor]:
    """The total "loss", equation (10), its terms by name, and the spread of the first view's features, as scalars.

    All views pass through the AFT as one batch: the raw one, where a loss compares with it, then those that are
    switched on.
    """
    aft = network.aft
    grid = network.grid
    target = patchify(inputs.fbank, grid)  # (B, L, 256)
    prior = saliency(inputs.gradient_magnitude)  # S (B, L)
    tokens, counted = dict[str, Tensor](), dict[str, Tensor | None]()
    if config.compares:
        tokens[RAW] = aft.embedding(target)
    # Both are always drawn, so that a view's mask stays the same when the other view is switched off.
    hidden = intra_mask(len(target), grid, config.intra_max_share, generator)
    mask = inter_mask(prior, config.mask_ratio, config.sampling, generator)
    if config.intra:
        tokens["intra"] = aft.embedding(patchify(inputs.fbank.masked_fill(hidden, 0.0), grid))
        counted["intra"] = None
    if config.inter:
        tokens["inter"] = network.mae(target, mask.ids_keep)
        counted["inter"] = mask.masked
    encoded = aft.encode(aft.place(torch.cat(list(tokens.values())))).chunk(len(tokens))
    views = dict(zip(tokens, encoded, strict=True))
    raw = views.get(RAW)
    weight = prior if config.hog_weight else torch.ones_like(prior)
    terms: dict[str, Tensor] = {}
    for view, patches in counted.items():
        features = views[view]
        if config.restore:
            terms[f"{view}_restore"] = losses.restoration(network.restore(features), target, weight, patches)
        if raw is None:
            continue
        if config.feature_mse:
            terms[f"{view}_mse"] = losses.feature_mse(features, raw)
        if config.feature_kl:
            terms[f"{view}_kl"] = losses.feature_kl(features, raw)
        if config.contrast:
            terms[f"{view}_contrast"] = losses.contrast(pool(features), pool(raw), config.temperature)
    return {"loss": total(terms, config), **terms, "feature_spread": losses.batch_spread(pool(encoded[0]))}


def total(terms: dict[str, Tensor], config: MultiSSLConfig) -> Tensor:
    """alpha (restore + mse) + beta kl + contrast, summed over the views, equations (3) and (10)."""
    factors = {"restore": config.alpha, "mse": config.alpha, "kl": config.beta, "contrast": 1.0}
    return torch.stack([factors[name.split("_")[1]] * term for name, term in terms.items()]).sum()
