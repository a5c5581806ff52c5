"""What a command's errors look like, and its exit status."""

import errno
import os
import sys

import pytest
import typer

from manifests.console import run
from manifests.errors import InputError


def outcome(error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    """The exit status of a command that raises `error`, and what it wrote to stderr."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def work() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["work"])
    with pytest.raises(SystemExit) as end:
        run(app)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InputError("a [red] file\n  is wrong"), "a [red] file is wrong"),
        (FileNotFoundError("s3://b/x can't be written: no such bucket"), "s3://b/x can't be written: no such bucket"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b.parquet"), "a/b.parquet: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
def test_mistakes_and_places_that_fail_are_one_line(
    error: Exception, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(error, monkeypatch, capsys) == (2, f"error: {text}\n")


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = outcome(KeyboardInterrupt(), monkeypatch, capsys)  # type: ignore[misc]
    assert status == 130
    assert text.strip() == "interrupted: what was finished is kept; run the same command again to go on"


def test_a_reader_that_went_away_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `ingest status | head`."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    assert outcome(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), monkeypatch, capsys) == (1, "")


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        outcome(ZeroDivisionError(), monkeypatch, None)  # type: ignore[arg-type]
