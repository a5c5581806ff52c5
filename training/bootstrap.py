"""How far figures would lie from these if the part held other clips of the same kind: a bootstrap over clips."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from featurestore.probescores import Ranking, area_of, precision_of, rank
from training.metrics import Array, d_prime

LEVEL, SEED = 0.95, 0
# Weights held at once, of clips in resamples: 128 MiB of float32; and the resamples of which a class is judged at once.
BLOCK_ENTRIES, RESAMPLES_AT_ONCE = 2**25, 128


@dataclass(frozen=True)
class Interval:
    """From `low` to `high` in 95 % of the resamples; NaN where no resample has a value, infinite where d' is."""

    low: float
    high: float


def bootstrap(scores: Array, labels: Array, num_resamples: int, seed: int = SEED) -> dict[str, Interval]:
    """Percentile intervals (Efron and Tibshirani 1993, chapter 13) by the names of an evaluation's figures.

    `scores`, `labels`: (N, C). As many clips as there are, drawn with replacement, are a resample; a class without a
    positive clip in it is left out of that resample's mean. "accuracy" is there where each clip has one label.
    """
    rng = np.random.default_rng(seed)
    num_clips = len(scores)
    block = max(1, min(num_resamples, BLOCK_ENTRIES // num_clips))
    figures = [
        _figures(scores, labels, _weights(rng, num_clips, min(block, num_resamples - start)))
        for start in range(0, num_resamples, block)
    ]
    intervals = {name: _interval(np.concatenate([part[name] for part in figures])) for name in figures[0]}
    area = intervals["mean_auc"]
    # A percentile of d' is d' of the percentile, since it grows with the area.
    return {**intervals, "d_prime": Interval(d_prime(area.low), d_prime(area.high))}


def _weights(rng: np.random.Generator, num_clips: int, num_resamples: int) -> list[Tensor]:
    """How often each clip is in each resample: blocks (N, up to RESAMPLES_AT_ONCE)."""
    blocks = []
    for start in range(0, num_resamples, RESAMPLES_AT_ONCE):
        block = np.empty((num_clips, min(RESAMPLES_AT_ONCE, num_resamples - start)), np.float32)
        for column in block.T:
            column[:] = np.bincount(rng.integers(num_clips, size=num_clips), minlength=num_clips)
        blocks.append(torch.from_numpy(block))
    return blocks


def _figures(scores: Array, labels: Array, weights: list[Tensor]) -> dict[str, NDArray[np.float64]]:
    """The figures of each resample (R,)."""
    num_clips, num_classes = scores.shape
    num_resamples = sum(block.shape[1] for block in weights)
    sums, counts = np.zeros((2, num_resamples)), np.zeros((2, num_resamples))
    for n in range(num_classes):
        if (positive := labels[:, n] > 0).any():
            rankings = _resampled(scores[:, n], positive, weights)
            judged = [(precision_of(ranking), area_of(ranking, num_clips)) for ranking in rankings]
            by_figure = np.concatenate([np.stack(values) for values in judged], axis=1)
            sums += np.nan_to_num(by_figure)
            counts += ~np.isnan(by_figure)
    precision, area = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    figures = {"mean_average_precision": precision, "mean_auc": area}
    if (labels.sum(1) == 1).all():
        correct = torch.from_numpy((scores.argmax(1) == labels.argmax(1)).astype(np.float32))
        figures["accuracy"] = torch.cat([correct @ block for block in weights]).double().numpy() / num_clips
    return figures


def _resampled(scores: Array, positive: NDArray[np.bool_], weights: list[Tensor]) -> Iterator[Ranking]:
    """A class's ranking in the resamples of each block.

    Sorted once, the clips fall into runs, between and inside the groups that hold a positive one; a resample only
    changes what each run weighs.
    """
    ranking = rank(scores, positive)
    groups = np.stack([ranking.above, ranking.through], axis=1).astype(np.int64)  # (G, 2)
    order = torch.from_numpy(np.argsort(-scores)[: groups[-1, 1]].copy())
    starts = torch.from_numpy(np.append(0, groups.ravel()[:-1]))  # of run 2 g above group g, and of 2 g + 1, the group
    clips = np.flatnonzero(positive)
    of_groups = torch.from_numpy(clips[np.argsort(-scores[clips])])
    group_starts = torch.from_numpy((ranking.positive.cumsum() - ranking.positive).astype(np.int64))
    for block in weights:
        passed = embedding_bag(order, block, starts, mode="sum").double().cumsum(0).numpy()  # (2 G, R)
        found = embedding_bag(of_groups, block, group_starts, mode="sum").double().numpy()  # (G, R)
        yield Ranking(passed[0::2], passed[1::2], found)


def _interval(values: NDArray[np.float64]) -> Interval:
    known = values[~np.isnan(values)]
    if not len(known):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
