"""Ray and the process itself give the same bytes; Ray's troubles are one line."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ingest import executor
from ingest.download import DownloadRequest
from ingest.executor import Executor, ShardDone, in_process, on_ray
from ingest.fetching import FetchOutcome, FetchTask
from ingest.job import ingest
from ingest.layout import Part, StoreFile
from ingest.pipeline import Work, run_pipeline
from ingest.plan import IngestOptions
from ingest.shards import ShardProgress, ShardTask
from manifests.clips import Manifest
from manifests.errors import InputError
from manifests.geometry import FbankSpec, HogSpec
from manifests.vocabulary import Vocabulary
from tests.ingest.stores import contents
from tests.oneray import RAYS_WARNINGS, one_ray_for

pytestmark = RAYS_WARNINGS


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    """Starts Ray once for all tests here; on_ray finds it running and leaves it so."""
    with one_ray_for(executor):
        yield


def test_the_number_of_threads_changes_nothing(corpus: Manifest, store_root: Path, tmp_path: Path) -> None:
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        root = tmp_path / str(num_threads)
        ingest(corpus, root, IngestOptions(256, 5, num_workers=0))
        assert torch.get_num_threads() == num_threads
        assert contents(root) == contents(store_root)


@pytest.mark.usefixtures("one_ray")
def test_two_workers_give_the_same_bytes(
    corpus: Manifest, store_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest(corpus, tmp_path, IngestOptions(256, 5, num_workers=2))
    assert contents(tmp_path) == contents(store_root)
    assert "12/12 clips" in capsys.readouterr().err


@pytest.mark.usefixtures("one_ray")
def test_a_disk_error_in_a_worker_is_one_line(corpus: Manifest, tmp_path: Path) -> None:
    (tmp_path / "shards" / "tiny-000001.tar" / "x").mkdir(parents=True)
    with pytest.raises(InputError, match="can't be written: Is a directory; what was finished is kept") as caught:
        ingest(corpus, tmp_path, IngestOptions(256, 5, num_workers=2))
    assert "\n" not in str(caught.value)


def _die_once(task: ShardTask) -> Iterator[ShardProgress]:
    """Dies on its first try at shard 1, after a report."""
    yield ShardProgress(task.shard, 1, ())
    mark = Path(task.location) / "died"
    if task.shard == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield ShardProgress(task.shard, 4, ())


def _die_always(task: ShardTask) -> Iterator[ShardProgress]:
    yield ShardProgress(task.shard, 1, ())
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(task: ShardTask) -> Iterator[ShardProgress]:
    yield ShardProgress(task.shard, 1, ())
    raise InputError(f"shard {task.shard} can't be made")


def _count(task: ShardTask) -> Iterator[ShardProgress]:
    yield ShardProgress(task.shard, 1, ())
    yield ShardProgress(task.shard, 4, ())


def _fetch(task: FetchTask) -> FetchOutcome:
    if task.recording == "full":
        raise OSError(28, "No space left on device")
    return FetchOutcome(task.recording, num_bytes=len(task.recording))


def task_of(root: Path, shard: int) -> ShardTask:
    store = StoreFile(
        dataset="s",
        clips_per_shard=5,
        seed=0,
        keep_audio=False,
        fbank=FbankSpec(),
        hog=HogSpec(),
        vocabulary=Vocabulary(),
        versions={},
        parts=(Part(num_clips_asked=20, manifest_sha256="", wanted_sha256=""),),
    )
    return ShardTask(str(root), store, shard, "", (), ())


def fetch_of(recording: str) -> FetchTask:
    return FetchTask(recording, "raw", DownloadRequest("http://host/x"))


def made(executor: Executor, root: Path, num_shards: int) -> list[ShardProgress]:
    work = Work(range(num_shards), lambda shard: task_of(root, shard), lambda shard: [])
    return [report for report in run_pipeline(work, executor, None) if report is not None]


@pytest.mark.usefixtures("one_ray")
def test_a_worker_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_write_shard_on_one_thread", _die_once)
    with on_ray(2, None, 1) as on_two:
        reports = made(on_two, tmp_path, 4)
    assert (tmp_path / "died").exists()
    assert sum(report.num_done for report in reports) == 20
    assert {report.shard for report in reports} == {0, 1, 2, 3}


@pytest.mark.usefixtures("one_ray")
def test_a_worker_that_always_dies_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_write_shard_on_one_thread", _die_always)
    monkeypatch.setattr(executor, "MAX_RETRIES", 1)
    with (
        pytest.raises(InputError, match=r"a worker process died again and again \(WorkerCrashedError\)") as caught,
        on_ray(2, None, 1) as on_two,
    ):
        made(on_two, tmp_path, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("where", ["here", "ray"])
def test_a_task_s_own_error_comes_out_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(executor, "_write_shard_on_one_thread", _fail)
    opened = in_process(1) if where == "here" else on_ray(2, None, 1)
    with pytest.raises(InputError, match=r"^shard 0 can't be made$"), opened as worker:
        made(worker, tmp_path, 1)


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("where", ["here", "ray"])
def test_downloads_are_reported_beside_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(executor, "_write_shard_on_one_thread", _count)
    monkeypatch.setattr(executor, "fetch_recording", _fetch)
    with in_process(2) if where == "here" else on_ray(2, None, 2) as worker:
        for shard in (0, 1):
            worker.submit_shard(task_of(tmp_path, shard))
        for recording in ("a", "bb", "ccc"):
            worker.submit_fetch(fetch_of(recording))
        events: list[object] = []
        while len(events) < 9:
            events += worker.wait(10.0)
        of_shards = [[event for event in events if getattr(event, "shard", None) == shard] for shard in (0, 1)]
        for shard in (0, 1):
            assert of_shards[shard] == [ShardProgress(shard, 1, ()), ShardProgress(shard, 4, ()), ShardDone(shard)]
        fetched = {event for event in events if isinstance(event, FetchOutcome)}
        assert fetched == {FetchOutcome(name, num_bytes=len(name)) for name in ("a", "bb", "ccc")}
        assert worker.wait(0.01) == []
        worker.submit_fetch(fetch_of("full"))
        with pytest.raises(OSError, match="No space left on device"):
            list(iter(lambda: worker.wait(1.0), None))


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("where", ["here", "ray"])
def test_with_nothing_to_wait_for_time_passes(where: str) -> None:
    """Or else a pause of the limiter would keep a core busy."""
    with in_process(1) if where == "here" else on_ray(2, None, 1) as worker:
        start_s = time.monotonic()
        assert worker.wait(0.2) == []
        assert time.monotonic() - start_s >= 0.19


def test_shards_are_made_one_after_the_other_and_tasks_only_as_they_are_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def task(shard: int) -> ShardTask:
        asked.append(shard)
        return task_of(tmp_path, shard)

    monkeypatch.setattr(executor, "write_shard", lambda task: iter([ShardProgress(task.shard, 5, ())]))
    with in_process(1) as here:
        work = Work(range(5), task, lambda shard: [])
        seen = [(report.shard, list(asked)) for report in run_pipeline(work, here, None) if report]
    assert seen == [(0, [0, 1]), (1, [0, 1, 2]), (2, [0, 1, 2, 3]), (3, [0, 1, 2, 3, 4]), (4, [0, 1, 2, 3, 4])]
