"""What users bring, tables (CSV) and folders of files, read so that every complaint names the file and the line."""

import csv
import io
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manifests.errors import InputError

# Nine digits fit the manifest's int32 columns.
MAX_WHOLE_NUMBER = 999_999_999
NUM_NAMED_IN_ERRORS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a table: its cells by column, stripped, and the line it starts on (the header is on line 1)."""

    path: Path
    line: int
    cells: Mapping[str, str]

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.line}"

    def error(self, message: str) -> InputError:
        """An InputError that starts with the file and line."""
        return InputError(f"{self.where}: {message}")

    def text(self, column: str) -> str:
        """The cell of `column`; raises InputError when it is empty."""
        value = self.cells[column]
        if not value:
            raise self.error(f"{column} is empty; fill it in, or remove the line")
        return value

    def whole_number(self, column: str, low: int = 0, high: int = MAX_WHOLE_NUMBER) -> int:
        """The cell as a whole number in [low, high]; raises InputError otherwise."""
        return whole_number(self.cells[column], f"{self.where}: {column}", low, high)

    def boolean(self, column: str) -> bool:
        """The cell as True or False, in any case; raises InputError otherwise."""
        value = self.cells[column].lower()
        if value not in ("true", "false"):
            raise self.error(f"{column} is {self.cells[column]!r}; expected True or False: correct the cell")
        return value == "true"

    def milliseconds(self, column: str) -> int | None:
        """The cell, in seconds, rounded to ms (None when empty); raises InputError for a bad or negative number."""
        value = self.cells[column]
        if not value:
            return None
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= MAX_WHOLE_NUMBER / 1000:  # false for NaN too
            raise self.error(f"{column} is {value!r}; expected seconds from 0 on, such as 2.5: correct the cell")
        return round(seconds * 1000)


@dataclass(frozen=True)
class Table:
    """A CSV file: its column names in order and its rows (at least one)."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def require(self, names: Sequence[str], remedy: str) -> None:
        """Raises InputError, naming all that lack, unless every one of `names` is a column."""
        if missing := [name for name in names if name not in self.columns]:
            raise InputError(f"{self.path}, line 1: no column {_listed(missing)}; {self._found()}; {remedy}")

    def choose(self, names: Sequence[str], remedy: str) -> str:
        """The one of `names` that is a column; raises InputError when none is, or more than one."""
        present = [name for name in names if name in self.columns]
        if not present:
            raise InputError(f"{self.path}, line 1: no column {_listed(names, 'or')}; {self._found()}; {remedy}")
        if len(present) > 1:
            raise InputError(f"{self.path}, line 1: columns {_listed(present)} could all be meant; {remedy}")
        return present[0]

    def _found(self) -> str:
        return f"found, separated by commas: {_listed(self.columns)}"


def read_table(path: Path) -> Table:
    """Reads a CSV file in UTF-8, with or without a byte order mark, whatever its line ends.

    Raises InputError for a file that can't be read, isn't UTF-8 or CSV, has no rows, or a row of another length.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: tuple[str, ...] = ()
    rows: list[Row] = []
    line = 1
    try:
        for record in reader:
            cells = [cell.strip() for cell in record]
            if any(cells) and not header:
                header = _checked_header(path, line, cells)
            elif any(cells):
                rows.append(_checked_row(path, line, header, cells))
            # A quoted cell may span lines: a record starts after the last line of the one before.
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: not CSV ({error}); check the quotes around it") from error
    if not rows:
        raise InputError(
            f"{path} is empty: expected a line of column names and at least one row; is it the right file?"
        )
    return Table(path=path, columns=header, rows=tuple(rows))


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, line ends kept; raises InputError when it can't be read or a line isn't UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); give the path of a text file") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8; save the file as UTF-8 (CSV UTF-8 in Excel)") from error


def whole_number(text: str, what: str, low: int = 0, high: int = MAX_WHOLE_NUMBER) -> int:
    """`text` as a whole number in [low, high]; raises InputError, about `what`, otherwise."""
    # int() alone would take '1_0', which is a slip rather than a number.
    value = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1
    if not low <= value <= high:
        raise InputError(f"{what} is {text!r}; expected a whole number from {low} to {high}: correct it")
    return value


def existing_folder(root: Path) -> Path:
    """`root` resolved; raises InputError when it is no folder."""
    if not root.is_dir():
        found = "a file, not a folder" if root.exists() else "no such folder"
        raise InputError(f"{root}: {found}; give the path of the folder that holds the dataset")
    return root.resolve()


def source_within(root: Path, name: str) -> str | None:
    """`name` as a tidy path relative to the resolved folder `root`; None when it leads out of it, by a link too."""
    try:
        source = Path(os.path.relpath(root / name, root))
        # Of a ring of links it goes as far as it can, where resolve() raises or doesn't, by Python's version.
        inside = ".." not in source.parts and Path(os.path.realpath(root / source)).is_relative_to(root)
    except (OSError, ValueError):  # a NUL in the name
        return None
    return source.as_posix() if inside else None


def find_files(root: Path, extensions: Collection[str]) -> list[str]:
    """Sorted paths, relative to the resolved folder `root`, of its files with one of `extensions` (no dot, any case).

    Hidden files and folders are skipped. A link to a folder within `root` is not followed (its files are found where
    they lie). Raises InputError for a link out of `root`, a folder that can't be read, a name that isn't UTF-8.
    """
    sources: list[str] = []
    for folder, subfolders, files in os.walk(root, onerror=_refuse_unreadable):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        wanted = [name for name in files if Path(name).suffix.lower()[1:] in extensions and not name.startswith(".")]
        for path in (Path(folder, name) for name in [*subfolders, *wanted]):
            _check_found(path, root)
        sources += [Path(folder, name).relative_to(root).as_posix() for name in wanted]
    return sorted(sources)


def require_files(files: Sequence[tuple[str, Path]], remedy: str) -> None:
    """Raises one InputError that counts the files missing or unreadable; `files` are pairs of (where named, path)."""
    missing = [(where, path) for where, path in files if not (os.access(path, os.R_OK) and path.is_file())]
    if missing:
        named = "; ".join(f"{path} ({where})" for where, path in missing[:NUM_NAMED_IN_ERRORS])
        more = "; ..." if len(missing) > NUM_NAMED_IN_ERRORS else ""
        raise InputError(f"{len(missing)} of {len(files)} files are missing or unreadable: {named}{more}; {remedy}")


def _check_found(path: Path, root: Path) -> None:
    # Bytes that aren't UTF-8 come from the file system as lone surrogates, which no table can hold.
    if str(path).encode(errors="ignore").decode() != str(path):
        raise InputError(f"the name of {str(path)!r} is not UTF-8, as it must be; rename it")
    if path.is_symlink() and source_within(root, str(path)) is None:
        raise InputError(f"{path} is a link out of {root}; copy its files in, or name its target as the folder")


def _refuse_unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename} can't be read ({error.strerror}); change its permissions, or move it away")


def _checked_header(path: Path, line: int, cells: Sequence[str]) -> tuple[str, ...]:
    if repeated := next((name for name in cells if cells.count(name) > 1), None):
        raise InputError(f"{path}, line {line}: two columns are called {repeated!r}; rename one")
    return tuple(cells)


def _checked_row(path: Path, line: int, header: Sequence[str], cells: Sequence[str]) -> Row:
    if len(cells) != len(header):
        raise InputError(
            f"{path}, line {line}: {len(cells)} cells, expected {len(header)} as in the header; "
            "put quotes around a cell that holds a comma"
        )
    return Row(path=path, line=line, cells=dict(zip(header, cells, strict=True)))


def _listed(names: Sequence[str], joint: str = "and") -> str:
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {joint} {quoted[-1]}"
