"""An S3 server on loopback (moto's, in a process of its own), and a proxy before it that misbehaves when told to.

Fixtures: `s3_server`; `s3`, the URL of an empty bucket, with the environment that reaches it; `flaky_s3`, the same
through a proxy.
"""

import http.client
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

SECRET_KEY = "k9XuUsecretVv7/notForLogs"
_BUCKET_NUMBERS = itertools.count()
# Ends with the test process, however that ends: its input is a pipe from there.
_SERVER = """
import logging, sys, threading
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
# Conditional writes are atomic, as S3's are: moto looks and writes in two steps.
one_at_a_time, answer = threading.Lock(), DomainDispatcherApplication.__call__
def answer_alone(*arguments):
    with one_at_a_time:
        return answer(*arguments)
DomainDispatcherApplication.__call__ = answer_alone
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class S3Server:
    """Where an S3 server, or a proxy before one, answers."""

    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def new_bucket(self) -> str:
        name = f"bucket-{os.getpid()}-{next(_BUCKET_NUMBERS)}"
        self.request("PUT", name)
        return name

    def request(self, method: str, path: str, content: bytes | None = None) -> bytes:
        """Does one request past all of ours: `path` is BUCKET/KEY?QUERY. Raises HTTPError."""
        request = urllib.request.Request(f"{self.endpoint}/{path}", content, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            body: bytes = answer.read()
        return body


class Fault(Enum):
    BUSY = "answers 503 SlowDown; the server sees nothing"
    DENIED = "answers 403 AccessDenied; the server sees nothing"
    REFUSED = "closes the connection when the request's head has come; the server sees nothing"
    UPLOAD_CUT = "closes the connection after half of the request's body; the server sees nothing"
    LOST = "the server does what was asked, and the connection is closed without an answer"
    CUT = "closes the connection after half of the answer's body"
    STALLED = "sends half of the answer's body, and then nothing for `delay_s`"
    SLOW = "waits for `delay_s` before it passes the request on"


@dataclass
class _Plan:
    fault: Fault
    times: float
    method: str
    path: str
    delay_s: float


@dataclass
class FlakyProxy:
    """Passes requests on to a server; :meth:`inject` says which of them meet a fault."""

    upstream_port: int
    # Every request that came, as "METHOD /path?query", in order.
    requests: list[str] = field(default_factory=list)
    _plans: list[_Plan] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def inject(
        self, fault: Fault, times: float = float("inf"), method: str = "", path: str = "", delay_s: float = 1.0
    ) -> None:
        """The next `times` requests of this method (all when empty) whose path contains `path` meet the fault."""
        with self._lock:
            self._plans.append(_Plan(fault, times, method, path, delay_s))

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self._plans.clear()

    def pending(self) -> float:
        """How many faults are still to come."""
        with self._lock:
            return sum(plan.times for plan in self._plans)

    def plan_of(self, method: str, path: str) -> _Plan | None:
        with self._lock:
            self.requests.append(f"{method} {path}")
            for plan in self._plans:
                if plan.times > 0 and plan.method in ("", method) and plan.path in path:
                    plan.times -= 1
                    return plan
        return None


def _handler(proxy: FlakyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with suppress(ConnectionError):  # clients that gave up waiting
                super().handle_one_request()

        def _pass_on(self) -> None:
            plan = proxy.plan_of(self.command, self.path)
            fault = plan.fault if plan else None
            length = int(self.headers.get("Content-Length", 0))
            if fault is Fault.REFUSED:
                return self._drop()
            content = self.rfile.read(length // 2 if fault is Fault.UPLOAD_CUT else length)
            if fault is Fault.UPLOAD_CUT:
                return self._drop()
            if fault is Fault.BUSY:
                return self._refuse(503, "SlowDown")
            if fault is Fault.DENIED:
                return self._refuse(403, "AccessDenied")
            if plan and fault is Fault.SLOW:
                time.sleep(plan.delay_s)
            upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port, timeout=60)
            upstream.request(self.command, self.path, content, dict(self.headers.items()))
            answer = upstream.getresponse()
            body = answer.read()
            upstream.close()
            if fault is Fault.LOST:
                return self._drop()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            # The answer to HEAD has the length of a body that it doesn't have.
            length_told = answer.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length_told)
            self.end_headers()
            if plan and fault in (Fault.CUT, Fault.STALLED):
                self.wfile.write(body[: len(body) // 2])
                if fault is Fault.STALLED:
                    time.sleep(plan.delay_s)
                return self._drop()
            self.wfile.write(body)
            return None

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815

        def _drop(self) -> None:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def _refuse(self, status: int, code: str) -> None:
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


@contextmanager
def running_s3_server() -> Iterator[S3Server]:
    """A moto server with no buckets."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield S3Server(int(process.stdout.readline()))
        finally:
            process.kill()


@contextmanager
def running_proxy(upstream_port: int) -> Iterator[tuple[S3Server, FlakyProxy]]:
    """A proxy before the server at that port of this machine."""
    proxy = FlakyProxy(upstream_port)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield S3Server(server.server_port), proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def s3_environment(endpoint: str) -> dict[str, str]:
    """The variables of a process that is to reach the server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }


def _reach(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_environment(endpoint).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(name="s3_server", scope="session")
def s3_server_fixture() -> Iterator[S3Server]:
    """A server for all tests, which take buckets of their own."""
    with running_s3_server() as server:
        yield server


@pytest.fixture(name="s3")
def s3_fixture(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """s3://BUCKET, empty; the environment, of commands started here too, reaches it."""
    _reach(s3_server.endpoint, monkeypatch)
    return f"s3://{s3_server.new_bucket()}"


@pytest.fixture(name="flaky_s3")
def flaky_s3_fixture(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, FlakyProxy]]:
    """s3://BUCKET, empty, and the proxy that the environment reaches it through."""
    with running_proxy(s3_server.port) as (server, proxy):
        _reach(server.endpoint, monkeypatch)
        yield f"s3://{s3_server.new_bucket()}", proxy
