"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from ingest.atomic import atomic_path, atomic_write, remove_stale


def test_the_old_content_stands_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf_8(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", "é\n")
    atomic_write(tmp_path / "b", b"\x00\r\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"
    assert (tmp_path / "b").read_bytes() == b"\x00\r\n"


def test_writers_in_one_process_and_elsewhere_have_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_only_stale_files_are_removed(tmp_path: Path) -> None:
    for name in (".a.tar.12.partial", "a.tar", "b.partial", ".lock"):
        (tmp_path / name).touch()
    remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.tar", "b.partial"]
