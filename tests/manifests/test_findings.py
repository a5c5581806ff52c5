"""How what doctors find is shown: whole, so that it can be copied."""

import json

import pytest

from manifests.errors import InputError
from manifests.findings import Finding, Status, print_findings, refusal

COMMAND = "featurestore build-teacher --model ... --name beats --store /" + "a-folder-of-some-length/" * 6 + "store"


def _columns(table: str) -> list[str]:
    """The text of each column, its lines joined without a space, and spaces left out."""
    rows = [line.split("│")[1:-1] for line in table.splitlines() if line.startswith("│")]
    return ["".join("".join(cells).split()) for cells in zip(*rows, strict=True)]


def test_nothing_is_cut_at_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name, found = "store s3://" + "bucket/" * 12, "there is no /" + "folder/" * 12
    print_findings([Finding(name, Status.MISSING, found, COMMAND)], as_json=False)
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) == 80
    assert "…" not in table
    columns = _columns(table)
    assert columns == ["".join(text.split()) for text in (name, "missing", found, COMMAND)]


def test_json_has_every_finding(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings([Finding("disk", Status.OK, "[red] room")], as_json=True)
    expected = {"name": "disk", "status": "ok", "found": "[red] room", "remedy": ""}
    assert json.loads(capsys.readouterr().out) == [expected]


@pytest.mark.parametrize(
    ("message", "found", "remedy"),
    [
        ("x is missing; run `ingest` again", "x is missing", "run `ingest` again"),
        ("x is damaged (a; b); delete it", "x is damaged (a; b)", "delete it"),
        ("there is no x", "there is no x", ""),
    ],
)
def test_a_refusal_says_what_the_error_says(message: str, found: str, remedy: str) -> None:
    assert refusal("store", InputError(message)) == Finding("store", Status.MISSING, found, remedy)
