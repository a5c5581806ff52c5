"""The paper's tables on any store: each row a configuration, with the same budget, folds and seeds."""

import csv
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from featurestore.store import Store
from ingest.atomic import atomic_write
from manifests.errors import InputError
from training.config import RunConfig, load_config
from training.experiment import Spread, Trial, main_figure, run_trial, spread_of

TABLES = tuple(range(1, 10))


class Row(BaseModel):
    """A row: the keys that it sets, `{NAME}` standing for a --with NAME=VALUE, and the iteration that it shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    set: tuple[str, ...] = ()
    iteration: int = 1


class Table(BaseModel):
    """One table of the paper: what it compares, and how sure we are that its rows are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    source: str
    set: tuple[str, ...] = ()  # for every row
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Paper:
    """The paper's figure of a row: of which data set and metric, in per cent."""

    dataset: str
    metric: str
    value: str


@dataclass(frozen=True)
class RowResult:
    """Our figures of a row over folds and seeds; or why there are none."""

    row: Row
    spread: Spread | None
    values: tuple[float, ...]
    skipped: str | None
    paper: Paper | None


def load_table(number: int) -> Table:
    """The table of that number. Raises InputError for one that there isn't."""
    if number not in TABLES:
        raise InputError(f"there is no --table {number}; there are {TABLES[0]} to {TABLES[-1]}")
    return Table.model_validate(tomllib.loads((files("training") / "tables" / f"table{number}.toml").read_text()))


def read_paper(path: Path | None, number: int) -> dict[str, Paper]:
    """The paper's figures by row, from a CSV with the columns table, row, dataset, metric and value.

    Raises InputError for a file that isn't one.
    """
    if path is None:
        return {}
    try:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        chosen = [line for line in lines if int(line["table"]) == number]
        return {line["row"]: Paper(line["dataset"], line["metric"], line["value"]) for line in chosen}
    except (OSError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is no list of the paper's figures ({error}); expected a CSV with the columns "
            "table,row,dataset,metric,value"
        ) from error


@dataclass(frozen=True)
class Ablation:
    """What an ablation is run with: `preset` and `changes` for all rows, `given` for `{NAME}` in their values."""

    preset: str
    changes: Sequence[str]
    given: Mapping[str, str]
    folds: Sequence[int | None]
    seeds: Sequence[int]


def run_table(
    table: Table,
    ablation: Ablation,
    stores: Sequence[Store],
    folder: Path,
    device: torch.device,
    paper: dict[str, Paper],
) -> list[RowResult]:
    """Trains all rows on all folds from all seeds; what is done already is read, and what can't be done is said."""
    configs: dict[str, RunConfig | str] = {}
    num_iterations: dict[str, int] = {}
    for row in table.rows:
        slug = _slug(row)
        configs[slug] = _configure(table, row, ablation, stores)
        num_iterations[slug] = max(num_iterations.get(slug, 1), row.iteration)
    results = []
    for row in table.rows:
        config = configs[_slug(row)]
        known = paper.get(row.name)
        if isinstance(config, str):
            results.append(RowResult(row, None, (), config, known))
            continue
        values = []
        # By seed first: a table that is stopped has whole seeds of all rows above.
        for seed in ablation.seeds:
            for fold in ablation.folds:
                trial = Trial(_slug(row), config, num_iterations[_slug(row)]).at(fold, seed)
                evaluation = run_trial(trial, stores, folder, device)[row.iteration - 1]
                if evaluation is not None:
                    values.append(main_figure(evaluation))
        results.append(RowResult(row, spread_of(values), tuple(values), None, known))
    return results


def _configure(table: Table, row: Row, ablation: Ablation, stores: Sequence[Store]) -> RunConfig | str:
    """The row's configuration; or, where it can't be had here, why not."""
    try:
        changes = [text.format_map(ablation.given) for text in (*table.set, *row.set)]
    except KeyError as error:
        return f"give --with {error.args[0]}=..."
    config = load_config(ablation.preset, [*ablation.changes, *changes])
    teacher = config.distill.teacher
    if teacher not in ("none", "own"):
        lacking = [str(store.location) for store in stores if teacher not in store.teachers]
        if lacking:
            return f"{lacking[0]} has no cache {teacher}"
    return config


def _slug(row: Row) -> str:
    """A folder's name for what a row sets: rows that differ in the iteration alone share their runs."""
    return hashlib.sha256("\n".join(row.set).encode()).hexdigest()[:10]


def write_table(table: Table, number: int, results: Sequence[RowResult], about: dict[str, Any], folder: Path) -> str:
    """Writes table.md and table.json into `folder`, and returns the text of the first."""
    lines = [f"# Table {number}: {table.title}", "", table.source, ""]
    lines += [f"{name}: {value}" for name, value in about.items()]
    lines += ["", "| row | ours | runs | the paper's |", "|---|---|---|---|"]
    for result in results:
        ours = f"not run: {result.skipped}" if result.spread is None else str(result.spread)
        num = "" if result.spread is None else str(result.spread.num)
        paper = result.paper
        theirs = "" if paper is None else f"{paper.value} ({paper.metric} on {paper.dataset})"
        lines.append(f"| {result.row.name} | {ours} | {num} | {theirs} |")
    text = "\n".join(lines) + "\n"
    content = {
        "table": number,
        **about,
        "rows": [
            {"row": result.row.name, "set": result.row.set, "values": result.values, "skipped": result.skipped}
            for result in results
        ],
    }
    atomic_write(folder / f"table{number}.md", text)
    atomic_write(folder / f"table{number}.json", json.dumps(content, indent=1) + "\n")
    return text
