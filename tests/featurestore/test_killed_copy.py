"""A copy that is killed at any moment goes on to the same bytes, and its half never passes for whole."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from featurestore.build import build_teacher
from featurestore.copying import Choice
from featurestore.selection import choose_rows
from featurestore.store import Store
from featurestore.verify import verify
from ingest.location import LocalFolder
from tests.featurestore.noisestores import a_fixture, all_of, b_fixture, copy, files  # noqa: F401

# Forks copies from one interpreter, each of which ends, as if killed, at its n-th change of the target: before a file
# is renamed into its place, one is deleted, or a chunk of a teacher's is written. When one has come to its end, further
# ones are killed after some time.
COPIES_THAT_END_EARLY = """
import os, signal, sys, time
from pathlib import Path
import featurestore.cli, ingest.atomic, ingest.location
from featurestore.teachercache import TeacherCache
work = Path(sys.argv[1])
arguments = sys.argv[2:]
steps_left = 0

def step():
    global steps_left
    steps_left -= 1
    if steps_left == 0:
        os._exit(9)

def step_after_a_file(path):
    if path.is_file():
        step()

delete, write = ingest.location.LocalFolder.delete, TeacherCache.write
def step_and_delete(location, name):
    if location.exists(name):
        step()
    delete(location, name)
def step_and_write(*arguments):
    step()
    write(*arguments)

ingest.atomic._sync, ingest.location.LocalFolder.delete = step_after_a_file, step_and_delete
TeacherCache.write = step_and_write

def start(name, num_steps):
    global steps_left
    child = os.fork()
    if child == 0:
        steps_left = num_steps
        sys.argv = ["featurestore", *arguments, "--to", str(work / name)]
        featurestore.cli.main()
        os._exit(0)
    return child

code, number = 9, 0
while code == 9:
    number += 1
    code = os.waitstatus_to_exitcode(os.waitpid(start(str(number), number), 0)[1])
assert code == 0, code
for milliseconds in (20, 60, 120, 200, 300):
    child = start(f"after {milliseconds} ms", -1)
    time.sleep(milliseconds / 1000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(number - 1)
"""


def test_killed_at_every_step(a: Store, b: Store, fbank_stats: Any, tmp_path: Path) -> None:
    one = copy([Choice(a, choose_rows(a, split="eval"))], tmp_path / "one", "one")
    other = copy([Choice(b, choose_rows(b, split="eval"))], tmp_path / "other", "other")
    for store in (one, other):
        build_teacher(store, fbank_stats(), "one", with_tokens=True)
    clean = files(copy(all_of(one, other), tmp_path / "clean").root)
    arguments = [str(tmp_path / "runs"), "merge", str(one.root), str(other.root), "--name", "copy"]
    (tmp_path / "runs").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", COPIES_THAT_END_EARLY, *arguments], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    num_steps = int(done.stdout.split()[-1])
    # manifest, store.json, tars and sidecars, what closes and describes the store, the cache's chunks and checksums
    assert num_steps == 2 + 2 * 2 + 4 + 5 + 2 + 1
    num_whole = 0
    for root in (tmp_path / "runs" / str(number) for number in range(1, num_steps + 1)):
        if int(root.name) % 3 == 0 and (root / "teachers/one.zarr").exists():
            # As zarr leaves it when it is killed in the middle of a chunk.
            (root / "teachers/one.zarr/embedding/c/0/0.0123456789abcdef.partial").write_bytes(b"piece")
        if (root / "store.json").exists() and json.loads((root / "store.json").read_text())["snapshots"]:
            # What passes for whole is: only the teachers' caches may still lack.
            assert [problem for problem in verify(LocalFolder(root)) if "teachers/" not in problem.where] == []
            num_whole += 1
        assert files(copy(all_of(one, other), root).root) == clean, root.name
    assert num_whole == 3
    for root in (tmp_path / "runs").glob("after*"):
        assert files(copy(all_of(one, other), root).root) == clean, root.name
