"""The command `training`: what it does and prints, its exit status, and mistakes told in one line."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from featurestore.store import Store
from ingest.atomic import exclusive
from training import cli
from training.checkpoint import About, Checkpoint, save_checkpoint
from training.model.networks import MultiSSLNetwork, Student

Command = Callable[..., Any]
LABELS = {"bark", "bell", "rain"}


@pytest.fixture(scope="module")
def home(store: Store, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one store under ./data and a run of one iteration of it."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(store.root, home / "data" / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(sys, "argv", ["training", "run", "--iter", "1", "--preset", str(preset)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 0
    return home


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs in that folder, which others use too."""
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(30_000), 22_050)
    return path


def assert_error(outcome: Any, pattern: str) -> None:
    assert outcome.status == 2
    assert re.fullmatch(rf"error: .*{pattern}.*\n", outcome.err), outcome.err


def test_the_run_folder(at_home: Path) -> None:
    run = at_home / "runs/tiny-micro"
    found = {
        str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "tensorboard" not in path.parts
    }
    stages = {f"iter1/{stage}/{kind}.pt" for stage in ("multissl", "distill") for kind in ("last", "best")}
    files = {"config.json", "store.json", "environment.json", "metrics.jsonl", ".lock"}
    files |= {"iter1/eval.json", "iter1/predictions.parquet"}
    assert found == files | stages


def test_a_place_that_fails_is_one_line(training: Command, at_home: Path, preset: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    outcome = training("run", "--iter", "1", "--preset", preset, "--run", tmp_path / "run")
    assert_error(outcome, rf"{tmp_path}/run/\.lock can't be written \(Is a directory\); see to that")


def test_run_again(training: Command, at_home: Path, preset: Path) -> None:
    outcome = training("run", "--iter", "1", "--preset", preset)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith(f"runs/tiny-micro: preset {preset} on cpu, 14 clips to train on, test held out\n")
    assert re.search(r"1 .* none .* \d+\.\d% .* \d\.\d{3} .* 6 of 6", outcome.out)
    assert outcome.out.endswith("model: runs/tiny-micro/iter1/distill/last.pt\n")


def test_eval(training: Command, at_home: Path) -> None:
    outcome = training("eval", "runs/tiny-micro")
    assert outcome.status == 0
    path = "runs/tiny-micro/iter1/distill/last.pt"
    assert f"{path} on test" in outcome.out
    assert "evaluated: 6 of 6 clips listed, 3 of 3 classes" in outcome.out
    told = json.loads(training("eval", "runs/tiny-micro", "--json").out)
    figures = json.loads(Path("runs/tiny-micro/iter1/eval.json").read_text())
    assert told["checkpoint"] == path
    assert {name: told.get(name) for name in figures} == figures
    # A checkpoint's file, from wherever it is named.
    assert json.loads(training("eval", path, "--json").out) == told


def test_predict(training: Command, at_home: Path, sound: Path) -> None:
    outcome = training("predict", sound, "--model", "runs/tiny-micro", "--top", "2")
    assert (outcome.status, outcome.err) == (0, "")
    assert re.fullmatch(rf"{sound}: (bark|bell|rain) \d+\.\d%, (bark|bell|rain) \d+\.\d%\n", outcome.out)
    assert training("predict", sound, "--top", "2").out == outcome.out  # the only run
    copy = shutil.copy(sound, at_home / "copy.wav")
    outcome = training("predict", sound, copy, "--model", "runs/tiny-micro/iter1/distill/last.pt", "--json")
    one, other = map(json.loads, outcome.out.splitlines())
    assert one == {**other, "file": str(sound)}
    assert {tag["id"] for tag in one["tags"]} == LABELS
    assert sum(tag["probability"] for tag in one["tags"]) == pytest.approx(1.0, abs=1e-5)


def test_predict_goes_on_after_a_file_that_cannot_be_read(
    training: Command, at_home: Path, sound: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("not a sound")
    files = [tmp_path / "text.txt", tmp_path / "absent.wav", sound]
    outcome = training("predict", *files, "--model", "runs/tiny-micro")
    assert outcome.status == 1
    lines = outcome.err.splitlines()
    assert [line.startswith(f"error: {file}: ") for line, file in zip(lines, files[:2], strict=True)] == [True] * 2
    assert outcome.out.startswith(f"{sound}: ")
    assert len(outcome.out.splitlines()) == 1


def test_the_last_iteration_is_taken(
    training: Command, at_home: Path, about: About, sound: Path, tmp_path: Path
) -> None:
    for iteration in (2, 10, 9):
        folder = tmp_path / f"run/iter{iteration}/distill"
        folder.mkdir(parents=True)
        vocabulary = about.vocabulary.model_copy(update={"labels": about.vocabulary.labels[: 1 + iteration // 10]})
        student = Student(about.model, len(vocabulary), None, torch.Generator())
        save_checkpoint(
            Checkpoint(about.model_copy(update={"vocabulary": vocabulary}), student.state_dict()), folder / "last.pt"
        )
        (tmp_path / f"run/iter{iteration}/eval.json").touch()
    shutil.copytree(tmp_path / "run/iter9", tmp_path / "run/iter11-old")
    shutil.copytree(tmp_path / "run/iter9/distill", tmp_path / "run/iter12/distill")  # not finished
    outcome = training("predict", sound, "--model", tmp_path / "run", "--json")
    assert len(json.loads(outcome.out)["tags"]) == 2


def test_the_only_store_is_taken(training: Command, preset: Path, home: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("run", "--iter", "1", "--preset", preset)
    assert_error(training(*command), r"there is no store under \./data; make one \(`ingest demo`\)")
    for name in ("one", "two"):
        shutil.copytree(home / "data/tiny", tmp_path / "data" / name)
    assert_error(training(*command), r"several stores under \./data: data/one, data/two; .*--store")
    # A run knows its own store; a checkpoint elsewhere doesn't.
    assert training("eval", home / "runs/tiny-micro").status == 0
    shutil.copy(home / "runs/tiny-micro/iter1/distill/last.pt", tmp_path / "last.pt")
    assert_error(training("eval", "last.pt"), "several stores")
    shutil.rmtree(tmp_path / "data/two")
    assert training("eval", "last.pt").status == 0


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--set", "multissl.mask_ration=0.5"], r"multissl\.mask_ration: Extra inputs are not permitted"),
        (["--set", "seed"], "--set 'seed' is not of the form key=value"),
        (["--preset", "huge"], r"there is no preset 'huge'"),
        (["--teacher", "efficientat", "--set", "multissl.optimiser.epochs=0"], "no cache of a teacher 'efficientat'"),
        (["--eval-fold", "8"], r"has no fold 8; it has: 1, 2, 3"),
        (["--device", "tpu9"], "--device 'tpu9' is not known"),
        (["--store", "nowhere"], "nowhere is not a store"),
        (["--set", "model.num_frames=512"], "the model takes 512 frames and data/tiny holds 256"),
    ],
)
def test_wrong_options_of_run(
    training: Command, at_home: Path, preset: Path, tmp_path: Path, arguments: list[str], pattern: str
) -> None:
    given = ["--preset", str(preset), "--run", str(tmp_path / "run"), *arguments]
    assert_error(training("run", "--iter", "1", *given), pattern)


def test_shortcuts_set_keys(training: Command, at_home: Path, preset: Path, tmp_path: Path) -> None:
    changes = ["--set", "multissl.optimiser.epochs=0", "--set", "distill.optimiser.epochs=0.1"]
    shortcuts = ["--teacher", "none", "--eval-fold", "3", "--seed", "4", *changes]
    assert training("run", "--iter", "1", "--preset", preset, "--run", tmp_path / "run", *shortcuts).status == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["distill"]["teacher"], config["data"]["eval_fold"], config["seed"]) == ("none", 3, 4)


def test_a_run_of_something_else(training: Command, at_home: Path, preset: Path, multi_label_store: Store) -> None:
    command = ("run", "--iter", "1", "--preset", preset, "--run", "runs/tiny-micro")
    before = Path("runs/tiny-micro/iter1/distill/last.pt").read_bytes()
    assert_error(training(*command, "--seed", "3"), r"another configuration; it differs in seed \(0 and 3\)")
    assert_error(training(*command, "--store", multi_label_store.root), "was trained on .* with fingerprint")
    assert Path("runs/tiny-micro/iter1/distill/last.pt").read_bytes() == before


def test_wrong_models(training: Command, at_home: Path, about: About, sound: Path, tmp_path: Path) -> None:
    assert_error(training("predict", sound, "--model", sound), "is not a whole checkpoint of this trainer")
    absent = training("predict", sound, "--model", tmp_path / "absent.pt")
    assert_error(absent, r"absent\.pt is neither a file or folder nor the name of a teacher; .* efficientat")
    assert_error(training("eval", "data"), "data has no finished iteration .*; finish one with `training run`")
    ssl = MultiSSLNetwork(about.model, torch.Generator())
    save_checkpoint(Checkpoint(about.model_copy(update={"stage": "multissl"}), ssl.state_dict()), tmp_path / "ssl.pt")
    assert_error(training("eval", tmp_path / "ssl.pt"), "of the Multi-SSL stage and can't classify")
    assert_error(training("predict", sound, "--model", tmp_path / "ssl.pt"), r"ssl\.pt .* knows no labels; .* embed`")
    assert training("embed", sound, "--model", tmp_path / "ssl.pt", "--out", tmp_path / "ssl.parquet").status == 0


def test_eval_on_a_store_of_other_labels(training: Command, at_home: Path, unlabelled_store: Store) -> None:
    outcome = training("eval", "runs/tiny-micro", "--store", unlabelled_store.root)
    assert_error(outcome, "knows 3 labels .* has 0 others")


def test_two_runs_in_one_folder(training: Command, at_home: Path, preset: Path) -> None:
    with exclusive(Path("runs/tiny-micro"), "test"):
        outcome = training("run", "--iter", "1", "--preset", preset)
    assert_error(outcome, "another training is at work on runs/tiny-micro")


def test_usage(training: Command) -> None:
    assert training("run").status == 2
    assert training("run", "--iter", "0").status == 2
    assert training("--help").status == 0


STARTED = """
import sys
import training.cli
print(*sorted({"ray", "av", "yt_dlp", "tensorboard"} & set(sys.modules)), flush=True)
training.cli.main()
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with a store that isn't there."""
    command = [sys.executable, "-c", STARTED, "run", "--iter", "1", "--store", "nowhere"]
    folder = tmp_path_factory.mktemp("started")
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)


def test_a_mistake_in_a_process_of_its_own(started: subprocess.CompletedProcess[str]) -> None:
    assert started.returncode == 2
    assert re.fullmatch(r"error: nowhere is not a store: .*\n", started.stderr)


def test_the_command_imports_no_ingest_machinery(started: subprocess.CompletedProcess[str]) -> None:
    assert not {"ray", "yt_dlp", "tensorboard"} & set(started.stdout.split())


def test_the_command_imports_no_decoder(started: subprocess.CompletedProcess[str]) -> None:
    assert "av" not in started.stdout.split()
