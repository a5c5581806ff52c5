"""`training run`'s shortcuts are keys of the configuration, and `training finetune` and `ablate` what they print."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore.build import build_teacher
from featurestore.store import Store
from training.checkpoint import load_checkpoint
from training.runfolder import read_config
from training.teacher import load_checkpoint_teacher

Command = Callable[..., Any]
FEW_STEPS = ("--set", "multissl.optimiser.epochs=0.3", "--set", "distill.optimiser.epochs=0.3")


@pytest.fixture
def options(store: Store, preset: Path) -> tuple[str | Path, ...]:
    return ("--preset", preset, "--store", store.root, *FEW_STEPS)


def test_shortcuts_set_their_keys(
    options: tuple[str | Path, ...],
    unlabelled_store: Store,
    checkpoint_path: Path,
    training: Command,
    tmp_path: Path,
) -> None:
    shortcuts = ("--store", unlabelled_store.root, "--proportions", "1,2.5", "--teacher", "none", "--eval-fold", "2")
    start = ("--init", checkpoint_path, "--seed", "6", "--run", tmp_path / "run")
    done = training("run", "--iter", "1", *options, *shortcuts, *start)
    assert done.status == 0
    config = read_config(tmp_path / "run")
    assert config.multissl.proportions == config.distill.proportions == (1.0, 2.5)
    assert (config.distill.teacher, config.data.eval_fold, config.seed) == ("none", 2, 6)
    assert config.initialise == str(checkpoint_path)
    about = load_checkpoint(tmp_path / "run/iter1/distill/last.pt").about
    assert (about.held_out, about.other_fingerprints) == ("fold 2", (unlabelled_store.snapshot.fingerprint,))


def test_a_teacher_alone_has_no_figures(
    own_store: Store, preset: Path, checkpoint_path: Path, training: Command, tmp_path: Path
) -> None:
    """Its classifier is as it was initialised, and nobody is told what that says."""
    build_teacher(own_store, load_checkpoint_teacher(checkpoint_path), "taught")
    alone = ("--teacher", "taught", "--set", "distill.classify=false", "--set", "multissl.optimiser.epochs=0")
    where = ("--preset", preset, "--store", own_store.root, "--run", tmp_path / "run")
    done = training("run", "--iter", "1", *where, *FEW_STEPS, *alone)
    assert (done.status, "no labels learned" in done.out) == (0, True)
    assert json.loads((tmp_path / "run/iter1/eval.json").read_text())["nothing_held_out"]
    refused = training("eval", tmp_path / "run", "--store", own_store.root)
    assert refused.status == 2
    assert "its classifier is as it was initialised; fine-tune it with `training finetune`" in refused.err
    teacher = load_checkpoint_teacher(tmp_path / "run/iter1/distill/last.pt")
    assert teacher.vocabulary is None
    heard = training("predict", own_store.root / "source", "--model", tmp_path / "run")
    assert heard.status == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--proportions", "1"), r"numbers of proportions (1) and stores (2) differ"),
        (("--proportions", "a,1"), "multissl.proportions.0: Input should be a valid number"),
        (("--proportions", "1,0"), "multissl.proportions.1: Input should be greater than 0"),
        (("--init", "nothere.pt"), "cannot open the checkpoint nothere.pt"),
        (("--set", "parallel=both"), "parallel: Input should be 'ddp' or 'fsdp'"),
    ],
)
def test_mistakes_are_said_before_a_folder_is_made(
    wrong: tuple[str, ...],
    message: str,
    options: tuple[str | Path, ...],
    unlabelled_store: Store,
    training: Command,
    tmp_path: Path,
) -> None:
    two = (*options, "--store", unlabelled_store.root)
    done = training("run", "--iter", "1", *two, "--run", tmp_path / "run", *wrong)
    assert done.status == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()


def test_finetune_prints_what_it_keeps(options: tuple[str | Path, ...], training: Command, tmp_path: Path) -> None:
    command = ("finetune", "random", *options, "--folds", "1,2", "--run", tmp_path / "tuned", "--keep", "none")
    done = training(*command)
    assert done.status == 0
    told = json.loads((tmp_path / "tuned/summary.json").read_text())
    for place in ("fold1-seed0", "fold2-seed0"):
        assert f"{place} " in done.out
        assert f"{told['runs'][place]['accuracy']:.1%}" in done.out
    assert f"{told['mean']:.1%} ± {100 * told['deviation']:.1f}" in done.out
    again = training(*command)
    assert again.out.count("done before") == 2
    assert again.out.count("clips to train on") == 0


def test_ablate_prints_the_table_that_it_writes(
    options: tuple[str | Path, ...], training: Command, tmp_path: Path
) -> None:
    done = training("ablate", "--table", "4", *options, "--run", tmp_path / "table", "--seeds", "2")
    assert done.status == 0
    text = (tmp_path / "table/table4.md").read_text()
    assert text in done.out
    assert "1 held-out part x 2 seeds (0, 1) a row" in text
    assert "- held out: test (6 of 6 clips)" in text
    assert '"every patch alike"' in text
    assert sorted(path.name for path in (tmp_path / "table").iterdir() if path.is_dir()) == [
        "every-patch-alike",
        "weighted-by-s",
    ]


def test_a_value_without_a_name_is_refused(options: tuple[str | Path, ...], training: Command, tmp_path: Path) -> None:
    for given in ("image", "image=", "=a.pt"):
        done = training("ablate", "--table", "7", *options, "--run", tmp_path / "table", "--with", given)
        assert done.status == 2
        assert f"--with {given!r} is not of the form NAME=VALUE" in done.err
    assert not (tmp_path / "table").exists()
