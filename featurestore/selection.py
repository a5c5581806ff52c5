"""Which clips of a store a user means: by labels, keys, split and fold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurestore.store import Store
from manifests.errors import InputError
from manifests.tables import read_text


def choose_rows(
    store: Store,
    *,
    labels: Sequence[str] = (),
    keys_file: Path | None = None,
    split: str | None = None,
    fold: int | None = None,
) -> NDArray[np.int64]:
    """Rows of the clips, failed ones too, that have one of `labels` (ids or names) and are in all else that is given.

    Raises InputError for a label, key, split or fold that the store doesn't have.
    """
    if split is not None and split not in store.splits:
        raise InputError(f"{store.location} has no split {split!r}; it has: {', '.join(store.splits) or 'none'}")
    if fold is not None and fold not in store.folds:
        raise InputError(f"{store.location} has no fold {fold}; it has: {', '.join(map(str, store.folds)) or 'none'}")
    rows = store.rows(split=split, fold=fold, asked=True)
    if labels:
        rows = rows[store.labels(rows)[:, [_position(store, label) for label in labels]].any(1)]
    if keys_file is not None:
        rows = rows[np.isin(rows, _rows_of_keys(store, keys_file))]
    return rows


def _position(store: Store, label: str) -> int:
    vocabulary = store.file.vocabulary
    if label in vocabulary.position:
        return vocabulary.position[label]
    if vocabulary.names.count(label) == 1:
        return vocabulary.names.index(label)
    some = ", ".join(vocabulary.names[:5])
    raise InputError(f"{store.location} has no label {label!r}; it has {len(vocabulary)}: {some}, ...")


def _rows_of_keys(store: Store, path: Path) -> NDArray[np.int64]:
    row_of = {key: row for row, key in enumerate(store.column("key").to_pylist())}
    rows = []
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        key = text.split("#", 1)[0].strip()
        if key and key not in row_of:
            raise InputError(
                f"{path}, line {line}: no clip {key!r} in {store.location}; correct the line, or remove it"
            )
        if key:
            rows.append(row_of[key])
    return np.array(rows, np.int64)
