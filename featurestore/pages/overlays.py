"""What a trainer sees in a clip: its prior and masks, from whoever provides them (entry point featurestore.overlays).

They are the trainer's maths, which this package must not import (docs/decisions/0003-teachers-by-entry-point.md).
"""

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from manifests.geometry import PatchGrid

GROUP = "featurestore.overlays"


@dataclass(frozen=True, slots=True)
class Overlays:
    """Of one clip: the prior S (num_time, num_freq) in [0, 1], and one draw of each mask.

    intra_hidden (num_frames, num_mel_bins) bool: hidden pixels; inter_hidden (num_time, num_freq) bool: hidden patches.
    """

    prior: NDArray[np.float32]
    intra_hidden: NDArray[np.bool_]
    inter_hidden: NDArray[np.bool_]


class DrawOverlays(Protocol):
    """Draws a clip's masks; the same seed always draws the same ones. Called from several threads."""

    def __call__(self, gradient_magnitude: NDArray[np.float32], grid: PatchGrid, seed: int) -> Overlays:
        """`gradient_magnitude`: (num_time, num_freq), a patch's mean gradient magnitude (HOG summed over its bins)."""
        ...


def find_overlays() -> DrawOverlays | None:
    """The first of the group's entry points, by name; None where no trainer is installed."""
    providers = entry_points(group=GROUP)
    return cast(DrawOverlays, providers[min(providers.names)].load()) if providers.names else None
