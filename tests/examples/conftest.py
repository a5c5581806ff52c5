"""The store that the tour makes, and what it says on the way; the other examples and docs/api.md read it."""

import contextlib
import io
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import featurestore
from featurestore.build import build_teacher

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on a machine that may be busy: more threads would only wait for one another."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def run_example(name: str, *arguments: str) -> str:
    """What an example prints when it is run as its docstring says."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = [name, *arguments]
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        sys.argv = before
    return printed.getvalue()


@dataclass(frozen=True)
class Tour:
    """The folder that data/demo lies in, the store in it, and what the tour printed."""

    home: Path
    store: Path
    printed: str


@pytest.fixture(scope="session")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    """For reading only."""
    home = tmp_path_factory.mktemp("tour")
    store = home / "data" / "demo"
    printed = run_example("tour.py", str(store))
    # docs/api.md speaks of a cache by this name.
    teacher = runpy.run_path(str(EXAMPLES / "tour.py"))["MelStatistics"]
    opened = featurestore.open(store)
    build_teacher(opened, teacher(opened.file.fbank), "efficientat")
    return Tour(home, store, printed)
