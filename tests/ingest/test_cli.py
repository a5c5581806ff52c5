"""The command line: what it prints, and that bad input is one line and status 2."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from manifests.clips import Manifest
from tests.ingest.stores import Run, store_of, write_sound

FAST = ("--workers", 0, "--num-frames", 256, "--clips-per-shard", 5)


def test_a_folder_to_a_store_and_its_status(run: Run, corpus: Manifest, store_root: Path, tmp_path: Path) -> None:
    made = run("folder", corpus.root, *FAST)
    fingerprint = store_of(store_root).snapshots[0].fingerprint
    assert made.code == 0
    assert made.out.startswith(f"{Path('data', 'tiny')}: 12 of 12 clips in 3 shards, snapshot 1, mean ")
    assert made.out.endswith(f", fingerprint {fingerprint[:12]}\n")
    assert made.out.count("\n") == 1
    tar = Path("shards", "tiny-000001.tar")
    assert (tmp_path / "data" / "tiny" / tar).read_bytes() == (store_root / tar).read_bytes()
    status = run("status", "data/tiny")
    assert status.code == 0
    assert "tiny: 3 of 3 shards, finished" in status.out
    assert "clips: 12 in shards, 0 failed, 12 asked for" in status.out
    assert status.out.count("100.0%") == 3
    assert status.err.count("\n") == 1
    assert "3/3 shards" in status.err


def test_failures_are_counted_and_listed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c" / "[red]x").mkdir(parents=True)
    soundfile.write(tmp_path / "c" / "[red]x" / "a.wav", np.random.default_rng(0).uniform(-1, 1, 9000), 16_000)
    (tmp_path / "c" / "[red]x" / "b.wav").write_text("no audio")
    made = run("folder", "c", "--store", "s", *FAST)
    assert made.code == 0
    assert made.out.splitlines()[0].startswith("s: 1 of 2 clips in 1 shards, ")
    assert made.out.splitlines()[1] == "1 clips failed: see `ingest status s`"
    status = run("status", "s")
    assert "clips: 1 in shards, 1 failed, 2 asked for" in status.out
    assert "not_audio" in status.out
    assert "[red]x" in status.out
    assert "50.0%" in status.out


def test_status_for_machines(run: Run, store_root: Path) -> None:
    said = json.loads(run("status", store_root, "--json").out)
    assert (said["num_asked"], said["num_ok"], said["num_failed"], said["reasons"]) == (12, 12, 0, {})
    assert list(said["classes"].values()) == [{"asked": 4, "ok": 4}] * 3


def test_status_of_an_unfinished_store(run: Run, store_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(store_root, tmp_path / "s"))
    content = (root / "store.json").read_text()
    (root / "store.json").write_text(content[: content.index(' "snapshots"')] + ' "snapshots": []\n}')
    (root / "shards" / "tiny-000002.parquet").unlink()
    status = run("status", "s")
    assert status.code == 0
    assert "tiny: 2 of 3 shards, not finished: run the ingest command again to go on" in status.out
    assert "clips: 10 in shards, 0 failed, 12 asked for" in status.out


def test_a_second_folder_is_appended(run: Run, tmp_path: Path) -> None:
    for name in ("one/c/x/a", "two/c/x/b"):
        write_sound(tmp_path / f"{name}.wav", seed=len(name))
    assert run("folder", "one/c", "--store", "s", *FAST).code == 0
    refused = run("folder", "two/c", "--store", "s", *FAST)
    assert refused.code == 2
    assert "differs in the list of clips" in refused.err
    grown = run("folder", "two/c", "--store", "s", *FAST, "--append")
    assert grown.out.startswith("s: 2 of 2 clips in 2 shards, snapshot 2, mean ")
    status = run("status", "s")
    assert "c: 2 of 2 shards, finished" in status.out
    assert "clips: 2 in shards, 0 failed, 2 asked for" in status.out


def test_what_failed_is_tried_again_and_counts_once(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_sound(tmp_path / "c" / "x" / f"{name}.wav")
    (tmp_path / "c" / "x" / "b.wav").write_text("no audio")
    run("folder", "c", "--store", "s", *FAST)
    write_sound(tmp_path / "c" / "x" / "b.wav", seed=1)
    again = run("folder", "c", "--store", "s", *FAST, "--retry-failed")
    assert again.out.startswith("s: 2 of 2 clips in 2 shards, snapshot 2, mean ")
    assert again.out.count("\n") == 1
    assert "clips: 2 in shards, 0 failed, 2 asked for" in run("status", "s").out


def test_silence_is_kept_unless_the_user_says_otherwise(run: Run, tmp_path: Path) -> None:
    write_sound(tmp_path / "c" / "x" / "a.wav")
    soundfile.write(tmp_path / "c" / "x" / "b.wav", np.zeros(9000), 16_000)
    assert run("folder", "c", "--store", "s", *FAST).out.startswith("s: 2 of 2 clips")
    refused = run("folder", "c", "--store", "s", *FAST, "--drop-silent")
    assert "differs in drop_silent" in refused.err
    assert run("folder", "c", "--store", "t", *FAST, "--drop-silent").out.startswith("t: 1 of 2 clips")
    assert "silent" in run("status", "t").out


def test_segments(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c" / "x").mkdir(parents=True)
    soundfile.write(tmp_path / "c" / "x" / "a.wav", np.random.default_rng(0).uniform(-1, 1, 40_000), 16_000)
    assert run("folder", "c", "--segment", 0.5, "--store", "s", *FAST).out.startswith("s: 5 of 5 clips in 1 shards")


def test_the_demo(run: Run) -> None:
    made = run("demo", "--num-clips", 12, "--workers", 0)
    assert made.code == 0
    assert made.out.startswith(f"{Path('data', 'demo')}: 12 of 12 clips in 1 shards")
    assert run("demo", "--num-clips", 12, "--workers", 0).out == made.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", "none"), "none is not a store: it has no store.json; make one with `ingest`"),
        (("folder", "none"), "none: no such folder; give the path of the folder that holds the dataset"),
        (("folder", ".", "--num-frames", "300"), "--num-frames 300 is not possible; give 1024, 512 or 256"),
        (("folder", "."), "has no audio files"),
        (("folder", ".", "--labels", "both"), "--labels 'both' is not known; give parent or none"),
        (("esc50", "--root", "none"), "none: no such folder"),
        (("esc50", "--root", "."), "meta/esc50.csv"),
        (("esc50", "--url", "nowhere"), "can't download 'nowhere'"),
        (("demo", "--store", "file/x"), "Not a directory"),
    ],
)
def test_bad_input_is_one_line(run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "file").touch()
    failed = run(*arguments)
    assert (failed.code, failed.out) == (2, "")
    assert failed.err.startswith("error: ")
    assert failed.err.count("\n") == 1
    assert message in failed.err


def test_another_recipe_is_one_line(run: Run, corpus: Manifest, store_root: Path, tmp_path: Path) -> None:
    shutil.copytree(store_root, tmp_path / "s")
    failed = run("folder", corpus.root, "--store", "s", "--workers", 0, "--num-frames", 512, "--clips-per-shard", 5)
    assert failed.code == 2
    assert failed.err.startswith("error: s holds another store: it differs in fbank. ")
    assert failed.err.count("\n") == 1


def test_a_place_that_fails_is_one_line(run: Run, store_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(store_root, tmp_path / "s"))
    shutil.rmtree(root / "shards")
    (root / "shards").symlink_to("shards")
    failed = run("status", "s")
    assert (failed.code, failed.out) == (2, "")
    # Before it there is a line of progress.
    error = "error: s/shards/tiny-000000.parquet: Too many levels of symbolic links"
    assert [line for line in failed.err.splitlines() if "0/3 shards" not in line] == [error]


@pytest.mark.parametrize("command", [(), ("folder",), ("esc50",), ("demo",), ("status",)])
def test_help_has_an_example(run: Run, command: tuple[str, ...]) -> None:
    shown = run(*command, "--help")
    assert shown.code == 0
    assert "Example: ingest" in shown.out


@pytest.mark.parametrize("arguments", [("folder",), ("demo", "--num-clips", "0"), ("demo", "--workers", "x"), ("no",)])
def test_wrong_usage_is_status_2(run: Run, arguments: tuple[str, ...]) -> None:
    failed = run(*arguments)
    assert failed.code == 2
    assert "Traceback" not in failed.err


def test_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ingest", "status", "none"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "COLUMNS": "40"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: none is not a store")
    assert done.stderr.count("\n") == 1
