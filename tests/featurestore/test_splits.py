"""What is held out where nobody says what; tests/training/test_splits.py has what a run's configuration says."""

import hashlib
from pathlib import Path

import pytest

from featurestore.splits import NOTHING, hold_out, outside_evaluation
from featurestore.store import Store
from manifests.errors import InputError


def test_the_eval_split_comes_before_the_folds(finished_store: Store) -> None:
    assert hold_out(finished_store).name == "test"
    assert hold_out(finished_store, fold=3).name == "fold 3"
    assert hold_out(finished_store).train.tolist() == outside_evaluation(finished_store).tolist()


@pytest.mark.parametrize("seed", [0, 5])
def test_a_share_is_by_the_sources_hash(store_root: Path, seed: int) -> None:
    store = Store(store_root)
    part = hold_out(store, share=0.5, seed=seed)
    below = [
        row
        for row in store.rows().tolist()
        if int(hashlib.sha256(f"{seed}:{store.clip(row).source}".encode()).hexdigest()[:16], 16) < 2**63
    ]
    assert part.held_out.tolist() == below
    assert sorted([*part.held_out.tolist(), *part.train.tolist()]) == store.rows().tolist()


def test_nothing_may_be_held_out_for_training_alone(store_root: Path) -> None:
    part = hold_out(Store(store_root), share=0)
    assert (len(part.train), len(part.held_out), part.name) == (12, 0, NOTHING)
    with pytest.raises(InputError, match="held nothing out; name what it is to be judged by, as --split or --fold"):
        hold_out(Store(store_root), share=0, for_training=False)
