"""A clip's pictures, as two files: one of colours, one of masks that lie over it."""

import io
from functools import cache

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from featurestore.pages.features import ClipFeatures
from featurestore.pages.glyphs import hog_picture
from featurestore.pages.overlays import Overlays
from manifests.geometry import PatchGrid

# Louder and softer than all but these shares of a clip's values count as black and white: a click would hide the rest.
_SOFTEST_SHARE, _LOUDEST_SHARE = 0.02, 0.998
_WEBP_QUALITY = 40
# The encoder's fastest but one: slower ones save a tenth of the size and take several times as long.
_WEBP_METHOD = 1
# Palette of the masks' picture: 0 shows what is below, 1 hides it, the others are the prior's colours.
_VISIBLE, _HIDDEN, _FIRST_COLOUR = 0, 1, 2
_HIDDEN_RGB = (120, 134, 150)
_NUM_COLOURS = 254


def spectrogram_picture(fbank: NDArray[np.floating]) -> NDArray[np.uint8]:
    """An fbank (T, F) as levels (F, T) of 0..255, time to the right and frequency upwards (row 0 is the highest).

    The levels span the clip's own soft and loud ends, its quantiles .02 and .998.
    """
    values = fbank.astype(np.float32)
    low, high = np.quantile(values[::4], (_SOFTEST_SHARE, _LOUDEST_SHARE))
    levels = (values - low) * (255.0 / max(float(high - low), 1e-3))
    return np.ascontiguousarray(levels.clip(0, 255).astype(np.uint8).T[::-1])


def colour_sheet(features: ClipFeatures) -> bytes:
    """A WebP (2 F, T): the spectrogram above, the HOG's stars below."""
    spectrogram = _colours("magma")[spectrogram_picture(features.fbank)]
    stars = _colours("gray")[(hog_picture(features.hog) * 255).astype(np.uint8)]
    buffer = io.BytesIO()
    sheet = Image.fromarray(np.concatenate([spectrogram, stars]))
    sheet.save(buffer, "WEBP", quality=_WEBP_QUALITY, method=_WEBP_METHOD)
    return buffer.getvalue()


def mask_sheet(overlays: Overlays, grid: PatchGrid) -> bytes:
    """A PNG (3 F, T) with a palette: what the intra mask hides, what the inter mask hides, and the prior S in colours.

    The first two are clear where nothing is hidden, to lie over the spectrogram.
    """
    size = grid.patch_size

    def by_pixel(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return patches.repeat(size, 0).repeat(size, 1)

    prior = _FIRST_COLOUR + (overlays.prior.clip(0, 1) * (_NUM_COLOURS - 1)).astype(np.uint8)
    layers = [
        overlays.intra_hidden.astype(np.uint8) * _HIDDEN,
        by_pixel(overlays.inter_hidden.astype(np.uint8) * _HIDDEN),
        by_pixel(prior),
    ]
    sheet = Image.fromarray(np.concatenate([layer.T[::-1] for layer in layers]))
    sheet.putpalette(_mask_palette())
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", transparency=_VISIBLE)
    return buffer.getvalue()


@cache
def _mask_palette() -> bytes:
    colours = _colours("viridis")[np.linspace(0, 255, _NUM_COLOURS).astype(int)]
    return bytes([0, 0, 0, *_HIDDEN_RGB, *colours.flatten().tolist()])


@cache
def _colours(name: str) -> NDArray[np.uint8]:
    """A colour map as a table (256, 3)."""
    table: NDArray[np.uint8] = colormaps[name](np.arange(256), bytes=True)[:, :3]
    return np.ascontiguousarray(table)
