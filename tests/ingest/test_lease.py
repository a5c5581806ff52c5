"""The lock of an object store: one holder, on whatever machine, and none that is dead."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import obstore
import pytest

from ingest import lease
from ingest.lease import LeaseTimes
from ingest.objectclient import Patience, connect
from ingest.objectstore import ObjectFolder
from manifests.errors import InputError
from tests.s3server import (  # noqa: F401
    Fault,
    FlakyProxy,
    S3Server,
    flaky_s3_fixture,
    s3_fixture,
    s3_server_fixture,
)

PATIENCE = Patience(request_s=0.5, total_s=4.0)
# The clock of the store has whole seconds.
TIMES = LeaseTimes(refresh_s=0.3, stale_s=2.0)
HOLDER = """
import sys
from ingest.location import open_location
with open_location(sys.argv[1]).lock("ingest"):
    print("held", flush=True)
    sys.stdin.readline()
"""
# Takes the lock if it can, counts up in a file that has no other protection, and lets go.
CONTENDER = """
import sys, time
from ingest.location import open_location
from manifests.errors import InputError
location = open_location(sys.argv[1])
num_taken = 0
print("ready", flush=True)
sys.stdin.readline()
while num_taken < 5:
    try:
        with location.lock("ingest"):
            count = int(location.read("count"))
            time.sleep(0.02)
            location.write("count", str(count + 1))
            num_taken += 1
    except InputError:
        time.sleep(0.01)
"""


def folder(address: str, times: LeaseTimes = TIMES) -> ObjectFolder:
    return ObjectFolder(address, PATIENCE, times)


@contextmanager
def started(script: str, address: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", script, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def take(location: ObjectFolder, name: str = "") -> None:
    with location.lock("build", name):
        pass


def content(location: ObjectFolder) -> dict[str, object]:
    held: dict[str, object] = json.loads(location.read(".lock"))
    return held


def test_who_holds_it_is_told(s3: str) -> None:
    with started(HOLDER, s3) as process:
        with pytest.raises(
            InputError, match=rf"another build is at work on {s3}: process {process.pid} on .*since 20"
        ) as e:
            take(folder(s3))
        assert "wait for it, or stop it" in str(e.value)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait() == 0
    assert content(folder(s3))["holder"] is None
    take(folder(s3))


def test_a_killed_holder_of_this_machine_is_followed_at_once(s3: str) -> None:
    with started(HOLDER, s3) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = content(folder(s3))
        take(folder(s3, LeaseTimes()))
    assert before["holder"] is not None


def test_a_silent_holder_elsewhere_is_followed_after_its_time(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(HOLDER, s3):
        monkeypatch.setattr(lease, "_machine", lambda: "another")
        with pytest.raises(InputError, match="try again in 2 s"):
            take(folder(s3))
        started_s = time.monotonic()
        # The holder itself refreshes every 30 s only.
        while True:
            try:
                take(folder(s3))
                break
            except InputError:
                assert time.monotonic() - started_s < 10
                time.sleep(0.1)
        assert time.monotonic() - started_s > 1
    assert folder(s3).files() == []


def test_a_holder_that_refreshes_keeps_it(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder(s3).lock("ingest"):
        monkeypatch.setattr(lease, "_machine", lambda: "another")
        before = content(folder(s3))
        time.sleep(3.2)
        with pytest.raises(InputError, match="another build is at work"):
            take(folder(s3))
        after = content(folder(s3))
        assert before["holder"] == after["holder"]
        assert before["write"] != after["write"]


def contend(address: str, num_contenders: int) -> list[str]:
    """How it ended for each of those that want the lock at once; who won holds it until all others have lost."""
    results: list[str] = []
    start, over = threading.Barrier(num_contenders), threading.Event()

    def take_part() -> None:
        location = folder(address)
        start.wait()
        try:
            with location.lock("build"):
                over.wait(10)
                results.append("won")
        except InputError:
            results.append("lost")
            if len(results) == num_contenders - 1:
                over.set()

    threads = [threading.Thread(target=take_part) for _ in range(num_contenders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_two_that_take_over_one_wins(s3: str) -> None:
    with started(HOLDER, s3) as process:
        process.kill()
        process.wait()
    abandoned = folder(s3).read(".lock")
    for _ in range(10):
        folder(s3).write(".lock", abandoned)
        assert contend(s3, num_contenders=4) == ["lost"] * 3 + ["won"]


def test_contending_processes_exclude_each_other(s3: str) -> None:
    folder(s3).write("count", "0")
    with started(CONTENDER, s3) as first, started(CONTENDER, s3) as second:
        for process in (first, second):
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        assert [first.wait(60), second.wait(60)] == [0, 0]
    assert folder(s3).read("count") == b"10"


def hold_and_lose(location: ObjectFolder) -> None:
    with location.lock("ingest"):
        location.write(".lock", json.dumps({"holder": None, "write": "of another"}))
        time.sleep(1)


def test_a_lost_lock_fails_loudly(s3: str) -> None:
    for times in (TIMES, LeaseTimes()):  # noticed by the refresh, and only at the end
        with pytest.raises(OSError, match="this ingest lost its lock"):
            hold_and_lose(folder(s3, times))
        assert content(folder(s3))["write"] == "of another"


def test_an_error_of_the_work_is_not_hidden(s3: str) -> None:
    def work() -> None:
        with folder(s3).lock("ingest"):
            folder(s3).write(".lock", json.dumps({"holder": None, "write": "of another"}))
            raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work") as failed:
        work()
    assert "lost its lock" in failed.value.__notes__[0]


@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.REFUSED, Fault.LOST, Fault.SLOW])
def test_a_bad_network(fault: Fault, flaky_s3: tuple[str, FlakyProxy]) -> None:
    address, proxy = flaky_s3
    location = folder(address)
    for _ in range(2):  # a lock that is new, and one that is there
        proxy.inject(fault, 1, "PUT", delay_s=0.7)
        with location.lock("ingest"):
            proxy.inject(fault, 1, "PUT", delay_s=0.7)
            time.sleep(1)
            with pytest.raises(InputError):
                take(folder(address))
            proxy.inject(fault, 1, "PUT", delay_s=0.7)
        assert proxy.pending() == 0
    take(location)


def test_a_store_that_is_away_for_a_while(flaky_s3: tuple[str, FlakyProxy]) -> None:
    address, proxy = flaky_s3
    with ObjectFolder(address, Patience(request_s=0.2, total_s=0.8), TIMES).lock("ingest"):
        proxy.inject(Fault.BUSY)
        time.sleep(1.5)
        proxy.heal()
    take(folder(address))


def test_no_bucket(s3: str) -> None:
    """In a process of its own, which ends at once and doesn't try for ever."""
    address = f"{s3}-other/store"
    done = subprocess.run([sys.executable, "-c", HOLDER, address], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.endswith(f"\nFileNotFoundError: {address}: can't write the lock: no such bucket\n")


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_store_that_denies(method: str, flaky_s3: tuple[str, FlakyProxy]) -> None:
    address, proxy = flaky_s3
    for _ in range(2):  # a lock that is new, and one that is there
        proxy.inject(Fault.DENIED, method=method)
        doing = "read" if method == "GET" else "write"
        with pytest.raises(PermissionError, match=rf"^{address}: can't {doing} the lock: denied \(HTTP 403 Acc"):
            take(folder(address))
        proxy.heal()
        take(folder(address))


def test_a_bucket_that_is_removed_meanwhile(s3: str, s3_server: S3Server) -> None:
    def work() -> None:
        with folder(s3).lock("ingest"):
            folder(s3).delete(".lock")
            s3_server.request("DELETE", s3.removeprefix("s3://"))

    with pytest.raises(OSError, match="this ingest lost its lock"):
        work()


def test_what_is_no_lock(s3: str) -> None:
    for text in ("", "[]", "{}", '{"holder": {"pid": 3}}', "\xff"):
        folder(s3).write(".x.lock", text)
        with pytest.raises(InputError, match=r"\.x\.lock is not a lock; remove it"):
            take(folder(s3), "x")
        assert folder(s3).read(".x.lock") == text.encode()


def test_names_and_folders_have_locks_of_their_own(s3: str) -> None:
    with folder(s3).lock("a"), folder(s3).lock("a", "x"), folder(s3).child("x").lock("a"):
        pass
    store = connect(s3, PATIENCE)
    assert sorted(meta["path"] for meta in obstore.list(store).collect()) == [".lock", ".x.lock", "x/.lock"]
