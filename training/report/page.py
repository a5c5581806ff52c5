"""Writes the page of runs: one file with its style, script, data and pictures; it fetches nothing."""

import base64
import hashlib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from featurestore.pages.page import json_for_html
from ingest.atomic import atomic_write
from manifests.errors import InputError
from training.report.compare import configuration_table, figures_table, flatten, summarise
from training.report.confusion import Mixing, mixing
from training.report.curves import curve_data
from training.report.pictures import Reconstructions, reconstruct
from training.report.read import RecordedRun, read_runs
from training.report.remarks import Remark, remarks

PAGE_FILE = "index.html"
# Tells a page of ours from any other, which is never replaced.
_MARK = '<meta name="generator" content="training report">'
_MARK_WITHIN = 4096
_TEMPLATES = files("training.report")
_SCRIPTS = ("draw.js", "charts.js", "page.js")


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """How many clips are restored for each run (0: none), and the seed that chooses them and their masks."""

    num_clips: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What was written; `missing`: the parts that a run has not, and why."""

    page: Path
    num_runs: int
    num_warnings: int
    missing: list[str]


@dataclass(slots=True)
class _Findings:
    """What the page shows of one run."""

    run: RecordedRun
    remarks: list[Remark]
    restored: Reconstructions | None = None
    mixing: Mixing | None = None
    missing: dict[str, str] = field(default_factory=dict)


def write_report(folders: list[Path], out: Path, options: ReportOptions) -> Report:
    """Writes the page of the runs in `folders` to out/index.html, in place of an earlier one.

    Raises InputError for a folder that is no run, or a place that is taken by something else.
    """
    runs = read_runs(folders)
    page = out / PAGE_FILE
    _refuse_other_page(page)
    findings = [_look_at(run, options) for run in runs]
    text = _render(findings, options)
    try:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(page, text)
    except OSError as error:
        raise InputError(f"{page} can't be written ({error.strerror}); choose another folder with --out") from error
    missing = [f"{one.run.name}: no {what}: {why}" for one in findings for what, why in one.missing.items()]
    return Report(page, len(runs), sum(r.is_warning for one in findings for r in one.remarks), missing)


def _look_at(run: RecordedRun, options: ReportOptions) -> _Findings:
    found = _Findings(run, remarks(run))
    try:
        if options.num_clips:
            found.restored = reconstruct(run, options.num_clips, options.seed)
    except (InputError, OSError) as error:
        found.missing["reconstructions"] = str(error)
    except RuntimeError as error:  # torch's, for weights that fit another network
        found.missing["reconstructions"] = f"its checkpoint is of another version ({str(error).splitlines()[0]})"
    try:
        found.mixing = mixing(run)
    except InputError as error:
        found.missing["confusions"] = str(error)
    return found


def _render(findings: list[_Findings], options: ReportOptions) -> str:
    runs = [one.run for one in findings]
    style = _TEMPLATES.joinpath("page.css").read_text()
    script = "\n".join(_TEMPLATES.joinpath(name).read_text() for name in _SCRIPTS)
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader("training.report", "."),
    )
    matrices = [
        None
        if one.mixing is None or one.mixing.matrix is None
        else {"names": one.mixing.names, "cells": one.mixing.matrix}
        for one in findings
    ]
    return environment.get_template("page.html.j2").render(
        findings=findings,
        options=options,
        summary=[summarise(run) for run in runs],
        remarks=sorted((r for one in findings for r in one.remarks), key=lambda remark: not remark.is_warning),
        figures=figures_table(runs),
        configuration=configuration_table(runs) if len(runs) > 1 else None,
        facts=[_facts(run) for run in runs],
        mark=Markup(_MARK),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=json_for_html({**curve_data(runs), "matrices": matrices}),
    )


def _facts(run: RecordedRun) -> dict[str, dict[str, str]]:
    """What a run was made from and ran on; of several calls the last, and the command of each."""
    last = {key: value for key, value in run.calls[-1].items() if key != "command"} if run.calls else {}
    commands = {
        f"command {number}": " ".join(map(str, call.get("command", []))) for number, call in enumerate(run.calls, 1)
    }
    return {
        "Store": flatten(run.store),
        "Environment of the last call": flatten(last),
        "Commands": commands,
        "Configuration": flatten(run.config if run.settings is None else run.settings.model_dump(mode="json")),
    }


def _refuse_other_page(page: Path) -> None:
    """Raises InputError where something lies that is no page of ours."""
    if not page.exists() and not page.is_symlink():
        return
    try:
        ours = not page.is_symlink() and _MARK.encode() in page.read_bytes()[:_MARK_WITHIN]
    except OSError:
        ours = False
    if not ours:
        raise InputError(f"{page} is something else than a page of `training report`; name another folder with --out")
