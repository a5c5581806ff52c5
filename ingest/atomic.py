"""Files appear whole or not at all: written beside their place, synced, renamed in."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manifests.errors import InputError

TEMPORARY_SUFFIX = ".partial"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path; on success it is synced to disk and renamed to `path`, on any error removed.

    The temporary name is random, so that two writers of one file, also on two machines, don't write into each other.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def move_in(finished: Path, path: Path) -> None:
    """Moves a finished file, on the same file system, to its place."""
    _sync(finished)
    finished.replace(path)
    _sync(path.parent)


def atomic_write(path: Path, content: bytes | memoryview | str) -> None:
    """Replaces the file at `path` by `content` (text as UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_stale(folder: Path) -> None:
    """Removes what killed writers left in `folder`; call it only when no writer is at work there."""
    for temporary in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path, what: str, name: str = "") -> Iterator[None]:
    """Holds the lock of a folder, or of a `name` in it, which the system releases however this process ends.

    Raises InputError when another process holds it; `what` names the work that is done there.
    """
    with (folder / f".{name}.lock" if name else folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another {what} is at work on {folder / name}; wait for it, or stop it") from error
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
