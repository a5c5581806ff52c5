"""The helper process: right answers, or its end in time."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ingest.child import GRACE_S, Child, ChildDiedError, ChildTimeoutError

HELPER = """
import os, signal, subprocess, sys, time
from ingest.child import serve

def answer(request):
    what = request["what"]
    if what == "echo":
        return {"pid": os.getpid(), "text": request["text"]}, bytes(range(256)) * request.get("num", 1)
    if what == "noise":
        print("a library prints"); os.system("echo a program prints"); sys.stdout.flush()
    if what == "sleep":
        time.sleep(request["s"])
    if what == "family":
        sleeper = subprocess.Popen(["sleep", "60"])
        open(request["into"], "w").write(f"{os.getpid()} {sleeper.pid}")
        time.sleep(request.get("s", 60))
        if request.get("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
    if what == "raise":
        raise ValueError("a bug")
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "memory":
        bytearray(request["num"])
    return {"what": what}, b""

if __name__ == "__main__":
    serve(answer, 1 << 30)
"""
LIMIT_S, SHORT_LIMIT_S = 20.0, 0.5


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    (tmp_path / "helper_of_test.py").write_text(HELPER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    with closing(Child("helper_of_test")) as child:
        yield child


def pid_of(child: Child) -> int:
    header, content = child.call({"what": "echo", "text": "ä\n\"'"}, LIMIT_S)
    assert header["text"] == "ä\n\"'"
    assert content == bytes(range(256))
    return int(header["pid"])


def is_gone(pid: int, within_s: float = 5.0) -> bool:
    """Whether a process ends in time; one that nobody has waited for yet counts as gone."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_one_process_answers_all_requests(child: Child) -> None:
    pid = pid_of(child)
    assert pid != os.getpid()
    assert pid_of(child) == pid
    child.close()
    assert is_gone(pid)
    assert pid_of(child) != pid


def test_large_replies_arrive_whole(child: Child) -> None:
    header, content = child.call({"what": "echo", "text": "x" * 20_000, "num": 40_000}, LIMIT_S)
    assert header["text"] == "x" * 20_000
    assert content == bytes(range(256)) * 40_000


def test_what_libraries_print_is_no_reply(child: Child) -> None:
    assert child.call({"what": "noise"}, LIMIT_S) == ({"what": "noise"}, b"")


def test_out_of_time_is_killed_and_the_next_reply_is_the_next_ones(child: Child) -> None:
    pid = pid_of(child)
    start_s = time.monotonic()
    with pytest.raises(ChildTimeoutError, match=r"no answer within 0.5 s"):
        child.call({"what": "sleep", "s": 60}, SHORT_LIMIT_S)
    assert time.monotonic() - start_s < SHORT_LIMIT_S + 2
    assert is_gone(pid)
    assert pid_of(child) != pid


def test_what_a_helper_started_is_killed_with_it(child: Child, tmp_path: Path) -> None:
    pid_of(child)
    with pytest.raises(ChildTimeoutError):
        child.call({"what": "family", "into": str(tmp_path / "pids")}, SHORT_LIMIT_S)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert all(is_gone(pid) for pid in pids)


@pytest.mark.parametrize("how", ["crash", "killed, next request", "killed, close", "killed, kill"])
def test_what_a_dead_helper_had_started_is_killed(child: Child, tmp_path: Path, how: str) -> None:
    request = {"what": "family", "into": str(tmp_path / "pids"), "s": 0, "crash": how == "crash"}
    if how == "crash":
        with pytest.raises(ChildDiedError, match="signal 11"):
            child.call(request, LIMIT_S)
    else:
        child.call(request, LIMIT_S)
    helper, sleeper = (int(pid) for pid in (tmp_path / "pids").read_text().split())
    if how != "crash":
        os.kill(helper, 9)
        assert is_gone(helper)
        assert not is_gone(sleeper, within_s=0.1)
    if how.endswith("next request"):
        with suppress(ChildDiedError):  # whether the system has told of its death yet is chance
            pid_of(child)
    elif how.endswith("close"):
        child.close()
    elif how.endswith("kill"):
        child.kill()
    assert is_gone(sleeper)
    assert pid_of(child) != helper


def test_a_fork_leaves_the_helper_alone(child: Child) -> None:
    """Only the process that started it may kill it."""
    pid = pid_of(child)
    forked = os.fork()
    if not forked:
        child.kill()
        child.close()
        os._exit(0)
    os.waitpid(forked, 0)
    assert pid_of(child) == pid


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"what": "raise"}, "ended with status 1"),
        ({"what": "crash"}, r"ended by signal 11 \(Segmentation fault\)"),
        ({"what": "memory", "num": 2 << 30}, "ended with status 1"),
    ],
)
def test_a_helper_that_dies_says_how_and_is_started_again(
    child: Child, request_: dict[str, object], message: str
) -> None:
    with pytest.raises(ChildDiedError, match=message):
        child.call(request_, LIMIT_S)
    assert pid_of(child)


def test_a_helper_that_died_between_two_requests_is_started_again(child: Child) -> None:
    pid = pid_of(child)
    os.kill(pid, 9)
    assert is_gone(pid)
    with suppress(ChildDiedError):  # whether the system has told of its death yet is chance
        assert pid_of(child) != pid
    assert pid_of(child) != pid


def test_a_module_that_isnt_there_is_an_early_death(tmp_path: Path) -> None:
    with closing(Child("no_such_helper")) as child, pytest.raises(ChildDiedError, match="ended with status 1"):
        child.call({"what": "echo"}, LIMIT_S)


def test_killing_from_another_thread_ends_a_call(child: Child) -> None:
    pid_of(child)
    threading.Timer(0.3, child.kill).start()
    start_s = time.monotonic()
    with pytest.raises(ChildDiedError, match="signal 9"):
        child.call({"what": "sleep", "s": 60}, LIMIT_S)
    assert time.monotonic() - start_s < LIMIT_S / 2
    assert pid_of(child)


def test_no_descriptor_is_left_behind(child: Child) -> None:
    pid_of(child)
    child.close()
    before = sorted(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        with pytest.raises(ChildDiedError):
            child.call({"what": "crash"}, LIMIT_S)
    assert sorted(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("what", ["idle", "busy"])
def test_a_helper_ends_after_its_parent_was_killed(child: Child, tmp_path: Path, what: str) -> None:
    """At once where it is idle; after its time and the grace where it is stuck."""
    script = f"""
        import threading
        from ingest.child import Child
        child = Child("helper_of_test")
        print(child.call({{"what": "echo", "text": ""}}, 20)[0]["pid"], flush=True)
        if {what == "busy"}:
            threading.Timer(0.2, lambda: print("busy", flush=True)).start()
            child.call({{"what": "sleep", "s": 60}}, 0.5)
        input()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if what == "busy":
            assert parent.stdout.readline() == "busy\n"
        parent.kill()
    assert is_gone(pid, within_s=3 if what == "idle" else 0.5 + GRACE_S + 5)
