"""An object store behind a bad network, one that refuses, and what people are told then."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from obstore.store import S3Store

from ingest.location import open_location
from ingest.objectclient import Patience, connect, os_errors
from ingest.objectstore import PART_BYTES, ObjectFolder
from manifests.errors import InputError
from tests.s3server import (  # noqa: F401
    SECRET_KEY,
    Fault,
    FlakyProxy,
    S3Server,
    flaky_s3_fixture,
    s3_fixture,
    s3_server_fixture,
)

Flaky = tuple[str, FlakyProxy]
PATIENCE = Patience(request_s=0.5, total_s=8.0)
SHORT = Patience(request_s=0.25, total_s=1.0)
PASSING = [Fault.BUSY, Fault.REFUSED, Fault.UPLOAD_CUT, Fault.LOST, Fault.CUT, Fault.STALLED, Fault.SLOW]
BIG = np.random.default_rng(0).bytes(PART_BYTES + 4_321)


def delay_s(fault: Fault) -> float:
    """Longer than a request may take."""
    return 0.7 if fault in (Fault.SLOW, Fault.STALLED) else 0.0


@pytest.mark.parametrize("fault", PASSING)
def test_reading_goes_on(fault: Fault, flaky_s3: Flaky) -> None:
    address, proxy = flaky_s3
    location = ObjectFolder(address, PATIENCE)
    location.write("a.tar", BIG)
    proxy.inject(fault, 1, "GET", delay_s=delay_s(fault))
    assert location.read("a.tar") == BIG
    proxy.inject(fault, 1, "GET", delay_s=delay_s(fault))
    assert location.read_range("a.tar", 5, 100_000) == BIG[5:100_005]
    assert proxy.pending() == 0


@pytest.mark.parametrize("fault", PASSING)
def test_other_requests_go_on(fault: Fault, flaky_s3: Flaky) -> None:
    address, proxy = flaky_s3
    location = ObjectFolder(address, PATIENCE)
    location.write("sub/a", b"123")
    operations: list[tuple[str, Callable[[], object], object]] = [
        ("GET", location.files, ["sub/a"]),
        ("GET", location.folders, ["sub"]),
        ("HEAD", lambda: location.size("sub/a"), 3),
        ("POST", lambda: location.delete("sub/a"), None),
        ("GET", location.files, []),
    ]
    for method, operation, expected in operations:
        proxy.inject(fault, 1, method, delay_s=delay_s(fault))
        assert operation() == expected
    assert proxy.pending() == 0


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("content", [BIG, BIG[:1000]], ids=["big", "small"])
def test_writing_goes_on(fault: Fault, content: bytes, flaky_s3: Flaky, s3_server: S3Server) -> None:
    address, proxy = flaky_s3
    location = ObjectFolder(address, PATIENCE)
    methods = ("PUT", "POST") if content is BIG else ("PUT",)
    for method in methods:
        proxy.inject(fault, 1, method, delay_s=delay_s(fault))
        location.write("a.tar", content)
        proxy.heal()
        assert location.read("a.tar") == content
    assert location.files() == ["a.tar"]


def test_a_lost_answer_to_the_end_of_an_upload(flaky_s3: Flaky) -> None:
    address, proxy = flaky_s3
    location = ObjectFolder(address, PATIENCE)
    for fault in (Fault.LOST, Fault.CUT, Fault.SLOW):
        proxy.inject(fault, 1, "POST", "uploadId=", delay_s=0.7)
        location.write(fault.name, BIG)
        assert proxy.pending() == 0
        assert location.read(fault.name) == BIG


def test_a_failed_upload_is_nowhere_seen(flaky_s3: Flaky, s3_server: S3Server) -> None:
    address, proxy = flaky_s3
    location = ObjectFolder(address, Patience(request_s=0.7, total_s=3.0))
    location.write("a", b"old")
    proxy.inject(Fault.UPLOAD_CUT, method="PUT", path="partNumber=2")
    with pytest.raises(OSError, match=r"/a can't be written: "):
        location.write("a", BIG)
    proxy.heal()
    assert location.read("a") == b"old"
    assert location.files() == ["a"]
    assert b"<Upload>" not in s3_server.request("GET", f"{location.name}?uploads")


@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.REFUSED, Fault.STALLED, Fault.SLOW])
def test_a_store_that_stays_away(fault: Fault, flaky_s3: Flaky) -> None:
    address, proxy = flaky_s3
    location = ObjectFolder(address, SHORT)
    location.write("a", b"12345")
    proxy.inject(fault, delay_s=0.4)
    operations: list[Callable[[], object]] = [lambda: location.read("a"), location.files]
    if fault is not Fault.STALLED:  # the answer to a small upload has no body
        operations.append(lambda: location.write("a", b"12345"))
    for operation in operations:
        started = time.monotonic()
        with pytest.raises(OSError, match=f"{address}.* can't be (read|written|listed): ") as failed:
            operation()
        # The limit, and some for a busy machine.
        assert time.monotonic() - started < SHORT.total_s + 3
        text = str(failed.value)
        assert len(text) < 160
        assert not [secret for secret in ("uthoriz", "ignature", "AKIA", SECRET_KEY) if secret in text]
        assert failed.value.__suppress_context__


def test_no_server(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"can't be read: no connection"):
        ObjectFolder(s3, SHORT).read("a")


def test_denied(flaky_s3: Flaky) -> None:
    address, proxy = flaky_s3
    location = ObjectFolder(address, PATIENCE)
    proxy.inject(Fault.DENIED)
    operations: list[Callable[[], object]] = [
        location.create,
        location.files,
        lambda: location.read("a"),
        lambda: location.size("a"),
        lambda: location.write("a", b""),
        lambda: location.delete("a"),
        location.lock("ingest").__enter__,
    ]
    for operation in operations:
        num_requests = len(proxy.requests)
        with pytest.raises(PermissionError, match=r"denied \(HTTP 403.*check the credentials"):
            operation()
        assert len(proxy.requests) == num_requests + 1


def test_a_bucket_that_does_not_exist(s3: str) -> None:
    location = open_location(f"{s3}-else/a")
    for operation in (location.create, location.files, lambda: location.read("x")):
        with pytest.raises(FileNotFoundError, match="no such bucket"):
            operation()


@pytest.mark.parametrize(
    ("code", "what"),
    [("NoSuchBucket", "no such bucket"), ("ContainerNotFound", "no such bucket"), ("NoSuchKey", "no such file")],
)
def test_what_is_not_there(code: str, what: str) -> None:
    """Azure speaks of containers."""
    with (
        pytest.raises(FileNotFoundError, match=f"^az://c/x can't be read: {what}$"),
        os_errors("az://c/x can't be read"),
    ):
        raise FileNotFoundError(f"status code: 404 <Error><Code>{code}</Code><Message>of the bucket</Message></Error>")


def test_replaced_while_it_is_read(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    location = ObjectFolder(s3, PATIENCE)
    location.write("a", b"1" * len(BIG))
    original = location._part
    starts: list[int] = []

    def part(name: str, start: int, num_bytes: int, e_tag: str | None = None) -> object:
        got = original(name, start, num_bytes, e_tag)
        if not starts:
            location.write("a", BIG)
        starts.append(start)
        return got

    monkeypatch.setattr(location, "_part", part)
    assert location.read("a") == BIG
    assert starts == [0, 0, PART_BYTES]


def test_memory_is_bounded(s3: str, tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from ingest.location import open_location
location = open_location(sys.argv[1])
location.write("warm", b"1" * 9_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with location.writing("a") as path, path.open("wb") as file:
    file.truncate(80 << 20)
with location.local_copy("a") as path:
    assert path.stat().st_size == 80 << 20
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", script, s3], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60  # MiB


def test_zarr_goes_on(flaky_s3: Flaky) -> None:
    address, proxy = flaky_s3
    location = ObjectFolder(address, PATIENCE)
    for fault in PASSING:
        proxy.inject(fault, 1, "PUT", delay_s=delay_s(fault))
        proxy.inject(fault, 1, "GET", "c/0", delay_s=delay_s(fault))
    group = zarr.open_group(location.zarr_store("t.zarr"), mode="w", zarr_format=3)
    rows = group.create_array("rows", shape=(4, 1000), chunks=(2, 1000), dtype="f4", fill_value=float("nan"))
    rows[:2] = np.arange(2000).reshape(2, 1000)
    assert np.array_equal(rows[:2], np.arange(2000).reshape(2, 1000))
    assert np.isnan(rows[2:]).all()
    proxy.heal()
    proxy.inject(Fault.DENIED)
    with pytest.raises(PermissionError, match="denied"):
        rows[:2]


def test_http_only_where_the_endpoint_says_so(s3: str, monkeypatch: pytest.MonkeyPatch, s3_server: S3Server) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{s3_server.port}")
    with pytest.raises(OSError, match="can't be read: "):
        ObjectFolder(s3, SHORT).read("a")
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
        monkeypatch.setenv(name, s3_server.endpoint)
        assert ObjectFolder(s3, PATIENCE).files() == []
        monkeypatch.delenv(name)


def test_keys_of_a_profile(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        "[default]\naws_access_key_id = WRONG\naws_secret_access_key = x\n"
        f"[work]\naws_access_key_id = AKIAWORK\naws_secret_access_key = {SECRET_KEY}\n"
    )
    (tmp_path / ".aws/config").write_text("[profile work]\nregion = eu-west-3\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "work")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    location = ObjectFolder(s3, PATIENCE)
    location.write("a", b"1")
    store = connect(s3, PATIENCE)
    assert isinstance(store, S3Store)
    assert store.config == {
        "bucket": location.name,
        "access_key_id": "AKIAWORK",
        "secret_access_key": SECRET_KEY,
        "region": "eu-west-3",
    }
    assert SECRET_KEY not in f"{location} {location!r} {location.__reduce__()}"
    (tmp_path / ".aws/credentials").write_text(f"aws_secret_access_key = {SECRET_KEY}")
    with pytest.raises(InputError, match="credentials is not a file of profiles") as refused:
        ObjectFolder(s3)
    assert SECRET_KEY not in str(refused.value)


def test_a_forked_process_fails_instead_of_hanging(s3: str) -> None:
    script = """
import os, sys
from ingest.location import open_location
location = open_location(sys.argv[1])
assert location.files() == []
if os.fork() == 0:
    try:
        location.files()
    except OSError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""
    done = subprocess.run([sys.executable, "-c", script, s3], capture_output=True, text=True, timeout=60)
    assert "start it by spawn" in done.stdout, done.stderr


def test_patience_has_time_for_two_requests() -> None:
    with pytest.raises(ValueError, match="two requests"):
        Patience(request_s=60, total_s=100)
