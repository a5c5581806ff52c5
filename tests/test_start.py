"""Commands answer --help and complete words at once: what is slow to import, or not theirs, isn't imported by then."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SLOW = ("torch", "torchaudio", "ray", "av", "yt_dlp", "zarr", "soundfile", "matplotlib", "obstore", "tensorboard")


def imported_by(statement: str) -> set[str]:
    """Of the slow modules, those that a fresh interpreter has after the statement."""
    code = f"import sys\n{statement}\nprint(*[name for name in {SLOW!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("package", ["manifests", "ingest", "featurestore", "training"])
def test_a_package_alone_imports_nothing_slow(package: str) -> None:
    assert imported_by(f"import {package}") == set()


@pytest.mark.parametrize("name", ["ingest", "featurestore", "training"])
def test_a_command_starts_without_what_it_may_not_need(name: str) -> None:
    assert imported_by(f"import {name}.cli") == set()


def test_the_scripts_are_guarded_from_the_start() -> None:
    """They import next to nothing before Ctrl-C is guarded against."""
    scripts = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {name: f"{name}.__main__:main" for name in ("ingest", "featurestore", "training")}
    for name in scripts:
        code = f"import sys; import {name}.__main__; print({{'typer', 'rich', 'numpy'}} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "set()\n"


def test_the_trainer_never_imports_what_fetches_and_decodes() -> None:
    modules = "training.run, training.iterations, training.evaluate, training.ensemble, training.finetune"
    assert imported_by(f"import {modules}") & {"ray", "av", "yt_dlp"} == set()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("training pre", ["predict"]),
        ("training predict --mod", ["--model"]),
        ("featurestore build", ["build-teacher"]),
        ("ingest audioset --sour", ["--source"]),
    ],
)
def test_a_shell_completes_words(words: str, completed: list[str]) -> None:
    program = words.split()[0]
    asked = {
        f"_{program.upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    code = f"import sys; sys.argv = ['{program}']; from {program}.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == completed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("training predict", "(0, for --events 0.5)"),
        ("training plan", "(0.5)"),
        ("featurestore inspect", "(200)"),
        ("featurestore probe", "(each in turn)"),
        ("featurestore verify-teacher", "(none)"),
    ],
)
def test_help_shows_defaults_that_are_words(words: str, said: str) -> None:
    """Written as `[default: ...]` into the help itself, they would be taken for markup."""
    done = subprocess.run(
        [sys.executable, "-m", *words.split(), "--help"],
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"[default: {said}]" in done.stdout
