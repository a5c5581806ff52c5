"""The command as people type it."""

import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from manifests.errors import InputError
from training.cli_report import report

app = typer.Typer()
app.command("report")(report)


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_it_says_what_it_wrote_and_what_is_missing(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (folder / "iter1" / "predictions.parquet").unlink()
    assert run(folder, "--clips", "1").splitlines() == [
        "run: no confusions: no evaluation of this run has left a predictions.parquet; `training eval` writes one",
        f"{folder}/report/index.html: runs: 1, warnings: 1; one file",
    ]
    assert run(folder, finished_run, "--clips", "0", "--out", tmp_path / "out").splitlines()[-1] == (
        f"{tmp_path}/out/index.html: runs: 2, warnings: 2; one file"
    )


def test_a_run_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run"):
        run(tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []
