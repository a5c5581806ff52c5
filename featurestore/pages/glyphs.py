"""The classical picture of HOG: a star of edges in every cell."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

CELL_PIXELS = 16
# Below 1, since a few edges outshine all others.
_CONTRAST = 0.7


def hog_picture(hog: NDArray[np.floating]) -> NDArray[np.float32]:
    """A star a cell: a line a bin, along the edges that it counts and as bright as it is.

    `hog`: (T', F', O) magnitudes by orientation, as in the shards. Returns (16 F', 16 T') in [0, 1], time to the right
    and frequency upwards (row 0 is the highest). The brightest bin of the clip is 1, and all is 0 where all bins
    are (Dalal and Triggs 2005, figure 6).
    """
    weights = np.maximum(hog.astype(np.float32), 0.0)
    weights = (weights / max(float(weights.max(initial=0.0)), np.finfo(np.float32).tiny)) ** _CONTRAST
    num_time, num_freq, num_orientations = weights.shape
    cells = np.zeros((num_time * num_freq, CELL_PIXELS**2), np.float32)
    # Where lines cross, the brighter one is seen: a sum would make a bright dot of every middle.
    for weight, stamp in zip(
        weights.reshape(-1, num_orientations).T, _stamps(num_orientations, CELL_PIXELS), strict=True
    ):
        np.maximum(cells, weight[:, None] * stamp.reshape(1, -1), out=cells)
    picture = cells.reshape(num_time, num_freq, CELL_PIXELS, CELL_PIXELS)[:, ::-1].transpose(1, 2, 0, 3)
    return picture.reshape(num_freq * CELL_PIXELS, num_time * CELL_PIXELS)


@cache
def _stamps(num_orientations: int, size: int) -> NDArray[np.float32]:
    """A line through the middle of a cell for every bin, (O, size, size), with soft edges.

    A bin's gradients point (sin a, cos a) along (time, frequency); the edge they belong to is at right angles to that.
    """
    angles = (np.arange(num_orientations) + 0.5) * np.pi / num_orientations
    along = np.stack([np.cos(angles), -np.sin(angles)], 1)  # (time, frequency), of the edges
    places = np.arange(size) - (size - 1) / 2
    points = np.stack(np.broadcast_arrays(places[None, :], -places[:, None]), -1)  # rows run from high to low
    reach = np.clip(
        points @ along.T, -(size / 2 - 1), size / 2 - 1
    )  # (size, size, O), to the nearest point of the line
    distance = np.linalg.norm(points[..., None, :] - reach[..., None] * along, axis=-1)
    stamps: NDArray[np.float32] = np.clip(1.2 - distance, 0.0, 1.0).transpose(2, 0, 1).astype(np.float32)
    return stamps
