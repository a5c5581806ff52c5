"""Progress on stderr: a live bar on a terminal, a timed line now and then elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay:
    """Counts `unit`s up to `total` (None: unknown); a context manager that always leaves the terminal as it was."""

    def __init__(self, unit: str, total: int | None) -> None:
        self._unit, self._total, self._done, self._note = unit, total, 0, ""
        self._started = self._last_line = time.monotonic()
        self._what, self._printed = "", 0
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(unit, total=total, rate="", note="")

    def __enter__(self) -> "ProgressDisplay":
        if self._bar is not None:
            self._bar.start()
        return self

    def describe(self, what: str) -> None:
        """Says what is being counted, besides the unit."""
        self._what = what
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def advance(self, count: int, note: str = "") -> None:
        """Counts `count` more; `note` says what else is worth knowing now."""
        self._done, self._note = self._done + count, note
        if self._bar is not None:
            self._bar.update(self._task, advance=count, note=note, rate=f"{self._rate():.1f} {self._unit}/s")
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._printed != self._done or not self._done:
            self._print_line()

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._started, 1e-9)

    def _print_line(self) -> None:
        self._last_line, self._printed = time.monotonic(), self._done
        elapsed_s, rate = self._last_line - self._started, self._rate()
        num_left = (self._total or 0) - self._done
        remaining = f", {num_left / rate:.0f} s to go" if self._done and num_left > 0 else ""
        note = f", {self._note}" if self._note else ""
        what = f"{self._what} " if self._what else ""
        total = f"/{self._total}" if self._total is not None else ""
        counted = f"{self._done}{total} {self._unit}, {rate:.1f} {self._unit}/s"
        print(f"[{elapsed_s:7.1f} s] {what}{counted}{note}{remaining}", file=sys.stderr, flush=True)
