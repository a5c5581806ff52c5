"""The commands as people type them."""

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from featurestore.cli_probe import probe, verify_teacher
from featurestore.store import Store
from featurestore.teachers.golden import tiny_content
from manifests.errors import InputError
from tests.featurestore.labelledstores import labelled_store, telling, write_embeddings

app = typer.Typer()
app.command("probe")(probe)
app.command("verify-teacher")(verify_teacher)


def run(*arguments: object, status: int = 0) -> str:
    result: Result = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    labels = ["abc"[number % 3] for number in range(30)] + ["", ""]
    folds = [number // 3 % 2 + 1 for number in range(32)]
    store = labelled_store(tmp_path_factory.mktemp("cli"), {"labels": labels, "fold": folds})
    embeddings = telling(store, noise=0.1)
    write_embeddings(store, "whole", embeddings)
    embeddings[0] = torch.nan
    write_embeddings(store, "good", embeddings)
    return store


def test_probe_prints_and_writes_its_figures(store: Store, tmp_path: Path) -> None:
    said = run("probe", store.location, "--teacher", "good", "--json", tmp_path / "probe.json", "--per-class")
    written = json.loads((tmp_path / "probe.json").read_text())
    assert "100.0 % ± 0.0" in said
    assert "held out: the store's folds, each held out in turn" in said
    assert "left out: 2 clips without a label" in said
    assert "left out: up to 1 clips a part without an embedding" in said
    for part in written["parts"]:
        assert f"{part['name']}: sha256 of the evaluated keys {part['keys_sha256']}" in said
        assert part["results"]["knn"]["per_class"] == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert written["over_parts"]["linear"]["accuracy"] == {"mean": 1.0, "std": 0.0}


def test_one_kind_of_one_fold(store: Store) -> None:
    said = run("probe", store.location, "--teacher", "whole", "--kind", "knn", "--fold", 2, "--max-clips", 10)
    assert "linear" not in said
    assert "fold 1" not in said
    assert "fold 2: learnt from 10 of 15, evaluated 10 of 15" in said


def test_an_unknown_cache_is_an_input_error(store: Store) -> None:
    with pytest.raises(InputError, match="no cache of a teacher 'best'"):
        run("probe", store.location, "--teacher", "best")


def test_a_file_that_cannot_be_written_is_refused_before_the_work(store: Store, tmp_path: Path) -> None:
    """Before all else: neither the cache nor the teacher's file is there."""
    for arguments in (
        ("probe", store.location, "--teacher", "none"),
        ("verify-teacher", "--model", "beats", "--checkpoint", tmp_path / "none.pt"),
    ):
        with pytest.raises(InputError, match=r"x\.json can't be written, there is no folder"):
            run(*arguments, "--json", tmp_path / "nodir" / "x.json")
        with pytest.raises(InputError, match=r"can't be written, it is a folder"):
            run(*arguments, "--json", tmp_path)


def test_help_names_every_teacher() -> None:
    told = run("verify-teacher", "--help")
    for name in entry_points(group="featurestore.teachers").names:
        assert name in told


def test_verify_teacher_without_a_store(tmp_path: Path) -> None:
    torch.save(tiny_content("BEATs"), tmp_path / "tiny.pt")
    said = run(
        "verify-teacher", "--model", "beats", "--checkpoint", tmp_path / "tiny.pt", "--json", tmp_path / "v.json"
    )
    assert "family: BEATs" in said
    assert "FAILED" not in said
    written = json.loads((tmp_path / "v.json").read_text())
    checks = {check["name"]: check["passed"] for check in written["checks"]}
    assert checks["installation"] is True
    assert checks["clips"] is None
    assert written["teacher"]["checkpoint"] == "tiny.pt"


def test_a_failed_check_is_the_exit_status(store: Store, tmp_path: Path) -> None:
    """Made-up weights know nothing of noise."""
    torch.save(tiny_content("BEATs"), tmp_path / "tiny.pt")
    arguments = ("--model", "beats", "--checkpoint", tmp_path / "tiny.pt", "--store", store.location)
    said = run("verify-teacher", *arguments, status=1)
    assert "checks failed: clips' neighbours" in said
