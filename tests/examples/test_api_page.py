"""docs/api.md: its pieces run one after the other, and it names all that there is."""

import gc
import re
from pathlib import Path
from typing import Any

import pytest

import featurestore
from featurestore.cliptable import DEFAULT_COLUMNS
from tests.examples.conftest import Tour

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def pieces() -> list[str]:
    """The indented blocks, each a list of lines without the indentation."""
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", PAGE, re.MULTILINE)
    return ["\n".join(line[4:] for line in block.splitlines()) for block in blocks if block.strip()]


# webdataset leaves the closing of its files to Python.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_its_pieces_run(tour: Tour, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tour.home)
    names: dict[str, Any] = {}
    for piece in pieces():
        exec(compile(piece, "docs/api.md", "exec"), names)
    assert "240 ['eval', 'train'] [] ['bark'" in capsys.readouterr().out
    assert len(names["frame"]) == 240
    assert (names["embeddings"].shape, names["batch"].fbank.shape) == ((180, 256), (16, 256, 128))
    assert (names["one"]["json"]["split"], names["first"].snapshot.number) == ("train", 1)
    assert 0 < len(names["loud"]) < 240
    names.clear()
    gc.collect()


def test_it_names_what_is_exported_and_the_columns() -> None:
    for name in (*featurestore.__all__, *(f"`{column}`" for column in DEFAULT_COLUMNS)):
        assert name in PAGE
