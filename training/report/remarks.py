"""What is worth telling about runs before anyone reads the curves."""

from dataclasses import dataclass

import numpy as np

from training.report.read import Curve, RecordedRun

COLLAPSED_SPREAD = 0.1
LONG_WAIT_SHARE = 0.2
WEAK_TERM_SHARE = 0.01
# The first steps wait for the loader to start, and begin with gradients unlike all later ones.
_SETTLED_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Remark:
    """A sentence about a run; `is_warning`: something may be wrong with the training itself."""

    run: str
    text: str
    is_warning: bool = True


def remarks(run: RecordedRun) -> list[Remark]:
    """Warnings first, then what could not be read."""
    warnings = [*_spreads(run), *_evaluated_less(run)]
    for stage, curves in run.curves.items():
        warnings += [*_not_finite(stage, curves), *_waits(stage, curves), *_weak_terms(stage, curves)]
    return [Remark(run.name, text) for text in warnings] + [Remark(run.name, note, False) for note in run.notes]


def _spreads(run: RecordedRun) -> list[str]:
    """Collapsed features, in the last word of each stage and evaluation."""
    said = {
        f"{stage}, {key}": float(curve.values[-1])
        for stage, curves in run.curves.items()
        for key, curve in curves.items()
        if key.partition("/")[0].endswith("feature_spread") and len(curve.values)
    }
    for number, figures in run.evaluations.items():
        value = figures.get("feature_spread")
        if isinstance(value, int | float):
            said[f"iteration {number}, evaluation"] = value
    return [
        f"{where}: a feature spread of {value:.3f}, under {COLLAPSED_SPREAD:g}, so the features of all clips have "
        "nearly collapsed into one."
        for where, value in said.items()
        if value < COLLAPSED_SPREAD
    ]


def _evaluated_less(run: RecordedRun) -> list[str]:
    found = []
    for number, figures in run.evaluations.items():
        evaluated, listed = figures.get("num_evaluated"), figures.get("num_listed")
        if isinstance(evaluated, int) and isinstance(listed, int) and evaluated < listed:
            found.append(
                f"iteration {number}: {evaluated:,} of the {listed:,} clips listed were evaluated; those that are "
                "missing may move the figures."
            )
    return found


def _not_finite(stage: str, curves: dict[str, Curve]) -> list[str]:
    return [
        f"{stage}: {key} is not finite in {len(curve.not_finite):,} steps, first in step {curve.not_finite[0]:,}; they "
        "are left out of its curve."
        for key, curve in curves.items()
        if len(curve.not_finite)
    ]


def _waits(stage: str, curves: dict[str, Curve]) -> list[str]:
    share = _settled_mean(curves.get("data_wait_share"))
    if share is None or share <= LONG_WAIT_SHARE:
        return []
    return [
        f"{stage}: {share:.0%} of the time went into waiting for data, more than {LONG_WAIT_SHARE:.0%}; put the store "
        "on a faster disk or nearer."
    ]


def _weak_terms(stage: str, curves: dict[str, Curve]) -> list[str]:
    """Terms whose gradient is nothing beside the others'.

    Beside their sum, since they are measured in other weights than the whole gradient (training/watch.py).
    """
    prefix = "gradient_norm/"
    means = {key.removeprefix(prefix): _settled_mean(c) for key, c in curves.items() if key.startswith(prefix)}
    norms = {term: norm for term, norm in means.items() if norm is not None}
    total = sum(norms.values())
    return [
        f"{stage}: the gradient of {term} has {norm / total:.2%} of the norms of all terms together, so it hardly "
        "counts; weigh it more, or leave it out."
        for term, norm in norms.items()
        if norm < WEAK_TERM_SHARE * total
    ]


def _settled_mean(curve: Curve | None) -> float | None:
    """The mean without the first tenth; None where there is nothing."""
    if curve is None or not len(curve.values):
        return None
    return float(np.mean(curve.values[int(len(curve.values) * _SETTLED_SHARE) :]))
