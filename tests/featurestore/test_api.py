"""The package as it is imported: quick, lazy, and with the names that it says."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import featurestore
from featurestore.store import Store
from manifests.errors import InputError

ROOT = Path(__file__).parents[2]


def modules_after(code: str) -> set[str]:
    """Packages that a new process has imported after some lines."""
    program = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=100)
    return set(done.stdout.split())


def test_importing_it_imports_nothing_else() -> None:
    added = modules_after("import featurestore") - modules_after("import typing, importlib, os")
    assert added == {"featurestore"}


def test_looking_into_a_store_takes_no_torch(finished_store: Store) -> None:
    lines = [
        "import featurestore",
        f"store = featurestore.open({str(finished_store.root)!r})",
        "assert store['clip00'].fbank.shape == (256, 128) and len(store.table()) == 23",
        "assert store.loader(5).num_batches() == 5",
    ]
    assert modules_after("\n".join(lines)) & {"torch", "ray", "av", "soundfile", "yt_dlp", "webdataset"} == set()


def test_every_name_is_there() -> None:
    assert set(featurestore._MODULES) == set(featurestore.__all__)
    for name in featurestore.__all__:
        assert getattr(featurestore, name).__module__ == featurestore._MODULES[name]
    assert {"open", *featurestore.__all__} <= set(dir(featurestore))
    with pytest.raises(AttributeError, match="module 'featurestore' has no attribute 'opne'"):
        _ = featurestore.opne  # type: ignore[attr-defined]


def test_a_star_import_leaves_pythons_open() -> None:
    names: dict[str, object] = {}
    exec("from featurestore import *", names)
    assert "open" not in names
    assert names["OpenStore"] is featurestore.OpenStore


def test_open_finds_the_only_store(finished_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no store under \./data; make one \(`ingest demo`\)"):
        featurestore.open()
    Path("data").mkdir()
    Path("data", "tiny").symlink_to(finished_store.root)
    assert featurestore.open().snapshot == featurestore.open(Path("data/tiny")).snapshot == finished_store.snapshot
    with pytest.raises(InputError, match="has no snapshot 2; it has: 1 to 1"):
        featurestore.open("data/tiny", snapshot=2)


@pytest.mark.parametrize("package", ["manifests", "ingest", "featurestore", "training"])
def test_all_packages_are_typed(package: str) -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data[package]
    assert (ROOT / package / "py.typed").exists()
