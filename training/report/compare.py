"""Runs side by side: the summary, figures of all iterations, and where configurations differ."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.report.read import RecordedRun

ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Speed:
    """clips_per_s and data_wait_share over the time of all steps; hours of steps, without evaluation and saving.

    None where the run doesn't say.
    """

    clips_per_s: float | None
    data_wait_share: float | None
    hours: float | None


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """A run in one line, all as text; `progress` tells how far it came."""

    name: str
    folder: str
    preset: str
    source: str
    progress: str
    figures: dict[str, str]
    evaluated: str
    clips_per_s: str
    data_wait: str
    hours: str
    device: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a name and a text a column."""

    columns: list[str]
    rows: list[tuple[str, list[str]]]


def summarise(run: RecordedRun) -> SummaryRow:
    measured = speed(run)
    iteration, figures = last_figures(run)
    return SummaryRow(
        name=run.name,
        folder=str(run.folder),
        preset=_preset(run),
        source=str(run.config.get("source", ABSENT)),
        progress=progress(run),
        figures={
            "accuracy": show("accuracy", figures.get("accuracy")),
            "mAP": show("mean_average_precision", figures.get("mean_average_precision")),
        },
        evaluated=_evaluated(iteration, figures),
        clips_per_s=ABSENT if measured.clips_per_s is None else f"{measured.clips_per_s:,.3g}",
        data_wait=ABSENT if measured.data_wait_share is None else f"{measured.data_wait_share:.1%}",
        hours=ABSENT if measured.hours is None else f"{measured.hours:.3g}",
        device=", ".join(dict.fromkeys(str(call["device"]) for call in run.calls if "device" in call)) or ABSENT,
    )


def speed(run: RecordedRun) -> Speed:
    """A step of n clips at r clips/s took n / r seconds; n is the stage's batch size."""
    num_clips = seconds = waited_s = 0.0
    for stage, curves in run.curves.items():
        batch_size = _at(run.config, stage.rpartition("/")[2], "optimiser", "batch_size")
        rate = curves.get("clips_per_s")
        if rate is None or not isinstance(batch_size, int) or not (rate.values > 0).all():
            continue
        steps_s = batch_size / rate.values
        num_clips, seconds = num_clips + batch_size * len(steps_s), seconds + steps_s.sum()
        wait = curves.get("data_wait_share")
        if wait is not None and np.array_equal(wait.steps, rate.steps):
            waited_s += float((wait.values * steps_s).sum())
    if not seconds:
        return Speed(None, None, None)
    knows_wait = any("data_wait_share" in curves for curves in run.curves.values())
    return Speed(num_clips / seconds, waited_s / seconds if knows_wait else None, seconds / 3600)


def last_figures(run: RecordedRun) -> tuple[int | None, dict[str, Any]]:
    """The figures of the last evaluated iteration; of a run without one, the latest from its training stage (None)."""
    if run.evaluations:
        number = max(run.evaluations)
        return number, run.evaluations[number]
    latest: dict[str, Any] = {}
    for curves in run.curves.values():
        found = {key.removeprefix("eval_"): curve for key, curve in curves.items() if key.startswith("eval_")}
        latest = {key: float(curve.values[-1]) for key, curve in found.items() if len(curve.values)} or latest
    return None, latest


def progress(run: RecordedRun) -> str:
    """How many iterations are evaluated, and how far the stage after them is."""
    done = f"{len(run.evaluations)} evaluated" if run.evaluations else "none evaluated"
    if not run.curves:
        return done
    stage, curves = list(run.curves.items())[-1]
    iteration, _, kind = stage.partition("/")
    if kind == "distill" and iteration.removeprefix("iter") in map(str, run.evaluations):
        return done
    step = max((int(curve.steps[-1]) for curve in curves.values() if len(curve.steps)), default=0)
    about = run.checkpoints.get(stage)
    return f"{done}; {stage}: step {step:,}" + (f" of {about.num_steps:,}" if about else "")


def figures_table(runs: list[RecordedRun]) -> Table:
    """Every figure of every iteration's evaluation, as eval.json names them; a column an iteration and run."""
    evaluations = {
        f"iteration {number}" if len(runs) == 1 else f"{run.name}, iteration {number}": figures
        for number in sorted({number for run in runs for number in run.evaluations})
        for run in runs
        if (figures := run.evaluations.get(number)) is not None
    }
    keys = dict.fromkeys(key for figures in evaluations.values() for key in figures)
    rows = [(key, [show(key, figures.get(key)) for figures in evaluations.values()]) for key in keys]
    return Table(list(evaluations), rows)


def configuration_table(runs: list[RecordedRun]) -> Table:
    """The dotted keys in which configurations differ, defaults filled in where this version understands all of them."""
    settings = [run.settings for run in runs]
    contents = [
        run.config if None in settings or run.settings is None else run.settings.model_dump(mode="json") for run in runs
    ]
    flat = [flatten(content) for content in contents]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [one.get(key, ABSENT) for one in flat]) for key in keys]
    return Table([run.name for run in runs], [(key, values) for key, values in rows if len(set(values)) > 1])


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys, and values as JSON; texts as they stand."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def show(key: str, value: object) -> str:
    """A figure as people read it: accuracies as percentages, others with four digits."""
    if value is None:
        return ABSENT
    if isinstance(value, float):
        return f"{value:.1%}" if key == "accuracy" else f"{value:.4g}"
    return str(value)


def _evaluated(iteration: int | None, figures: dict[str, Any]) -> str:
    if "num_evaluated" not in figures or "num_listed" not in figures:
        return ABSENT
    counts = f"{figures['num_evaluated']:g} of {figures['num_listed']:g}" if _are_numbers(figures) else ABSENT
    return counts if iteration is not None else f"{counts} (while training)"


def _are_numbers(figures: dict[str, Any]) -> bool:
    return all(isinstance(figures[key], int | float) for key in ("num_evaluated", "num_listed"))


def _preset(run: RecordedRun) -> str:
    """The preset that the first call named."""
    command = run.calls[0].get("command") if run.calls else None
    if not isinstance(command, list):
        return ABSENT
    words = [part for word in map(str, command) for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    return words[words.index("--preset") + 1] if "--preset" in words[:-1] else "the default"


def _at(content: object, *keys: str) -> object:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content
