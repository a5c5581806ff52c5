"""Files that the user asks for by name: refused before the work where they couldn't be written after it."""

from pathlib import Path

from manifests.errors import InputError


def check_outfile(file: Path | None) -> None:
    """Raises InputError where `file` is a folder, or where there is no folder for it to be in; None is no file."""
    if file is None:
        return
    if not file.resolve().parent.is_dir():
        raise InputError(f"{file} can't be written, there is no folder {file.parent}; make it, or name another file")
    if file.is_dir():
        raise InputError(f"{file} can't be written, it is a folder; name a file in it, or another one")
