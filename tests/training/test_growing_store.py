"""A run belongs to the snapshot that it began with, however its store grows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore.store import Store
from training import stages
from training.checkpoint import load_checkpoint

Growing = tuple[Store, Callable[[], Store]]
Command = Callable[..., Any]
ReadStream = Callable[[Path], list[dict[str, Any]]]


def recorded(run: Path) -> tuple[int, str]:
    """The snapshot of a run, and its fingerprint."""
    about = json.loads((run / "store.json").read_text())
    return about["snapshot"], about["fingerprint"]


def losses(run: Path, read_stream: ReadStream) -> list[float]:
    return [line["loss"] for line in read_stream(run) if "loss" in line]


def test_an_interrupted_run_goes_on_with_its_snapshot(
    growing_store: Growing,
    preset: Path,
    training: Command,
    read_stream: ReadStream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, grow = growing_store
    clean, killed = tmp_path / "clean", tmp_path / "killed"
    before = Path(shutil.copytree(store.root, tmp_path / "before"))
    command = ("run", "--iter", "2", "--preset", preset, "--store")
    assert training(*command, before, "--run", clean).status == 0

    calls = iter(range(1000))
    distill_losses = stages.distill_losses

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return distill_losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "distill_losses", interrupted)
        assert training(*command, store.root, "--run", killed).status == 130
    grown = grow()
    assert (grown.snapshot.number, len(store), len(grown)) == (2, 13, 20)
    assert training(*command, store.root, "--run", killed).status == 0

    assert recorded(killed) == recorded(clean) == (1, store.snapshot.fingerprint)
    assert read_stream(killed) == read_stream(clean)
    for stage in ("iter1/multissl", "iter2/distill"):
        one, other = (load_checkpoint(run / stage / "last.pt") for run in (clean, killed))
        assert all((one.network[name] == other.network[name]).all() for name in one.network)
        assert other.about.store_fingerprint == store.snapshot.fingerprint


def test_a_new_run_takes_the_last_snapshot(
    growing_store: Growing, preset: Path, training: Command, read_stream: ReadStream, tmp_path: Path
) -> None:
    store, grow = growing_store
    old, new = tmp_path / "old", tmp_path / "new"
    command = ("run", "--iter", "1", "--preset", preset, "--store", store.root, "--run")
    assert "9 clips to train on, test held out" in training(*command, old).out
    grown = grow()
    assert "14 clips to train on, test held out" in training(*command, new).out
    assert recorded(old) == (1, store.snapshot.fingerprint)
    assert recorded(new) == (2, grown.snapshot.fingerprint)
    assert len(losses(old, read_stream)) < len(losses(new, read_stream))
    about = load_checkpoint(new / "iter1/distill/last.pt").about
    assert (about.mean, about.std) == (grown.snapshot.mean, grown.snapshot.std)
    # The old one has nothing left to do, and evaluation takes all held-out clips that there are now.
    assert "4 of 4" in training(*command, old).out
    evaluated = training("eval", old, "--store", store.root)
    assert evaluated.status == 0
    assert "6 of 6" in evaluated.out


def test_a_run_of_a_content_that_is_gone(
    growing_store: Growing, preset: Path, training: Command, tmp_path: Path
) -> None:
    store, _ = growing_store
    command = ("run", "--iter", "1", "--preset", preset, "--store", store.root, "--run", tmp_path / "run")
    assert training(*command).status == 0
    about = tmp_path / "run/store.json"
    about.write_text(about.read_text().replace(store.snapshot.fingerprint, "f" * 64))
    outcome = training(*command)
    assert outcome.status == 2
    assert "with fingerprint ffffffffffff" in outcome.err


def test_a_run_is_evaluated_on_what_it_held_out(
    growing_store: Growing, preset: Path, training: Command, tmp_path: Path
) -> None:
    store, grow = growing_store
    training("run", "--iter", "1", "--preset", preset, "--store", store.root, "--run", tmp_path / "run")
    own = json.loads((tmp_path / "run/iter1/eval.json").read_text())
    grow()
    told = json.loads(training("eval", tmp_path / "run", "--json").out)
    for name in ("num_evaluated", "num_listed", "accuracy", "keys_sha256"):
        assert told[name] == own[name], name
    newest = json.loads(training("eval", tmp_path / "run", "--store", store.root, "--json").out)
    assert newest["num_evaluated"] > own["num_evaluated"]


def test_an_experiment_goes_on_with_its_snapshot(
    growing_store: Growing, preset: Path, training: Command, tmp_path: Path
) -> None:
    store, grow = growing_store
    command = ("finetune", "random", "--preset", preset, "--store", store.root, "--run", tmp_path / "ft")
    outcome = training(*command)
    assert outcome.status == 0, outcome.err
    grow()
    outcome = training(*command, "--seeds", "2")
    assert outcome.status == 0, outcome.err
    assert recorded(tmp_path / "ft/seed0") == recorded(tmp_path / "ft/seed1") == (1, store.snapshot.fingerprint)
