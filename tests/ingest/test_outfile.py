"""Files that can't be written are refused before the work, and by their names."""

from pathlib import Path

import pytest

from ingest.outfile import check_outfile
from manifests.errors import InputError


def test_places_that_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").touch()
    monkeypatch.chdir(tmp_path)
    for file in (tmp_path / "new.json", tmp_path / "there", Path("new.json"), None):
        check_outfile(file)
    assert not (tmp_path / "new.json").exists()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none/x\.json can't be written, there is no folder .*/none; make it, or"):
        check_outfile(tmp_path / "none" / "x.json")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"there is no folder .*/file"):
        check_outfile(tmp_path / "file" / "x.json")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't be written, it is a folder; name a file in it"):
        check_outfile(tmp_path)
