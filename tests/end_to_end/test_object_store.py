"""Stores in an object store, by the commands alone, over HTTP to moto on loopback: as in a folder, whatever happens."""

import csv
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import numpy as np
import pytest
import soundfile
import torch

from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.teachers.efficientat import ROWS, BlockSizes, MobileNet, Sizes
from ingest import objectstore
from ingest.objectclient import Patience
from manifests import audioset
from tests.ingest.badserver import BadServer
from tests.s3server import (  # noqa: F401
    SECRET_KEY,
    Fault,
    FlakyProxy,
    S3Server,
    flaky_s3_fixture,
    s3_environment,
    s3_fixture,
    s3_server_fixture,
)

NUM_SOUNDS, EMPTY = 9, 4
SIZES = ("--num-frames", "256", "--clips-per-shard", "2")
SMALL = Sizes(3, tuple(BlockSizes(5, 2 if row.squeezes else 0, 3) for row in ROWS), embedding=11, head=7, classes=4)
KEY_ID = s3_environment("")["AWS_ACCESS_KEY_ID"]
SECRETS = (SECRET_KEY.encode(), quote(SECRET_KEY, safe="").encode(), KEY_ID.encode(), b"AWS4-HMAC")


@dataclass(frozen=True)
class Outcome:
    """What a command printed and its exit status."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]
Objects = Callable[[str], dict[str, bytes]]
Put = Callable[[str, Path | dict[str, bytes | None]], None]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As the workers compute; and shards are kept nowhere but in the test's folder."""
    monkeypatch.setenv("ACM_SSKD_CACHE", str(tmp_path / "cache"))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a console script's function in this process; nothing that it prints holds a secret."""

    def command(name: str, *arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        status = 0
        try:
            import_module(f"{name}.cli").main()
        except SystemExit as end:
            status = int(end.code or 0)
        out, err = capfd.readouterr()
        assert_no_secrets({"out": out.encode(), "err": err.encode()})
        return Outcome(status, out, err)

    return command


@pytest.fixture(scope="session")
def stranger(s3_server: S3Server) -> Any:
    """Somebody else's client, straight to the server."""
    keys = {"aws_access_key_id": "STRANGER", "aws_secret_access_key": "x"}
    return boto3.client("s3", endpoint_url=s3_server.endpoint, region_name="us-east-1", **keys)


def place(address: str) -> tuple[str, str]:
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    return bucket, f"{prefix}/" if prefix else ""


@pytest.fixture
def objects(stranger: Any) -> Objects:
    """All objects under a URL, by their names below it."""

    def found(address: str) -> dict[str, bytes]:
        bucket, prefix = place(address)
        keys = [entry["Key"] for entry in stranger.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]
        contents = {key: stranger.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}
        assert_no_secrets(contents)
        return {key.removeprefix(prefix): content for key, content in contents.items()}

    return found


@pytest.fixture
def put(stranger: Any) -> Put:
    """Puts files under a URL: a folder's, or by their names; None deletes one."""

    def put(address: str, contents: Path | dict[str, bytes | None]) -> None:
        bucket, prefix = place(address)
        if isinstance(contents, Path):
            contents = {**without_locks(files(contents))}
        for name, content in contents.items():
            if content is None:
                stranger.delete_object(Bucket=bucket, Key=prefix + name)
            else:
                stranger.put_object(Bucket=bucket, Key=prefix + name, Body=content)

    return put


def assert_no_secrets(contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        assert not [secret for secret in SECRETS if secret in content], name


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def without_locks(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in contents.items() if not name.endswith(".lock")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine files, one of them empty, and their table."""
    root = tmp_path_factory.mktemp("objects") / "sounds"
    root.mkdir()
    rows = [("file", "label", "split")]
    for number in range(NUM_SOUNDS):
        noise = np.random.default_rng(number).standard_normal(16_000 * (3 if number % 3 == 0 else 1))
        soundfile.write(root / f"s{number}.wav", 0.1 * noise, 16_000)
        rows.append((f"s{number}.wav", ("bark", "rain")[number % 2], "eval" if number % 4 == 0 else "train"))
    (root / f"s{EMPTY}.wav").write_bytes(b"")
    with (root / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def ingest_folder(corpus: Path, store: object, *options: object) -> list[str]:
    table = ("--labels-csv", corpus / "table.csv")
    return list(map(str, ("folder", corpus, "--store", store, *table, *SIZES, *options)))


@pytest.fixture(scope="module")
def local(corpus: Path) -> Path:
    """The same ingest to a folder; for reading only."""
    command = [sys.executable, "-m", "ingest", *ingest_folder(corpus, corpus.parent / "store", "--workers", "0")]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    return corpus.parent / "store"


def test_an_ingest_on_ray_is_the_same_as_into_a_folder(
    corpus: Path, local: Path, s3: str, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as ray_folder:  # names of sockets are short
        monkeypatch.setenv("RAY_TMPDIR", ray_folder)
        command = [sys.executable, "-m", "ingest", *ingest_folder(corpus, f"{s3}/deep/store", "--workers", "2")]
        done = subprocess.run(command, capture_output=True, timeout=200)
        assert done.returncode == 0, done.stderr.decode()
        logs = {str(path): path.read_bytes() for path in Path(ray_folder).rglob("*") if path.is_file()}
    assert len([name for name in logs if "worker" in name]) >= 2
    assert_no_secrets({**logs, "out": done.stdout, "err": done.stderr})
    assert done.stdout.startswith(f"{s3}/deep/store: 8 of 9 clips in 5 shards, snapshot 1, ".encode())
    assert without_locks(objects(f"{s3}/deep/store")) == without_locks(files(local))
    assert set(objects(s3)) - {f"deep/store/{name}" for name in without_locks(files(local))} == {"deep/store/.lock"}


def test_an_ingest_through_a_bad_network(
    corpus: Path, local: Path, flaky_s3: tuple[str, FlakyProxy], run: Command, objects: Objects
) -> None:
    address, proxy = flaky_s3
    proxy.inject(Fault.BUSY, 3)
    proxy.inject(Fault.UPLOAD_CUT, 2, "PUT", ".tar")
    proxy.inject(Fault.LOST, 2, "PUT", ".parquet")
    proxy.inject(Fault.REFUSED, 2, "PUT", "README.md")
    proxy.inject(Fault.CUT, 2, "GET", ".parquet")
    proxy.inject(Fault.LOST, 1, "PUT", "store.json")
    proxy.inject(Fault.BUSY, 2, "HEAD")
    done = run("ingest", *ingest_folder(corpus, f"{address}/store", "--workers", "0"))
    assert done.status == 0, done.err
    assert proxy.pending() == 0
    assert without_locks(objects(f"{address}/store")) == without_locks(files(local))
    shards = [request for request in proxy.requests if ".tar" in request]
    assert run("ingest", *ingest_folder(corpus, f"{address}/store", "--workers", "0")).out == done.out
    again = [request for request in proxy.requests if ".tar" in request][len(shards) :]
    assert [request for request in again if request.startswith("PUT")] == []


def test_an_ingest_that_is_killed(
    corpus: Path, local: Path, flaky_s3: tuple[str, FlakyProxy], run: Command, objects: Objects
) -> None:
    address, proxy = flaky_s3
    proxy.inject(Fault.SLOW, method="PUT", path=".tar", delay_s=0.5)
    arguments = ingest_folder(corpus, f"{address}/store", "--workers", "0")
    process = subprocess.Popen([sys.executable, "-m", "ingest", *arguments], stderr=subprocess.PIPE)
    while not any("000001.parquet" in request for request in proxy.requests if request.startswith("PUT")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    proxy.heal()
    left = objects(f"{address}/store")
    assert "shards/sounds-000000.parquet" in left
    assert "shards/sounds-000004.parquet" not in left
    assert "is not finished" in run("featurestore", "info", f"{address}/store").err
    assert run("ingest", *arguments).status == 0
    assert without_locks(objects(f"{address}/store")) == without_locks(files(local))


def test_verify_and_repair(local: Path, s3: str, run: Command, objects: Objects, put: Put) -> None:
    address = f"{s3}/store"
    put(address, local)
    whole = objects(address)
    assert run("featurestore", "verify", address).out == f"{address}: 8 clips in 5 shards, all as they should be\n"
    tar = bytearray(whole["shards/sounds-000001.tar"])
    tar[len(tar) // 3] ^= 4
    changed = {"shards/sounds-000001.tar": bytes(tar), "shards/notes.txt": b"mine"}
    put(address, {**changed, "shards/sounds-000003.tar": None, "index.json": None})
    found = run("featurestore", "verify", address)
    assert found.status == 1
    lines = found.out.splitlines()
    assert "shards/notes.txt: is not in SHA256SUMS: it doesn't belong to the store" in lines
    assert "shards/sounds-000003.tar: is missing" in lines
    assert "index.json: is missing" in lines
    assert any(re.match(r"shards/sounds-000001.tar: clip s\d: its bytes are not those", line) for line in lines)
    put(address, {"shards/notes.txt": None})
    mended = run("featurestore", "repair", address, "--workers", "0")
    assert mended.status == 0, mended.out
    assert mended.out.endswith("made anew: sounds-000001, sounds-000003\n")
    assert without_locks(objects(address)) == whole


def test_subset_and_merge(local: Path, s3: str, run: Command, objects: Objects, put: Put, tmp_path: Path) -> None:
    put(f"{s3}/store", local)
    for source, target in (
        (local, tmp_path / "train"),
        (local, f"{s3}/train"),
        (f"{s3}/store", f"{s3}/train2"),
        (f"{s3}/store", tmp_path / "train2"),
    ):
        done = run("featurestore", "subset", source, "--split", "train", "--to", target)
        assert (done.status, done.out) == (0, f"{target}: 6 of 6 clips in 3 shards\n")
    expected = without_locks(files(tmp_path / "train"))
    found = [objects(f"{s3}/train"), objects(f"{s3}/train2"), files(tmp_path / "train2")]
    assert all(without_locks(one) == expected for one in found)
    run("featurestore", "subset", local, "--split", "eval", "--to", tmp_path / "eval")
    for source, target in ((tmp_path / "train", tmp_path / "both"), (f"{s3}/train", f"{s3}/both")):
        done = run("featurestore", "merge", source, tmp_path / "eval", "--to", target)
        assert (done.status, done.out) == (0, f"{target}: 8 of 9 clips in 5 shards\n")
    assert without_locks(objects(f"{s3}/both")) == without_locks(files(tmp_path / "both"))
    inside = run("featurestore", "subset", f"{s3}/both", "--to", f"{s3}/both/shards")
    assert (inside.status, "which is to be copied" in inside.err) == (2, True)
    leaks = run("featurestore", "leakage", f"{s3}/both", local)
    assert (leaks.status, leaks.out.splitlines()[-1]) == (1, f"{s3}/both, {local}: 8 leaks, 8 by recording")


def test_teachers_cache(local: Path, s3: str, run: Command, objects: Objects, put: Put, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(MobileNet(SMALL).state_dict(), tmp_path / "small.pt")
    here = shutil.copytree(local, tmp_path / "store")
    put(f"{s3}/store", local)
    for store in (here, f"{s3}/store"):
        build = ("build-teacher", "--model", "efficientat", "--checkpoint", tmp_path / "small.pt", "--store", store)
        done = run("featurestore", *build, "--workers", "0" if store == here else "2")
        where = f"{store}/teachers/efficientat.zarr"
        assert (done.status, done.out) == (0, f"{where}: 8 of 8 clips, embedding of 11 (embedding, logits)\n"), done.err
        assert run("featurestore", "verify", store).status == 0
    made = without_locks(objects(f"{s3}/store/teachers"))
    assert len(made) > 10
    assert made == without_locks(files(here / "teachers"))
    caches = [TeacherCache(Store(store), "efficientat") for store in (here, f"{s3}/store")]
    rows = Store(here).rows()
    embeddings = [cache.embeddings(rows[::-1]) for cache in caches]
    assert np.isfinite(embeddings[0]).all()
    np.testing.assert_array_equal(*embeddings)


def commands(corpus: Path, local: Path, address: str, folder: Path) -> list[tuple[object, ...]]:
    """Every command that reads or writes stores."""
    weights = folder / "small.pt"
    torch.save(MobileNet(SMALL).state_dict(), weights)
    return [
        ("ingest", *ingest_folder(corpus, address, "--workers", "0")),
        ("ingest", "status", address),
        ("featurestore", "info", address),
        ("featurestore", "verify", address),
        ("featurestore", "repair", address, "--workers", "0"),
        ("featurestore", "subset", address, "--to", folder / "copy"),
        ("featurestore", "subset", local, "--to", address),
        ("featurestore", "merge", local, address, "--to", folder / "copy"),
        ("featurestore", "leakage", local, address),
        ("featurestore", "build-teacher", "--model", "efficientat", "--checkpoint", weights, "--store", address),
        ("training", "run", "--iter", "1", "--preset", "tiny", "--store", address, "--run", folder / "run"),
    ]


def assert_one_line(done: Outcome, pattern: str) -> None:
    assert (done.status, done.out) == (2, ""), done
    # Before it there may be a line of progress.
    *before, line = done.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(pattern, line), line
    assert all(re.match(r"\[ *\d+\.\d s\] ", one) for one in before), done.err


def test_wrong_credentials(
    corpus: Path, local: Path, flaky_s3: tuple[str, FlakyProxy], run: Command, tmp_path: Path
) -> None:
    address, proxy = flaky_s3
    proxy.inject(Fault.DENIED)
    for command in commands(corpus, local, f"{address}/store", tmp_path):
        started = time.monotonic()
        assert_one_line(run(*command), r"denied \(HTTP 403 AccessDenied\); check the credentials")
        assert time.monotonic() - started < 10
    assert not (tmp_path / "copy").exists()


def test_a_store_of_which_parts_may_not_be_read(
    local: Path, flaky_s3: tuple[str, FlakyProxy], run: Command, put: Put, tmp_path: Path
) -> None:
    bucket, proxy = flaky_s3
    address = f"{bucket}/store"
    put(address, local)
    status = ("ingest", "status", address)
    train = ("training", "run", "--iter", "1", "--preset", "tiny", "--store", address, "--run", tmp_path / "run")
    for command, denied in ((status, "manifest.parquet"), (status, "shards"), (train, "manifest.parquet")):
        proxy.inject(Fault.DENIED, path=denied)
        assert_one_line(run(*command), rf"{denied}\S* can't be read.*denied \(HTTP 403")
        proxy.heal()


def test_no_bucket(corpus: Path, local: Path, s3: str, run: Command, tmp_path: Path) -> None:
    for command in commands(corpus, local, f"{s3}-other/store", tmp_path):
        assert_one_line(run(*command), r"no such bucket|other/store is not a store: it has no store.json")


def test_no_server(
    corpus: Path, local: Path, s3: str, run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(objectstore, "Patience", lambda: Patience(request_s=0.2, total_s=0.6))
    for command in commands(corpus, local, f"{s3}/store", tmp_path):
        started = time.monotonic()
        assert_one_line(run(*command), r"no connection")
        assert time.monotonic() - started < 10


def test_shards_that_may_not_be_read(
    local: Path, flaky_s3: tuple[str, FlakyProxy], run: Command, objects: Objects, put: Put, tmp_path: Path
) -> None:
    """They aren't damaged, and nothing is made anew."""
    bucket, proxy = flaky_s3
    address = f"{bucket}/store"
    put(address, local)
    before = objects(address)
    proxy.inject(Fault.DENIED, path=".tar")
    for command in (
        ("verify", address),
        ("repair", address, "--workers", "0"),
        ("subset", address, "--to", tmp_path / "copy"),
        ("merge", address, "--to", f"{bucket}/copy", "--name", "copy"),
    ):
        assert_one_line(run("featurestore", *command), r"sounds-000000\.tar can't be read.* denied \(HTTP 403")
    assert without_locks(objects(address)) == before
    assert "is not finished" in run("featurestore", "info", tmp_path / "copy").err
    proxy.heal()
    assert run("featurestore", "subset", address, "--to", tmp_path / "copy").status == 0
    assert run("featurestore", "verify", tmp_path / "copy").status == 0


def test_a_raw_cache_beside_the_store(corpus: Path, s3: str, run: Command, objects: Objects, tmp_path: Path) -> None:
    ids = [f"-{number}abcdefgh_" for number in range(4)]
    sounds = {f"{name}.wav": (corpus / f"s{number}.wav").read_bytes() for number, name in enumerate(ids[:3])}
    lists = tmp_path / "lists"
    lists.mkdir()
    rows = "".join(f'{name}, 0.000, 10.000, "/m/09x0r"\n' for name in ids)
    (lists / "balanced_train_segments.csv").write_text(f"# one\n# two\n# YTID, start_seconds, end_seconds\n{rows}")
    shutil.copy(Path(audioset.__file__).with_name("audioset_labels.csv"), lists / "class_labels_indices.csv")
    with BadServer(sounds) as server:
        common = ("audioset", "--split", "balanced", "--metadata", lists, "--workers", "0", "--rate", "1e9")
        source = ("--source", f"{server.url}/good/{{id}}.wav")
        pairs = [(tmp_path / "store", tmp_path / "raw"), (f"{s3}/store", f"{s3}/raw")]
        done = [run("ingest", *common, *source, *SIZES, "--store", store, "--raw", raw) for store, raw in pairs]
        assert [one.status for one in done] == [0, 0], done
        asked = len(server.asked)
        # Another specification needs no second download.
        wider = (*common, *source, "--num-frames", "512", "--raw", f"{s3}/raw", "--store", f"{s3}/wider")
        assert run("ingest", *wider).status == 0
        assert len(server.asked) == asked
    assert done[1].out.startswith(f"{s3}/store: 3 of 4 clips in 2 shards, snapshot 1, ")
    raw = without_locks(objects(f"{s3}/raw"))
    assert sorted(name for name in raw if name.endswith(".wav")) == sorted(
        f"{hashlib.sha256(name.encode()).hexdigest()[:4]}/{name}.wav" for name in ids[:3]
    )
    assert {name.rpartition("/")[2]: content for name, content in raw.items() if name.endswith(".wav")} == sounds
    assert raw == without_locks(files(tmp_path / "raw"))
    here, there = without_locks(files(tmp_path / "store")), without_locks(objects(f"{s3}/store"))
    # The manifest tells where the recordings lie.
    differing = {name for name in here if here[name] != there.get(name)}
    assert (differing, here.keys()) == ({"manifest.parquet", "SHA256SUMS"}, there.keys())
    assert run("featurestore", "verify", f"{s3}/wider").status == 0
