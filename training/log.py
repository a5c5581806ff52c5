"""A run's metrics: a JSON line a step in metrics.jsonl, and the same as TensorBoard events."""

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from ingest.atomic import atomic_write
from training.events import EventFile
from training.written import writing

METRICS_FILE, EVENTS_FOLDER = "metrics.jsonl", "tensorboard"


class MetricsLog:
    """Appends the lines of one stage; what an interrupted run wrote after its last checkpoint is dropped first.

    Its methods raise InputError when a file can't be written, and the run goes on from its last checkpoint.
    """

    def __init__(self, run: Path, stage: str, steps_done: int) -> None:
        self._path, self._stage = run / METRICS_FILE, stage
        with writing(self._path), ExitStack() as opened:
            self._drop_later_lines(steps_done)
            self._file = opened.enter_context(self._path.open("a"))
            self._events = opened.enter_context(EventFile(run / EVENTS_FOLDER / stage, steps_done + 1))
            self._opened = opened.pop_all()

    def _drop_later_lines(self, steps_done: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                later = entry["stage"] == self._stage and entry["step"] > steps_done
            except (ValueError, LookupError, TypeError):
                continue  # what is left of a line that was torn
            if not later:
                kept.append(line + b"\n")
        atomic_write(self._path, b"".join(kept))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line: the stage, the steps done, and `values`."""
        with writing(self._path):
            self._file.write(json.dumps({"stage": self._stage, "step": step, **values}) + "\n")
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add(name, value, step)

    def flush(self) -> None:
        """Hands the lines to the system, so that they outlive this process."""
        with writing(self._path):
            self._file.flush()
            self._events.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with writing(self._path):
            self._opened.close()


class NoLog:
    """Of the ranks that don't write."""

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Nothing is written."""

    def flush(self) -> None:
        """Nothing is written."""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
