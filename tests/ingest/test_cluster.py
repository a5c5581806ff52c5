"""Joining a cluster: what is wrong with it is one line within seconds; what is sent there and back is small."""

import pickle
import socket
from pathlib import Path

import pytest

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
