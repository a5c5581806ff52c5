"""Reads what a run's folder holds, as far as it is there: of a run in progress, a killed one, or another version's."""

import json
import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from manifests.errors import InputError
from training.checkpoint import About, load_checkpoint
from training.config import RunConfig
from training.iterations import EVAL_FILE
from training.log import METRICS_FILE
from training.loop import LAST
from training.runfolder import CONFIG_FILE, ENVIRONMENT_FILE, STORE_FILE

STAGES = ("multissl", "distill")


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure over the steps of a stage: steps (N,) int64, values (N,) float64, finite.

    `not_finite`: the steps whose value was NaN or infinite.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    not_finite: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """What could be read of a run; `notes` say, in sentences, what could not.

    `config` is the file's content, empty where there is none; `settings` the same where this version understands it.
    `curves`: by stage, in the order in which they were trained, and key. `evaluations`: eval.json by iteration.
    `checkpoints`: what the last checkpoint of each stage says of itself.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    settings: RunConfig | None
    calls: list[dict[str, Any]]
    store: dict[str, Any]
    curves: dict[str, dict[str, Curve]]
    evaluations: dict[int, dict[str, Any]]
    checkpoints: dict[str, About]
    notes: list[str]

    def last_checkpoint(self, kind: str) -> tuple[Path, About] | None:
        """The last checkpoint of the last iteration that has one of this kind of stage."""
        stages = [stage for stage in self.checkpoints if stage.endswith(f"/{kind}")]
        return (self.folder / stages[-1] / LAST, self.checkpoints[stages[-1]]) if stages else None


def read_runs(folders: list[Path]) -> list[RecordedRun]:
    """The runs in `folders`, each once, under names that differ. Raises InputError for a folder that is no run."""
    places = [folder.resolve() for folder in folders]
    distinct = [folder for number, folder in enumerate(folders) if places[number] not in places[:number]]
    short = [folder.resolve().name for folder in distinct]
    return [
        read_run(folder, name if short.count(name) == 1 else str(folder))
        for folder, name in zip(distinct, short, strict=True)
    ]


def read_run(folder: Path, name: str) -> RecordedRun:
    """What is there of one run. Raises InputError where there is nothing of a run at all."""
    if not any((folder / file).is_file() for file in (CONFIG_FILE, METRICS_FILE)):
        raise InputError(
            f"{folder} is not a run: {'it has neither' if folder.is_dir() else 'there is no such folder, so neither'} "
            f"{CONFIG_FILE} nor {METRICS_FILE}; name a folder that `training run` made, like runs/esc50-tiny"
        )
    notes: list[str] = []
    config = _read_object(folder / CONFIG_FILE, notes)
    return RecordedRun(
        name=name,
        folder=folder,
        config=config,
        settings=_understand(config, notes),
        calls=_read_calls(folder / ENVIRONMENT_FILE, notes),
        store=_read_object(folder / STORE_FILE, notes),
        curves=_read_curves(folder / METRICS_FILE, notes),
        evaluations=_read_evaluations(folder, notes),
        checkpoints=_read_checkpoints(folder, notes),
        notes=notes,
    )


def _read_json(path: Path, notes: list[str]) -> Any:
    """The file's content; None, and a note, where it can't be read."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        notes.append(f"There is no {path.name}.")
    except OSError as error:
        notes.append(f"{path.name} can't be read ({error.strerror}).")
    except (ValueError, RecursionError) as error:
        notes.append(f"{path.name} is damaged ({error}).")
    return None


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    content = _read_json(path, notes)
    if content is None or isinstance(content, dict):
        return content or {}
    notes.append(f"{path.name} holds no object, and is left out.")
    return {}


def _read_calls(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    content = _read_json(path, notes)
    return [call for call in content if isinstance(call, dict)] if isinstance(content, list) else []


def _understand(config: dict[str, Any], notes: list[str]) -> RunConfig | None:
    if not config:
        return None
    try:
        return RunConfig.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        notes.append(f"{CONFIG_FILE} is another version's ({where}: {first['msg']}); it is shown as it stands.")
        return None


def _read_evaluations(folder: Path, notes: list[str]) -> dict[int, dict[str, Any]]:
    return {
        number: content for number, path in iterations_with(folder, EVAL_FILE) if (content := _read_object(path, notes))
    }


def iterations_with(folder: Path, name: str) -> list[tuple[int, Path]]:
    """The files `name` of a run's iterations, by their numbers, ascending."""
    found = [(path.relative_to(folder).parts[0].removeprefix("iter"), path) for path in folder.glob(f"iter*/{name}")]
    return sorted((int(number), path) for number, path in found if number.isdecimal())


def _read_checkpoints(folder: Path, notes: list[str]) -> dict[str, About]:
    found = [(number, stage, path) for stage in STAGES for number, path in iterations_with(folder, f"{stage}/{LAST}")]
    checkpoints, refused = {}, []
    for number, stage, path in sorted(found, key=lambda one: (one[0], STAGES.index(one[1]))):
        try:
            # On "meta" no weight is read.
            checkpoints[f"iter{number}/{stage}"] = load_checkpoint(path, "meta").about
        except InputError as error:
            refused.append(str(error))
    if refused:
        others = f" {len(refused) - 1} others can't be read either." if len(refused) > 1 else ""
        notes.append(f"A checkpoint is left out: {refused[0]}.{others}")
    return checkpoints


@dataclass(slots=True)
class _Growing:
    steps: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("d"))

    def finished(self) -> Curve:
        steps, values = np.array(self.steps, np.int64), np.array(self.values, np.float64)
        order = np.argsort(steps, kind="stable")
        steps, values = steps[order], values[order]
        finite = np.isfinite(values)
        return Curve(steps[finite], values[finite], steps[~finite])


def _read_curves(path: Path, notes: list[str]) -> dict[str, dict[str, Curve]]:
    """All numbers of metrics.jsonl, by stage and key; read line by line, since a long run has millions."""
    growing: dict[str, dict[str, _Growing]] = {}
    num_unreadable = 0
    is_last_torn = False
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                is_readable = _take_line(line, growing)
                num_unreadable += not is_readable
                is_last_torn = not is_readable
    except OSError as error:
        notes.append(f"{path.name} can't be read ({error.strerror}), so there are no curves.")
    if is_last_torn:
        notes.append(f"The last line of {path.name} is not whole: a run was killed, or is writing it now.")
    if num_unreadable > is_last_torn:
        notes.append(f"{num_unreadable - is_last_torn} lines of {path.name} can't be read, and are left out.")
    return {stage: {key: one.finished() for key, one in curves.items()} for stage, curves in growing.items()}


def _take_line(line: str, growing: dict[str, dict[str, _Growing]]) -> bool:
    """Adds a line's numbers; False where it is no line of metrics."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return not line.strip()
    if not isinstance(entry, dict):
        return False
    stage, step = entry.pop("stage", None), entry.pop("step", None)
    if not isinstance(stage, str) or not isinstance(step, int) or not 0 <= step < 2**62:
        return False
    curves = growing.setdefault(stage, {})
    for key, value in entry.items():
        number = _as_float(value)
        if number is not None:
            curve = curves.setdefault(key, _Growing())
            curve.steps.append(step)
            curve.values.append(number)
    return True


def _as_float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
