"""The examination names what is there and what is missing, by trying it."""

import importlib
import importlib.metadata
import os
import shutil
import socket
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from yt_dlp.extractor.youtube.jsc._builtin import vendor
from yt_dlp.utils import _jsruntime

from ingest import doctor
from ingest.doctor import examine
from ingest.location import open_location
from manifests.findings import Finding, Status, is_fit
from tests.s3server import s3_fixture, s3_server_fixture  # noqa: F401


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_this_machine_without_ray(tmp_path: Path) -> None:
    findings = by_name(examine(str(tmp_path / "not" / "yet" / "there"), None, with_ray=False))
    assert list(findings) == ["yt-dlp", "JavaScript for YouTube", "decoders", "disk"]
    assert findings["decoders"] == Finding("decoders", Status.OK, "wav, flac, ogg, mp3, m4a, webm")
    assert f"GB free at {tmp_path}: shards of " in findings["disk"].found
    assert not list(tmp_path.iterdir())
    assert all((finding.status is Status.OK) == (not finding.remedy) for finding in findings.values())


def test_it_is_fit_with_warnings_and_not_where_something_is_missing() -> None:
    ok, warning, missing = (Finding("x", status, "found") for status in Status)
    assert is_fit([ok, warning])
    assert not is_fit([ok, missing])


def test_yt_dlp_grows_old() -> None:
    version = importlib.metadata.version("yt-dlp")
    released = date(*(int(part) for part in version.split(".")[:3]))
    assert doctor.examine_yt_dlp(released + timedelta(60)) == Finding("yt-dlp", Status.OK, version)
    old = doctor.examine_yt_dlp(released + timedelta(61))
    assert (old.status, old.found) == (Status.WARNING, f"{version}, 61 days old")
    assert "pip install -U" in old.remedy


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a version of a package be found before the installed one."""
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))

    def install(name: str, version: str) -> None:
        about = tmp_path / "packages" / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        importlib.invalidate_caches()

    return install


@pytest.mark.parametrize("version", ["custom", "2026.13.45", "7"])
def test_a_version_without_a_date_is_a_warning(packages: Any, version: str) -> None:
    packages("yt-dlp", version)
    finding = doctor.examine_yt_dlp(date(2026, 11, 1))
    assert (finding.status, finding.found) == (Status.WARNING, f"{version}, which doesn't tell its date")


def test_a_nightly_version_tells_its_date(packages: Any) -> None:
    packages("yt-dlp", "2026.10.27.232815")
    assert doctor.examine_yt_dlp(date(2026, 11, 1)).status is Status.OK


@pytest.fixture
def runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes programs, which print their version, the only JavaScript runtimes."""
    monkeypatch.setattr(_jsruntime, "_find_exe", lambda name: str(tmp_path / name))

    def install(name: str, output: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{output}'\n")
        (tmp_path / name).chmod(0o755)

    return install


def test_youtube_needs_a_runtime_that_is_new_enough(runtimes: Any) -> None:
    runtimes("node", "v20.20.2")
    finding = doctor.examine_javascript()
    # Who fetches nothing from YouTube can do without.
    assert finding.status is Status.WARNING
    assert finding.found.startswith("no deno (>= 2.3.0), node 20.20.2 (needs 22.0.0), no bun (>= ")
    assert "yt-dlp[default,deno]" in finding.remedy


def test_youtube_needs_the_scripts_too(runtimes: Any, packages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes("deno", "deno 2.9.8 (stable)")
    runtimes("node", "v24.1.0")
    packages("yt-dlp-ejs", "0.0.1")
    finding = doctor.examine_javascript()
    expected = f"deno 2.9.8, node 24.1.0, but yt-dlp-ejs 0.0.1 (needs {vendor.VERSION})"
    assert (finding.status, finding.found) == (Status.WARNING, expected)
    shutil.rmtree(Path(sys.path[0]))
    packages("yt-dlp-ejs", vendor.VERSION)
    finding = doctor.examine_javascript()
    assert finding == Finding(finding.name, Status.OK, f"deno 2.9.8, node 24.1.0, yt-dlp-ejs {vendor.VERSION}")
    monkeypatch.setattr(doctor, "_version_of", lambda package: None)
    assert "but yt-dlp-ejs is missing" in doctor.examine_javascript().found


def test_a_yt_dlp_that_cant_say_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yt_dlp.globals", None)
    finding = doctor.examine_javascript()
    assert finding.status is Status.WARNING
    assert finding.found.startswith("yt-dlp can't tell what it needs: ")


def test_a_decoder_that_decodes_wrongly_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_garbage(path: Path) -> None:
        path.write_bytes(b"garbage")

    def write_silence(path: Path) -> None:
        doctor.soundfile.write(path, [0.0] * 24_000, 48_000)

    monkeypatch.setitem(doctor._WRITERS, "m4a", write_garbage)
    monkeypatch.setitem(doctor._WRITERS, "flac", write_silence)
    finding = doctor.examine_decoders()
    assert finding.status is Status.MISSING
    assert "flac (" in finding.found
    assert "decodes wrongly: 14400 samples, rms 0.00" in finding.found
    assert "m4a (not_audio: no decoder takes it" in finding.found
    assert "webm" not in finding.found


def test_a_place_that_cant_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, no folder")
    finding = doctor.examine_disk(str(tmp_path / "file" / "store"))
    assert (finding.status, finding.found) == (
        Status.MISSING,
        f"{tmp_path / 'file'} can't be written to: Not a directory",
    )


def test_little_room_is_a_warning_and_none_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, status in (
        (2_800_000_000_000, Status.OK),
        (9_000_000_000, Status.WARNING),
        (900_000_000, Status.MISSING),
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(free, 0, free))
        finding = doctor.examine_disk(str(tmp_path))
        assert finding.status is status
        assert f"shards of {free // 274_432:,} clips" in finding.found  # docs/scale.md, measured on real shards
    monkeypatch.undo()
    assert f" at {Path(os.environ.get('TMPDIR', '/tmp'))}" in doctor.examine_disk("s3://bucket/x").found


def test_an_object_store_is_written_to_and_left_as_it_was(s3: str) -> None:
    finding = by_name(examine(f"{s3}/store", None, with_ray=False))["object store"]
    expected = f"{s3}/store: can be written, read, listed and deleted from"
    assert finding == Finding("object store", Status.OK, expected)
    assert open_location(s3).files() == []


def test_an_object_store_that_doesnt_work_says_why() -> None:
    finding = by_name(examine("gopher://bucket/x", None, with_ray=False))["object store"]
    assert finding.status is Status.MISSING
    assert "gopher" in finding.found
    assert "credentials" in finding.remedy


def test_ray_is_started_and_runs_a_task() -> None:
    finding = by_name(examine(None, None))["Ray"]
    assert finding == Finding("Ray", Status.OK, f"{importlib.metadata.version('ray')}, starts here")


def test_nobody_answers_at_rays_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    finding = by_name(examine(None, f"127.0.0.1:{port}", with_ray=False))["Ray"]
    assert (finding.status, finding.found) == (Status.MISSING, "[Errno 111] Connection refused")


def test_a_helper_that_hangs_doesnt_hang_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TIME_LIMIT_S", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        finding = by_name(examine(None, address, with_ray=False))["Ray"]
    assert (finding.status, finding.found) == (Status.MISSING, "no answer within 4 s")
