"""The folder of a report: what is in it, what it refuses to replace, and that it appears whole."""

import base64
import fcntl
import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from featurestore.pages import report as report_module
from featurestore.pages.page import json_for_html
from featurestore.pages.report import Report, ReportOptions, write_report
from featurestore.store import Store
from manifests.errors import InputError
from tests.featurestore.pages.conftest import HOSTILE


def read_json(page: Path, name: str) -> Any:
    """What a JSON script element of a page holds, found as a browser finds its end."""
    text = page.read_text().split(f'<script type="application/json" id="{name}">', 1)[1]
    return json.loads(text.split("</script>", 1)[0])


def test_records_of_clips(report: Report, shown_store: Store) -> None:
    data = read_json(report.page, "data")
    assert (report.num_clips, report.num_failures, report.num_with_audio) == (10, 2, 10)
    clips = {clip["key"]: clip for clip in data["clips"]}
    assert sorted(clips) == sorted(shown_store.keys(shown_store.rows()))
    clip = clips["clip01"]
    about = dict(clip["about"])
    assert about["source"] == "clip01.wav"
    assert about["source format"] == "wav/pcm_16, 16000 Hz, 1 channels"
    assert about["source length"] == "2.00 s"
    assert re.fullmatch(r"rms -30\.\d dBFS, peak -26\.\d dBFS", about["level"])
    assert [data["classes"][label][1] for label in clip["labels"]] == ["rain"]
    assert clip["repeats"] == 198 / 256  # 2 s are 198 frames
    assert data["clips"][clip["near"][0][0]]["key"] == "twin"
    assert clip["near"][0][1] == pytest.approx(1.0, abs=1e-3)
    assert {(one["key"], one["reason"]) for one in data["failures"]} == {("broken", "not_audio"), ("gone", "missing")}
    assert sorted(data["duplicates"][0]["keys"]) == ["clip01", "twin"]
    assert data["duplicates"][0]["cosine"] is None
    assert all(sorted(one["keys"]) != ["clip01", "twin"] for one in data["duplicates"][1:])


def test_pictures_and_sounds(report: Report, shown_store: Store) -> None:
    """The inlined files are those of the clips: the masks' sheet holds what the trainer's maths says."""
    inline, data = read_json(report.page, "inline"), read_json(report.page, "data")
    assert report.is_one_file
    clip = next(clip for clip in data["clips"] if clip["key"] == "clip02")

    def content(ending: str) -> bytes:
        return base64.b64decode(inline[clip["file"] + ending].split(",", 1)[1])

    assert Image.open(io.BytesIO(content(".webp"))).size == (256, 256)
    masks = np.asarray(Image.open(io.BytesIO(content(".png"))))
    assert masks.shape == (3 * 128, 256)
    inter = masks[128:256].reshape(8, 16, 16, 16)
    assert (inter == inter[:, :1, :, :1]).all()
    assert inter[:, 0, :, 0].sum() == 96  # 75 % of 8 x 16 patches
    assert 0 < (masks[:128] == 1).mean() < 0.5
    samples, rate_hz = soundfile.read(io.BytesIO(content(".mp3")))
    assert rate_hz == 16_000
    assert abs(len(samples) / rate_hz - 2.575) < 0.1  # the window of 3 s of sound


def test_files_beside_the_page(shown_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by rows, so that no name from data becomes a path."""
    monkeypatch.setattr(report_module, "MAX_INLINE_BYTES", 1000)
    written = write_report(shown_store, tmp_path / "report", ReportOptions(num_clips=3, with_audio=False))
    assert not written.is_one_file
    assert written.num_with_audio == 0
    names = sorted(path.name for path in (tmp_path / "report" / "clips").iterdir())
    assert len(names) == 6
    assert all(re.fullmatch(r"\d{9}\.(webp|png)", name) for name in names)
    assert read_json(written.page, "inline") == {}
    clips = read_json(written.page, "data")["clips"]
    assert {clip["file"] for clip in clips} == {name.split(".")[0] for name in names}
    assert {clip["silence"] for clip in clips} == {"left out (--no-audio)"}


def test_same_store_and_seed_give_the_same_page(shown_store: Store, tmp_path: Path) -> None:
    options = ReportOptions(num_clips=4, seed=1)
    pages = [write_report(shown_store, tmp_path / name, options).page.read_bytes() for name in ("one", "other")]
    assert pages[0] == pages[1]
    other = write_report(shown_store, tmp_path / "third", replace(options, seed=2))
    keys = [
        {clip["key"] for clip in read_json(tmp_path / name / "index.html", "data")["clips"]}
        for name in ("one", "third")
    ]
    assert len(keys[0]) == len(keys[1]) == 4
    assert keys[0] != keys[1]
    assert other.num_clips == 4


def test_sound_from_the_source(finished_store: Store, tmp_path: Path) -> None:
    """Without KEY.flac the sources are asked; where one is gone, the page says so."""
    corpus = finished_store.root.parent / "corpus"
    store = Store(shutil.copytree(finished_store.root, tmp_path / "store"))
    hidden = corpus / "clip03.wav"
    content = hidden.read_bytes()
    hidden.unlink()
    try:
        written = write_report(store, tmp_path / "report", ReportOptions())
    finally:
        hidden.write_bytes(content)
    clips = {clip["key"]: clip for clip in read_json(written.page, "data")["clips"]}
    assert clips["clip03"]["silence"].startswith("missing:")
    assert [key for key, clip in clips.items() if clip["silence"] is not None] == ["clip03"]


def test_hostile_texts_are_text(report: Report) -> None:
    text = report.page.read_text()
    assert HOSTILE not in text
    assert "<img src=x" not in text
    assert "<b>st" not in text
    assert json.loads(json_for_html(HOSTILE)) == HOSTILE
    assert text.count("<script") == 3


def test_replaces_a_report_and_nothing_else(shown_store: Store, tmp_path: Path) -> None:
    options = ReportOptions(num_clips=1, with_audio=False)
    out = tmp_path / "report"
    write_report(shown_store, out, options)
    write_report(shown_store, out, replace(options, num_clips=2))
    assert len(read_json(out / "index.html", "data")["clips"]) == 2
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other things than a report \(index.html, notes.txt, report.json\)"):
        write_report(shown_store, out, options)
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder of its own"):
        write_report(shown_store, tmp_path / "file", options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "report"]


def test_an_error_leaves_the_earlier_report(shown_store: Store, tmp_path: Path) -> None:
    out = tmp_path / "report"
    write_report(shown_store, out, ReportOptions(num_clips=1, with_audio=False))
    before = (out / "index.html").read_bytes()
    with pytest.raises(InputError, match="no cache of a teacher 'nobody'"):
        write_report(shown_store, out, ReportOptions(teacher="nobody"))
    assert (out / "index.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_one_writer_at_a_time_and_a_killed_one_is_cleared_away(shown_store: Store, tmp_path: Path) -> None:
    partial = tmp_path / ".report.partial"
    (partial / "clips").mkdir(parents=True)
    (partial / "clips" / "000000001.webp").write_text("half")
    lock = os.open(partial, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    options = ReportOptions(num_clips=1, with_audio=False)
    with pytest.raises(InputError, match="another `featurestore inspect` is writing"):
        write_report(shown_store, tmp_path / "report", options)
    assert partial.exists()
    os.close(lock)
    write_report(shown_store, tmp_path / "report", options)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_too_many_clips(shown_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "MAX_CLIPS", 5)
    with pytest.raises(InputError, match=r"10 clips of .* are too many for a page, which takes 5"):
        write_report(shown_store, tmp_path / "report", ReportOptions(num_clips=None))


def test_damaged_shard_is_named(store_copy: Path, tmp_path: Path) -> None:
    tar = next(store_copy.glob("shards/*-000001.tar"))
    os.truncate(tar, 100_000)
    with pytest.raises(InputError, match=r"tiny-000001\.tar ends inside clip"):
        write_report(Store(store_copy), tmp_path / "report", ReportOptions(with_audio=False))
    assert not (tmp_path / "report").exists()


def test_the_page_says_that_an_own_teacher_finds_no_pairs(
    shown_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.pages.taught.OWN_TEACHERS", frozenset({"fbankstats"}))
    page = write_report(shown_store, tmp_path / "own", ReportOptions(duplicate_cosine=0.0, with_audio=False)).page
    assert [sorted(one["keys"]) for one in read_json(page, "data")["duplicates"]] == [["clip01", "twin"]]
    assert "Equal fbanks in the whole store. fbankstats was trained here: " in page.read_text()
    assert "pairs)" not in page.read_text()
