"""Tags of files as people and programs read them: lines, tables, JSON lines and CSV."""

import json
import unicodedata
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from manifests.csvtext import csv_lines
from training.predict import FileTags, Tag, tags_as_json

Format = Literal["table", "json", "csv"]
CSV_COLUMNS = ("file", "start_s", "end_s", "label_id", "label", "probability")
CONTROLS = ("Cc", "Zl", "Zp")  # control characters, and the two line ends that are none
_BAR_CELLS = 20
_TIME_DIGITS = 3


def as_json_line(said: FileTags, *, with_windows: bool, with_events: bool) -> str:
    """One JSON object and a line end."""
    content: dict[str, Any] = {
        "file": said.file,
        "end_s": round(said.end_s, _TIME_DIGITS),
        "num_windows": said.num_windows,
        "tags": tags_as_json(said.tags),
    }
    if with_windows:
        content["windows"] = [
            {**_span(window.start_s, window.end_s), "tags": tags_as_json(window.tags)} for window in said.windows
        ]
    if with_events:
        content["events"] = [
            {**_span(event.start_s, event.end_s), **tags_as_json([event.tag])[0]} for event in said.events
        ]
    return json.dumps(content, ensure_ascii=False) + "\n"


def as_csv(said: FileTags, *, with_windows: bool, with_events: bool) -> str:
    """Rows of CSV_COLUMNS: of the windows or the events where they were asked for, else of the whole file."""
    if with_events:
        rows = [(event.start_s, event.end_s, event.tag) for event in said.events]
    elif with_windows:
        rows = [(window.start_s, window.end_s, tag) for window in said.windows for tag in window.tags]
    else:
        rows = [(0.0, said.end_s, tag) for tag in said.tags]
    return csv_lines([_row(said.file, *row) for row in rows])


def as_lines(said: FileTags) -> str:
    """One line for the file, and one for each window and event."""
    lines = [f"{printable(said.file)}: {_listed(said.tags)}"]
    lines += [f"  {_clock(window.start_s)} - {_clock(window.end_s)}: {_listed(window.tags)}" for window in said.windows]
    lines += [f"  {_clock(event.start_s)} - {_clock(event.end_s)}  {_listed([event.tag])}" for event in said.events]
    return "\n".join(lines) + "\n"


def print_tags(console: Console, said: FileTags, *, with_events: bool) -> None:
    """The same for a terminal, with bars."""
    length = f"{_clock(said.end_s)}, {said.num_windows} window{'' if said.num_windows == 1 else 's'}"
    parts: list[RenderableType] = [Text.assemble((printable(said.file), "bold"), f"  {length}")]
    parts.append(_bars(said.tags) if said.tags else Text("  nothing reaches the threshold"))
    if said.windows:
        table = _grid("start", "end", "tags")
        for window in said.windows:
            table.add_row(_clock(window.start_s), _clock(window.end_s), Text(_listed(window.tags)))
        parts.append(table)
    if with_events:
        parts.append(_events(said) if said.events else Text("  no event reaches the threshold"))
    console.print(Group(*parts))


def printable(name: str) -> str:
    """A name with its control characters escaped: line ends would break a line, escape codes change the terminal."""
    return "".join(repr(mark)[1:-1] if unicodedata.category(mark) in CONTROLS else mark for mark in name)


def _bars(tags: list[Tag]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=True)
    table.add_column(justify="right")
    for tag in tags:
        bar = "█" * max(1, round(tag.probability * _BAR_CELLS))
        table.add_row(_percent(tag.probability), Text(bar.ljust(_BAR_CELLS), "cyan"), Text(printable(tag.name)))
    return table


def _events(said: FileTags) -> Table:
    table = _grid("start", "end", "event", "at most")
    for event in said.events:
        times = _clock(event.start_s), _clock(event.end_s)
        table.add_row(*times, Text(printable(event.tag.name)), _percent(event.tag.probability))
    return table


def _grid(*names: str) -> Table:
    return Table(*names, box=None, padding=(0, 1), pad_edge=True, header_style="dim")


def _listed(tags: list[Tag]) -> str:
    named = ", ".join(f"{printable(tag.name)} {_percent(tag.probability)}" for tag in tags)
    return named or "nothing reaches the threshold"


def _percent(probability: float) -> str:
    return f"{probability:.1%}"


def _clock(seconds: float) -> str:
    """0:07.5, or 1:02:03.5."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}:{minutes:02d}" if hours else str(minutes)) + f":{rest / 10:04.1f}"


def _span(start_s: float, end_s: float) -> dict[str, float]:
    return {"start_s": round(start_s, _TIME_DIGITS), "end_s": round(end_s, _TIME_DIGITS)}


def _row(file: str, start_s: float, end_s: float, tag: Tag) -> tuple[str, ...]:
    times = (f"{start_s:.{_TIME_DIGITS}f}", f"{end_s:.{_TIME_DIGITS}f}")
    return file, *times, tag.label_id, tag.name, f"{tag.probability:.6f}"
