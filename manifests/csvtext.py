"""Tables as CSV text that every reader takes apart again as it was put together."""

import csv
from collections.abc import Iterable, Sequence


class _Lines(list[str]):
    """A file for :func:`csv.writer`, which writes a row at a time."""

    def write(self, row: str) -> None:
        self.append(row.removesuffix("\r\n") + "\n")


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV, each with a line feed behind it."""
    # Python quotes the characters of its line end alone, and readers take a bare "\r" for the end of a row.
    lines = _Lines()
    csv.writer(lines, lineterminator="\r\n").writerows(rows)
    return "".join(lines)
