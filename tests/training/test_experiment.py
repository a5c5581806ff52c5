"""Trials by folds and seeds: their figures are those of runs, and what is done is read and not trained again."""

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurestore.store import Store
from manifests.errors import InputError
from training import experiment, iterations
from training.choices import Keep
from training.config import RunConfig, differences, load_config
from training.evaluate import Evaluation
from training.experiment import (
    Trial,
    check_trials,
    choose_figure,
    choose_folds,
    run_trial,
    spread_of,
    value_of,
)
from training.iterations import run_iterations
from training.run import open_run

CPU = torch.device("cpu")
FEW_STEPS = ["multissl.optimiser.epochs=0.3", "distill.optimiser.epochs=0.7"]


@pytest.fixture(scope="module")
def short(preset: Path) -> RunConfig:
    """One step of Multi-SSL, two of labels."""
    return load_config(str(preset), FEW_STEPS)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that are trained from here on, or gone on with."""
    stages: list[str] = []
    train_stage = iterations.train_stage

    def noted(plan: Any, *arguments: Any) -> Any:
        stages.append(plan.name)
        return train_stage(plan, *arguments)

    monkeypatch.setattr(iterations, "train_stage", noted)
    return stages


def checkpoints(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.pt"))


def test_a_trial_on_a_fold_differs_in_fold_and_seed_alone(short: RunConfig) -> None:
    trial = Trial("some-row", short, 2).at(3, 7)
    assert (trial.name, trial.place, trial.num_iterations) == ("some-row/fold3-seed7", "fold3-seed7", 2)
    assert differences(short, trial.config) == ["seed (0 and 7)", "data.eval_fold (null and 3)"]
    assert Trial(".", short).at(None, 1).name == "seed1"


def test_folds_are_all_or_some_or_the_default(store: Store, unlabelled_store: Store) -> None:
    assert choose_folds(store, None) == [None]
    assert choose_folds(store, "all") == [1, 2, 3]
    assert choose_folds(store, "3,1,3") == [3, 1]
    with pytest.raises(InputError, match="has no fold 4; it has: 1, 2, 3"):
        choose_folds(store, "1,4")
    with pytest.raises(InputError, match="'first' is neither all nor numbers like 1,3; there are: 1, 2, 3"):
        choose_folds(store, "first")


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_spread_is_mean_and_sample_deviation(values: list[float]) -> None:
    found = spread_of(values)
    assert found.num == len(values)
    assert found.mean == pytest.approx(statistics.mean(values))
    if len(values) == 1:
        assert found.deviation is None
    else:
        assert found.deviation == pytest.approx(statistics.stdev(values))


def test_spreads_are_shown_in_per_cent_and_differences_in_points() -> None:
    # Mean .5; squared deviations .01, 0, .01 over 2: .1.
    assert str(spread_of([0.4, 0.5, 0.6])) == "50.0% ± 10.0"
    assert spread_of([-0.02, -0.04]).points == "-3.0 ± 1.4"
    assert (str(spread_of([0.25])), spread_of([0.25]).points) == ("25.0%", "+25.0")


def test_a_trial_is_the_run_of_its_configuration(
    store: Store, short: RunConfig, tmp_path: Path, read_stream: Any
) -> None:
    trial = Trial("row", short).at(2, 5)
    (found,) = run_trial(trial, [store], tmp_path, CPU)
    with open_run([store], trial.config, tmp_path / "alone", CPU) as run:
        (alone,) = run_iterations(run, 1)
    assert found == alone.evaluation
    assert (found.split, found.num_listed) == ("fold 2", 7)
    assert read_stream(tmp_path / trial.name) == read_stream(tmp_path / "alone")


def test_a_finished_trial_is_read_without_its_checkpoints(
    store: Store, short: RunConfig, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial("row", short).at(None, 0)
    first = run_trial(trial, [store], tmp_path, CPU, "none")
    assert counted == ["iter1/multissl", "iter1/distill"]
    assert checkpoints(tmp_path) == []
    kept = tmp_path / "row/seed0/iter1"
    assert (kept / "eval.json").exists()
    assert (kept / "predictions.parquet").exists()
    monkeypatch.setattr(experiment, "run_iterations", lambda *_: pytest.fail("it was done"))
    assert run_trial(trial, [store], tmp_path, CPU) == first
    other = replace(trial, config=short.model_copy(update={"seed": 1}))
    with pytest.raises(InputError, match=r"another configuration; it differs in seed"):
        run_trial(other, [store], tmp_path, CPU)


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ("all", [f"iter{number}/{stage}/{name}.pt" for number in (1, 2) for stage, name in
                 (("distill", "best"), ("distill", "last"), ("multissl", "best"), ("multissl", "last"))]),
        ("last", ["iter2/distill/last.pt"]),
        ("none", []),
    ],
)  # fmt: skip
def test_checkpoints_are_kept_as_asked(
    keep: Keep, left: list[str], own_store: Store, short: RunConfig, tmp_path: Path
) -> None:
    trial = Trial("row", short, 2).at(None, 0)
    assert len(run_trial(trial, [own_store], tmp_path / "runs", CPU, keep)) == 2
    assert checkpoints(tmp_path / "runs/row/seed0") == left


def test_an_interrupted_trial_keeps_its_checkpoints_and_goes_on(
    store: Store, short: RunConfig, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial("row", short).at(1, 0)
    clean = run_trial(trial, [store], tmp_path / "clean", CPU)
    with monkeypatch.context() as patch:
        patch.setattr(iterations, "_distill_stage", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_trial(trial, [store], tmp_path / "killed", CPU, "none")
    assert "row/fold1-seed0/iter1/multissl/last.pt" in checkpoints(tmp_path / "killed")
    assert run_trial(trial, [store], tmp_path / "killed", CPU, "none") == clean
    assert checkpoints(tmp_path / "killed") == []


def test_damaged_figures_are_named(store: Store, short: RunConfig, tmp_path: Path) -> None:
    trial = Trial("row", short).at(None, 0)
    run_trial(trial, [store], tmp_path, CPU)
    path = tmp_path / "row/seed0/iter1/eval.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(InputError, match=r"eval.json is damaged .* delete it to have the iteration evaluated again"):
        run_trial(trial, [store], tmp_path, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["distill.optimiser.epochs=0"], "distill.optimiser.epochs is 0"),
        (["data.eval_fold=9"], "has no fold 9"),
        (["distill.teacher=beats"], "no cache of a teacher 'beats'"),
        (["initialise=nothere.pt"], "cannot open the checkpoint nothere.pt"),
    ],
)
def test_what_would_stop_a_trial_is_said_before_any(
    changes: list[str], message: str, store: Store, preset: Path, short: RunConfig, tmp_path: Path
) -> None:
    wrong = load_config(str(preset), [*FEW_STEPS, *changes])
    with pytest.raises(InputError, match=message):
        check_trials([Trial("wrong", wrong)], [store], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_first_store_without_labels_is_refused(unlabelled_store: Store, short: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test is held out, and no clip of it has a label"):
        check_trials([Trial("row", short)], [unlabelled_store], tmp_path)


def test_what_is_finished_needs_nothing_any_more(store: Store, short: RunConfig, tmp_path: Path) -> None:
    """The weights that it began with may be gone."""
    trial = Trial("row", short.model_copy(update={"initialise": "gone.pt"}))
    done = tmp_path / "row/iter1/eval.json"
    done.parent.mkdir(parents=True)
    done.touch()
    check_trials([trial], [store], tmp_path)
    shutil.rmtree(done.parent)
    with pytest.raises(InputError, match=r"gone.pt"):
        check_trials([trial], [store], tmp_path)


def evaluation(accuracy: float | None, mean_average_precision: float = 0.3) -> Evaluation:
    return Evaluation("fold 1", mean_average_precision, accuracy, 0.5, 4, 4, 3, 3)


def test_all_are_measured_by_the_same_figure() -> None:
    one, other = evaluation(0.5), evaluation(None)
    assert choose_figure([one, one]) == "accuracy"
    assert choose_figure([one, other]) == "mAP"
    assert (value_of(one, "accuracy"), value_of(one, "mAP"), value_of(other, "mAP")) == (0.5, 0.3, 0.3)
    with pytest.raises(ValueError, match="has no accuracy"):
        value_of(other, "accuracy")


def test_evaluations_are_read_to_the_last_bit(store: Store, short: RunConfig, tmp_path: Path) -> None:
    (found,) = run_trial(Trial("row", short), [store], tmp_path, CPU)
    assert json.loads((tmp_path / "row/iter1/eval.json").read_text()) == {"teacher": None, **found.as_dict()}
