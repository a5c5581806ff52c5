"""The commands eval, ensemble and probe as people type them."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from featurestore.store import Store
from training.bootstrap import bootstrap
from training.checkpoint import About, Checkpoint, save_checkpoint
from training.config import DataConfig
from training.evaluate import evaluate
from training.metrics import class_figures
from training.model.networks import MultiSSLNetwork, Student
from training.predictions import read_predictions
from training.splits import choose_split

Command = Callable[..., Any]
CPU = torch.device("cpu")


@pytest.fixture
def run(checkpoint_path: Path, tmp_path: Path) -> Path:
    """A run of one finished iteration, as far as evaluation is concerned."""
    (tmp_path / "run/iter1/distill").mkdir(parents=True)
    shutil.copy(checkpoint_path, tmp_path / "run/iter1/distill/last.pt")
    (tmp_path / "run/iter1/eval.json").touch()
    return tmp_path / "run"


@pytest.fixture
def other(about: About, tmp_path: Path) -> Path:
    student = Student(about.model, 3, None, torch.Generator().manual_seed(9))
    save_checkpoint(Checkpoint(about, student.state_dict()), tmp_path / "other.pt")
    return tmp_path / "other.pt"


def test_eval_and_what_it_keeps(training: Command, run: Path, store: Store, student: Student, about: About) -> None:
    outcome = training("eval", run, "--store", store.root, "--per-class", "--bootstrap", "50")
    assert outcome.status == 0
    expected = evaluate(student, store, choose_split(store, DataConfig(), 0), about.normalisation, CPU, one_label=True)
    said, origin = read_predictions(run / "iter1/predictions.parquet")
    intervals = bootstrap(said.scores, said.labels, 50)
    for name, field in (("mAP", "mean_average_precision"), ("mAUC", "mean_auc")):
        shown = f"{getattr(expected, field):.3f} .* {intervals[field].low:.3f} to {intervals[field].high:.3f}"
        assert re.search(rf"{name} .* {shown}", outcome.out)
    assert re.search(rf"accuracy .* {expected.accuracy:.1%}", outcome.out)
    assert "evaluated: 6 of 6 clips listed, 3 of 3 classes" in outcome.out
    assert f"sha256 of the evaluated keys {expected.keys_sha256}" in outcome.out
    assert f"predictions: {run}/iter1/predictions.parquet" in outcome.out
    assert origin.store_fingerprint == store.snapshot.fingerprint
    figures = class_figures(said.scores, said.labels)
    worst_first = [about.vocabulary.names[n] for n in figures.average_precision.argsort(kind="stable")]
    assert re.findall(r"^│ (bark|bell|rain) ", outcome.out, re.MULTILINE) == worst_first


def test_eval_as_json(training: Command, run: Path, store: Store) -> None:
    command = ("eval", run / "iter1", "--store", store.root, "--json", "--bootstrap", "20")
    told = json.loads(training(*command, "--per-class").out)
    said, origin = read_predictions(run / "iter1/predictions.parquet")
    intervals = bootstrap(said.scores, said.labels, 20)
    area = intervals["mean_auc"]
    assert told["intervals"]["mean_auc"] == [area.low, area.high]
    assert (told["intervals"]["num_resamples"], told["intervals"]["level"]) == (20, 0.95)
    assert told["checkpoint_sha256"] == origin.checkpoint_sha256
    assert [entry["id"] for entry in told["classes"]] == said.label_ids
    assert sum(entry["num_clips"] for entry in told["classes"]) == told["num_evaluated"] == 6
    bare = json.loads(training(*command[:-1], "0").out)
    assert bare["intervals"] is None
    assert "classes" not in bare


def test_eval_of_another_part(
    training: Command, run: Path, store: Store, student: Student, about: About, tmp_path: Path
) -> None:
    command = ("eval", run, "--fold", "2", "--json", "--bootstrap", "0", "--store", store.root)
    outcome = training(*command)
    heard = "4 of 6 clips, with their labels"
    assert f"beware: the model was trained on clips of fold 2: {heard}\n" in outcome.err
    told = json.loads(outcome.out)
    split = choose_split(store, DataConfig(eval_fold=2), 0)
    found = evaluate(student, store, split, about.normalisation, CPU, one_label=True)
    expected = replace(found, heard=heard).as_dict()
    assert {name: told[name] for name in expected} == expected
    # The iteration keeps only what it says of its own clips.
    assert told["predictions"] is None
    assert not (run / "iter1/predictions.parquet").exists()
    kept = tmp_path / "fold2.parquet"
    assert json.loads(training(*command, "--predictions", kept).out)["predictions"] == str(kept)
    assert read_predictions(kept)[0].keys == store.keys(split.held_out)


def test_eval_of_several_labels(training: Command, run: Path, multi_label_store: Store) -> None:
    command = ("eval", run, "--store", multi_label_store.root, "--per-class", "--bootstrap", "10")
    outcome = training(*command, "--split", "train")
    assert outcome.status == 0
    assert "accuracy" not in outcome.out
    assert "evaluated: 3 of 5 clips listed, 2 without a label, 3 of 3 classes" in outcome.out
    # Its clips aren't those of the run, though its split's name is.
    assert training(*command).status == 0
    assert not (run / "iter1/predictions.parquet").exists()
    outcome = training(*command, "--fold", "3")
    assert re.fullmatch(r"(\[.*\n)?error: no clip of fold 3 in .* has a label to evaluate against\n", outcome.err)


def test_ensemble(training: Command, run: Path, other: Path, store: Store, tmp_path: Path) -> None:
    command = ("ensemble", run, other, "--store", store.root)
    outcome = training(*command, "--weights-out", tmp_path / "mean.pt")
    assert outcome.status == 0
    told = json.loads(training(*command, "--json").out)
    assert [one["checkpoint"] for one in told["models"]] == [str(run / "iter1/distill/last.pt"), str(other)]
    for figures in (*told["models"], told["weights"], told["predictions"]):
        assert f"{figures['mean_average_precision']:.3f}" in outcome.out
    for name in ("mean of weights", "mean of predictions"):
        assert name in outcome.out
    mean = json.loads(training("eval", tmp_path / "mean.pt", "--json", "--store", store.root).out)
    assert {name: mean[name] for name in told["weights"]} == told["weights"]


def test_wrong_ensembles(training: Command, run: Path, other: Path, store: Store, tmp_path: Path) -> None:
    assert training("ensemble", run, "--store", store.root).err.startswith("error: an ensemble is of two models")
    outcome = training("ensemble", run, other, "--store", store.root, "--fold", "2")
    assert outcome.status == 2
    assert re.search(r"error: .*trained, .* on 4 of the 6 clips of fold 2, .*--split or --fold", outcome.err)


def test_what_could_not_be_kept_is_refused_before_the_work(
    training: Command, run: Path, other: Path, store: Store, tmp_path: Path
) -> None:
    absent = tmp_path / "absent" / "file"
    for command in (("eval", run, "--predictions"), ("ensemble", run, other, "--weights-out")):
        outcome = training(*command, absent, "--store", store.root)
        assert outcome.status == 2
        assert re.fullmatch(rf"error: {absent} can't be written, there is no folder .*\n", outcome.err)
        outcome = training(*command, tmp_path, "--store", store.root)
        assert outcome.status == 2
        assert re.fullmatch(rf"error: {tmp_path} can't be written, it is a folder; .*\n", outcome.err)


def test_eval_of_a_multissl_checkpoint(training: Command, about: About, store: Store, tmp_path: Path) -> None:
    network = MultiSSLNetwork(about.model, torch.Generator())
    path = tmp_path / "ssl.pt"
    save_checkpoint(Checkpoint(about.model_copy(update={"stage": "multissl"}), network.state_dict()), path)
    outcome = training("eval", path, "--store", store.root)
    assert outcome.err.startswith("error: this checkpoint is of the Multi-SSL stage and can't classify")


def test_models_of_another_store_are_named(
    training: Command, about: About, student: Student, other: Path, store: Store, tmp_path: Path
) -> None:
    stranger = about.model_copy(update={"store_fingerprint": "0" * 64})
    save_checkpoint(Checkpoint(stranger, student.state_dict()), tmp_path / "stranger.pt")
    command = ("ensemble", other, tmp_path / "stranger.pt", "--mode", "predictions", "--store", store.root)
    outcome = training(*command)
    assert outcome.status == 0
    assert f"{tmp_path}/stranger.pt was trained on another store" in outcome.err
    assert "mean of weights" not in outcome.out


def test_probe(training: Command, run: Path, store: Store) -> None:
    command = ("probe", run, "--store", store.root, "--kind", "knn")
    outcome = training(*command)
    assert outcome.status == 0
    assert "held out: what the model's run held out" in outcome.out
    assert "the model was trained" not in outcome.err
    outcome = training(*command, "--all-folds", "--per-class")
    assert "mean ± std" in outcome.out
    assert "the model was trained on clips of fold 2: 4 of 6 clips, with their labels" in outcome.err
    told = json.loads(training(*command, "--fold", "2", "--max-clips", "4", "--json").out)
    assert [(part["num_train"], part["num_evaluated"]) for part in told["parts"]] == [(4, 4)]
    assert training(*command, "--fold", "2", "--all-folds").status == 2
