"""What is built from the source tree has all that the packages need, and runs where the tree is not."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

TREE = Path(__file__).parents[1]
PACKAGES = ("manifests", "ingest", "featurestore", "training")
BUILD = "import sys, setuptools.build_meta as backend; getattr(backend, sys.argv[1])(sys.argv[2])"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build reads, since setuptools writes beside it."""
    folder = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(TREE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TREE / name, folder)
    return folder


def built(source: Path, hook: str, ending: str, to: Path) -> Path:
    done = subprocess.run([sys.executable, "-c", BUILD, hook, str(to)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = to.glob(f"*{ending}")
    return path


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(source, "build_wheel", ".whl", tmp_path_factory.mktemp("wheel"))


def package_files() -> set[str]:
    """Every file of the packages: code, presets, tables, pages, lists of labels and py.typed."""
    paths = (path for name in PACKAGES for path in (TREE / name).rglob("*"))
    return {str(path.relative_to(TREE)) for path in paths if path.is_file() and "__pycache__" not in path.parts}


def test_the_wheel_holds_every_file_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = [name for name in archive.namelist() if name.endswith(("entry_points.txt", "licenses/LICENSE"))]
    assert held == package_files()
    assert len(about) == 2


def test_a_wheel_can_be_built_from_the_sdist(source: Path, wheel: Path, tmp_path: Path) -> None:
    sdist = built(source, "build_sdist", ".tar.gz", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("acm_sskd-*")
    again = built(unpacked, "build_wheel", ".whl", tmp_path / "again")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


def test_the_wheel_ingests_and_says_what_it_made(wheel: Path, tmp_path: Path) -> None:
    """Its packages, presets, entry points and pages, in another folder than the tree."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("ingest", "demo", "--num-clips", "24", "--workers", "0", "--store", "demo")
    assert "24" in command("featurestore", "info", "demo")
    command("featurestore", "inspect", "demo", "--out", "page")
    assert (tmp_path / "page" / "index.html").stat().st_size > 10_000
    assert "finetune-esc50" in command("training", "run", "--help") or "demo" in command("training", "run", "--help")
    where = subprocess.run(
        [sys.executable, "-c", "import training, ingest; print(training.__file__, ingest.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert all(path.startswith(str(site)) for path in where)
