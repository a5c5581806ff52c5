"""How much room there is where files are to be written."""

import shutil
import tempfile
from pathlib import Path

from manifests.errors import InputError


def disk_room(place: Path) -> tuple[Path, int]:
    """The folder that `place` is, or will be made in, and its free bytes.

    Raises InputError where nothing can be written.
    """
    existing = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return existing, shutil.disk_usage(existing).free
    except OSError as error:
        raise InputError(f"{existing} can't be written to: {error.strerror}") from error
