"""Which clips of a store a user means: by labels, keys, split and fold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.splits import require_part
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

    `keys_file`: a key a line, '#' before comments.

    Raises InputError for a label, key, split or fold that the store doesn't have.
    """
    require_part(store, split, fold)
    rows = store.rows(split=split, fold=fold, asked=True)
    if labels:
        rows = rows[np.isin(rows, _rows_of_labels(store, [_label_id(store, label) for label in labels]))]
    if keys_file is not None:
        rows = rows[np.isin(rows, _rows_of_keys(store, keys_file))]
    return rows


def _rows_of_labels(store: Store, ids: Sequence[str]) -> NDArray[np.int64]:
    lists = store.column("labels").combine_chunks()
    rows: NDArray[np.int64] = pc.list_parent_indices(lists).filter(pc.is_in(lists.flatten(), pa.array(ids))).to_numpy()
    return rows


def _label_id(store: Store, label: str) -> str:
    vocabulary = store.file.vocabulary
    if label in vocabulary.position:
        return label
    ids = [known.id for known in vocabulary.labels if known.name == label]
    if len(ids) > 1:
        raise InputError(f"{store.location} has {len(ids)} labels named {label!r}; give an id: {', '.join(ids)}")
    if not ids:
        some = ", ".join(vocabulary.names[:5])
        raise InputError(f"{store.location} has no label {label!r}; it has {len(vocabulary)}: {some}, ...")
    return ids[0]


def _rows_of_keys(store: Store, path: Path) -> NDArray[np.int64]:
    row_of = {key: row for row, key in enumerate(store.column("key").to_pylist())}
    rows = []
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        # A key may hold a '#', but no white space.
        key = text.strip() if text.strip() in row_of else text.partition("#")[0].strip()
        if key and key not in row_of:
            raise InputError(
                f"{path}, line {line}: no clip {key!r} in {store.location}; correct the line, or remove it"
            )
        if key:
            rows.append(row_of[key])
    if not rows:
        raise InputError(f"{path} names no clip; write one key a line")
    return np.array(rows, np.int64)
