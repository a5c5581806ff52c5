"""Joining a cluster: what is wrong with it is one line within seconds; what is sent there and back is small."""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ingest import cluster
from ingest.cluster import start_ray
from ingest.layout import Part, StoreFile
from ingest.shards import ShardTask, write_shard
from ingest.sources import SourceFile
from manifests.audioset import audioset_vocabulary
from manifests.clips import Clip
from manifests.errors import InputError
from manifests.geometry import FbankSpec, HogSpec


def test_what_passes_the_driver_is_small(corpus_task: ShardTask) -> None:
    """A thousand clips of AudioSet go to a worker; reports of all of them, each one failed, come back."""
    reports = list(write_shard(corpus_task))
    assert sum(report.num_done for report in reports) == 1000
    assert sum(len(report.failures) for report in reports) == 1000
    assert len(pickle.dumps(corpus_task)) < 300_000
    assert sum(len(pickle.dumps(report)) for report in reports) < 300_000


@pytest.fixture
def corpus_task(tmp_path: Path) -> ShardTask:
    clips = tuple(Clip(f"as_{n:011}_000030000", f"{n:011}", 30_000, 40_000, ("/m/09x0r",)) for n in range(1000))
    store = StoreFile(
        dataset="audioset",
        clips_per_shard=1000,
        seed=0,
        keep_audio=False,
        drop_silent=False,
        fbank=FbankSpec(),
        hog=HogSpec(),
        vocabulary=audioset_vocabulary(),
        versions={},
        parts=(Part(num_clips_asked=1000, manifest_sha256="0" * 64, wanted_sha256="0" * 64),),
    )
    sources = tuple(SourceFile("/data/audioset/raw", f"3f0a/{clip.source}.webm", None) for clip in clips)
    return ShardTask(str(tmp_path), store, 0, "0" * 64, clips, sources)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1 .*refused.*; start one with `ray start --head`"),
        ("nonsense", "no Ray cluster answers at nonsense .*Invalid address"),
        ("127.0.0.1:x", "no Ray cluster answers at 127.0.0.1:x .*port"),
        ("ray://127.0.0.1:10001", "is an address of Ray's dashboard or of Ray Client"),
    ],
)
def test_no_cluster_at_the_address(address: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        start_ray(None, address)


def test_something_else_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_LIMIT_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=f"what listens at {address} doesn't answer as a Ray cluster does"):
            start_ray(None, address)


def test_a_cluster_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ray.exceptions.RaySystemError("Failed to connect to GCS.\nSee the logs.")

    monkeypatch.setattr(cluster, "_check", lambda _: None)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError, match=r"at h:1 answered, and then didn't \(.*connect to GCS\.\); see `ray"):
        start_ray(None, "h:1")


JOIN = """
import sys
from ingest import cluster
cluster.CONNECT_LIMIT_S = float(sys.argv[2])
ray = cluster.start_ray(None, sys.argv[1])


def count():
    yield 1
    yield 2


print([ray.get(one) for one in ray.remote(count).remote()])
"""


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    """The environment of a user who has a token, as everybody has who ever ran a Ray of their own."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    unset = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")
    return {name: value for name, value in os.environ.items() if name not in unset} | {"HOME": str(tmp_path)}


@pytest.fixture
def address(user: dict[str, str], request: pytest.FixtureRequest) -> Iterator[str]:
    """A cluster that this user started, with a token or without."""
    environment = user | {"RAY_AUTH_MODE": "token" if request.param else "disabled"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    head = [str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={address.rpartition(':')[2]}"]
    head += ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--include-dashboard=false", "--block"]
    # Paths of sockets may not be long.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        head += [f"--temp-dir={folder}", "--object-store-memory=80000000"]
        with subprocess.Popen(head, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as cluster:
            try:
                _wait_until_open(address)
                yield address
            finally:
                cluster.terminate()


def _wait_until_open(address: str) -> None:
    host, _, port = address.rpartition(":")
    for _ in range(120):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
            return
        time.sleep(0.5)
    raise TimeoutError(f"no cluster came up at {address}")


@pytest.mark.skipif(" " in sys.executable, reason="`ray start` can't do with a space in its path")
@pytest.mark.parametrize("address", [False], indirect=True)
def test_a_user_with_a_token_at_a_cluster_without(address: str, user: dict[str, str]) -> None:
    """Shown to such a cluster, the token would be asked of its workers, and what they stream be turned away."""
    join = [sys.executable, "-c", JOIN, address]
    done = subprocess.run([*join, "60"], env=user, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[1, 2]\n", done.stderr


@pytest.mark.skipif(" " in sys.executable, reason="`ray start` can't do with a space in its path")
@pytest.mark.parametrize("address", [True], indirect=True)
def test_cluster_with_a_token(address: str, user: dict[str, str]) -> None:
    """As `ray start` makes one wherever there is a token: it takes those alone who show it."""
    join = [sys.executable, "-c", JOIN, address]
    done = subprocess.run([*join, "60"], env=user, capture_output=True, text=True)
    assert done.stdout == "[1, 2]\n", done.stderr
    stranger = user | {"RAY_AUTH_TOKEN": "f" * 64}
    refused = subprocess.run([*join, "10"], env=stranger, capture_output=True, text=True)
    assert refused.returncode == 1
    assert f"InputError: what listens at {address} doesn't answer as a Ray cluster does" in refused.stderr
    assert "If it asks for a token, put that into ~/.ray/auth_token or RAY_AUTH_TOKEN" in refused.stderr
