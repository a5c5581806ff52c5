"""Finds teachers by name among the entry points `featurestore.teachers`, where any package can add its own."""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from featurestore.teachers.base import Teacher
from featurestore.teachers.ensemble import Ensemble
from manifests.errors import InputError

GROUP = "featurestore.teachers"
# Why the weights of a teacher aren't to be had elsewhere, and what to do.
OF_OUR_OWN = {
    "spfa": (
        "the teacher 'spfa' (Gong and Li 2023, doi 10.3724/SP.J.1089.2023.19353) has no public code or weights: train "
        "one (`training run --preset spfa`), and give its checkpoint with --checkpoint"
    )
}


def load_teacher(name: str, checkpoint: Path | None) -> Teacher:
    """Loads the teacher `name` from a checkpoint file; nothing is ever downloaded.

    Raises InputError for an unknown name, no checkpoint, or a file that doesn't fit.
    """
    if checkpoint is None and name in OF_OUR_OWN:
        raise InputError(OF_OUR_OWN[name])
    known = entry_points(group=GROUP)
    if name not in known.names:
        raise InputError(f"there is no teacher {name!r}; there are: {', '.join(sorted(known.names))}")
    if checkpoint is None:
        raise InputError(f"the teacher {name!r} needs its weights: give the file with --checkpoint")
    load: Callable[[Path], Teacher] = known[name].load()
    return load(checkpoint)


def load_teachers(names: Sequence[str], checkpoints: Sequence[Path]) -> Ensemble:
    """One teacher, or an ensemble of several, each with the checkpoint of the same place.

    Raises InputError as :func:`load_teacher`, and where the numbers differ.
    """
    if len(names) == 1 and len(checkpoints) <= 1:
        return Ensemble([load_teacher(names[0], checkpoints[0] if checkpoints else None)])
    if len(names) != len(checkpoints):
        raise InputError(
            f"--model is given {len(names)} times and --checkpoint {len(checkpoints)} times; give one --checkpoint for "
            "each --model, in the same order"
        )
    return Ensemble([load_teacher(name, checkpoint) for name, checkpoint in zip(names, checkpoints, strict=True)])
