"""ESC-50's official layout: the real ESC-10 rows, and what is said about damaged copies."""

from collections import Counter
from pathlib import Path

import pytest

from manifests.errors import InputError
from manifests.esc50 import esc50_manifest

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "esc10"
HEADER = "filename,fold,target,category,esc10,src_file,take"
ROWS = ("1-1-A-30.wav,1,30,door_wood_knock,False,1,A", "2-2-A-0.wav,2,0,dog,True,2,A", "3-3-B-0.wav,5,0,dog,True,3,B")


def make(root: Path, *rows: str, header: str = HEADER) -> Path:
    (root / "meta").mkdir()
    (root / "audio").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join([header, *rows]) + "\n")
    for name in ("1-1-A-30.wav", "2-2-A-0.wav", "3-3-B-0.wav"):
        (root / "audio" / name).touch()
    return root


def message(root: Path, *, esc10: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        esc50_manifest(root, esc10=esc10)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_labels_stand_in_the_order_of_targets(tmp_path: Path) -> None:
    manifest = esc50_manifest(make(tmp_path, *ROWS))
    assert manifest.dataset == "esc50"
    assert manifest.vocabulary.ids == ["dog", "door_wood_knock"]
    assert manifest.vocabulary.names == ["dog", "door wood knock"]
    clips = {clip.key: clip for clip in manifest.clips()}
    knock = clips["1-1-A-30"]
    assert (knock.source, knock.labels, knock.fold, knock.split) == (
        "audio/1-1-A-30.wav",
        ("door_wood_knock",),
        1,
        None,
    )
    assert {key: clip.fold for key, clip in clips.items()} == {"1-1-A-30": 1, "2-2-A-0": 2, "3-3-B-0": 5}


def test_esc10_keeps_its_rows_only(tmp_path: Path) -> None:
    make(tmp_path, *ROWS)
    (tmp_path / "audio" / "1-1-A-30.wav").unlink()
    manifest = esc50_manifest(tmp_path, esc10=True)
    assert (manifest.dataset, len(manifest), manifest.vocabulary.ids) == ("esc10", 2, ["dog"])


@pytest.mark.parametrize(
    ("row", "line", "expected"),
    [
        ("3-3-B-0.wav,6,0,dog,True,3,B", 4, "fold is '6'; expected a whole number from 1 to 5"),
        ("3-3-B-0.wav,x,0,dog,True,3,B", 4, "fold is 'x'"),
        ("3-3-B-0.wav,5,50,dog,True,3,B", 4, "target is '50'; expected a whole number from 0 to 49"),
        ("3-3-B-0.wav,5,0,dog,yes,3,B", 4, "esc10 is 'yes'; expected True or False"),
        ("3-3-B-0.wav,5,0,cat,True,3,B", 4, "target 0 with category 'cat', but an earlier line has 'dog' for target 0"),
        ("3-3-B-0.wav,5,1,dog,True,3,B", 4, "and 0 for 'dog'; a target stands for one category: correct"),
        ("../3-3-B-0.wav,5,0,dog,True,3,B", 4, "expected the plain name of a file in audio/"),
        ("/etc/passwd,5,0,dog,True,3,B", 4, "expected the plain name of a file in audio/"),
        (",5,0,dog,True,3,B", 4, "filename is empty; fill it in"),
        ("3-3-B-0.wav,5,0,dog", 4, "4 cells, expected 7 as in the header"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, line: int, expected: str) -> None:
    text = message(make(tmp_path, *ROWS[:2], row))
    assert text.startswith(f"{tmp_path / 'meta' / 'esc50.csv'}, line {line}: ")
    assert expected in text


def test_missing_files_are_counted_and_named(tmp_path: Path) -> None:
    make(tmp_path, *ROWS)
    (tmp_path / "audio" / "2-2-A-0.wav").rename(tmp_path / "audio" / "2-2-A-0.ogg")
    text = message(tmp_path)
    assert text.startswith("1 of 3 files are missing or unreadable: ")
    assert f"audio/2-2-A-0.wav ({tmp_path / 'meta' / 'esc50.csv'}, line 3); unpack the whole archive again" in text


def test_a_wrong_layout(tmp_path: Path) -> None:
    assert message(tmp_path / "none").startswith(f"{tmp_path / 'none'}: no such folder; give the path of the folder")
    assert "--root must be the folder that holds meta/esc50.csv and audio/" in message(tmp_path)


def test_missing_columns(tmp_path: Path) -> None:
    text = message(make(tmp_path, "a.wav,1", header="filename,folds"))
    assert "line 1: no column 'fold', 'target', 'category' and 'esc10'" in text
    assert "'filename' and 'folds'; expected the official table: download" in text


def test_an_empty_table_and_no_esc10(tmp_path: Path) -> None:
    assert "esc50.csv is empty" in message(make(tmp_path))
    (tmp_path / "meta" / "esc50.csv").write_text(f"{HEADER}\n{ROWS[0]}\n")
    assert "has no row with esc10 True; leave --esc10 out" in message(tmp_path, esc10=True)


def test_a_table_that_is_not_utf8(tmp_path: Path) -> None:
    make(tmp_path, *ROWS)
    (tmp_path / "meta" / "esc50.csv").write_bytes(f"{HEADER}\n".encode("utf-16"))
    assert "esc50.csv, line 1: not UTF-8; save the file as UTF-8" in message(tmp_path)


def test_a_file_listed_twice(tmp_path: Path) -> None:
    assert "the key '2-2-A-0' stands for two clips" in message(make(tmp_path, *ROWS, ROWS[1]))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no ESC-10 in {REAL}")
def test_the_real_esc10() -> None:
    manifest = esc50_manifest(REAL, esc10=True, seed=3)
    clips = list(manifest.clips())
    assert len(clips) == 400
    assert Counter(clip.fold for clip in clips) == dict.fromkeys(range(1, 6), 80)
    assert set(Counter(clip.labels for clip in clips).values()) == {40}
    assert manifest.vocabulary.names == [
        *("dog", "rooster", "rain", "sea waves", "crackling fire", "crying baby", "sneezing", "clock tick"),
        *("helicopter", "chainsaw"),
    ]
    dog = next(clip for clip in clips if clip.key == "1-100032-A")
    assert (dog.source, dog.labels, dog.fold) == ("audio/1-100032-A.ogg", ("dog",), 1)
    assert esc50_manifest(REAL, esc10=True, seed=4).sha256 != manifest.sha256
