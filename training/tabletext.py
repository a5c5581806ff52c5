"""A table of experiments as a text to read, and as JSON to work with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featurestore.store import Store
from ingest.atomic import atomic_write
from training.ablations import Ablation, Paper, RowResult, Table
from training.evaluate import Evaluation
from training.experiment import Figure, Spread, choose_figure, spread_of, value_of


class Compared:
    """The rows of a table in one figure, each beside the first that was run."""

    def __init__(self, results: Sequence[RowResult]) -> None:
        self.results = results
        self._run = [result for result in results if result.by_place]
        self.evaluations = [found for result in self._run for found in result.by_place.values()]
        self.figure: Figure = choose_figure(self.evaluations)

    @property
    def first(self) -> RowResult:
        """The row that the others are compared with."""
        return self._run[0]

    def values(self, result: RowResult) -> dict[str, float]:
        """A row's figures by fold and seed."""
        return {place: value_of(found, self.figure) for place, found in result.by_place.items()}

    def spread(self, result: RowResult) -> Spread | None:
        """Of a row's figures; None of a row that wasn't run."""
        return spread_of([*self.values(result).values()]) if result.by_place else None

    def difference(self, result: RowResult) -> Spread | None:
        """To the first row, run by run of the same fold and seed; None of that row itself, and of those not run."""
        if result is self.first or not result.by_place:
            return None
        first = self.values(self.first)
        return spread_of([value - first[place] for place, value in self.values(result).items()])


def write_table(
    number: int,
    table: Table,
    results: Sequence[RowResult],
    ablation: Ablation,
    stores: Sequence[Store],
    paper: Mapping[str, Paper],
    folder: Path,
) -> str:
    """Writes tableN.md and tableN.json into `folder`, and returns the text of the first."""
    compared = Compared(results)
    about = {
        "data": "; ".join(_describe(store) for store in stores),
        "held out": "; ".join(dict.fromkeys(_held_out(found) for found in compared.evaluations)),
        "configuration": " ".join([ablation.preset, *(f"--set {change}" for change in ablation.changes)]),
        "with": ", ".join(f"{name}={value}" for name, value in ablation.given.items()),
        "runs": f"{_count(len(ablation.folds), 'held-out part')} x {_count(len(ablation.seeds), 'seed')} "
        f"({', '.join(map(str, ablation.seeds))}) a row",
        "figures": f"{compared.figure}, mean ± standard deviation over the runs; the difference is that of runs of "
        "the same held-out part and seed, in points",
    }
    lines = [f"# Table {number}: {table.title}", "", table.source, ""]
    lines += [f"- {name}: {value}" for name, value in about.items() if value]
    columns = ["row", compared.figure, f'difference to "{compared.first.row.name}"', "runs"]
    columns += ["the paper's, in per cent"] if paper else []
    lines += ["", _line(columns), _line("---" for _ in columns)]
    for result in results:
        known = [str(paper.get(result.row.name, ""))] if paper else []
        lines.append(_line([*_cells(compared, result), *known]))
    lines += [line for result in results for line in _beware(result)]
    text = "\n".join(lines) + "\n"
    content = {
        "table": number,
        "title": table.title,
        "source": table.source,
        **about,
        "figure": compared.figure,
        "compared with": compared.first.row.name,
        "rows": [_row_content(compared, result, paper) for result in results],
    }
    atomic_write(folder / f"table{number}.md", text)
    atomic_write(folder / f"table{number}.json", json.dumps(content, indent=1) + "\n")
    return text


def _beware(result: RowResult) -> list[str]:
    """Which parts that judge a row what it started from had been trained on: such figures are no test."""
    heard = {found.split: found.heard for found in result.by_place.values() if found.heard is not None}
    said = "; ".join(f"{part}: {clips}" for part, clips in heard.items())
    return ["", f'Beware: what "{result.row.name}" started from was trained on clips of {said}'] if heard else []


def _cells(compared: Compared, result: RowResult) -> list[str]:
    spread, difference = compared.spread(result), compared.difference(result)
    if spread is None:
        return [result.row.name, f"not run: {result.skipped}", "", "0"]
    return [result.row.name, str(spread), "" if difference is None else difference.points, str(spread.num)]


def _row_content(compared: Compared, result: RowResult, paper: Mapping[str, Paper]) -> dict[str, Any]:
    spread, difference, known = compared.spread(result), compared.difference(result), paper.get(result.row.name)
    return {
        "row": result.row.name,
        "set": result.row.set,
        "iteration": result.row.iteration,
        "folder": result.row.folder,
        "skipped": result.skipped,
        "spread": None if spread is None else asdict(spread),
        "difference": None if difference is None else asdict(difference),
        "values": compared.values(result),
        "evaluations": {place: found.as_dict() for place, found in result.by_place.items()},
        "paper": None if known is None else known.model_dump(),
    }


def _line(cells: Any) -> str:
    # A bar would end the cell.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _describe(store: Store) -> str:
    labels = _count(store.num_classes, "class", "classes") if store.num_classes else "no labels"
    return f"{store.file.dataset} ({len(store.rows())} clips, {labels})"


def _held_out(evaluation: Evaluation) -> str:
    return f"{evaluation.split} ({evaluation.num_evaluated} of {evaluation.num_listed} clips)"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
