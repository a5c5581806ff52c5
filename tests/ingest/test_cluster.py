"""Ingests on a cluster of several Ray nodes, of which anything may be killed: always the bytes of one process."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ingest.job import IngestOptions, ingest
from manifests.folder import folder_manifest
from tests.ingest.raylets import Machines, command_line, is_there, wait_for

# Ray's own: sockets and pipes that it leaves to the garbage collector, and what it deprecates in itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
OPTIONS = IngestOptions(num_frames=256, clips_per_shard=5, num_workers=0)
# All of a file is read for its hash: these take a while, and no place on the disk.
SLOW_BYTES = 60 << 20


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    machines = Machines()
    machines.set_number(2)
    yield machines
    machines.shutdown()


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 clips, which are 8 shards."""
    root = tmp_path_factory.mktemp("cluster") / "sounds"
    rng = np.random.default_rng(0)
    for number in range(40):
        path = root / "abc"[number % 3] / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.1 * rng.standard_normal(20_000 + 500 * number), 22_050)
        if number % 4 == 0:
            os.truncate(path, SLOW_BYTES)
    return root


@pytest.fixture(scope="module")
def clean(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an ingest in one process."""
    root = tmp_path_factory.mktemp("clean") / "store"
    ingest(folder_manifest(sounds), root, OPTIONS)
    return files(root)


@contextmanager
def running(*arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The real command, started; killed at the end where it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ingest", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def folder(sounds: Path, store: Path) -> tuple[object, ...]:
    return "folder", sounds, "--store", store, "--num-frames", 256, "--clips-per-shard", 5


def end_well(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return out


def test_the_address_in_the_environment(
    machines: Machines, sounds: Path, clean: dict[str, bytes], tmp_path: Path
) -> None:
    with running(*folder(sounds, tmp_path), RAY_ADDRESS=machines.address) as process:
        wait_for(lambda: machines.holders(tmp_path / "shards") or None)
        end_well(process)
    assert files(tmp_path) == clean


def test_killed_workers_and_machines(
    machines: Machines, sounds: Path, clean: dict[str, bytes], tmp_path: Path
) -> None:
    with running(*folder(sounds, tmp_path), "--ray-address", machines.address) as process:
        with machines.stopped_writer(tmp_path) as first:
            os.kill(first, signal.SIGKILL)
        with machines.stopped_writer(tmp_path, but=(first,)) as second:
            machines.kill(machines.node_of(second))
        end_well(process)
    assert files(tmp_path) == clean
