"""The tutorials, followed to the letter: each command is run, in order, in a folder of its own.

What a test can't have is replaced word by word, and listed here: sizes of models, a bucket's name, a cluster, weights.
Buckets are those of an S3 server on this machine, and what is fetched from the corpora's sites comes from a proxy here.
"""

import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ingest.location import open_location
from tests.docs.commands import PROGRAMS, TREE, code_blocks
from tests.s3server import s3_fixture, s3_server_fixture  # noqa: F401
from tests.smallmodel import SMALL_MODEL

TUTORIALS = TREE / "docs" / "tutorials"
RATE_HZ = 16_000
PRESET = f"""
source = "a test"
{SMALL_MODEL}
[multissl.optimiser]
epochs = 1
batch_size = 4
peak_lr = 1e-3
[distill]
teacher = "none"
[distill.optimiser]
epochs = 1
batch_size = 4
peak_lr = 1e-3
"""
Replacements = Sequence[tuple[str, str]]
# `--preset tiny` is a file of that name, so that the run's folder keeps its name.
SMALL = [("--preset tiny", "--preset tiny.toml"), ("--preset base", "--preset base.toml")]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to work in, which is ~ as well, with presets of a model of width 16."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("tiny.toml", "base.toml"):
        (tmp_path / name).write_text(PRESET)
    return tmp_path


def write_sound(path: Path, seed: int, hertz: float, duration_s: float = 1.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(int(duration_s * RATE_HZ)) / RATE_HZ
    noise = 0.05 * np.random.default_rng(seed).standard_normal(time_s.size)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * time_s) + noise, RATE_HZ)


def write_birds(home: Path) -> None:
    for place, name in enumerate(("blackbird", "robin", "wren")):
        for number in range(10):
            write_sound(home / "birds" / name / f"{number:02d}.wav", number, 500.0 + 700 * place)
    write_sound(home / "new.wav", 99, 1200.0, 7.0)


def run_line(line: str, codes: Sequence[int] = (0,), **more: str) -> str:
    """Runs a line of a page's shell block as the shell would, to one of those exit codes; returns what it prints."""
    words = [str(Path(word).expanduser()) if word[0] == "~" else word for word in shlex.split(line, comments=True)]
    if words[0] in PROGRAMS:
        words = [sys.executable, "-m", *words]
    elif words[0] == "torchrun":
        words = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    elif words[0] == "python":
        words[0] = sys.executable
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "200", **more}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode in codes, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def follow(page: Path, replacements: Replacements, run: Callable[[str], str] = run_line) -> dict[str, str]:
    """Writes the files that a page shows (their names are in their first lines) and runs its commands, in its order."""
    said = {}
    for kind, content in code_blocks(page):
        if kind == "csv":
            Path("clips.csv").write_text(content)
            continue
        if kind != "sh":
            name = content.splitlines()[0].removeprefix("#").strip()
            Path(name).write_text(content)
            continue
        for line in content.splitlines():
            replaced = line
            for old, new in replacements:
                replaced = replaced.replace(old, new)
            said[line] = run(replaced)
    return said


@contextmanager
def proxy_for(files: dict[str, bytes]) -> Iterator[str]:
    """The address of a proxy that gives these files by the last part of their addresses, whatever their host."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

        def do_GET(self) -> None:
            body = files.get(self.path.rpartition("/")[2])
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_own_folder(home: Path) -> None:
    write_birds(home)
    said = follow(TUTORIALS / "own-folder.md", [("--num-frames 512", "--num-frames 256 --workers 0"), *SMALL])
    (tags,) = {out for line, out in said.items() if line.startswith("training predict ~/new.wav --model birds-model")}
    assert any(name in tags for name in ("blackbird", "robin", "wren"))
    assert (home / "birds-page" / "index.html").exists()
    assert (home / "runs" / "birds-tiny" / "report" / "index.html").exists()
    assert len((home / "tags.csv").read_text().splitlines()) == 1 + 30 * 3  # a row a file and label
    assert (home / "birds.parquet").exists()


def test_audioset(home: Path, shared: Path, s3: str) -> None:
    ids = [f"{letter * 10}{number}" for letter in "abc" for number in range(4)]
    for place, video in enumerate(ids):
        write_sound(home / "recordings" / f"{video}.wav", place, 300.0 * (1 + place % 3))
    header = "# one\n# two\n# YTID, start_seconds, end_seconds, positive_labels\n"
    mids = ("/m/09x0r", "/m/04rlf", "/m/0jbk")
    rows = [f'{video}, 0.000, 1.500, "{mids[place % 3]}"\n' for place, video in enumerate(ids)]
    parts = {"balanced_train": rows[:4], "unbalanced_train": rows[4:8], "eval": rows[8:]}
    lists = {f"{name}_segments.csv": (header + "".join(part)).encode() for name, part in parts.items()}
    lists["class_labels_indices.csv"] = (TREE / "manifests" / "audioset_labels.csv").read_bytes()
    replacements = [
        ("s3://bucket/audioset", f"{s3}/audioset"),
        ("--ray-address HEAD:6379", "--workers 0"),
        ("--source /datasets/audioset", f"--source {home}/recordings --num-frames 256 --workers 0"),
        (f"--workers 0 --store {s3}/audioset --workers 0", f"--workers 0 --store {s3}/audioset"),
        ("BEATs_iter3_plus_AS2M.pt", str(shared / "golden" / "beats_tiny.pt")),
        ("/shared/runs", f"{home}/runs"),
        ("--nproc-per-node 8", "--nproc-per-node 2"),
        ("ingest doctor --store", "ingest doctor --no-ray --store"),
        *SMALL,
    ]

    with proxy_for(lists) as proxy:

        def run(line: str) -> str:
            # What fetches from YouTube may be missing here, and the doctor says so.
            codes = (0, 1) if line.startswith("ingest doctor") else (0,)
            return run_line(line, codes, http_proxy=proxy, no_proxy="127.0.0.1")

        said = follow(TUTORIALS / "audioset-cluster.md", replacements, run)
    assert open_location(f"{s3}/audioset/lists").files() == sorted(lists)
    assert any("4 of 4" in out for line, out in said.items() if line.startswith("training eval"))


def test_distil_beats(home: Path, shared: Path) -> None:
    write_birds(home)
    names = [f"{name}/{number:02d}.wav,{name},{number % 5 + 1}" for name in ("robin", "wren") for number in range(10)]
    (home / "birds" / "esc50.csv").write_text("\n".join(["file,label,fold", *names]))
    run_line("ingest folder birds --labels-csv birds/esc50.csv --store data/esc50 --num-frames 256 --workers 0")
    weights = str(shared / "golden" / "beats_tiny.pt")

    def run(line: str) -> str:
        # Weights drawn at random tell sounds apart, but not by their classes, and verify-teacher says so.
        return run_line(line, codes=(1,) if "verify-teacher" in line else (0,))

    small = [("featurestore build-teacher", "featurestore build-teacher --workers 0"), *SMALL]
    said = follow(TUTORIALS / "distil-beats.md", [("BEATs_iter3_plus_AS2M.pt", weights), *small], run)
    assert (home / "compared" / "index.html").exists()
    assert any("linear" in out for line, out in said.items() if line.startswith("featurestore probe"))


def test_add_a_loss(home: Path) -> None:
    """On a copy of the code: the page's patch has to fit it as it is now."""
    write_birds(home)
    run_line("ingest folder birds --store data/birds --num-frames 256 --workers 0")
    for name in ("training", "featurestore", "ingest", "manifests"):
        shutil.copytree(TREE / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    follow(TUTORIALS / "add-a-loss.md", SMALL, partial(run_line, PYTHONPATH=str(home)))
    metrics = (home / "runs" / "variance" / "metrics.jsonl").read_text()
    assert "intra_variance" in metrics
    assert "intra_variance" not in (home / "runs" / "plain" / "metrics.jsonl").read_text()
    assert (home / "compared" / "index.html").exists()


def test_reuse_shards(home: Path) -> None:
    def run(line: str) -> str:
        said = run_line(line)
        if line.startswith("ingest"):
            # As an ingest under way leaves it: no snapshot covers it.
            (home / "data" / "demo" / "shards" / "added-000000.tar").write_bytes(b"not whole")
        return said

    said = follow(TUTORIALS / "reuse-shards.md", [("ingest demo", "ingest demo --num-clips 48 --workers 0")], run)
    assert "(256, 128)" in said["python with_webdataset.py"]
    first, second = said["python with_featurestore.py"].splitlines()
    assert first == "(256, 128) ('siren',) 48"
    assert second.startswith("torch.Size([16, 256, 128]) tensor([")


def test_add_a_corpus(home: Path) -> None:
    for place, name in enumerate(("a", "b")):
        write_sound(home / "tapes" / f"{name}.wav", place, 400.0, 6.0)
    said = follow(
        TUTORIALS / "add-a-corpus.md", [("--store data/storms", "--store data/storms --num-frames 256 --workers 0")]
    )
    assert "3 in shards, 3 asked for" in said["featurestore info data/storms"]
