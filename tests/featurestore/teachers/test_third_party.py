"""A teacher that another package registers, found as installed packages are; docs/teachers.md shows this package."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from featurestore.build import build_teacher
from featurestore.store import Store
from featurestore.teachers.registry import GROUP, load_teacher
from manifests.errors import InputError

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "examples" / "custom_teacher"
DOCS = ROOT / "docs" / "teachers.md"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    state = {"weight": torch.randn(6, 129, generator=generator) / 11, "bias": torch.randn(6, generator=generator)}
    save_file(state, tmp_path / "spectrum.safetensors")
    return tmp_path / "spectrum.safetensors"


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an installer leaves of the package: its module on the path, and its entry points beside it."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site"
    about = site / "spectrum_teacher-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {target}\n" for name, target in project["entry-points"][GROUP].items()]
    (about / "entry_points.txt").write_text(f"[{GROUP}]\n{''.join(lines)}")
    (site / "spectrum_teacher.py").write_text((PACKAGE / "spectrum_teacher.py").read_text())
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop("spectrum_teacher", None)


@pytest.mark.usefixtures("_installed")
def test_it_is_found_by_its_name_and_fills_a_cache(weights: Path, store_copy: Path) -> None:
    teacher = load_teacher("spectrum", weights)
    store = Store(store_copy)
    result = build_teacher(store, teacher, "spectrum")
    values = result.cache.embeddings(store.rows())
    assert values.shape == (len(store), 6)
    assert torch.from_numpy(values).isfinite().all()
    assert result.failures == []
    assert result.cache.attributes.provenance["checkpoint"] == "spectrum.safetensors"


@pytest.mark.usefixtures("_installed")
def test_it_is_among_the_names_that_an_error_lists() -> None:
    with pytest.raises(InputError, match=r"there is no teacher 'spectrums'; there are: .*\bspectrum\b"):
        load_teacher("spectrums", None)


def test_without_the_package_there_is_no_such_teacher(weights: Path) -> None:
    with pytest.raises(InputError, match="there is no teacher 'spectrum'"):
        load_teacher("spectrum", weights)


@pytest.mark.parametrize("name", ["spectrum_teacher.py", "pyproject.toml"])
def test_the_documentation_shows_these_very_files(name: str) -> None:
    lines = (PACKAGE / name).read_text().splitlines(keepends=True)
    quoted = "".join(f"    {line}" if line.strip() else line for line in lines)
    assert quoted in DOCS.read_text()
