"""Source files: where a clip's lies, and what tells one from another. Needs no decoder."""

import hashlib
import os
from pathlib import Path

from ingest.ledger import ClipError, Reason


def source_path(root: Path, source: str) -> Path:
    """Where a clip's file lies. Raises ClipError when `source` would leave `root`."""
    try:
        path = Path(os.path.realpath(root / source))
        inside = path.is_relative_to(os.path.realpath(root))
    except (OSError, ValueError) as error:  # a name that is too long, a NUL
        raise ClipError(Reason.UNREADABLE, "its path is not possible") from error
    if not inside:
        raise ClipError(Reason.UNREADABLE, "the path leaves the corpus's folder")
    return path


def file_sha256(path: Path) -> str:
    """The sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
