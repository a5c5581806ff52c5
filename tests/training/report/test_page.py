"""The page as a file: self-contained, escaped, in nobody's way."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from manifests.errors import InputError
from training.report.page import ReportOptions, write_report


class Addresses(HTMLParser):
    """All that elements point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_one_file_that_fetches_nothing(finished_run: Path, tmp_path: Path) -> None:
    report = write_report([finished_run], tmp_path / "out", ReportOptions(num_clips=2))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]
    assert (report.num_runs, report.num_warnings, report.missing) == (1, 1, [])
    text = report.page.read_text()
    addresses = Addresses(text).found
    assert len([one for one in addresses if one.startswith("data:image/")]) == 12
    assert all(one.startswith(("data:", "#")) for one in addresses)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_texts_from_data_are_escaped(finished_run: Path, tmp_path: Path) -> None:
    text = write_report([finished_run], tmp_path, ReportOptions(num_clips=0)).page.read_text()
    assert "<img src=x" not in text
    assert text.count("&lt;img src=x") == 2  # the command, and the key of a confused clip
    assert text.count("<script") == 2


def test_missing_parts_are_sentences(finished_run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(finished_run / "metrics.jsonl", bare)
    report = write_report([finished_run, bare], tmp_path / "out", ReportOptions(num_clips=1))
    assert report.missing == [
        "bare: no reconstructions: this run has no Multi-SSL checkpoint that can be read",
        "bare: no confusions: no evaluation of this run has left a predictions.parquet; `training eval` writes one",
    ]
    text = report.page.read_text()
    assert "<b>bare</b>: none, because this run has no Multi-SSL checkpoint that can be read." in text
    assert "There is no config.json." in text


def test_a_store_of_another_kind_of_damage_is_a_sentence(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    recorded = json.loads((folder / "store.json").read_text())
    (tmp_path / "empty").mkdir()
    for content in ({**recorded, "store": str(tmp_path / "empty")}, {"store": "nowhere"}, {}):
        (folder / "store.json").write_text(json.dumps(content))
        (why,) = write_report([folder], tmp_path / "out", ReportOptions(num_clips=1)).missing
        assert why.startswith("run: no reconstructions: ")


def test_an_earlier_page_is_replaced_and_nothing_else(finished_run: Path, tmp_path: Path) -> None:
    options = ReportOptions(num_clips=0)
    first = write_report([finished_run], tmp_path, options).page.read_bytes()
    assert write_report([finished_run], tmp_path, options).page.read_bytes() == first
    (tmp_path / "index.html").write_text("<p>mine")
    with pytest.raises(InputError, match="something else than a page of `training report`"):
        write_report([finished_run], tmp_path, options)
    assert (tmp_path / "index.html").read_text() == "<p>mine"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another folder with --out"):
        write_report([finished_run], tmp_path / "file", options)
