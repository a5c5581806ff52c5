"""Finds teachers by name among the entry points `featurestore.teachers`, where any package can add its own."""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from featurestore.teachers.base import Teacher
from manifests.errors import InputError

GROUP = "featurestore.teachers"


def load_teacher(name: str, checkpoint: Path | None) -> Teacher:
    """Loads the teacher `name` from a checkpoint file; nothing is ever downloaded.

    Raises InputError for an unknown name, no checkpoint, or a file that doesn't fit.
    """
    known = entry_points(group=GROUP)
    if name not in known.names:
        raise InputError(f"there is no teacher {name!r}; there are: {', '.join(sorted(known.names))}")
    if checkpoint is None:
        raise InputError(f"the teacher {name!r} needs its weights: give the file with --checkpoint")
    load: Callable[[Path], Teacher] = known[name].load()
    return load(checkpoint)
