"""The commands `training predict` and `training embed`: files and folders, formats, resumption, mistakes."""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import zarr

from training import parts
from training.checkpointtagger import CheckpointTagger

Command = Callable[..., Any]
NUM_SOUNDS = 4


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A folder of four sounds of 1 to 7 s (the model's windows are 2.575 s), one broken file, and what is no audio."""
    folder = tmp_path / "sounds"
    (folder / "deep").mkdir(parents=True)
    for number in range(NUM_SOUNDS):
        sound = 0.1 * np.random.default_rng(number).standard_normal(16_000 * (1 + 2 * number))
        soundfile.write(folder / ("deep" if number % 2 else ".") / f"{number}.wav", sound, 16_000)
    (folder / "broken.wav").write_text("not a sound")
    (folder / "notes.txt").touch()
    (folder / ".hidden.wav").touch()
    return folder


def assert_error(outcome: Any, pattern: str) -> None:
    assert outcome.status == 2
    assert re.fullmatch(rf"error: .*{pattern}.*\n", outcome.err), outcome.err


def test_predict_a_folder(training: Command, sounds: Path, checkpoint_path: Path) -> None:
    outcome = training("predict", sounds, "--model", checkpoint_path, "--json", "--windows", "--events", "--top", "1")
    assert outcome.status == 1
    assert outcome.err.startswith(f"error: {sounds}/broken.wav: not_audio: ")
    said = [json.loads(line) for line in outcome.out.splitlines()]
    assert [Path(one["file"]).name for one in said] == ["0.wav", "2.wav", "1.wav", "3.wav"]  # by their paths
    assert [one["num_windows"] for one in said] == [1, 2, 1, 3]
    for one in said:
        assert len(one["windows"]) == one["num_windows"]
        assert len(one["tags"]) == 1
        for event in one["events"]:
            assert event["probability"] >= 0.5


def test_predict_csv_from_a_list(
    training: Command, sounds: Path, checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tags.csv"
    (sounds / "1\udcff.wav").write_bytes((sounds / "0.wav").read_bytes())  # no UTF-8
    listed = f"{sounds}/0.wav\n\n{sounds}/deep\n{sounds}/0.wav\n{sounds}/1\udcff.wav\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(listed))))
    outcome = training("predict", "-", "--model", checkpoint_path, "--out", out)
    assert outcome.status == 0
    assert outcome.out == f"{out}: tags of 4 of 4 files\n"
    rows = list(csv.DictReader(out.read_text().splitlines()))
    names = ["0.wav", "1.wav", "3.wav", r"1\xff.wav"]
    assert [Path(row["file"]).name for row in rows] == [name for name in names for _ in range(3)]
    assert {row["label"] for row in rows} == {"bark", "bell", "rain"}
    assert {path.name for path in tmp_path.iterdir()} == {"sounds", "tags.csv"}


def test_embed(training: Command, sounds: Path, checkpoint_path: Path, tmp_path: Path) -> None:
    given = (sounds, "--model", checkpoint_path)
    outcome = training("embed", *given, "--out", tmp_path / "pooled.parquet")
    assert outcome.status == 1
    assert outcome.out.endswith("pooled.parquet: 4 embeddings of 16, of 4 of 5 files\n")
    failures = list(csv.DictReader((tmp_path / "pooled.parquet.failures.csv").read_text().splitlines()))
    assert [(row["file"], row["reason"]) for row in failures] == [(f"{sounds}/broken.wav", "not_audio")]
    training("embed", *given, "--out", tmp_path / "windows.zarr", "--tokens")
    pooled, group = pq.read_table(tmp_path / "pooled.parquet"), zarr.open_group(tmp_path / "windows.zarr", mode="r")
    about = json.loads(pooled.schema.metadata[b"embeddings"])
    assert about["provenance"]["checkpoint_sha256"] == group.attrs["provenance"]["checkpoint_sha256"]
    assert group.attrs["files"] == pooled["file"].to_pylist()
    owners, embeddings = group["file_index"][:], group["embedding"][:]
    means = np.stack([embeddings[owners == number].mean(0) for number in range(NUM_SOUNDS)])
    np.testing.assert_allclose(np.stack(pooled["embedding"].to_numpy()), means, atol=1e-5)
    np.testing.assert_allclose(group["tokens"][:].mean(1), embeddings, atol=1e-5)
    assert list(owners) == [0, 1, 1, 2, 3, 3, 3]


def test_stopped_and_run_again(
    training: Command, sounds: Path, checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sounds / "broken.wav").unlink()
    command = ("embed", sounds, "--model", checkpoint_path, "--per-window", "--out", tmp_path / "a.parquet")
    assert training(*command).status == 0
    whole = pq.read_table(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").unlink()
    monkeypatch.setattr(parts, "FILES_PER_PART", 1)
    commit, done = parts.Parts._commit, []

    def stop_after_two(self: parts.Parts, num_files: int, failures: list[parts.Failure]) -> None:
        commit(self, num_files, failures)
        done.append(num_files)
        if len(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "_commit", stop_after_two)
        outcome = training(*command)
    assert outcome.status == 130
    assert "run the same command again to go on" in outcome.err
    assert not (tmp_path / "a.parquet").exists()
    outcome = training(*command)
    assert outcome.err.startswith("going on after 2 of 4 files")
    assert pq.read_table(tmp_path / "a.parquet").equals(whole)
    assert {path.name for path in tmp_path.iterdir()} == {"sounds", "a.parquet"}


@pytest.mark.parametrize(("command", "name"), [("embed", "a.parquet"), ("predict", "a.csv")])
def test_stopped_in_the_first_file(
    training: Command,
    sounds: Path,
    checkpoint_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    name: str,
) -> None:
    """It says that nothing is kept, since nothing is."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointTagger, "hear", stop)
    outcome = training(command, sounds, "--model", checkpoint_path, "--out", tmp_path / name)
    assert outcome.status == 130
    said = "interrupted: no part of the work was finished yet, so nothing is kept; the same command begins anew\n"
    assert outcome.err.endswith(said)
    assert "what was finished is kept" not in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["sounds"]


def test_mistakes(training: Command, sounds: Path, checkpoint_path: Path, tmp_path: Path) -> None:
    model = ("--model", checkpoint_path)
    (tmp_path / "empty").mkdir()
    assert_error(training("predict", tmp_path / "empty", *model), "has no audio files: it is empty")
    (tmp_path / "empty/notes.txt").touch()
    assert_error(training("predict", tmp_path / "empty", *model), "none of its 1 files is named")
    assert_error(training("predict", sounds, "--model", "beats"), "'beats' needs its weights.*--checkpoint")
    assert_error(training("predict", sounds, "--checkpoint", checkpoint_path), "name it with --model")
    for hop_s in ("0", "nan", "inf"):
        assert_error(training("predict", sounds, *model, "--hop-s", hop_s), "not a sample or more")
    assert_error(training("predict", "", *model), "a path is empty")
    long = training("predict", "x" * 300, sounds / "0.wav", *model)
    assert long.status == 1
    assert "0.wav: " in long.out
    assert_error(training("predict", sounds, *model, "--out", tmp_path / "no/a.csv"), "there is no folder")
    assert_error(training("embed", sounds, *model, "--out", tmp_path / "a.npy"), r"none of \.parquet, \.zarr")


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("a.csv", ("--format", "json"), "is by its name csv, and json is asked for"),
        ("a.csv", ("--json",), "is by its name csv, and json is asked for"),
        ("a.JSONL", ("--format", "csv"), "is by its name json, and csv is asked for"),
        ("a.txt", ("--format", "csv"), "is by its name table, and csv is asked for"),
    ],
)
def test_a_name_that_contradicts_the_format(
    training: Command, sounds: Path, checkpoint_path: Path, tmp_path: Path, name: str, asked: tuple[str, ...], said: str
) -> None:
    out = tmp_path / name
    assert_error(training("predict", sounds / "0.wav", "--model", checkpoint_path, *asked, "--out", out), said)
    assert not out.exists()


def test_a_name_that_agrees_with_the_format(
    training: Command, sounds: Path, checkpoint_path: Path, tmp_path: Path
) -> None:
    command = ("predict", sounds / "0.wav", "--model", checkpoint_path, "--out", tmp_path / "a.jsonl")
    for asked in (("--json",), ("--format", "json")):
        assert training(*command, *asked).status == 0
        assert Path(json.loads((tmp_path / "a.jsonl").read_text())["file"]).name == "0.wav"


def test_nothing_else_is_replaced(training: Command, sounds: Path, checkpoint_path: Path, tmp_path: Path) -> None:
    model = ("--model", checkpoint_path)
    recording = sounds / "0.wav"
    content = recording.read_bytes()
    assert_error(training("predict", recording, *model, "--out", recording), r"none of \.csv, ")
    assert recording.read_bytes() == content
    (tmp_path / "folder.csv").mkdir()
    assert_error(training("predict", recording, *model, "--out", tmp_path / "folder.csv"), "it is a folder")
    assert_error(training("predict", recording, *model, "--out", "."), r"none of \.csv, ")
    precious = tmp_path / "precious.zarr"
    precious.mkdir()
    (precious / "thesis.txt").touch()
    assert_error(training("embed", recording, *model, "--out", precious), "something else than embeddings")
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]
    for _ in range(2):  # an earlier result is
        assert training("embed", recording, *model, "--out", tmp_path / "a.zarr").status == 0
    assert {path.name for path in tmp_path.iterdir()} == {"sounds", "folder.csv", "precious.zarr", "a.zarr"}


def test_parts_of_other_work_are_not_mixed_in(
    training: Command, sounds: Path, checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sounds / "broken.wav").unlink()
    out = tmp_path / "a.csv"
    command = ("predict", sounds, "--model", checkpoint_path, "--out", out)
    assert training(*command, "--top", "1").status == 0
    whole = out.read_text()
    monkeypatch.setattr(parts, "FILES_PER_PART", 1)
    commit = parts.Parts._commit

    def stop_at_once(self: parts.Parts, num_files: int, failures: list[parts.Failure]) -> None:
        commit(self, num_files, failures)
        raise KeyboardInterrupt

    def stop(path: Path, content: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "_commit", stop_at_once)
        training(*command, "--top", "2")
    with monkeypatch.context() as patch:  # and stopped while they are dropped
        patch.setattr(parts, "atomic_write", stop)
        training(*command, "--top", "1")
    assert training(*command, "--top", "2").status == 0
    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "_commit", stop_at_once)
        training(*command, "--top", "2")
    outcome = training(*command, "--top", "1")
    assert outcome.err.startswith("1 files that an earlier call had finished are done again")
    assert out.read_text() == whole
    assert {path.name for path in tmp_path.iterdir()} == {"sounds", "a.csv"}


def test_a_model_without_tokens_leaves_nothing_behind(
    training: Command, sounds: Path, checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = CheckpointTagger.hear
    monkeypatch.setattr(CheckpointTagger, "hear", lambda self, given: replace(heard(self, given), tokens=None))
    command = ("embed", sounds / "0.wav", "--model", checkpoint_path, "--tokens", "--out", tmp_path / "a.zarr")
    outcome = training(*command)
    assert outcome.status == 2
    assert outcome.err.endswith("error: the model 'checkpoint' has no token features; leave out --tokens\n")
    assert [path.name for path in tmp_path.iterdir()] == ["sounds"]
