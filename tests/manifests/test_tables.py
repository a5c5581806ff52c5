"""The reading of users' tables: every complaint names the file, the line and the remedy."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import InputError
from manifests.tables import find_files, read_table, read_text, require_files, source_within, whole_number


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes(data)
    return path


def test_reads_bom_crlf_quotes_and_blank_lines(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, b'\xef\xbb\xbffile, label\r\n\r\n"a, b.wav","say ""hi"""\r\nc.wav,\xc3\xa9\r\n'))
    assert table.columns == ("file", "label")
    assert [(row.line, row.cells["file"], row.cells["label"]) for row in table.rows] == [
        (3, "a, b.wav", 'say "hi"'),
        (4, "c.wav", "é"),
    ]


def test_a_row_starts_on_the_line_an_editor_shows(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, b'file,label\n"a\nb",x\nc,y\n'))
    assert [row.line for row in table.rows] == [2, 4]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "labels.csv is empty: expected a line of column names"),
        (b"file,label\n\n", "labels.csv is empty"),
        (b"file,file\na,b\n", "line 1: two columns are called 'file'; rename one"),
        (b"file,label\na,b\nc\n", "line 3: 1 cells, expected 2 as in the header; put quotes"),
        (b"file,label\na,b\n\xe9,c\n", "line 3: not UTF-8; save the file as UTF-8"),
        (b'file,label\na,b\n"c,d\n', "line 3: not CSV"),
    ],
)
def test_a_bad_table(tmp_path: Path, data: bytes, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read_table(write(tmp_path, data))
    assert expected in str(caught.value)
    assert "labels.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv can't be read \(No such file or directory\); give the path"):
        read_text(tmp_path / "none.csv")


def test_missing_columns_are_named_beside_those_found(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, b"file;label\na;b\n"))
    with pytest.raises(InputError, match=r"line 1: no column 'file' and 'label'; found.*: 'file;label'; the remedy"):
        table.require(["file", "label"], "the remedy")
    with pytest.raises(InputError, match=r"no column 'file', 'filename' or 'path'; found"):
        table.choose(["file", "filename", "path"], "the remedy")
    both = read_table(write(tmp_path, b"file,path\na,b\n"))
    assert both.choose(["path"], "") == "path"
    with pytest.raises(InputError, match="columns 'file' and 'path' could all be meant; the remedy"):
        both.choose(["file", "path"], "the remedy")


def test_cells(tmp_path: Path) -> None:
    row = read_table(write(tmp_path, b"n,t,yes,empty,bad,odd\n7,1.2345,TRUE,,x,nan\n")).rows[0]
    assert (row.whole_number("n"), row.milliseconds("t"), row.boolean("yes")) == (7, 1234, True)
    assert row.milliseconds("empty") is None
    with pytest.raises(InputError, match=r"labels\.csv, line 2: empty is empty; fill it in"):
        row.text("empty")
    with pytest.raises(InputError, match=r"line 2: bad is 'x'; expected True or False: correct"):
        row.boolean("bad")
    with pytest.raises(InputError, match=r"line 2: odd is 'nan'; expected seconds from 0 on"):
        row.milliseconds("odd")
    with pytest.raises(InputError, match=r"line 2: n is '7'; expected a whole number from 1 to 5: correct it"):
        row.whole_number("n", 1, 5)


@given(st.integers(0, 999_999_999))
def test_whole_numbers_come_back(number: int) -> None:
    assert whole_number(str(number), "it") == number
    assert whole_number(f"{number:09d}", "it") == number


@pytest.mark.parametrize("text", ["", "-1", "1.0", "1_0", "٣", "9999999999", " 1"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(InputError, match=r"it is .*; expected a whole number"):
        whole_number(text, "it")


def test_a_path_stays_in_its_root(tmp_path: Path) -> None:
    root = (tmp_path / "root").resolve()
    (root / "sub").mkdir(parents=True)
    (root / "out").symlink_to(tmp_path)
    (root / "ring").symlink_to(root / "ring")
    assert source_within(root, "sub/../sub//a.wav") == "sub/a.wav"
    assert source_within(root, str(root / "a.wav")) == "a.wav"
    assert source_within(root, "..a.wav") == "..a.wav"
    assert source_within(root, "ring/a.wav") == "ring/a.wav"
    for name in ("../a.wav", "sub/../../a.wav", "/etc/passwd", "out/a.wav", "a\0.wav"):
        assert source_within(root, name) is None, name


@given(st.lists(st.sampled_from(["..", ".", "a", "b", ""]), min_size=1, max_size=6))
def test_a_path_within_is_tidy(parts: list[str]) -> None:
    root = Path("/no/such/root")
    source = source_within(root, "/".join(["x", *parts]))
    assert source is None or (".." not in source.split("/") and not source.startswith("/"))


def test_missing_files_are_counted_and_three_named(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    files = [(f"line {line}", tmp_path / name) for line, name in enumerate(["here", "a", "b", "c", "d"], start=2)]
    with pytest.raises(InputError) as caught:
        require_files(files, "put them back")
    message = str(caught.value)
    assert message.startswith(f"4 of 5 files are missing or unreadable: {tmp_path / 'a'} (line 3); ")
    assert message.endswith(f"{tmp_path / 'c'} (line 5); ...; put them back")


def test_finds_files_and_refuses_links_out(tmp_path: Path) -> None:
    root = tmp_path.resolve() / "root"
    for name in ("b/x.WAV", "a.flac", ".hidden/y.wav", "b/.z.wav", "b/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "again").symlink_to(root / "b")
    (root / "same.wav").symlink_to(root / "b" / "x.WAV")
    assert find_files(root, ["wav", "flac"]) == ["a.flac", "b/x.WAV", "same.wav"]
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(
        InputError, match=r"/out is a link out of .*; copy its files in, or name its target as the folder"
    ):
        find_files(root, ["wav"])


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    try:
        (tmp_path / "\udce9.wav").touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InputError, match="is not UTF-8, as it must be; rename it"):
        find_files(tmp_path.resolve(), ["wav"])
