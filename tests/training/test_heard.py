"""Which clips a model, and what it started from, was trained on; and that everybody who judges it says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.store import Store
from manifests.errors import InputError
from training.checkpoint import About, load_checkpoint
from training.config import DataConfig
from training.heard import heard_of, heard_rows, num_heard, trained_before
from training.splits import choose_split

Command = Callable[..., Any]


def test_what_a_model_has_heard(store: Store, about: About) -> None:
    split = choose_split(store, DataConfig(), 0)
    heard = heard_rows(about.trainings, store)
    assert heard is not None
    np.testing.assert_array_equal(heard, split.train)
    assert num_heard(about.trainings, store, split.held_out) == 0
    fold = store.rows(fold=2)
    assert num_heard(about.trainings, store, fold) == len(set(fold.tolist()) - set(split.held_out.tolist())) > 0
    elsewhere = about.model_copy(update={"store_fingerprint": "0" * 64})
    assert heard_rows(elsewhere.trainings, store) is None
    # Beside another store, all of it but the evaluation split.
    beside = elsewhere.model_copy(update={"other_fingerprints": (store.snapshot.fingerprint,)})
    assert num_heard(beside.trainings, store, store.rows()) == len(store.rows()) - len(store.rows(split="test")) == 14
    assert num_heard(beside.trainings, store, store.rows(split="test")) == 0
    assert num_heard(elsewhere.trainings, store, fold) == 0
    # Named twice, as earlier versions allowed, it was heard in both places.
    once = about.model_copy(update={"data": DataConfig(eval_fold=2), "held_out": "fold 2"})
    twice = once.model_copy(update={"other_fingerprints": (store.snapshot.fingerprint,)})
    assert num_heard(once.trainings, store, fold) == 0 < num_heard(twice.trainings, store, fold)


def test_clips_that_came_later_were_not_heard(growing_store: tuple[Store, Callable[[], Store]], about: About) -> None:
    first, grow = growing_store
    trained = about.model_copy(update={"store_fingerprint": first.snapshot.fingerprint})
    before = heard_rows(trained.trainings, first)
    grown = grow()
    after = heard_rows(trained.trainings, grown)
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(before, after)
    assert len(choose_split(grown, DataConfig(), 0).train) > len(after)


def test_what_it_started_from_counts(store: Store, about: About) -> None:
    fold = store.rows(fold=2)
    count = len(np.setdiff1d(fold, store.rows(split="test")))  # which nobody is trained on
    first = about.model_copy(update={"data": DataConfig(eval_fold=1)})
    second = about.model_copy(update={"data": DataConfig(eval_fold=2), "before": first.trainings})
    alone = second.model_copy(update={"before": ()})
    assert heard_of(alone.trainings, store, fold) is None
    assert heard_of(second.trainings, store, fold) == f"{count} of {len(fold)} clips, with their labels"
    views = first.model_copy(update={"stage": "multissl"})
    unlabelled = second.model_copy(update={"before": views.trainings})
    assert heard_of(unlabelled.trainings, store, fold) == f"{count} of {len(fold)} clips, without their labels"
    # Of the clips outside "test", the second heard the labels of those outside fold 2, and the first's views all of
    # those outside fold 1.
    rest = np.setdiff1d(store.rows(), store.rows(split="test"))
    assert heard_of((*alone.trainings, *views.trainings), store, rest) == (
        f"{len(rest)} of {len(rest)} clips, of {len(rest) - count} with their labels"
    )


def test_a_run_that_starts_from_a_model_says_what_that_has_heard(
    training: Command, store: Store, preset: Path, tmp_path: Path
) -> None:
    """Whoever judges the second model knows that the first one was trained on the fold that judges it."""
    labels = ("--preset", preset, "--store", store.root, "--set", "multissl.optimiser.epochs=0")
    training("run", *labels, "--iter", "1", "--eval-fold", "1", "--run", tmp_path / "first")
    start = tmp_path / "first/iter1/distill/last.pt"
    told = training("run", *labels, "--eval-fold", "2", "--init", start, "--run", tmp_path / "second", "--iter", "2")
    held_out = {fold: len(np.setdiff1d(store.rows(fold=fold), store.rows(split="test"))) for fold in (1, 2)}
    heard = f"{held_out[2]} of {len(store.rows(fold=2))} clips, with their labels"
    assert f"beware: what it is initialised from was trained on clips of fold 2: {heard}\n" in told.out
    assert json.loads((tmp_path / "second/iter2/eval.json").read_bytes())["heard"] == heard
    about = load_checkpoint(tmp_path / "second/iter2/distill/last.pt").about
    assert about.before == load_checkpoint(start).about.trainings == trained_before(tmp_path / "second")
    said = training("eval", tmp_path / "second", "--json", "--bootstrap", "0")
    assert f"was trained on clips of fold 2: {heard}\n" in said.err
    assert json.loads(said.out)["heard"] == heard
    assert heard in training("probe", tmp_path / "second", "--fold", "2").err
    refused = training("ensemble", tmp_path / "second", tmp_path / "second/iter1/distill/last.pt", "--fold", "2")
    assert (refused.status, "or what it started from" in refused.err) == (2, True)
    # The same by a table's row, and by a model that started from the second.
    rows = ("ablate", "--table", "7", *labels, "--folds", "2", "--with", f"audio={start}", "--run", tmp_path / "table")
    assert f'Beware: what "audio" started from was trained on clips of fold 2: {heard}\n' in training(*rows).out
    third = training("finetune", tmp_path / "second", *labels[:4], "--folds", "1", "--run", tmp_path / "third")
    assert f"clips of fold 1: {held_out[1]} of {len(store.rows(fold=1))} clips, with their labels" in third.out


def test_a_damaged_file_of_what_was_before(tmp_path: Path) -> None:
    assert trained_before(tmp_path) == ()
    (tmp_path / "initialised.json").write_text('{"before": [{"seed": "x"}]}')
    with pytest.raises(InputError, match=r"initialised.json is damaged"):
        trained_before(tmp_path)
    (tmp_path / "initialised.json").write_text("[]")
    with pytest.raises(InputError, match=r"initialised.json is damaged"):
        trained_before(tmp_path)
