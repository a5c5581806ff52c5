"""Groups of options: each command takes them as if they were its own."""

import math
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ingest.fetching import FetchOptions
from ingest.options import COMMON, LISTED, Common, Listed, takes
from ingest.plan import IngestOptions
from manifests.errors import InputError
from manifests.subset import Selection


def called(arguments: list[str], defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a command with all groups and an option of its own is called with."""
    app, calls = typer.Typer(), []

    @app.command()
    @takes(defaults or {}, **LISTED, **COMMON)
    def command(listed: Listed, common: Common, name: str, own: int = 7) -> None:
        calls.append({"listed": listed, "common": common, "name": name, "own": own})

    done = CliRunner().invoke(app, arguments, catch_exceptions=True)
    if isinstance(done.exception, InputError):
        raise done.exception
    assert done.exit_code == 0, done.output
    (call,) = calls
    return call


def test_defaults() -> None:
    call = called(["n"])
    assert (call["name"], call["own"]) == ("n", 7)
    assert call["common"] == Common(store=None, seed=0, drop_silent=None, ingest=IngestOptions())
    assert call["listed"] == Listed(None, False, Selection(), "youtube", None, FetchOptions())


def test_every_option_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cookies.txt").touch()
    common = (
        "--store s3://b/x --seed 3 --num-frames 512 --clips-per-shard 9 --keep-audio --keep-silent --workers 2 "
        "--ray-address h:1 --max-failures 0.25 --retry-failed --append"
    )
    listed = (
        "--source http://h/{id} --metadata m --skip-bad-rows --limit 5 --subset paper20k --keys k --rate inf "
        "--downloads 4 --time-limit 9 --cookies cookies.txt --raw r"
    )
    call = called(["n", "--own", "1", *common.split(), *listed.split()])
    assert call["own"] == 1
    expected = IngestOptions(
        num_frames=512,
        clips_per_shard=9,
        keep_audio=True,
        num_workers=2,
        ray_address="h:1",
        max_failures=0.25,
        retry_failed=True,
        append=True,
    )
    assert call["common"] == Common("s3://b/x", 3, False, expected)
    assert call["listed"] == Listed(
        metadata=Path("m"),
        skip_bad_rows=True,
        selection=Selection(keys_file=Path("k"), subset="paper20k", limit=5),
        source="http://h/{id}",
        raw="r",
        fetch=FetchOptions("http://h/{id}", math.inf, 4, 9.0, (tmp_path / "cookies.txt").resolve()),
    )


def test_downloads_may_be_dropped() -> None:
    assert called(["n", "--no-raw"])["listed"].fetch == FetchOptions(keep_raw=False)


def test_a_command_s_own_defaults() -> None:
    defaults = {"num_frames": 256, "rate": 1.0}
    call = called(["n"], defaults)
    assert (call["common"].ingest.num_frames, call["listed"].fetch.rate_per_hour) == (256, 1.0)
    call = called(["n", "--num-frames", "512"], defaults)
    assert call["common"].ingest.num_frames == 512
    assert called(["n"])["common"].ingest.num_frames == 1024


def test_ray_s_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "host:6379")
    assert called(["n"])["common"].ingest.ray_address == "host:6379"
    assert called(["n", "--ray-address", "other:1"])["common"].ingest.ray_address == "other:1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--num-frames 300", "--num-frames 300 is not possible; give 1024, 512 or 256"),
        ("--subset as30k", "--subset 'as30k' is not known; give as20k or paper20k"),
        ("--raw r --no-raw", "--no-raw would drop downloads that others may keep in --raw; give one of the two"),
        ("--cookies none", "--cookies none: no such file; export one from your browser, or leave it out"),
    ],
)
def test_what_can_t_be(arguments: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        called(["n", *arguments.split()])
