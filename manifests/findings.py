"""What an examination of this machine found: the lines that `ingest doctor` and `training doctor` print."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from manifests.errors import InputError


class Status(StrEnum):
    """Whether what is examined for can do with what was found."""

    OK = "ok"
    WARNING = "warning"  # it can, not for everything or not for long
    MISSING = "missing"


COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.MISSING: "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination; `remedy` is empty where nothing is to be done."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def refusal(name: str, error: InputError) -> Finding:
    """What a command would refuse: as its error says it, with what is to be done, after the last "; ", beside it."""
    found, _, remedy = str(error).rpartition("; ")
    return Finding(name, Status.MISSING, found or remedy, remedy if found else "")


def is_fit(findings: Sequence[Finding]) -> bool:
    """Whether nothing that is needed is missing."""
    return all(finding.status is not Status.MISSING for finding in findings)


def print_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """A table for people, or a JSON list, on the standard output."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
        return
    table = Table()
    for heading in ("what", "", "found", "to do"):
        # Commands and paths are copied from here: what is too long goes on in the next line.
        table.add_column(heading, overflow="fold")
    for finding in findings:
        colour = COLOURS[finding.status]
        table.add_row(finding.name, f"[{colour}]{finding.status}[/]", escape(finding.found), escape(finding.remedy))
    Console().print(table)
