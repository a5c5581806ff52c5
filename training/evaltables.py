"""How figures of evaluations are printed."""

from collections.abc import Mapping
from math import isnan

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from manifests.vocabulary import Vocabulary
from training.bootstrap import Interval
from training.evaluate import Evaluation
from training.metrics import ClassFigures

# Fields of an evaluation and their headings, in the order in which they are shown.
FIGURES = {"accuracy": "accuracy", "mean_average_precision": "mAP", "mean_auc": "mAUC", "d_prime": "d'"}


def print_evaluation(name: str, evaluation: Evaluation, intervals: Mapping[str, Interval]) -> None:
    """The figures with their intervals, where there are some, and the clips and classes that they are of."""
    print(f"{name} on {evaluation.split}")
    table = Table("", "figure", *(["95 % interval"] if intervals else []))
    for field in shown_figures([evaluation]):
        row = [FIGURES[field], _show(field, getattr(evaluation, field), evaluation)]
        if interval := intervals.get(field):
            row.append(f"{_number(field, interval.low)} to {_number(field, interval.high)}")
        table.add_row(*row)
    Console(markup=False).print(table)
    print(f"evaluated: {evaluation.evaluated}")
    print(f"sha256 of the evaluated keys {evaluation.keys_sha256}")


def print_side_by_side(rows: Mapping[str, Evaluation]) -> None:
    """A line for each model's evaluation of the same clips."""
    first = next(iter(rows.values()))
    fields = shown_figures(list(rows.values()))
    table = Table(f"on {first.split}", *(FIGURES[field] for field in fields))
    for name, evaluation in rows.items():
        table.add_row(Text(name, overflow="fold"), *(_show(f, getattr(evaluation, f), evaluation) for f in fields))
    Console(markup=False).print(table)
    print(f"evaluated: {first.evaluated}")
    print(f"sha256 of the evaluated keys {first.keys_sha256}")


def print_classes(vocabulary: Vocabulary, figures: ClassFigures) -> None:
    """A line a class that has a clip, the least average precision first; how many have none is said."""
    table = Table("class", "clips", "AP", "AUC", "recall")
    present = np.flatnonzero(figures.num_clips)
    for n in present[np.argsort(figures.average_precision[present], kind="stable")].tolist():
        values = (figures.average_precision[n], figures.roc_area[n])
        shown = [_number("", value) for value in values]
        table.add_row(Text(vocabulary.names[n]), str(figures.num_clips[n]), *shown, f"{figures.recall[n]:.1%}")
    Console(markup=False).print(table)
    if num_absent := len(vocabulary) - len(present):
        print(f"{num_absent} of {len(vocabulary)} classes have no clip here, and are in no mean")


def shown_figures(evaluations: list[Evaluation]) -> list[str]:
    """The figures to show: accuracy only where clips have one label."""
    return [field for field in FIGURES if field != "accuracy" or evaluations[0].accuracy is not None]


def _show(field: str, value: float | None, evaluation: Evaluation) -> str:
    if value is not None:
        return _number(field, value)
    if field == "d_prime" and evaluation.mean_auc is not None:
        return "infinite" if evaluation.mean_auc else "-infinite"
    return "none: no class has clips with and without it"


def _number(field: str, value: float) -> str:
    if isnan(value):
        return "none"
    return f"{value:.1%}" if field == "accuracy" else f"{value:.3f}"
