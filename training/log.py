"""A run's metrics: a JSON line a step in metrics.jsonl, and the same as TensorBoard events."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from ingest.atomic import atomic_write

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends the lines of one stage; what an interrupted run wrote after its last checkpoint is dropped first."""

    def __init__(self, run: Path, stage: str, steps_done: int) -> None:
        # Imported here: TensorBoard takes seconds, and most commands do without it.
        from torch.utils.tensorboard import SummaryWriter

        self._path, self._stage = run / METRICS_FILE, stage
        self._drop_later_lines(steps_done)
        self._file = self._path.open("a")
        self._events = SummaryWriter(str(run / "tensorboard" / stage), purge_step=steps_done + 1)

    def _drop_later_lines(self, steps_done: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the torn last line of a killed run
            if entry["stage"] != self._stage or entry["step"] <= steps_done:
                kept.append(line + "\n")
        atomic_write(self._path, "".join(kept))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line: the stage, the steps done, and `values`."""
        self._file.write(json.dumps({"stage": self._stage, "step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, int | float):
                self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        self._file.flush()
        self._events.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._events.close()


class NoLog:
    """Of the ranks that don't write."""

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Nothing is written."""

    def flush(self) -> None:
        """Nothing is written."""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]
