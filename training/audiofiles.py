"""The audio files that a user means: files, folders with all below them, or a list of both."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from manifests.errors import InputError
from manifests.folder import AUDIO_EXTENSIONS

LIST_FROM_STDIN = "-"


def find_audio(paths: Sequence[str], listed: BinaryIO | None = None) -> list[Path]:
    """Files as they are named, there or not; a folder's audio files, sorted; for '-' what `listed` has. Each once.

    `listed`: paths, one a line, or with a NUL behind each, as `find -print0` gives them; standard input by default.
    Raises InputError for a folder without audio, a path of no letters, or when there is nothing at all.
    """
    found: list[Path] = []
    for path in paths:
        for one in _listed(listed or sys.stdin.buffer) if path == LIST_FROM_STDIN else [path]:
            if not one:
                raise InputError("a path is empty, perhaps a variable that isn't set; give files or folders")
            # Unlike Path.is_dir, it takes any name.
            found += audio_below(Path(one)) if os.path.isdir(one) else [Path(one)]  # noqa: PTH112
    if not found:
        raise InputError("the list on standard input is empty; expected paths of files or folders, one a line")
    return list(dict.fromkeys(found))


def _listed(stream: BinaryIO) -> list[str]:
    content = stream.read()
    lines = content.split(b"\0") if b"\0" in content else [line.rstrip(b"\r\n") for line in content.split(b"\n")]
    return [os.fsdecode(line) for line in lines if line.strip()]


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
