"""Which clips a probe learns from and which it is judged by: a corpus's folds, its splits, or folds by a seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featurestore.splits import eval_split, outside_evaluation, require_fold, require_split
from featurestore.store import Store
from manifests.errors import InputError

NUM_SEEDED_FOLDS = 5
ROWS_A_BLOCK = 4096

Kind = Literal["linear", "knn"]  # of probe
KINDS: tuple[Kind, ...] = ("linear", "knn")
DEFAULT_MAX_CLIPS = 50_000  # a side

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Rows to learn from and rows to be judged by."""

    name: str
    train: Rows
    test: Rows


@dataclass(frozen=True)
class Parts:
    """All parts of one probe, how they came about, and how many clips without a label are in none."""

    parts: list[Part]
    chosen_by: str
    num_unlabelled: int


@dataclass(frozen=True)
class PartOptions:
    """`folds`: only these held out, one after the other. `train_split`, `test_split`: these two, given together."""

    folds: Sequence[int] = ()
    train_split: str | None = None
    test_split: str | None = None
    seed: int = 0


def choose_parts(store: Store, options: PartOptions) -> Parts:
    """As the options say; else each of the store's folds in turn, else its eval split, else seeded folds.

    Raises InputError for folds or splits that the store doesn't have, and where a side is left without a clip.
    """
    if options.train_split is not None or options.test_split is not None:
        return labelled_parts(store, [_named_splits(store, options)], "the splits asked for")
    if options.folds or len(store.folds) > 1:
        return labelled_parts(store, _folds(store, options.folds), "the store's folds, each held out in turn")
    if (name := eval_split(store)) and len(store.splits) > 1:
        part = Part(name, outside_evaluation(store), store.rows(split=name))
        return labelled_parts(store, [part], f"the store's split {name!r}")
    parts = _seeded_folds(store, options.seed)
    chosen_by = f"parts dealt by seed {options.seed}, since the store has neither folds nor an eval split"
    return labelled_parts(store, parts, chosen_by)


def labelled_parts(store: Store, parts: Sequence[Part], chosen_by: str) -> Parts:
    """The parts' clips that have a label; raises InputError where a side is left with none."""
    strata, rows = labels_of_rows(store, store.rows()), store.rows()
    labelled = rows[_labelled(store, strata)]
    return Parts([_keep(store, part, labelled) for part in parts], chosen_by, int((strata < 0).sum()))


def deal_folds(groups: NDArray[np.int64], strata: NDArray[np.int64], num_folds: int, seed: int) -> NDArray[np.int64]:
    """A fold 0 .. num_folds - 1 for each clip: clips of one group stay together, and each stratum is dealt evenly.

    `groups` and `strata`: a number a clip (N,); a group is dealt with the stratum of its first clip. Folds may be empty
    where there are fewer groups.
    """
    _, first, of_clip = np.unique(groups, return_index=True, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(first))
    order = shuffled[np.argsort(strata[first][shuffled], kind="stable")]
    fold_of_group = np.empty(len(first), np.int64)
    fold_of_group[order] = np.arange(len(first)) % num_folds
    return fold_of_group[of_clip]


def recordings(store: Store, rows: Rows) -> NDArray[np.int64]:
    """A number for each row, the same for clips of one source."""
    numbers: NDArray[np.int64] = store.column("source").combine_chunks().dictionary_encode().indices.to_numpy()
    return numbers[rows].astype(np.int64)


def labels_of_rows(store: Store, rows: Rows) -> NDArray[np.int64]:
    """The rarest of each row's labels, by its position in the vocabulary; -1 where a clip has none."""
    rarest = np.full(len(rows), -1, np.int64)
    if not store.num_classes:
        return rarest
    counts = np.zeros(store.num_classes)
    for _, labels in _label_blocks(store, rows):
        counts += labels.sum(0)
    for start, labels in _label_blocks(store, rows):
        found = np.where(labels > 0, counts, np.inf).argmin(1)
        rarest[start : start + len(labels)] = np.where(labels.any(1), found, -1)
    return rarest


def _keep(store: Store, part: Part, labelled: Rows) -> Part:
    """The part's clips that have a label; raises InputError where a side is left with none."""
    train, test = np.intersect1d(part.train, labelled), np.intersect1d(part.test, labelled)
    if not len(train) or not len(test):
        raise InputError(
            f"{store.location}: {part.name} has {len(train)} labelled clips to learn from and {len(test)} to be judged "
            "by; both need at least one"
        )
    return Part(part.name, train, test)


def _labelled(store: Store, strata: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which clips have a label; raises InputError when none has."""
    if not (strata >= 0).any():
        raise InputError(
            f"{store.location} has no clip with a label, and a probe needs labels; ingest it with --labels-csv or from "
            "folders of labels"
        )
    labelled: NDArray[np.bool_] = strata >= 0
    return labelled


def _label_blocks(store: Store, rows: Rows) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for start in range(0, len(rows), ROWS_A_BLOCK):
        yield start, store.labels(rows[start : start + ROWS_A_BLOCK])


def _named_splits(store: Store, options: PartOptions) -> Part:
    train, test = options.train_split, options.test_split
    if options.folds or train is None or test is None or train == test:
        raise InputError("give --train-split and --test-split together, two different ones, and no --fold with them")
    for name in (train, test):
        require_split(store, name)
    return Part(f"{train} to {test}", store.rows(split=train), store.rows(split=test))


def _folds(store: Store, asked: Sequence[int]) -> list[Part]:
    for fold in sorted(set(asked)):
        require_fold(store, fold)
    rows = outside_evaluation(store)
    held_out = {fold: store.rows(fold=fold) for fold in sorted(set(asked)) or store.folds}
    return [Part(f"fold {fold}", np.setdiff1d(rows, test), test) for fold, test in held_out.items()]


def _seeded_folds(store: Store, seed: int) -> list[Part]:
    strata = labels_of_rows(store, store.rows())
    labelled = _labelled(store, strata)
    rows, strata = store.rows()[labelled], strata[labelled]
    groups = recordings(store, rows)
    if (num_groups := len(np.unique(groups))) < NUM_SEEDED_FOLDS:
        raise InputError(
            f"{store.location} has {num_groups} labelled recordings, too few for {NUM_SEEDED_FOLDS} folds; ingest "
            "more, or give --train-split and --test-split"
        )
    folds = deal_folds(groups, strata, NUM_SEEDED_FOLDS, seed)
    return [Part(f"part {n + 1}", rows[folds != n], rows[folds == n]) for n in range(NUM_SEEDED_FOLDS)]
