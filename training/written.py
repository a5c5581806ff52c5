"""Files of a run as they are written: a place that fails is one error that names it and says what to do."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingest.atomic import atomic_write
from manifests.errors import InputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the OSErrors of writing `path` (no room, no permission) into an InputError that names it."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> InputError:
    """What a user is told when `path` can't be written."""
    # torch says of a file that it couldn't write how far it came; why is what that was raised in the middle of.
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    reason = (isinstance(cause, OSError) and cause.strerror) or str(error)
    place = cause.filename if isinstance(cause, OSError) and isinstance(cause.filename, str) else path
    needs_room = not isinstance(cause, OSError) or cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    first = "make room" if needs_room else "see to that"
    return InputError(f"{place} can't be written ({reason}); {first} and run the same command again")


def write_json(path: Path, content: dict[str, Any] | list[Any]) -> None:
    """Replaces a JSON file, whole or not at all. Raises InputError when it can't be written."""
    with writing(path):
        atomic_write(path, json.dumps(content, indent=1) + "\n")
