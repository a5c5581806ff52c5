"""Which clips of a store a run trains on and which it holds out, as its configuration says."""

from featurestore.splits import Split, hold_out, outside_evaluation, refuse_idle_share
from featurestore.store import Store
from manifests.errors import InputError
from training.config import DataConfig

__all__ = ["Split", "choose_split", "outside_evaluation"]


def choose_split(store: Store, config: DataConfig, seed: int, *, for_training: bool = True) -> Split:
    """What :func:`featurestore.splits.hold_out` gives for the configuration; raises InputError as it does."""
    if config.eval_split is not None and config.eval_fold is not None:
        raise InputError("data.eval_split and data.eval_fold are both given; choose one")
    return hold_out(
        store,
        split=config.eval_split,
        fold=config.eval_fold,
        share=config.holdout_share,
        seed=seed,
        for_training=for_training,
    )


def check_share(store: Store, config: DataConfig) -> None:
    """Raises InputError where data.holdout_share is set and something else is held out."""
    try:
        refuse_idle_share(store, config.eval_split, config.eval_fold, config.holdout_share)
    except InputError as error:
        raise InputError(f"data.holdout_share: {error}") from error
