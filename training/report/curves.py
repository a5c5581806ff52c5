"""Curves for the page: thinned without hiding what lies between the points, and sorted into groups."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.report.read import Curve, RecordedRun

MAX_POINTS = 500
_SIGNIFICANT_DIGITS = 5
_LOSSES = ("loss", "classify", "regress")
_LOSS_BEGINNINGS = ("intra_", "inter_")  # the terms of a view, a new one's too
_SPEED = ("learning_rate", "clips_per_s", "data_wait_share")
# Constants, which the summary tells.
_NOT_DRAWN = ("eval_num_",)
GROUPS = ("Loss and its terms", "Gradient norms", "Features", "Evaluation while training", "Learning rate and speed")


def thin(curve: Curve, max_points: int = MAX_POINTS) -> dict[str, list[Any]]:
    """At most `max_points` of a curve, each standing for about as many steps.

    Returns x, the step in the middle of those that a point stands for, and y, the mean of their values; where points
    stand for several steps also low and high, their smallest and largest values, so that no peak gets lost.
    """
    num_steps = len(curve.steps)
    if num_steps <= max_points:
        return {"x": curve.steps.tolist(), "y": _rounded(curve.values)}
    edges = np.linspace(0, num_steps, max_points + 1).astype(np.int64)
    starts, counts = edges[:-1], np.diff(edges)
    middles = (curve.steps[starts] + curve.steps[edges[1:] - 1]) / 2
    return {
        "x": np.rint(middles).astype(np.int64).tolist(),
        "y": _rounded(np.add.reduceat(curve.values / np.repeat(counts, counts), starts)),
        "low": _rounded(np.minimum.reduceat(curve.values, starts)),
        "high": _rounded(np.maximum.reduceat(curve.values, starts)),
    }


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.{_SIGNIFICANT_DIGITS}g}") for value in values.tolist()]


def group_of(key: str) -> str:
    """The heading under which a figure is drawn; keys like "name/term" without one of their own stand under "name"."""
    prefix, slash, _ = key.partition("/")
    if prefix == "gradient_norm":
        return GROUPS[1]
    if prefix == "feature_spread":
        return GROUPS[2]
    if slash:
        return prefix
    if key in _LOSSES or key.startswith(_LOSS_BEGINNINGS):
        return GROUPS[0]
    if key.startswith("eval_"):
        return GROUPS[3]
    return GROUPS[4] if key in _SPEED else "Other figures"


def curve_data(runs: list[RecordedRun]) -> dict[str, Any]:
    """What the page's script draws: a tab for each kind of stage, its groups of keys, and a line a run and stage.

    A group is (heading, keys, whether its charts share one scale, as those of the terms of one thing do).
    """
    lines: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for stage, curves in run.curves.items():
            drawn = {key: thin(curve) for key, curve in curves.items() if not key.startswith(_NOT_DRAWN)}
            name = stage if len(runs) == 1 else f"{run.name}, {stage}"
            kind = stage.rpartition("/")[2]
            lines.setdefault(kind, []).append({"name": name, "curves": {k: c for k, c in drawn.items() if c["x"]}})
    return {"tabs": [{"name": kind, "lines": some, "groups": _groups(some)} for kind, some in lines.items()]}


def _groups(lines: list[dict[str, Any]]) -> list[tuple[str, list[str], bool]]:
    keys = dict.fromkeys(key for line in lines for key in line["curves"])
    headings = dict.fromkeys([*GROUPS, *sorted(group_of(key) for key in keys)])
    groups = [(heading, [key for key in keys if group_of(key) == heading]) for heading in headings]
    return [part for heading, found in groups for part in _split_by_scale(heading, found)]


def _split_by_scale(heading: str, keys: list[str]) -> list[tuple[str, list[str], bool]]:
    """Terms, "name/term", have one scale and a group to themselves."""
    alone = [key for key in keys if "/" not in key]
    terms = [key for key in keys if "/" in key]
    by_term = f"{heading} by term, on one scale" if alone else f"{heading}, on one scale"
    return [part for part in ((heading, alone, False), (by_term, terms, True)) if part[1]]
