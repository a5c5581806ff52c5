"""Progress where no terminal is: timed lines on stderr."""

import re

import pytest

from ingest import progress
from ingest.progress import ProgressDisplay


def test_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    with ProgressDisplay("clips", 100) as display:
        for seconds[0] in (104.0, 108.0, 112.0, 120.0):
            display.advance(10, "2 failed")
        seconds[0] = 125.0
        display.advance(60)
    assert capsys.readouterr().err.splitlines() == [
        "[   12.0 s] 30/100 clips, 2.5 clips/s, 2 failed, 28 s to go",
        "[   25.0 s] 100/100 clips, 4.0 clips/s",
    ]


def test_a_last_line_on_an_error_too(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with ProgressDisplay("clips", 3) as display:
            display.advance(1)
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        fail()
    assert re.fullmatch(r"\[ +0\.\d s\] 1/3 clips, \S+ clips/s, \d+ s to go\n", capsys.readouterr().err)


def test_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("clips", 0):
        pass
    assert "0/0 clips" in capsys.readouterr().err
