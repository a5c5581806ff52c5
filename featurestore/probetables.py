"""How the report of a probe is printed."""

from math import isnan
from statistics import fmean

from rich.console import Console
from rich.table import Table

from featurestore.probe import ProbeReport
from featurestore.probeparts import Kind
from featurestore.store import Store


def print_probe(report: ProbeReport) -> None:
    """Prints the figures of every part, what was left out, and which clips were evaluated."""
    names, kinds = report.figure_names, list(report.parts[0].results)
    print(f"{report.source} on {report.store}")
    table = Table("held out", "learnt", "judged")
    for heading in [*kinds, "chance"]:
        for name in names:
            table.add_column(f"{heading}\n{name}", no_wrap=True)
    for part in report.parts:
        figures = [part.results[kind].figures[name] for kind in kinds for name in names] + list(part.chance.values())
        table.add_row(part.name, str(part.num_train), str(part.num_evaluated), *map(_percent, figures))
    if len(report.parts) > 1:
        means = [_mean_and_spread(report, kind, name) for kind in kinds for name in names]
        chances = [_percent(fmean(part.chance[name] for part in report.parts)) for name in names]
        table.add_section()
        table.add_row("mean ± std", "", str(sum(part.num_evaluated for part in report.parts)), *means, *chances)
    Console(markup=False).print(table)
    print(f"held out: {report.chosen_by}")
    for line in _left_out(report):
        print(line)
    for part in report.parts:
        print(f"{part.name}: sha256 of the evaluated keys {part.keys_sha256}")


def _left_out(report: ProbeReport) -> list[str]:
    lines = []
    if report.num_unlabelled:
        lines.append(f"left out: {report.num_unlabelled} clips without a label")
    if missing := max(part.num_without_embedding for part in report.parts):
        lines.append(f"left out: up to {missing} clips a part without an embedding")
    for part in report.parts:
        sides = (part.num_train, part.num_train_of), (part.num_evaluated, part.num_evaluated_of)
        if any(taken < listed for taken, listed in sides):
            (train, train_of), (evaluated, evaluated_of) = sides
            lines.append(f"{part.name}: learnt from {train} of {train_of}, evaluated {evaluated} of {evaluated_of}")
    return lines


def print_classes(store: Store, report: ProbeReport) -> None:
    """Prints each class's figure, the mean over the parts."""
    kinds, figure = list(report.parts[0].results), report.figure_names[0].removeprefix("m")
    table = Table("class", *(f"{kind} {figure}" for kind in kinds))
    for label in store.file.vocabulary.labels:
        by_kind = [[p.results[kind].per_class.get(label.id) for p in report.parts] for kind in kinds]
        known = [[value for value in values if value is not None] for values in by_kind]
        table.add_row(label.name, *(_percent(fmean(values)) if values else "no clip" for values in known))
    Console(markup=False).print(table)


def _mean_and_spread(report: ProbeReport, kind: Kind, name: str) -> str:
    spread = report.spread(kind, name)
    return _percent(report.mean(kind, name)) + (f" ± {100 * spread:.1f}" if spread is not None else "")


def _percent(share: float) -> str:
    return "–" if isnan(share) else f"{100 * share:.1f} %"
