"""The queue of downloads, with a clock that the test turns; and the worker's part of it, with real downloads."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ingest.download import DownloadRequest
from ingest.fetching import (
    Fetcher,
    FetchOptions,
    FetchOutcome,
    FetchTask,
    fetch_recording,
    remove_scratch,
    stop_downloads,
)
from ingest.ledger import TRANSIENT, Reason
from ingest.location import LocalFolder
from ingest.rawcache import RawCache
from ingest.throttle import BlockGuard
from manifests.errors import InputError
from tests.ingest.badserver import BadServer

A, B, C, D = (letter * 11 for letter in "ABCD")
NO_LIMIT = FetchOptions(source="http://host/{id}.m4a", rate_per_hour=math.inf)
NOW = 1_700_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(tmp_path: Path) -> RawCache:
    return RawCache(LocalFolder(tmp_path / "raw"))


def add(cache: RawCache, *recordings: str) -> None:
    media = Path(str(cache.location)).parent / "media.m4a"
    for recording in recordings:
        media.write_bytes(b"sound")
        cache.add(recording, media, "140")


def due(fetcher: Fetcher) -> list[str]:
    return [task.recording for task in fetcher.due()]


def failed(recording: str, reason: Reason, retry_after_s: float | None = None) -> FetchOutcome:
    return FetchOutcome(recording, 0, reason, "why", retry_after_s)


def done(fetcher: Fetcher, cache: RawCache, recording: str) -> None:
    add(cache, recording)
    fetcher.finished(FetchOutcome(recording, num_bytes=5))


def test_what_is_asked_of_a_worker(cache: RawCache, tmp_path: Path) -> None:
    options = FetchOptions("http://host/{id}.m4a", math.inf, 1, 12.0, tmp_path / "cookies.txt")
    fetcher = Fetcher(cache, options)
    assert fetcher.ask(["-_ 1"]) == {"-_ 1"}
    request = DownloadRequest("http://host/-_%201.m4a", 12.0, cookies=tmp_path / "cookies.txt")
    assert fetcher.due() == [FetchTask("-_ 1", str(tmp_path / "raw"), request)]
    youtube = Fetcher(cache, FetchOptions(rate_per_hour=math.inf))
    youtube.ask([A])
    assert youtube.due()[0].request.url == f"https://www.youtube.com/watch?v={A}"


def test_a_recording_is_fetched_once_however_many_want_it(cache: RawCache, clock: Clock) -> None:
    wanted = {0: [A, B, A], 1: [B, C], 2: []}
    fetcher = Fetcher(cache, NO_LIMIT, clock=clock)
    assert [fetcher.settled(shard, wanted.__getitem__) for shard in (0, 1, 2)] == [False, False, True]
    assert due(fetcher) == [A, B, C]
    done(fetcher, cache, B)
    assert [fetcher.settled(shard, wanted.__getitem__) for shard in (0, 1)] == [False, False]
    done(fetcher, cache, A)
    assert [fetcher.settled(shard, wanted.__getitem__) for shard in (0, 1)] == [True, False]
    fetcher.finished(failed(C, Reason.REMOVED))
    assert fetcher.settled(1, wanted.__getitem__)
    assert (due(fetcher), fetcher.num_fetched, fetcher.num_failed) == ([], 2, 1)
    assert fetcher.note == "2 fetched, 1 not to be had"
    assert fetcher.last_failure == f"{C}: removed, why"
    assert fetcher.ask([A, B, C]) == set()


def test_what_is_known_is_not_asked_for_again(cache: RawCache, clock: Clock) -> None:
    add(cache, A)
    for reason in Reason:
        cache.fail(reason.value, reason, "why")
    everything = [A, *(reason.value for reason in Reason)]
    assert Fetcher(cache, NO_LIMIT, clock=clock).ask(everything) == {reason.value for reason in TRANSIENT}
    again = Fetcher(cache, NO_LIMIT, clock=clock, retry_failed=True)
    assert again.ask(everything) == {reason.value for reason in Reason}


def test_what_was_dropped_after_use_is_fetched_again(cache: RawCache, clock: Clock) -> None:
    add(cache, A)
    cache.drop(A)
    assert Fetcher(cache, NO_LIMIT, clock=clock).ask([A]) == {A}


def test_starts_keep_to_the_rate_and_to_so_many_at_a_time(cache: RawCache, clock: Clock) -> None:
    fetcher = Fetcher(cache, FetchOptions("http://host/{id}", 300.0, num_parallel=2), clock=clock)
    assert fetcher.wait_s() == math.inf
    fetcher.ask([A, B, C, D])
    assert (fetcher.wait_s(), due(fetcher), fetcher.wait_s()) == (0, [A], 12)
    clock.now += 5
    assert (due(fetcher), fetcher.wait_s()) == ([], 7)
    clock.now += 7
    assert due(fetcher) == [B]
    clock.now += 60
    assert due(fetcher) == []  # two are under way
    done(fetcher, cache, B)
    assert due(fetcher) == [C]  # and none of the time that passed is caught up with
    done(fetcher, cache, A)
    assert due(fetcher) == []
    clock.now += 12
    assert due(fetcher) == [D]


@pytest.mark.parametrize("reason", sorted(TRANSIENT - {Reason.RATE_LIMITED}))
def test_what_may_pass_is_tried_four_times_with_longer_and_longer_waits(
    cache: RawCache, clock: Clock, reason: Reason
) -> None:
    fetcher = Fetcher(cache, NO_LIMIT, clock=clock)
    fetcher.ask([A])
    waits = []
    for _ in range(3):
        assert due(fetcher) == [A]
        fetcher.finished(failed(A, reason))
        assert fetcher.ask([A]) == {A}
        waits.append(fetcher.wait_s())
        clock.now += waits[-1] - 0.01
        assert due(fetcher) == []
        clock.now += 0.02
    assert all(low <= wait <= 2 * low for wait, low in zip(waits, (2.5, 5, 10), strict=True))
    assert due(fetcher) == [A]
    fetcher.finished(failed(A, reason))
    assert (fetcher.ask([A]), fetcher.num_failed) == (set(), 1)
    entry = cache.find(A)
    assert entry is not None
    assert (entry.reason, entry.detail) == (reason, "why")
    assert Fetcher(cache, NO_LIMIT, clock=clock).ask([A]) == {A}  # and once more in a later run


def test_one_that_waits_lets_others_pass(cache: RawCache, clock: Clock) -> None:
    fetcher = Fetcher(cache, FetchOptions("http://host/{id}", math.inf, num_parallel=1), clock=clock)
    fetcher.ask([A, B])
    assert due(fetcher) == [A]
    fetcher.finished(failed(A, Reason.NETWORK, retry_after_s=100.0))
    assert due(fetcher) == [B]
    done(fetcher, cache, B)
    assert (due(fetcher), fetcher.wait_s()) == ([], 100)
    clock.now += 100
    assert due(fetcher) == [A]


def test_nothing_is_due_while_enough_are_under_way(cache: RawCache, clock: Clock) -> None:
    """Who waits for news sleeps until some come."""
    fetcher = Fetcher(cache, NO_LIMIT, clock=clock)
    fetcher.ask([A, B, C, D])
    assert due(fetcher) == [A, B, C]
    assert fetcher.wait_s() == math.inf
    done(fetcher, cache, B)
    assert fetcher.wait_s() == 0
    assert due(fetcher) == [D]


def test_a_block_pauses_everything_and_costs_no_try(cache: RawCache, clock: Clock) -> None:
    fetcher = Fetcher(cache, NO_LIMIT, clock=clock)
    fetcher.ask([A, B, C, D])
    assert due(fetcher) == [A, B, C]
    fetcher.finished(failed(A, Reason.RATE_LIMITED))
    fetcher.finished(failed(B, Reason.RATE_LIMITED))  # under way when the pause began
    assert (due(fetcher), fetcher.wait_s()) == ([], 15 * 60)
    assert "; blocked, paused until 20" in fetcher.note
    done(fetcher, cache, C)
    # A later run respects the pause.
    later = Fetcher(cache, NO_LIMIT, clock=clock)
    later.ask([D])
    assert (due(later), later.wait_s()) == ([], 15 * 60)
    clock.now += 15 * 60
    assert "blocked" not in fetcher.note
    assert due(fetcher) == [D, A, B]
    fetcher.finished(failed(A, Reason.RATE_LIMITED, retry_after_s=7200.0))
    assert fetcher.wait_s() == 7200
    assert fetcher.num_failed == 0
    for recording in (B, D):
        done(fetcher, cache, recording)
    clock.now += 7200
    assert due(fetcher) == [A]


def test_a_server_that_goes_on_refusing_ends_the_run(cache: RawCache, clock: Clock) -> None:
    fetcher = Fetcher(cache, NO_LIMIT, clock=clock)
    recordings = [f"{number:011}" for number in range(24)]
    fetcher.ask(recordings)
    pauses = []
    for number in range(BlockGuard.MAX_BLOCKS):
        asked = due(fetcher)
        assert asked == recordings[3 * number : 3 * number + 3]
        for recording in asked:
            fetcher.finished(failed(recording, Reason.RATE_LIMITED))
        pauses.append(fetcher.wait_s() / 60)
        clock.now += fetcher.wait_s()
    assert pauses == [15, 30, 60, 120, 240, 360, 360, 360]
    with pytest.raises(InputError, match=r"the server has refused 8 times in a row, .*; what was fetched is kept"):
        fetcher.due()
    assert not any(map(cache.find, recordings))


def test_a_recording_that_is_always_refused_is_given_up(cache: RawCache, clock: Clock) -> None:
    """Others pass: so it has to do with this one, which waits for no later run to come to its end."""
    fetcher = Fetcher(cache, NO_LIMIT, clock=clock)
    fetcher.settled(0, lambda shard: [A, B, C, D])
    tries = []
    while not fetcher.settled(0, lambda shard: []):
        for recording in due(fetcher):
            tries.append(recording)
            if recording == A:
                fetcher.finished(failed(A, Reason.RATE_LIMITED))
            else:
                done(fetcher, cache, recording)
        clock.now += fetcher.wait_s() if fetcher.wait_s() < math.inf else 0
    assert tries == [A, B, C, D, A, A]
    entry = cache.find(A)
    assert entry is not None
    assert entry.reason is Reason.RATE_LIMITED
    assert (fetcher.num_fetched, fetcher.num_failed, fetcher.is_idle) == (3, 1, True)


def test_downloads_are_dropped_after_their_last_use(cache: RawCache, clock: Clock) -> None:
    wanted = {0: [A, B], 1: [B, C]}
    add(cache, A, B, C)
    no_raw = FetchOptions("http://host/{id}", keep_raw=False)
    fetcher = Fetcher(cache, no_raw, num_uses={A: 1, B: 2, C: 1}, clock=clock)
    kept = []
    for shard in (0, 1):
        assert fetcher.settled(shard, wanted.__getitem__)
        fetcher.shard_done(shard)
        kept.append([name for name in (A, B, C) if (entry := cache.find(name)) and entry.file])
    assert kept == [[B, C], []]
    add(cache, A)
    keeping = Fetcher(cache, NO_LIMIT, num_uses={A: 1}, clock=clock)
    assert keeping.settled(0, lambda shard: [A])
    keeping.shard_done(0)
    entry = cache.find(A)
    assert entry is not None
    assert entry.file is not None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> BadServer:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return BadServer({f"{A}.m4a": bytes(range(256)) * 9, f"{B}.m4a": bytes(range(256)) * 50})


def test_a_worker_s_part(server: BadServer, tmp_path: Path) -> None:
    """Downloads on another thread, as the executor does; then one that would never end is ended."""
    raw = LocalFolder(tmp_path / "raw")

    def task(recording: str, behaviour: str) -> FetchTask:
        url = f"{server.url}/{behaviour}/{recording}.m4a"
        return FetchTask(recording, str(raw), DownloadRequest(url, time_limit_s=60.0))

    with server, ThreadPoolExecutor(1) as pool:
        assert pool.submit(fetch_recording, task(A, "good")).result() == FetchOutcome(A, num_bytes=256 * 9)
        gone = pool.submit(fetch_recording, task(C, "good")).result()
        assert (gone.recording, gone.reason, gone.detail) == (C, Reason.REMOVED, "HTTP status 404 Not Found")
        server.retry_after = "77"
        busy = pool.submit(fetch_recording, task(D, "busy")).result()
        assert (busy.reason, busy.retry_after_s) == (Reason.RATE_LIMITED, 77.0)
        slow = pool.submit(fetch_recording, task(B, "slow"))
        while not any("slow" in path for path in server.asked):
            time.sleep(0.01)
        started = time.monotonic()
        stop_downloads([slow])
        assert time.monotonic() - started < 5.0
        assert slow.result().reason is Reason.DOWNLOADER
    entry = RawCache(raw).find(A)
    assert entry is not None
    assert (raw.folder / str(entry.file)).read_bytes() == server.files[f"{A}.m4a"]
    # Nothing half-done is left, but for the record and the file of the one.
    assert [path.suffix for path in sorted((tmp_path / "raw").rglob("*")) if path.is_file()] == [".json", ".m4a"]
    assert not list((tmp_path / "raw").glob(".fetch-*"))


def test_scratch_of_killed_downloads_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".fetch-abc").mkdir()
    (tmp_path / ".fetch-abc" / "media.part").write_bytes(b"half")
    (tmp_path / "3f0a").mkdir()
    remove_scratch(LocalFolder(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["3f0a"]
