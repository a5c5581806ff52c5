"""A helper process that answers requests in time or is killed: for code that may hang, crash or eat memory.

A request is one line of JSON; a reply is the sizes of its two parts, JSON, and raw bytes. No pickles.
"""

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# The helper ends itself so long after its time is up, should its parent not get to it.
GRACE_S = 5.0
# A second of audio comes through the pipe at a time, and not 64 KiB.
_PIPE_BYTES = 1 << 20
_SIZES = struct.Struct("<IQ")

Reply = tuple[dict[str, Any], bytes | memoryview]


class ChildTimeoutError(Exception):
    """The helper didn't answer in time, and was killed."""


class ChildDiedError(Exception):
    """The helper ended without an answer; the message says how."""


class Child:
    """Runs `python -m MODULE` when it is first asked something, and again after it died; not for several threads.

    The module's `__main__` calls :func:`serve`.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = self._replies = -1
        self._waiting = threading.Lock()

    def call(self, request: dict[str, Any], time_limit_s: float) -> tuple[dict[str, Any], bytearray]:
        """The reply to `request` and its bytes. Raises ChildTimeoutError or ChildDiedError."""
        process = self._running()
        deadline = time.monotonic() + time_limit_s
        answered = False
        try:
            # Far smaller than the pipe, so this does not block.
            _write_all(self._requests, json.dumps({"time_limit_s": time_limit_s, **request}).encode() + b"\n")
            header_size, content_size = _SIZES.unpack(self._read(_SIZES.size, deadline))
            header: dict[str, Any] = json.loads(self._read(header_size, deadline))
            content = self._read(content_size, deadline)
            answered = True
            return header, content
        except TimeoutError as error:
            raise ChildTimeoutError(f"no answer within {time_limit_s:g} s") from error
        except (EOFError, BrokenPipeError) as error:
            raise ChildDiedError(_how_it_ended(process.pid)) from error
        finally:
            if not answered:  # on Ctrl-C too: a late reply must not be taken for the next one's
                self.close()

    def kill(self) -> None:
        """Kills the helper and what it started, which may outlive it; from any thread: a call under way then fails."""
        with self._waiting, contextlib.suppress(ChildProcessError, ProcessLookupError):
            if self._process is not None:
                # Refused where the id may be another's: it was waited for, or this is a fork of who started it.
                _end_of(self._process.pid, os.WNOHANG)
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kills the helper and what it started, and waits for the helper's end."""
        if self._process is None:
            return
        self.kill()
        with contextlib.suppress(ChildProcessError):
            _end_of(self._process.pid)
        with self._waiting:
            self._process.wait()
            self._process = None
        os.close(self._requests)
        os.close(self._replies)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and _has_ended(self._process.pid):
            self.close()
        if self._process is None:
            child_reads, self._requests = os.pipe()
            self._replies, child_writes = os.pipe()
            try:
                with contextlib.suppress(OSError):  # a user may have but so many large pipes; a small one will do
                    fcntl.fcntl(self._replies, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
                self._process = subprocess.Popen(
                    [sys.executable, "-m", self._module],
                    stdin=child_reads,
                    stdout=child_writes,
                    stderr=subprocess.DEVNULL,
                    # A group of its own: Ctrl-C is for the parent, and it is killed with all that it started.
                    start_new_session=True,
                )
            finally:
                os.close(child_reads)
                os.close(child_writes)
        return self._process

    def _read(self, num_bytes: int, deadline: float) -> bytearray:
        content, got = bytearray(num_bytes), 0
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        while got < num_bytes:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or not poll.poll(1000 * remaining_s):
                raise TimeoutError
            size = os.readv(self._replies, [memoryview(content)[got:]])
            if not size:
                raise EOFError
            got += size
        return content


def serve(answer: Callable[[dict[str, Any]], Reply], max_memory_bytes: int | None = None) -> None:
    """The helper's side: answers requests until its input ends. What `answer` raises ends the helper."""
    # Libraries may print; only replies may go to the pipe.
    replies = os.dup(1)
    os.dup2(2, 1)
    if max_memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    # The default action ends the process even while C code is stuck.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request.pop("time_limit_s") + GRACE_S)
        header, content = answer(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        encoded = json.dumps(header).encode()
        _write_all(replies, _SIZES.pack(len(encoded), len(content)) + encoded)
        _write_all(replies, content)


def _end_with_parent() -> None:
    """Ends the helper and what it started once nobody can ask it anything, in the middle of an answer too."""
    poll = select.poll()
    poll.register(0, 0)  # that the other end was closed is told in any case
    poll.poll()
    os.killpg(0, signal.SIGKILL)


def _write_all(descriptor: int, content: bytes | memoryview) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _end_of(pid: int, options: int = 0) -> os.waitid_result | None:
    """How a child ended, which keeps its id, so that its group can still be killed; None: not yet, with WNOHANG.

    Raises ChildProcessError when it is no child of this process, or none any more.
    """
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | options)


def _has_ended(pid: int) -> bool:
    try:
        return _end_of(pid, os.WNOHANG) is not None
    except ChildProcessError:
        return True


def _how_it_ended(pid: int) -> str:
    end = _end_of(pid)
    if end is None:
        raise ValueError(f"{pid} has not ended")
    if end.si_code == os.CLD_EXITED:
        return f"ended with status {end.si_status}"
    return f"ended by signal {end.si_status} ({signal.strsignal(end.si_status)})"
