"""Ray and the process itself give the same bytes; Ray's troubles are one line."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ingest import executor
from ingest.executor import run_in_process, run_on_ray
from ingest.job import IngestOptions, ingest
from ingest.layout import StoreFile
from ingest.shards import ShardProgress, ShardTask
from manifests.clips import Manifest
from manifests.errors import InputError
from manifests.geometry import FbankSpec, HogSpec

# Ray's own: sockets and pipes that it leaves to the garbage collector, and what it deprecates in itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """Starts Ray once for all tests here; run_on_ray finds it running and leaves it so."""
    with pytest.MonkeyPatch.context() as patch:
        ray = executor._start_ray(2)
        shutdown = ray.shutdown
        patch.setattr(executor, "_start_ray", lambda num_workers: ray)
        patch.setattr(ray, "shutdown", lambda: None)
        yield
        shutdown()


def test_the_number_of_threads_changes_nothing(corpus: Manifest, store_root: Path, tmp_path: Path) -> None:
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        root = tmp_path / str(num_threads)
        ingest(corpus, root, IngestOptions(256, 5, num_workers=0))
        assert torch.get_num_threads() == num_threads
        assert files(root) == files(store_root)


@pytest.mark.usefixtures("one_ray")
def test_two_workers_give_the_same_bytes(
    corpus: Manifest, store_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(corpus, tmp_path, IngestOptions(256, 5, num_workers=2))
    assert files(tmp_path) == files(store_root)
    assert "12/12 clips" in capsys.readouterr().err


@pytest.mark.usefixtures("one_ray")
def test_a_disk_error_in_a_worker_is_one_line(corpus: Manifest, tmp_path: Path) -> None:
    (tmp_path / "shards" / "tiny-000001.tar" / "x").mkdir(parents=True)
    with pytest.raises(InputError, match="can't be written: Is a directory; what was finished is kept") as caught:
        ingest(corpus, tmp_path, IngestOptions(256, 5, num_workers=2))
    assert "\n" not in str(caught.value)


def _die_once(task: ShardTask) -> Iterator[ShardProgress]:
    """Dies on its first try at shard 1, after a report."""
    yield ShardProgress(1, ())
    mark = task.store_root / "died"
    if task.shard == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield ShardProgress(4, ())


def _die_always(task: ShardTask) -> Iterator[ShardProgress]:
    yield ShardProgress(1, ())
    os.kill(os.getpid(), signal.SIGKILL)


def tasks_in(root: Path, count: int) -> Iterator[ShardTask]:
    store = StoreFile(
        dataset="s",
        num_clips_asked=5 * count,
        clips_per_shard=5,
        seed=0,
        keep_audio=False,
        manifest_sha256="",
        fbank=FbankSpec(),
        hog=HogSpec(),
        vocabulary={"labels": ()},  # type: ignore[arg-type]
        versions={},
    )
    return (ShardTask(root, root, store, shard, ()) for shard in range(count))


@pytest.mark.usefixtures("one_ray")
def test_a_worker_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_write_shard_on_one_thread", _die_once)
    reports = list(run_on_ray(tasks_in(tmp_path, 4), 2))
    assert (tmp_path / "died").exists()
    assert sum(report.num_done for report in reports) == 20


@pytest.mark.usefixtures("one_ray")
def test_a_worker_that_always_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_write_shard_on_one_thread", _die_always)
    with pytest.raises(InputError, match=r"a worker process died \(WorkerCrashedError\)") as caught:
        list(run_on_ray(tasks_in(tmp_path, 1), 2))
    assert "\n" not in str(caught.value)


def test_tasks_are_drawn_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def tasks() -> Iterator[ShardTask]:
        for task in tasks_in(tmp_path, 3):
            drawn.append(task.shard)
            yield task

    monkeypatch.setattr(executor, "write_shard", lambda task: iter([ShardProgress(task.shard, ())]))
    seen = [(report.num_done, list(drawn)) for report in run_in_process(tasks())]
    assert seen == [(0, [0]), (1, [0, 1]), (2, [0, 1, 2])]
