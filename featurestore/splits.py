"""Which clips of a store are learned from and which are held out."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore.store import Store
from manifests.errors import InputError

EVAL_NAMES = ("eval", "test", "validation", "valid", "val", "dev")
DEFAULT_HOLDOUT_SHARE = 0.2
# The name of what is held out with a share of 0.
NOTHING = "nothing"


@dataclass(frozen=True)
class Split:
    """Rows of the store: trained on, held out, and held out in the manifest (with those that failed in ingest)."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    num_listed: int
    name: str


def hold_out(
    store: Store,
    *,
    split: str | None = None,
    fold: int | None = None,
    share: float = DEFAULT_HOLDOUT_SHARE,
    seed: int = 0,
    for_training: bool = True,
) -> Split:
    """The split or the fold that is named; else the store's eval split, else its first fold, else a seeded share.

    Raises InputError when the split or fold named doesn't exist, or leaves nothing to evaluate or, `for_training`, to
    train on.
    """
    if split is not None and fold is not None:
        raise InputError(f"a split ({split}) and a fold ({fold}) are both given; choose one")
    own = eval_split(store) if fold is None else None
    if (name := split or own) is not None:
        chosen = _by_split(store, name)
    elif fold is not None or store.folds:
        chosen = _by_fold(store, store.folds[0] if fold is None else fold)
    else:
        chosen = _by_share(store, share, seed)
    if chosen.name == NOTHING and not for_training:
        raise InputError(
            f"{store.location}: the model's run held nothing out; name what it is to be judged by, as --split or --fold"
        )
    if (not len(chosen.held_out) and chosen.name != NOTHING) or (for_training and not len(chosen.train)):
        raise InputError(
            f"{store.location}: with {chosen.name} held out there are {len(chosen.train)} clips to train on and "
            f"{len(chosen.held_out)} to evaluate; both need at least one"
        )
    return chosen


def eval_split(store: Store) -> str | None:
    """The store's evaluation split, None where it has none."""
    return next((name for name in EVAL_NAMES if name in store.splits), None)


def refuse_idle_share(store: Store, split: str | None, fold: int | None, share: float) -> None:
    """Raises InputError for a share that is asked for where an evaluation split or a fold is held out instead."""
    has_part = bool(store.folds) or eval_split(store) is not None
    if share != DEFAULT_HOLDOUT_SHARE and (has_part or split is not None or fold is not None):
        raise InputError(
            f"a share of {share:g} is to be held out of {store.location}, and what is held out there is its evaluation "
            "split, else a fold; leave the share out, or name the split or the fold"
            if split is None and fold is None
            else f"a share of {share:g}, and a split or a fold, are to be held out; leave the share out"
        )


def outside_evaluation(store: Store) -> NDArray[np.int64]:
    """What a store gives that is trained on beside another one: all clips but those of its evaluation splits."""
    apart = [store.rows(split=name) for name in store.splits if name in EVAL_NAMES]
    return np.setdiff1d(store.rows(), np.concatenate([np.empty(0, np.int64), *apart]))


def require_split(store: Store, name: str) -> None:
    """Raises InputError unless the store has that split."""
    if name not in store.splits:
        raise InputError(f"{store.location} has no split {name!r}; it has: {', '.join(store.splits) or 'none'}")


def require_fold(store: Store, fold: int) -> None:
    """Raises InputError unless the store has that fold."""
    if fold not in store.folds:
        folds = ", ".join(map(str, store.folds)) or "none"
        raise InputError(f"{store.location} has no fold {fold}; it has: {folds}")


def require_part(store: Store, split: str | None, fold: int | None) -> None:
    """Raises InputError unless the store has the split and the fold, of those that are given."""
    if split is not None:
        require_split(store, split)
    if fold is not None:
        require_fold(store, fold)


def _by_split(store: Store, name: str) -> Split:
    require_split(store, name)
    held_out, all_rows = store.rows(split=name), store.rows()
    # Other evaluation parts aren't for training either.
    apart = [store.rows(split=other) for other in store.splits if other in EVAL_NAMES or other == name]
    return Split(np.setdiff1d(all_rows, np.concatenate(apart)), held_out, len(store.rows(split=name, asked=True)), name)


def _by_fold(store: Store, fold: int) -> Split:
    require_fold(store, fold)
    held_out = store.rows(fold=fold)
    listed = len(store.rows(fold=fold, asked=True))
    return Split(np.setdiff1d(outside_evaluation(store), held_out), held_out, listed, f"fold {fold}")


def _by_share(store: Store, share: float, seed: int) -> Split:
    """Held out by a hash of the source: its segments stay together, and on their side when other clips come."""
    if share == 0:
        return Split(store.rows(), np.zeros(0, np.int64), 0, NOTHING)
    rows = store.rows(asked=True)
    sources = store.column("source").take(pa.array(rows)).to_pylist()
    digests = [hashlib.sha256(f"{seed}:{source}".encode()).digest()[:8] for source in sources]
    held_out = np.array([int.from_bytes(digest, "big") < share * 2**64 for digest in digests])
    ok = store.ok[rows]
    return Split(rows[~held_out & ok], rows[held_out & ok], int(held_out.sum()), f"a seeded share of {share:g}")
