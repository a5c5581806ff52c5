"""The exit codes that docs/cli.md promises, of the programs as the shell starts them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def started(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def code_and_error(*arguments: str | Path, cwd: Path) -> tuple[int, str]:
    process = started(*arguments, cwd=cwd)
    _, error = process.communicate(timeout=120)
    return process.returncode, error


@pytest.mark.parametrize("program", ["ingest", "featurestore", "training"])
def test_0_for_help_2_for_what_is_unknown(program: str, tmp_path: Path) -> None:
    assert code_and_error(program, "--help", cwd=tmp_path) == (0, "")
    code, error = code_and_error(program, "fly", cwd=tmp_path)
    assert (code, "No such command 'fly'" in error) == (2, True)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("ingest", "status"), "error: there is no store under ./data; make one (`ingest demo`)"),
        (("featurestore", "info", "nowhere"), "error: nowhere"),
        (("training", "eval", "nowhere"), "error: "),
        (("training", "run", "--iter", "1", "--set", "seed=x"), "error: "),
    ],
)
def test_2_in_one_line_for_what_cannot_be_done(command: tuple[str, ...], said: str, tmp_path: Path) -> None:
    code, error = code_and_error(*command, cwd=tmp_path)
    assert code == 2
    assert error.startswith(said)
    assert error.count("\n") == 1


def test_1_where_a_check_finds_something(store_root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(store_root, tmp_path / "copy")
    next(copy.glob("shards/*-000001.tar")).unlink()
    code, _ = code_and_error("featurestore", "verify", copy, cwd=tmp_path)
    assert code == 1


def test_130_for_an_interruption(tmp_path: Path) -> None:
    process = started("ingest", "demo", "--workers", "0", "--store", "demo", cwd=tmp_path)
    wait_for = tmp_path / "demo" / "source"
    while not any(wait_for.rglob("*.wav")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.rstrip().endswith("run the same command again to go on")


# Says when it is up: before that, Python itself is interrupted, and the guard is not there yet.
FROM_THE_START = """from {program}.__main__ import main
print("up", flush=True)
main()
"""


@pytest.mark.parametrize("after_s", [0.1, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("program", ["ingest demo --workers 0", "training predict - --model m", "training doctor"])
def test_130_for_an_early_interruption(program: str, after_s: float, tmp_path: Path) -> None:
    name, *words = program.split()
    process = subprocess.Popen(
        [sys.executable, "-c", FROM_THE_START.format(program=name), *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    time.sleep(after_s)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert error.rstrip().splitlines()[-1].startswith("interrupted")


def test_who_ignores_interruptions_goes_on_ignoring_them(tmp_path: Path) -> None:
    """As behind `nohup`, or with `&` in a script."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{FROM_THE_START.format(program='ingest')}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--help"], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0
