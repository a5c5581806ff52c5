"""The prior and masks of a clip for report pages: an entry point of featurestore.overlays."""

import numpy as np
import torch
from numpy.typing import NDArray

from featurestore.pages.overlays import Overlays
from manifests.geometry import PatchGrid
from training.config import MultiSSLConfig
from training.masks import inter_mask, intra_mask
from training.prior import saliency
from training.seeds import generator_for

_DEFAULTS = MultiSSLConfig.model_fields


def draw_overlays(gradient_magnitude: NDArray[np.float32], grid: PatchGrid, seed: int) -> Overlays:
    """S of equation (1), and masks as a step of Multi-SSL draws them with the configuration's defaults.

    `gradient_magnitude`: (num_time, num_freq), a patch's mean gradient magnitude.
    """
    generator = generator_for(seed, "overlays")
    prior = saliency(torch.from_numpy(gradient_magnitude).reshape(1, grid.num_patches))
    hidden = intra_mask(1, grid, _DEFAULTS["intra_max_share"].default, generator)
    masked = inter_mask(prior, _DEFAULTS["mask_ratio"].default, _DEFAULTS["sampling"].default, generator).masked
    patches = (grid.num_time, grid.num_freq)
    return Overlays(prior.reshape(patches).numpy(), hidden[0].numpy(), masked.reshape(patches).numpy())
