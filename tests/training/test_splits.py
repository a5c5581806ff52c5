"""Which clips are trained on and which are held out."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from featurestore.store import Store
from manifests.errors import InputError
from training.checkpoint import About
from training.config import DataConfig
from training.heard import num_heard
from training.modelfile import choose_part
from training.splits import Split, check_share, choose_split


def keys(store: Store, split: Split) -> tuple[list[str], list[str]]:
    return sorted(store.keys(split.train)), sorted(store.keys(split.held_out))


def clips(numbers: list[int]) -> list[str]:
    return [f"clip{number:02d}" for number in numbers if number != 7]


def test_the_stores_eval_split_is_the_default(store: Store) -> None:
    split = choose_split(store, DataConfig(), seed=0)
    tested = list(range(0, 21, 4))
    assert keys(store, split) == (clips([n for n in range(21) if n % 4]), clips(tested))
    assert (split.name, split.num_listed) == ("test", 6)


def test_a_split_by_name(store: Store) -> None:
    by_name = choose_split(store, DataConfig(eval_split="test"), seed=0)
    assert keys(store, by_name) == keys(store, choose_split(store, DataConfig(), seed=0))
    # The clips of "test" aren't trained on either, so none are left.
    with pytest.raises(InputError, match="with train held out there are 0 clips to train on and 14 to evaluate"):
        choose_split(store, DataConfig(eval_split="train"), seed=0)
    assert len(choose_split(store, DataConfig(eval_split="train"), seed=0, for_training=False).held_out) == 14


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_a_fold(store: Store, fold: int) -> None:
    split = choose_split(store, DataConfig(eval_fold=fold), seed=0)
    held_out = [number for number in range(21) if number % 3 + 1 == fold]
    # A fourth of the clips, the split "test", is not learned from whatever else is held out.
    learned = [n for n in range(21) if n not in held_out and n % 4]
    assert 0 < len(learned) < 21 - len(held_out)
    assert keys(store, split) == (clips(learned), clips(held_out))
    # clip07 is of fold 2: it was listed and failed.
    assert (split.name, split.num_listed) == (f"fold {fold}", 7)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_seeded_share(store_root: Path, seed: int) -> None:
    store = Store(store_root)
    split = choose_split(store, DataConfig(holdout_share=0.4), seed)
    sources = {store.clip(row).key: store.clip(row).source for row in store.rows().tolist()}
    digests = {key: hashlib.sha256(f"{seed}:{source}".encode()).digest() for key, source in sources.items()}
    held_out = sorted(key for key, digest in digests.items() if int.from_bytes(digest[:8], "big") / 2**64 < 0.4)
    assert keys(store, split) == (sorted(set(digests) - set(held_out)), held_out)
    assert split.num_listed == len(held_out)
    assert split.name == "a seeded share of 0.4"
    assert (choose_split(store, DataConfig(holdout_share=0.4), seed).held_out == split.held_out).all()
    larger = choose_split(store, DataConfig(holdout_share=0.6), seed)
    assert np.isin(split.held_out, larger.held_out).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(eval_split="test", eval_fold=1), r"data\.eval_split and data\.eval_fold are both given"),
        (DataConfig(eval_split="balanced"), "has no split 'balanced'; it has: test, train"),
        (DataConfig(eval_fold=9), "has no fold 9; it has: 1, 2, 3"),
    ],
)
def test_a_part_that_does_not_exist(store: Store, config: DataConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_split(store, config, seed=0)


def test_a_model_of_a_run_that_held_nothing_out(store_root: Path, about: About) -> None:
    store = Store(store_root)
    everything = DataConfig(holdout_share=0)
    model = about.model_copy(update={"data": everything, "store_fingerprint": store.snapshot.fingerprint})
    assert num_heard(model.trainings, store, store.rows()) == 12
    with pytest.raises(InputError, match="run held nothing out; name what it is to be judged by, as --split or --fold"):
        choose_part(model, store, None, None)


def test_a_share_that_would_do_nothing(store: Store, store_root: Path) -> None:
    check_share(store, DataConfig())
    check_share(Store(store_root), DataConfig(holdout_share=0))
    with pytest.raises(InputError, match=r"^data\.holdout_share: a share of 0 .* is its evaluation split, else a fold"):
        check_share(store, DataConfig(holdout_share=0))
    with pytest.raises(InputError, match=r"^data\.holdout_share: a share of 0.5, and a split or a fold, are to"):
        check_share(Store(store_root), DataConfig(holdout_share=0.5, eval_fold=1))


def test_both_parts_need_a_clip(store_root: Path) -> None:
    with pytest.raises(InputError, match="12 clips to train on and 0 to evaluate; both need at least one"):
        choose_split(Store(store_root), DataConfig(holdout_share=1e-9), seed=0)
    with pytest.raises(InputError, match="has no fold 1; it has: none"):
        choose_split(Store(store_root), DataConfig(eval_fold=1), seed=0)
