"""Which clips of a store a model was trained on, by what its checkpoint says of itself and of what it started from."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from featurestore.store import Store
from manifests.errors import InputError
from training.checkpoint import About, Training
from training.splits import choose_split, outside_evaluation

INITIALISED_FILE = "initialised.json"
_TRAININGS = TypeAdapter(tuple[Training, ...])


def heard_rows(trainings: Sequence[Training], store: Store) -> NDArray[np.int64] | None:
    """Rows of the store that were trained on, sorted; None where it was other stores' only."""
    heard = []
    for training in trainings:
        for snapshot in store.file.snapshots:
            if snapshot.fingerprint == training.store_fingerprint:
                trained_on = Store(store.location, snapshot.number)
                heard.append(choose_split(trained_on, training.data, training.seed).train)
            if snapshot.fingerprint in training.other_fingerprints:
                heard.append(outside_evaluation(Store(store.location, snapshot.number)))
    return np.unique(np.concatenate(heard)) if heard else None


def num_heard(trainings: Sequence[Training], store: Store, rows: NDArray[np.int64]) -> int:
    """How many of the store's `rows` were trained on, as far as the store can tell."""
    heard = heard_rows(trainings, store)
    return 0 if heard is None else len(np.intersect1d(heard, rows))


def heard_of(trainings: Sequence[Training], store: Store, rows: NDArray[np.int64]) -> str | None:
    """The same in words, like "64 of 80 clips, with their labels"; None of none."""
    count = num_heard(trainings, store, rows)
    if not count:
        return None
    labelled = num_heard([training for training in trainings if training.with_labels], store, rows)
    how = {0: "without their labels", count: "with their labels"}.get(labelled, f"of {labelled} with their labels")
    return f"{count} of {len(rows)} clips, {how}"


def warning_of(about: About, store: Store, name: str, rows: NDArray[np.int64]) -> str | None:
    """A line for those who judge a model by clips that it, or what it started from, was trained on; else None."""
    heard = heard_of(about.trainings, store, rows)
    start = ", or what it started from," if about.before else ""
    return f"beware: the model{start} was trained on clips of {name}: {heard}" if heard else None


def trained_before(folder: Path) -> tuple[Training, ...]:
    """What the weights that a run started from had been trained on, as its folder has it; of ours alone.

    Raises InputError for a damaged file.
    """
    path = folder / INITIALISED_FILE
    try:
        return _TRAININGS.validate_python(json.loads(path.read_bytes()).get("before", ()))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise InputError(f"{path} is damaged ({str(error).splitlines()[0]}); choose another --run folder") from error
