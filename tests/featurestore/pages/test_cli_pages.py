"""The commands as people type them."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from featurestore.cli_pages import figures, inspect
from featurestore.store import Store
from manifests.errors import InputError

app = typer.Typer()
app.command("inspect")(inspect)
app.command("figures")(figures)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_inspect_says_what_it_wrote(shown_store: Store, tmp_path: Path) -> None:
    out = tmp_path / "report"
    said = run("inspect", str(shown_store.location), "--out", str(out), "--num-clips", "4", "--no-audio")
    assert said == f"{out}/index.html: 4 of 10 clips, 0 with sound, 2 failures, teacher fbankstats; one file\n"
    said = run("inspect", str(shown_store.location), "--out", str(out), "--all")
    assert "10 of 10 clips, 10 with sound" in said


def test_all_and_a_number_contradict(shown_store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--all and --num-clips"):
        run("inspect", str(shown_store.location), "--out", str(tmp_path / "r"), "--all", "--num-clips", "3")


def test_figures_names_its_files(finished_store: Store, tmp_path: Path) -> None:
    out = tmp_path / "figures"
    said = run("figures", str(finished_store.location), "--out", str(out), "--num-clips", "5", "--num-classes", "2")
    assert said.splitlines() == [f"{out}/figure5.png", f"{out}/figure7.png"]
    assert all(Path(line).stat().st_size > 10_000 for line in said.splitlines())
