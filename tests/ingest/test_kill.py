"""An ingest killed at any moment goes on to the same store."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ingest.job import ingest
from ingest.plan import IngestOptions
from manifests.clips import Manifest
from manifests.folder import FolderOptions, folder_manifest
from tests.ingest.stores import assert_sums, contents, fingerprint, index_of, store_of, write_sound

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


# Forks runs of the command from one interpreter, each of which ends, as if killed, at its n-th change of the store:
# before a file is renamed into its place, or before one is deleted. Ends when a run comes to its end.
RUNS_THAT_END_EARLY = """
import os, shutil, sys
from pathlib import Path
import ingest.atomic, ingest.cli, ingest.decoder, ingest.decoder_child, ingest.location
base, work = map(Path, sys.argv[1:3])
sys.argv = ["ingest", *sys.argv[3:]]
steps_left = 0

def step():
    global steps_left
    steps_left -= 1
    if steps_left == 0:
        os._exit(9)

def step_after_a_file(path):
    if path.is_file():
        step()

delete = ingest.location.LocalFolder.delete
def step_and_delete(location, name):
    if location.exists(name):
        step()
    delete(location, name)

class DecoderHere:  # a helper process for each run would take most of the time
    def call(self, request, time_limit_s):
        return ingest.decoder_child.answer(request)

ingest.atomic._sync, ingest.location.LocalFolder.delete = step_after_a_file, step_and_delete
ingest.decoder._child = DecoderHere()

def run(root):
    shutil.copytree(base, root)
    os.chdir(root)
    try:
        ingest.cli.main()
    except SystemExit as end:
        assert not end.code

run(work / "first")  # so that what libraries do when they are first used is done before the forks
for number in range(1, 100):
    child = os.fork()
    if child == 0:
        steps_left = number
        run(work / str(number))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        print(number - 1)
        break
    assert code == 9, code
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


OPTIONS = IngestOptions(num_frames=256, clips_per_shard=2, num_workers=0)
ARGUMENTS = ["--store", ".", "--num-frames", "256", "--clips-per-shard", "2", "--workers", "0"]


def unlabelled(folder: Path) -> Manifest:
    return folder_manifest(folder, FolderOptions(labels="none"))


def killed_at_every_step(base: Path, work: Path, folder: Path, *options: str) -> list[Path]:
    """Copies of a store, at each of which the command was killed one step later."""
    arguments = ["folder", str(folder), "--labels", "none", *ARGUMENTS, *options]
    script = [sys.executable, "-c", RUNS_THAT_END_EARLY, str(base), str(work), *arguments]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads don't survive a fork
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, env=one_thread)
    assert done.returncode == 0, done.stderr
    return [work / str(number) for number in range(1, int(done.stdout.split()[-1]) + 1)]


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Folders of one name, since it becomes the store's: of a first ingest, and of one to append."""
    for number, name in enumerate(("first/few/a", "first/few/b", "second/few/c", "second/few/d")):
        write_sound(tmp_path / f"{name}.wav", seed=number)
    return tmp_path


def test_killed_at_every_step_of_a_first_ingest(few: Path) -> None:
    manifest = unlabelled(few / "first" / "few")
    ingest(manifest, few / "clean", OPTIONS)
    (few / "empty").mkdir()
    killed = killed_at_every_step(few / "empty", few / "runs", few / "first" / "few")
    # manifest, store.json, tar, sidecar, index, SHA256SUMS, store.json again, and what describes the store
    assert len(killed) == 7 + 6
    for root in killed:
        ingest(manifest, root, OPTIONS)
        assert contents(root) == contents(few / "clean"), root


def test_killed_at_every_step_of_an_append(few: Path) -> None:
    first, second = (unlabelled(few / name / "few") for name in ("first", "second"))
    ingest(first, few / "base", OPTIONS)
    before = contents(few / "base" / "shards")
    ingest(second, Path(shutil.copytree(few / "base", few / "clean")), replace(OPTIONS, append=True))
    killed = killed_at_every_step(few / "base", few / "runs", few / "second" / "few", "--append")
    assert len(killed) >= 12
    published = set()
    for root in killed:
        assert before.items() <= contents(root / "shards").items()
        published.add(len(store_of(root).snapshots))
        other = Path(shutil.copytree(root, few / "other" / root.name))
        ingest(second, root, replace(OPTIONS, append=True))
        assert contents(root) == contents(few / "clean"), root
        # The first command leaves alone what the second one has begun.
        ingest(first, other, OPTIONS)
        assert_sums(other, is_finished=False)
        ingest(second, other, replace(OPTIONS, append=True))
        assert contents(other) == contents(few / "clean"), other
    assert published == {1}  # the snapshot comes last


@pytest.mark.parametrize("comes_back", [False, True])
def test_killed_at_every_step_of_a_retry(few: Path, comes_back: bool) -> None:
    """A part of which nothing succeeds is taken back, and one of which something does is published."""
    bad = few / "first" / "few" / "c.wav"
    bad.write_text("no audio")
    manifest = unlabelled(bad.parent)
    ingest(manifest, few / "base", OPTIONS)
    if comes_back:
        write_sound(bad)
    retry = replace(OPTIONS, retry_failed=True)
    ingest(manifest, Path(shutil.copytree(few / "base", few / "clean")), retry)
    assert (contents(few / "clean") == contents(few / "base")) != comes_back
    killed = killed_at_every_step(few / "base", few / "runs", bad.parent, "--retry-failed")
    assert len(killed) >= 8
    for root in killed:
        ingest(manifest, root, retry)
        assert contents(root) == contents(few / "clean"), root


def test_killed_at_every_step_of_making_shards_anew(few: Path) -> None:
    options = replace(OPTIONS, clips_per_shard=1)
    manifest = unlabelled(few / "first" / "few")
    ingest(manifest, few / "clean", options)
    base = Path(shutil.copytree(few / "clean", few / "base"))
    for name in ("few-000000.tar", "few-000001.parquet"):
        (base / "shards" / name).unlink()
    killed = killed_at_every_step(base, few / "runs", few / "first" / "few", "--clips-per-shard", "1")
    assert len(killed) == 4  # a tar and its sidecar, twice
    for root in killed:
        ingest(manifest, root, options)
        assert contents(root) == contents(few / "clean"), root


def test_an_index_of_a_close_that_was_killed_is_not_believed(few: Path) -> None:
    """The shards that it names weren't published, and may since have been made again."""
    first, second = (unlabelled(few / name / "few") for name in ("first", "second"))
    bad = few / "second" / "few" / "e.wav"
    bad.write_text("no audio")
    second = unlabelled(bad.parent)
    append = replace(OPTIONS, append=True)
    ingest(first, few / "store", OPTIONS)
    before = (few / "store" / "store.json").read_bytes()
    ingest(second, few / "store", append)
    parts = json.loads((few / "store" / "store.json").read_text())["parts"]
    killed = {**json.loads(before), "parts": parts}
    (few / "store" / "store.json").write_text(json.dumps(killed, indent=1) + "\n")
    write_sound(bad)
    store = ingest(second, few / "store", replace(append, retry_failed=True))
    assert [snapshot.num_clips for snapshot in store.snapshots] == [2, 5]
    assert store.snapshots[1].fingerprint == fingerprint(few / "store", store.snapshots[1])
    assert index_of(few / "store").table["ok"].to_pylist() == [True] * 5
    assert_sums(few / "store")
