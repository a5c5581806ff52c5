"""Which classes an evaluation mixed up: from the scores of every evaluated clip, predictions.parquet."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manifests.errors import InputError
from training.metrics import class_figures
from training.predictions import FILE_NAME, read_predictions
from training.report.read import RecordedRun, iterations_with

MAX_PAIRS, MAX_EXAMPLES = 30, 3


@dataclass(frozen=True, slots=True)
class Confusion:
    """Clips of class `true` that were taken for class `predicted`: `count` of `num_clips`, the surest first."""

    true: str
    predicted: str
    count: int
    num_clips: int
    examples: list[str]


@dataclass(frozen=True, slots=True)
class ClassPrecision:
    """A class's average precision over `num_clips` clips of it."""

    name: str
    average_precision: float
    num_clips: int


@dataclass(frozen=True, slots=True)
class Mixing:
    """`matrix`: cells (true, predicted, count) that aren't 0, None where clips have several labels.

    `by_class`: the worst class first; classes without a clip are left out.
    """

    iteration: int
    num_clips: int
    names: list[str]
    matrix: list[tuple[int, int, int]] | None
    by_class: list[ClassPrecision]
    worst: list[Confusion]


def mixing(run: RecordedRun) -> Mixing:
    """Of the last iteration whose predictions were kept. Raises InputError saying why there are none."""
    found = iterations_with(run.folder, FILE_NAME)
    if not found:
        raise InputError(f"no evaluation of this run has left a {FILE_NAME}; `training eval` writes one")
    iteration, path = found[-1]
    predictions, _ = read_predictions(path)
    keys, scores, labels = predictions.keys, predictions.scores, predictions.labels > 0
    if not keys or not labels.any(1).all():
        raise InputError(f"{path} holds clips without a label, or none at all; `training eval` writes it anew")
    names = _class_names(run, predictions.label_ids)
    figures = class_figures(scores, predictions.labels)
    precisions = figures.average_precision
    order = np.argsort(precisions, kind="stable")
    by_class = [
        ClassPrecision(names[place], float(precisions[place]), int(figures.num_clips[place]))
        for place in order.tolist()
        if figures.num_clips[place]
    ]
    return Mixing(
        iteration=iteration,
        num_clips=len(keys),
        names=names,
        matrix=confusion_cells(scores, labels) if (labels.sum(1) == 1).all() else None,
        by_class=by_class,
        worst=worst_confusions(keys, scores, labels, names),
    )


def confusion_cells(scores: NDArray[np.float32], labels: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """(true, predicted, count), ascending, of clips with one label each."""
    pairs = Counter(zip(labels.argmax(1).tolist(), scores.argmax(1).tolist(), strict=True))
    return [(*pair, count) for pair, count in sorted(pairs.items())]


def worst_confusions(
    keys: list[str], scores: NDArray[np.float32], labels: NDArray[np.bool_], names: list[str]
) -> list[Confusion]:
    """The most frequent pairs of a clip's label and the class that it was taken for, with examples, the surest first.

    A clip counts when its highest score is none of its labels; then each of its labels was taken for that class.
    """
    examples: dict[tuple[int, int], list[tuple[float, str]]] = {}
    predicted = scores.argmax(1)
    for clip in np.flatnonzero(~labels[np.arange(len(keys)), predicted]).tolist():
        for true in np.flatnonzero(labels[clip]).tolist():
            wrong = int(predicted[clip])
            examples.setdefault((true, wrong), []).append((float(scores[clip, wrong]), keys[clip]))
    ordered = sorted(examples.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_PAIRS]
    return [
        Confusion(
            names[true],
            names[wrong],
            len(clips),
            int(labels[:, true].sum()),
            [key for _, key in sorted(clips, key=lambda one: (-one[0], one[1]))[:MAX_EXAMPLES]],
        )
        for (true, wrong), clips in ordered
    ]


def _class_names(run: RecordedRun, ids: list[str]) -> list[str]:
    """As the run's checkpoint names them; ids where it is gone."""
    checkpoint = run.last_checkpoint("distill")
    names = {label.id: label.name for label in checkpoint[1].vocabulary.labels} if checkpoint else {}
    return [names.get(one, one) for one in ids]
