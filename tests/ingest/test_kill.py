"""An ingest killed at any moment goes on to the same store."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ingest.job import IngestOptions, ingest
from manifests.folder import folder_manifest

# Forks runs of the command from one interpreter that has imported it, and kills each after a random time.
FORKED_RUNS = """
import os, random, signal, sys, time
import ingest.cli
rng, longest_s, num_kills = random.Random(int(sys.argv[1])), float(sys.argv[2]), int(sys.argv[3])
sys.argv = ["ingest", *sys.argv[4:]]
num_killed = 0
for _ in range(num_kills):
    child = os.fork()
    if child == 0:
        ingest.cli.main()
        os._exit(0)
    time.sleep(rng.uniform(0, longest_s))
    os.kill(child, signal.SIGKILL)
    num_killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
print(num_killed)
"""


def command(corpus: Path, root: Path, num_workers: int) -> list[str]:
    options = ["--num-frames", "256", "--clips-per-shard", "4", "--workers", str(num_workers)]
    return ["folder", str(corpus), "--store", str(root), *options]


def start(corpus: Path, root: Path, num_workers: int = 0) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "ingest", *command(corpus, root, num_workers)]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_shards(root: Path, count: int, process: subprocess.Popen[str]) -> None:
    while len(list(root.glob("shards/*.parquet"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def finish(corpus: Path, root: Path) -> None:
    """Runs to the end, in this process since that is quicker to start."""
    ingest(folder_manifest(corpus), root, IngestOptions(num_frames=256, clips_per_shard=4, num_workers=0))


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 clips, which are 30 shards."""
    root = tmp_path_factory.mktemp("kill") / "sounds"
    rng = np.random.default_rng(0)
    for number in range(120):
        folder = root / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{number}.wav", 0.1 * rng.standard_normal(20_000 + 500 * number), 22_050)
    return root


@pytest.fixture(scope="module")
def clean(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an ingest that nothing disturbed."""
    root = tmp_path_factory.mktemp("clean") / "store"
    finish(sounds, root)
    return files(root)


def test_killed_processes(sounds: Path, clean: dict[str, bytes], tmp_path: Path) -> None:
    rng = random.Random(1)
    for num_shards in (3, 14):
        process = start(sounds, tmp_path)
        wait_for_shards(tmp_path, num_shards, process)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shards/*.parquet")}
    process = start(sounds, tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert files(tmp_path) == clean
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_killed_at_any_moment(sounds: Path, clean: dict[str, bytes], tmp_path: Path) -> None:
    script = [sys.executable, "-c", FORKED_RUNS, "0", "0.25", "20", *command(sounds, tmp_path, 0)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    assert int(done.stdout.split()[-1]) >= 6
    finish(sounds, tmp_path)
    assert files(tmp_path) == clean


def test_interrupted(sounds: Path, clean: dict[str, bytes], tmp_path: Path) -> None:
    process = start(sounds, tmp_path)
    wait_for_shards(tmp_path, 5, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert "Error" not in err
    assert not list(tmp_path.rglob("*.partial"))
    finish(sounds, tmp_path)
    assert files(tmp_path) == clean


def test_killed_with_ray(sounds: Path, clean: dict[str, bytes], tmp_path: Path) -> None:
    process = start(sounds, tmp_path, num_workers=2)
    try:
        wait_for_shards(tmp_path, 4, process)
        process.kill()
        process.communicate(timeout=60)
        finish(sounds, tmp_path)
    finally:
        # Ray's processes end by themselves when they miss their driver; this leaves none to other tests.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert files(tmp_path) == clean
