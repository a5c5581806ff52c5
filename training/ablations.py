"""The paper's tables on any store: each row a configuration, with the same budget, folds and seeds."""

import csv
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Formatter

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from featurestore.store import Store
from manifests.errors import InputError
from training.choices import Keep
from training.config import RunConfig, load_config
from training.distributed import on_first
from training.evaluate import Evaluation
from training.experiment import Trial, check_trials, run_trial

TABLES = tuple(range(1, 10))


class Row(BaseModel):
    """A row: the keys that it sets, `{NAME}` standing for a --with NAME=VALUE, and the iteration that it shows.

    `run` names the folder of its runs, by default after the row: rows that show other iterations of one run share it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    set: tuple[str, ...] = ()
    run: str | None = None
    iteration: int = Field(default=1, gt=0)

    @property
    def folder(self) -> str:
        """Lower-case letters and digits, with hyphens between them."""
        return "-".join(re.findall("[a-z0-9]+", (self.run or self.name).lower()))


class Table(BaseModel):
    """One table of the paper: what it compares, and how sure we are that its rows are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    source: str
    set: tuple[str, ...] = ()  # for every row
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _one_configuration_a_folder(self) -> "Table":
        by_folder: dict[str, tuple[str, ...]] = {}
        for row in self.rows:
            if by_folder.setdefault(row.folder, row.set) != row.set:
                raise ValueError(f"rows that set different keys would share the folder {row.folder}")
        return self

    @property
    def asked(self) -> frozenset[str]:
        """The names for which --with gives a value."""
        fields = (field for row in self.rows for text in (*self.set, *row.set) for field in Formatter().parse(text))
        return frozenset(name for _, name, _, _ in fields if name)

    def num_iterations(self, row: Row) -> int:
        """How many iterations the row's run has."""
        return max(other.iteration for other in self.rows if other.folder == row.folder)


class Paper(BaseModel):
    """The paper's figure of a row, as it is printed there, and of which data set and metric."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    table: int
    row: str
    dataset: str
    metric: str
    value: str

    def __str__(self) -> str:
        return f"{self.value} ({self.metric} on {self.dataset})"


@dataclass(frozen=True)
class Ablation:
    """What an ablation is run with: `preset` and `changes` for all rows, `given` for `{NAME}` in their values."""

    preset: str
    changes: Sequence[str]
    given: Mapping[str, str]
    folds: Sequence[int | None]
    seeds: Sequence[int]
    keep: Keep = "all"


@dataclass(frozen=True)
class RowResult:
    """A row's figures by fold and seed, as trials are named; or why there are none."""

    row: Row
    by_place: dict[str, Evaluation]
    skipped: str | None = None


def load_table(number: int) -> Table:
    """The table of that number. Raises InputError for one that there isn't."""
    if number not in TABLES:
        raise InputError(f"there is no --table {number}; there are {TABLES[0]} to {TABLES[-1]}")
    return Table.model_validate(tomllib.loads((files("training") / "tables" / f"table{number}.toml").read_text()))


def read_paper(path: Path | None, number: int, table: Table) -> dict[str, Paper]:
    """The paper's figures of a table by row, from a CSV with the columns table, row, dataset, metric and value.

    Raises InputError for a file that isn't one, or names a row that the table hasn't.
    """
    if path is None:
        return {}
    try:
        with path.open(newline="") as file:
            figures = [Paper.model_validate(line) for line in csv.DictReader(file)]
    except (OSError, ValidationError, UnicodeDecodeError, csv.Error) as error:
        reason = error.errors()[0] if isinstance(error, ValidationError) else None
        said = f"{reason['loc'][0]}: {reason['msg']}" if reason else str(error)
        raise InputError(
            f"{path} is no list of the paper's figures ({said}); expected a CSV with the columns "
            "table,row,dataset,metric,value"
        ) from error
    chosen = {figure.row: figure for figure in figures if figure.table == number}
    names = [row.name for row in table.rows]
    if unknown := [name for name in chosen if name not in names]:
        raise InputError(f"{path}: table {number} has no row {unknown[0]!r}; it has: {', '.join(names)}")
    return chosen


def run_table(
    table: Table, ablation: Ablation, stores: Sequence[Store], folder: Path, device: torch.device
) -> list[RowResult]:
    """Trains all rows on all folds from all seeds; what is done already is read, and what can't be done is said.

    Raises InputError for a --with that no row asks for, and where no row can be run.
    """
    if unknown := sorted(ablation.given.keys() - table.asked):
        there = ", ".join(sorted(table.asked)) or "none"
        raise InputError(f"--with {unknown[0]}: no row of this table asks for it; those asked for: {there}")
    planned = on_first(lambda: [_plan(table, row, ablation, stores, folder) for row in table.rows])
    if all(isinstance(plan, str) for plan in planned):
        raise InputError(f"no row of the table can be run here: {planned[0]}")
    results = {
        row.name: RowResult(row, {}, plan if isinstance(plan, str) else None)
        for row, plan in zip(table.rows, planned, strict=True)
    }
    # By seed first: a table that is stopped has whole seeds of all rows.
    for seed in ablation.seeds:
        for row, plan in zip(table.rows, planned, strict=True):
            if isinstance(plan, str):
                continue
            for fold in ablation.folds:
                trial = plan.at(fold, seed)
                evaluations = run_trial(trial, stores, folder, device, ablation.keep)
                results[row.name].by_place[trial.place] = evaluations[row.iteration - 1]
    return list(results.values())


def _plan(table: Table, row: Row, ablation: Ablation, stores: Sequence[Store], folder: Path) -> Trial | str:
    """The row's trial on any fold from any seed; or, where it can't be run here, why not."""
    try:
        trial = Trial(row.folder, _configure(table, row, ablation), table.num_iterations(row))
        trials = [trial.at(fold, seed) for seed in ablation.seeds for fold in ablation.folds]
        check_trials(trials, stores, folder)
    except InputError as error:
        return str(error)
    return trial


def _configure(table: Table, row: Row, ablation: Ablation) -> RunConfig:
    try:
        changes = [text.format_map(ablation.given) for text in (*table.set, *row.set)]
    except KeyError as error:
        raise InputError(f"give --with {error.args[0]}=...") from error
    return load_config(ablation.preset, [*ablation.changes, *changes])
