"""Clips that a teacher finds alike: nearest neighbours, and pairs so close that they may be one sound twice."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROWS_A_BLOCK = 512
MAX_PAIRS = 500


@dataclass(frozen=True)
class Similar:
    """neighbours (N, K): positions of the nearest other clips, nearest first, -1 where there are fewer; cosines (N, K).

    pairs: (i, j, cosine) with i < j and a cosine of at least the threshold, closest first, at most MAX_PAIRS of the
    `num_pairs` that there are.
    """

    neighbours: NDArray[np.int64]
    cosines: NDArray[np.float32]
    pairs: list[tuple[int, int, float]]
    num_pairs: int


def find_similar(embeddings: NDArray[np.float32], num_neighbours: int, threshold: float) -> Similar:
    """Compares embeddings (N, D) by their cosines; rows that are NaN or all 0 are like nothing.

    Memory is that of N x D and of ROWS_A_BLOCK x N values; time grows with N^2.
    """
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    valid = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    unit = np.where(valid[:, None], embeddings / np.where(valid[:, None], norms, 1), 0).astype(np.float32)
    num_clips = len(unit)
    num_neighbours = min(num_neighbours, max(num_clips - 1, 0))
    neighbours = np.full((num_clips, num_neighbours), -1, np.int64)
    cosines = np.zeros((num_clips, num_neighbours), np.float32)
    pairs: list[tuple[int, int, float]] = []
    num_pairs = 0
    for start in range(0, num_clips, ROWS_A_BLOCK):
        rows = np.arange(start, min(start + ROWS_A_BLOCK, num_clips))
        products = unit[rows] @ unit.T
        products[:, ~valid], products[~valid[rows]] = -np.inf, -np.inf
        i, j = np.nonzero((products >= threshold) & (rows[:, None] < np.arange(num_clips)))
        num_pairs += len(i)
        best = np.lexsort((j, i, -products[i, j]))[:MAX_PAIRS]
        pairs += zip(rows[i[best]].tolist(), j[best].tolist(), products[i[best], j[best]].tolist(), strict=True)
        pairs = sorted(pairs, key=lambda pair: (-pair[2], *pair[:2]))[:MAX_PAIRS]
        products[np.arange(len(rows)), rows] = -np.inf
        neighbours[rows], cosines[rows] = _nearest(products, num_neighbours)
    return Similar(neighbours, cosines, pairs, num_pairs)


def _nearest(products: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The columns of the `count` largest values of each row, largest first, and the values."""
    if not count:
        return np.empty((len(products), 0), np.int64), np.empty((len(products), 0), np.float32)
    some = np.argpartition(products, -count, axis=1)[:, -count:]
    values = np.take_along_axis(products, some, 1)
    order = np.lexsort((some, -values), axis=1)
    some, values = np.take_along_axis(some, order, 1), np.take_along_axis(values, order, 1)
    there = np.isfinite(values)
    return np.where(there, some, -1), np.where(there, values, 0)
