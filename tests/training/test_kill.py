"""A run killed at any moment goes on to the same end."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from featurestore.store import Store
from training.checkpoint import load_checkpoint

NUM_KILLS = 6
STAGES = [f"iter{iteration}/{stage}" for iteration in (1, 2) for stage in ("multissl", "distill")]
# Forks runs of the command from one interpreter that has imported all it needs: one to its end, whose time is taken,
# one that is interrupted as by Ctrl-C, several that are killed at a random moment, and a last one to the end.
FORKED_RUNS = """
import json, os, random, signal, sys, time
import torch._dynamo, torch.utils.tensorboard
import training.cli

def start(folder):
    child = os.fork()
    if child == 0:
        store, run = f"{folder}/store", f"{folder}/run"
        sys.argv = ["training", "run", "--iter", "2", "--preset", sys.argv[1], "--store", store, "--run", run]
        training.cli.main()
        os._exit(0)
    return child

def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def written(folder):
    path = f"{folder}/run/metrics.jsonl"
    return os.path.getsize(path) if os.path.exists(path) else 0

def stop(folder, share, how):
    child = start(folder)
    ended = os.WEXITED | os.WNOWAIT | os.WNOHANG
    while written(folder) < share * written(clean) and not os.waitid(os.P_PID, child, ended):
        time.sleep(0.005)
    time.sleep(rng.uniform(0.0, 0.03) * longest_s)
    os.kill(child, how)
    return end(child)

_, preset, clean, killed, num_kills = sys.argv
started = time.monotonic()
codes = [end(start(clean))]
longest_s = time.monotonic() - started
rng = random.Random(0)
codes.append(stop(killed, 0.05, signal.SIGINT))
kills = [stop(killed, share, signal.SIGKILL) for share in sorted(rng.uniform(0.0, 0.9) for _ in range(int(num_kills)))]
codes.append(end(start(killed)))
print(json.dumps({"codes": codes, "kills": kills}))
"""


@dataclass(frozen=True)
class Outcome:
    clean: Path
    killed: Path
    codes: list[int]
    kills: list[int]
    err: str


@pytest.fixture(scope="module")
def outcome(store: Store, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    clean, killed = tmp_path_factory.mktemp("clean"), tmp_path_factory.mktemp("killed")
    for folder in (clean, killed):
        shutil.copytree(store.root, folder / "store")
    script = [sys.executable, "-c", FORKED_RUNS, str(preset), str(clean), str(killed), str(NUM_KILLS)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300)
    told = json.loads(done.stdout.splitlines()[-1])
    return Outcome(clean / "run", killed / "run", told["codes"], told["kills"], done.stderr)


def test_the_commands_end_as_they_should(outcome: Outcome) -> None:
    assert "Traceback" not in outcome.err
    assert "error:" not in outcome.err
    assert outcome.codes == [0, 130, 0], outcome.err
    assert outcome.err.count("interrupted: what was finished is kept; run the same command again to go on") == 1
    assert outcome.kills.count(-9) >= 3
    assert set(outcome.kills) <= {-9, 0}


def test_the_loss_stream_is_the_same(outcome: Outcome, read_stream: Callable[[Path], list[dict[str, Any]]]) -> None:
    assert read_stream(outcome.killed) == read_stream(outcome.clean)


@pytest.mark.parametrize("stage", STAGES)
def test_the_weights_are_the_same(outcome: Outcome, stage: str) -> None:
    one, other = (load_checkpoint(run / stage / "last.pt").network for run in (outcome.killed, outcome.clean))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_figures_are_the_same(outcome: Outcome) -> None:
    for iteration in (1, 2):
        path = f"iter{iteration}/eval.json"
        assert (outcome.killed / path).read_text() == (outcome.clean / path).read_text()
