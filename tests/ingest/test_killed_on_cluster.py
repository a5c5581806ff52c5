"""Ingests on a cluster of several Ray nodes, of which anything may be killed: always the bytes of one process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from ingest.cluster import start_ray
from ingest.job import ingest
from ingest.layout import StoreFile
from ingest.location import open_location
from ingest.plan import IngestOptions
from ingest.shards import ShardTask, write_shard
from ingest.sources import SourceFile
from manifests.clips import Sources
from manifests.errors import InputError
from manifests.folder import folder_manifest
from manifests.vggsound import vggsound_manifest
from tests.ingest.raylets import Machines, is_there, processes_with, wait_for
from tests.ingest.slowserver import SlowServer

# Ray's own: sockets and pipes that it leaves to the garbage collector, and what it deprecates in itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
OPTIONS = IngestOptions(num_frames=256, clips_per_shard=5, num_workers=0)
# All of a file is read for its hash: these take a while, and no room on the disk.
SLOW_BYTES = 40 << 20


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    machines = Machines()
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
        if number % 8 == 0:
            os.truncate(path, SLOW_BYTES)
    return root


@pytest.fixture(scope="module")
def clean(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an ingest in one process."""
    root = tmp_path_factory.mktemp("clean") / "store"
    ingest(folder_manifest(sounds), root, OPTIONS)
    return files(root)


@contextmanager
def running(*command: object, store: Path, **options: object) -> Iterator[subprocess.Popen[str]]:
    """The real command, started; killed at the end where it still runs. Options in capitals go to the environment."""
    options = {"store": store, "num_frames": 256, "clips_per_shard": 5, **options}
    for name in [name for name in options if name.islower()]:
        command = (*command, f"--{name.replace('_', '-')}", options.pop(name))
    process = subprocess.Popen(
        [sys.executable, "-m", "ingest", *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in options.items()}},
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


def recordings(store: Path) -> list[str]:
    """In the order of the shards."""
    return [str(name) for name in pq.read_table(store / "manifest.parquet", columns=["source"])["source"].to_pylist()]


def end_well(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_killed_for_memory_and_otherwise(
    machines: Machines, sounds: Path, clean: dict[str, bytes], tmp_path: Path
) -> None:
    starved = machines.add_starved()
    with running("folder", sounds, store=tmp_path, RAY_ADDRESS=machines.address, RAY_task_oom_retries=1) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: a worker process died again and again (OutOfMemoryError); what was finished is kept" in err
    assert "Traceback" not in err
    with running("folder", sounds, store=tmp_path, ray_address=machines.address) as process:
        # The second one is started because the first one was killed.
        seen: set[int] = set()
        wait_for(lambda: seen.update(machines.workers()) or len(seen) > 1)
        machines.set_number(3)
        machines.kill(starved)
        with machines.stopped_writer(tmp_path) as first:
            os.kill(first, signal.SIGKILL)
        with machines.stopped_writer(tmp_path, but=first) as second:
            machines.kill(machines.node_of(second))
        end_well(process)
    assert files(tmp_path) == clean


def test_ctrl_c_on_a_cluster(machines: Machines, sounds: Path, tmp_path: Path) -> None:
    machines.set_number(1)
    with running("folder", sounds, store=tmp_path, ray_address=machines.address) as process:
        wait_for(lambda: machines.writers(tmp_path))
        workers = machines.workers()
        os.killpg(process.pid, signal.SIGINT)
        check_interrupted(process)
    wait_for(lambda: not any(is_there(pid) for pid in workers))


def test_fetching_beside_featurising_on_one_core(machines: Machines, tmp_path: Path) -> None:
    machines.set_number(1)
    store, sounds = tmp_path / "store", tmp_path / "sounds"
    write_listed(sounds)
    with SlowServer(sounds, delay_s=0.1) as server:
        command = ["vggsound", "--split", "test", "--metadata", sounds, "--source", server.template]
        # So one is asked for every fifth of a second.
        options = {"downloads": 3, "rate": 18_000, "RAY_ADDRESS": machines.address}
        with running(*command, store=store, **options) as process:
            wait_for((store / "store.json").exists)
            started = time.time()
            with machines.stopped_writer(store):
                # The shard that stands still, the one that is queued behind it, and three ahead.
                wait_for(lambda: len(server.first_asked) == 25)
                time.sleep(1.5)
                assert sorted(server.first_asked) == sorted(recordings(store)[:25])
                server.is_stuck = True
            wait_for(lambda: server.num_stuck)
            fetcher = machines.fetchers()[0]
            machines.set_number(2)
            machines.kill(machines.node_of(fetcher))
            server.is_stuck = False
            end_well(process)
    assert server.most_at_a_time <= 3
    assert len(server.first_asked) == 40
    assert all(moment > started + 0.2 * nth for nth, moment in enumerate(sorted(server.first_asked.values())))
    by_id = Sources(kind="named_by_id", address=str(sounds))
    ingest(vggsound_manifest(sounds, ["test"], by_id).manifest, tmp_path / "clean", replace(OPTIONS, drop_silent=True))
    clean = files(tmp_path / "clean" / "shards")
    assert len(clean) == 16
    assert files(store / "shards") == clean
    assert {path.name: path.read_bytes() for path in store.glob("raw/*/*.wav")} == {
        path.name: path.read_bytes() for path in sounds.glob("*.wav")
    }


def write_listed(root: Path) -> None:
    """40 sounds named by their ids, and VGGSound's list of them."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        soundfile.write(root / f"{number:011}.wav", 0.1 * rng.standard_normal(40_000 + 1000 * number), 16_000)
    (root / "vggsound.csv").write_text("".join(f"{n:011},0,zebra braying,test\n" for n in range(40)))


def test_a_killed_driver(machines: Machines, sounds: Path, clean: dict[str, bytes], tmp_path: Path) -> None:
    machines.set_number(2)
    with (
        running("folder", sounds, store=tmp_path, RAY_ADDRESS=machines.address) as process,
        machines.stopped_writer(tmp_path),
    ):
        orphans = {*machines.workers()}
        process.kill()
        process.wait()
        # With an orphan still in the middle of its shard; and one shard at a time, of the two that there is room for.
        with running("folder", sounds, store=tmp_path, workers=1, RAY_ADDRESS=machines.address) as process:
            at_a_time = set()
            while process.poll() is None:
                at_a_time.add(len({*machines.writers(tmp_path)} - orphans))
                time.sleep(0.1)
            end_well(process)
    assert at_a_time == {0, 1}
    assert files(tmp_path) == clean


def test_a_writer_that_outlives_its_driver_leaves_the_next_run_alone(
    sounds: Path, clean: dict[str, bytes], tmp_path: Path
) -> None:
    manifest = folder_manifest(sounds)
    ingest(manifest, tmp_path, OPTIONS)
    store = StoreFile.model_validate_json((tmp_path / "store.json").read_text())
    clips = tuple(manifest.clips())[:5]
    found = tuple(SourceFile(str(sounds), clip.source) for clip in clips)
    sidecar = tmp_path / "shards" / "sounds-000000.parquet"
    # It once couldn't have a clip: its tar would be another one.
    task = ShardTask(str(tmp_path), store, 0, store.recipe_sha256(0), clips, (replace(found[0], name="x"), *found[1:]))
    left = write_shard(replace(task, clips=clips * 3, sources=task.sources * 3))
    kept, _ = sidecar.read_bytes(), sidecar.unlink()
    next(left)
    sidecar.write_bytes(kept)
    open_location(tmp_path).remove_stale("shards")
    with pytest.raises(FileNotFoundError):
        list(left)
    assert files(tmp_path) == clean


def test_a_cluster_of_another_version(machines: Machines) -> None:
    with (
        machines.pretending("2.0.0"),
        pytest.raises(InputError, match=r"Version mismatch: The cluster was started with: Ray: 2\.0\.0"),
    ):
        start_ray(None, machines.address)


def test_ctrl_c_on_this_machine(sounds: Path, tmp_path: Path) -> None:
    mark = f"MARK={tmp_path}"
    with running("folder", sounds, store=tmp_path, workers=1, MARK=str(tmp_path), RAY_ADDRESS="") as process:
        wait_for(lambda: list(tmp_path.glob("shards/.*.tar.*")))
        assert len(processes_with(mark)) > 3
        os.killpg(process.pid, signal.SIGINT)
        check_interrupted(process)
    wait_for(lambda: not processes_with(mark))


def check_interrupted(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "interrupted: what was finished is kept" in err
    assert "Traceback" not in err
    assert "rror" not in err
