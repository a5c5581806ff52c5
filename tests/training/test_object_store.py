"""Training from an object store, over HTTP to moto on loopback: the same losses as from a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore.store import Store
from featurestore.verify import verify
from ingest.location import open_location
from tests.s3server import Fault, FlakyProxy, flaky_s3_fixture, s3_server_fixture  # noqa: F401

Command = Callable[..., Any]


def test_two_iterations_through_dropped_connections(
    flaky_s3: tuple[str, FlakyProxy],
    store: Store,
    preset: Path,
    training: Command,
    read_stream: Callable[[Path], list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second one distils from the first one's model, whose cache is made in the object store."""
    monkeypatch.setenv("ACM_SSKD_CACHE", str(tmp_path / "cache"))
    bucket, proxy = flaky_s3
    location = open_location(f"{bucket}/tiny")
    for name in store.location.files():
        if not name.startswith("teachers/"):
            location.write(name, store.location.read(name))
    proxy.inject(Fault.CUT, times=2, method="GET", path=".tar")
    proxy.inject(Fault.REFUSED, times=1, method="PUT", path="embedding/c/1")
    proxy.inject(Fault.CUT, times=1, method="GET", path="embedding/c/2")
    command = ("run", "--iter", "2", "--preset", preset)
    outcome = training(*command, "--store", f"{bucket}/tiny", "--run", tmp_path / "there")
    assert outcome.status == 0, outcome.err
    assert proxy.pending() == 0

    own = tmp_path / "own"
    for name in store.location.files():
        if not name.startswith("teachers/"):
            open_location(own).write(name, store.location.read(name))
    assert training(*command, "--store", own, "--run", tmp_path / "here").status == 0
    here, there = read_stream(tmp_path / "here"), read_stream(tmp_path / "there")
    assert len(here) > 24
    assert there == here
    assert verify(location) == []
    # The run knows where its store is.
    evaluated = [training("eval", tmp_path / run, "--json") for run in ("here", "there")]
    assert [outcome.status for outcome in evaluated] == [0, 0]
    figures = [json.loads(outcome.out) for outcome in evaluated]
    places = {"checkpoint": "", "predictions": ""}
    assert figures[0] | places == figures[1] | places
    assert figures[1]["num_evaluated"] == 6
