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
# Each time the run is killed when such a file is written and would now appear.
CUTS = (
    "config.json",
    "iter1/multissl/best.pt",
    "iter1/multissl/last.pt",
    "metrics.jsonl",
    "iter1/distill/best.pt",
    "iter1/distill/last.pt",
    "iter1/predictions.parquet",
    "iter1/eval.json",
    "iter2/multissl/last.pt",
    "iter2/eval.json",
)
# Forks runs of the command from one interpreter that has imported all it needs: one to its end, whose time is taken,
# one that is interrupted as by Ctrl-C, several that are killed at a random moment, and a last one to the end; and in
# another folder those that are killed at a file, and a last one.
FORKED_RUNS = """
import json, os, random, signal, sys, time
from pathlib import Path
import tensorboard.compat.proto.event_pb2, tensorboard.summary.writer.record_writer, torch._dynamo
import training.cli

replace = Path.replace

def start(folder, cut=None):
    def cut_off(temporary, path):
        if cut is not None and str(path) == f"{folder}/run/{cut}":
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(temporary, path)

    child = os.fork()
    if child == 0:
        Path.replace = cut_off
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

_, preset, clean, killed, cut, num_kills, *cuts = sys.argv
started = time.monotonic()
codes = [end(start(clean))]
longest_s = time.monotonic() - started
rng = random.Random(0)
codes.append(stop(killed, 0.05, signal.SIGINT))
kills = [stop(killed, share, signal.SIGKILL) for share in sorted(rng.uniform(0.0, 0.9) for _ in range(int(num_kills)))]
codes.append(end(start(killed)))
cut_codes = [end(start(cut, name)) for name in (*cuts, None)]
print(json.dumps({"codes": codes, "kills": kills, "cut_codes": cut_codes}))
"""


@dataclass(frozen=True)
class Outcome:
    clean: Path
    killed: Path
    cut: Path
    codes: list[int]
    kills: list[int]
    cut_codes: list[int]
    err: str


@pytest.fixture(scope="module")
def outcome(store: Store, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    clean, killed, cut = (tmp_path_factory.mktemp(name) for name in ("clean", "killed", "cut"))
    for folder in (clean, killed, cut):
        shutil.copytree(store.root, folder / "store")
    folders = [str(folder) for folder in (preset, clean, killed, cut)]
    script = [sys.executable, "-c", FORKED_RUNS, *folders, str(NUM_KILLS), *CUTS]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return Outcome(clean / "run", killed / "run", cut / "run", err=done.stderr, **told)


def test_the_commands_end_as_they_should(outcome: Outcome) -> None:
    assert "Traceback" not in outcome.err
    assert "error:" not in outcome.err
    assert outcome.codes == [0, 130, 0], outcome.err
    assert outcome.err.count("interrupted: what was finished is kept; run the same command again to go on") == 1
    assert outcome.kills.count(-9) >= 3
    assert set(outcome.kills) <= {-9, 0}
    assert outcome.cut_codes == [*[-9] * len(CUTS), 0], outcome.err


@pytest.mark.parametrize("how", ["killed", "cut"])
def test_the_loss_stream_is_the_same(
    outcome: Outcome, how: str, read_stream: Callable[[Path], list[dict[str, Any]]]
) -> None:
    assert read_stream(getattr(outcome, how)) == read_stream(outcome.clean)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["killed", "cut"])
def test_the_weights_are_the_same(outcome: Outcome, how: str, stage: str) -> None:
    for name in ("last.pt", "best.pt"):
        one, other = (load_checkpoint(run / stage / name) for run in (getattr(outcome, how), outcome.clean))
        assert one.about == other.about
        assert one.network.keys() == other.network.keys()
        assert all(torch.equal(weight, other.network[key]) for key, weight in one.network.items())


@pytest.mark.parametrize("how", ["killed", "cut"])
def test_the_figures_are_the_same(outcome: Outcome, how: str) -> None:
    run: Path = getattr(outcome, how)
    for iteration in (1, 2):
        for name in ("eval.json", "predictions.parquet"):
            path = f"iter{iteration}/{name}"
            assert (run / path).read_bytes() == (outcome.clean / path).read_bytes()
    assert list(run.rglob("*.partial")) == []
