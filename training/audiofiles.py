"""The audio files that a user means: files, folders with all below them, or a list of both."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from manifests.errors import InputError
from manifests.folder import AUDIO_EXTENSIONS

LIST_FROM_STDIN = "-"


def find_audio(paths: Sequence[str], listed: TextIO | None = None) -> list[Path]:
    """Files as they are named, there or not; a folder's audio files, sorted; for '-' what `listed` has, one a line.

    `listed`: standard input by default. Raises InputError for a folder without audio, or when there is nothing at all.
    """
    found: list[Path] = []
    for path in paths:
        if path == LIST_FROM_STDIN:
            lines = (line.rstrip("\r\n") for line in (listed or sys.stdin))
            found += _files(line for line in lines if line.strip())
        else:
            found += _files([path])
    if not found:
        raise InputError("the list on standard input is empty; expected paths of files or folders, one a line")
    return found


def _files(paths: Iterable[str]) -> list[Path]:
    return [file for path in map(Path, paths) for file in (audio_below(path) if path.is_dir() else [path])]


def audio_below(folder: Path) -> list[Path]:
    """The folder's files that are audio by their extensions, sorted by their paths; hidden ones are skipped.

    Links to files count, links to folders are not followed. Raises InputError where there are none, or a folder can't
    be read.
    """
    found: list[Path] = []
    num_others = 0
    for place, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower()[1:] in AUDIO_EXTENSIONS:
                found.append(Path(place, name))
            else:
                num_others += 1
    if not found:
        others = f"none of its {num_others} files is" if num_others else "it is empty; expected files that are"
        raise InputError(
            f"{folder} has no audio files: {others} named .{', .'.join(AUDIO_EXTENSIONS[:6])} or the like; "
            "name the right folder, or the files themselves"
        )
    return sorted(found)


def shown(path: Path) -> str:
    """A path as text that can be printed and kept: bytes that aren't UTF-8 are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _refuse_unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename} can't be read ({error.strerror}); change its permissions, or move it away")
