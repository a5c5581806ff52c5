"""Every example runs as its docstring says, does what it says, and the documentation is in step with it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import featurestore
from featurestore.copying import Choice, copy_clips
from featurestore.selection import choose_rows
from ingest.location import open_location
from tests.examples.conftest import EXAMPLES, Tour, run_example

ROOT = EXAMPLES.parent
OURS = {"manifests", "ingest", "featurestore", "training"}


def imported(name: str) -> set[str]:
    """Our packages that a script imports."""
    nodes = list(ast.walk(ast.parse((EXAMPLES / name).read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return OURS & {name.split(".")[0] for name in names}


def test_the_tour(tour: Tour) -> None:
    store = featurestore.open(tour.store)
    assert (len(store), set(store.teachers)) == (240, {"mel-statistics", "efficientat"})
    assert "siren_001: siren, fbank (256, 128) float16" in tour.printed
    assert "teacher: (32, 256, 128) (32, 16, 8) (32, 12) (32, 256)\n" in tour.printed
    found = re.search(r"(\d+)% of 60 clips of 'eval' are right; by chance 8%", tour.printed)
    assert found is not None
    assert int(found[1]) > 25


def test_the_tour_asks_in_sql(tour: Tour) -> None:
    table = featurestore.open(tour.store).table(["label_names", "rms"]).to_pylist()
    of_sirens = [clip["rms"] for clip in table if clip["label_names"] == ["siren"]]
    assert re.search(rf"siren +│ +{len(of_sirens)} │ +{round(sum(of_sirens) / len(of_sirens), 3)} │", tour.printed)


def test_a_plain_classifier_learns(tour: Tour) -> None:
    printed = run_example("train_plain_pytorch.py", str(tour.store))
    found = re.search(r"held out \(eval\): (\d+) of 60 right", printed)
    assert found is not None
    # Five are right by chance; 46 were, when this was written.
    assert int(found[1]) >= 30
    assert imported("train_plain_pytorch.py") == {"featurestore"}


def test_a_plain_classifier_of_fewer_clips_than_a_batch(tour: Tour, tmp_path: Path) -> None:
    store = featurestore.open(tour.store)
    keys = [key for split in ("train", "eval") for key in store.keys(store.rows(split=split)[:3])]
    (tmp_path / "keys.txt").write_text("\n".join(keys))
    rows = choose_rows(store, keys_file=tmp_path / "keys.txt")
    copy_clips([Choice(store, rows)], open_location(tmp_path / "few"), "few")
    assert re.search(r"held out \(eval\): \d of 3 right", run_example("train_plain_pytorch.py", str(tmp_path / "few")))


def test_numpy_alone(tour: Tour, tmp_path: Path) -> None:
    """In a process that couldn't import a package of ours if it wanted to."""
    blocked = tmp_path / "sitecustomize.py"
    blocked.write_text(f"import sys\nsys.modules.update(dict.fromkeys({sorted(OURS)!r}))\n")
    command = [sys.executable, str(EXAMPLES / "read_with_numpy.py"), str(tour.store)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=100
    )
    mean = f"{featurestore.open(tour.store).snapshot.mean:.4f}"
    assert f"the mean of all fbank values is {mean}; store.json says {mean}" in done.stdout
    assert "240 labels of 240 clips in 5 shards" in done.stdout
    assert "    20  whistle\n" in done.stdout


def test_a_corpus_of_ones_own(tmp_path: Path) -> None:
    printed = run_example("custom_corpus.py", str(tmp_path / "tones"))
    store = featurestore.open(tmp_path / "tones")
    assert sorted(store) == [f"tape{tape}_{1000 * start:09d}" for tape in range(3) for start in (1, 4, 7)]
    assert store.vocabulary.names == ["Low tone", "High tone"]
    assert {store[key].split for key in store if key.startswith("tape2")} == {"eval"}
    # 300 Hz and 2 kHz are in different bands, and the loudest is where the label says.
    bands = dict(re.findall(r"tape0_\S+ +train +(\S+) tone +loudest in mel band (\d+)", printed))
    assert 10 < int(bands["Low"]) < 20 < 60 < int(bands["High"]) < 72


def test_the_teachers_weights_fit_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command does with them, tests/featurestore/teachers/test_third_party.py shows."""
    monkeypatch.syspath_prepend(EXAMPLES / "custom_teacher")
    run_example("custom_teacher/make_weights.py", str(tmp_path / "spectrum.safetensors"))
    from spectrum_teacher import load_spectrum  # type: ignore[import-not-found]

    teacher = load_spectrum(tmp_path / "spectrum.safetensors")
    del sys.modules["spectrum_teacher"]
    assert teacher.embedding_dim == 64
    assert load_file(tmp_path / "spectrum.safetensors")["weight"].shape == (64, 129)


def test_the_list_is_complete_and_every_script_says_how_to_run_it() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for path in sorted([*EXAMPLES.glob("*.py"), EXAMPLES / "custom_teacher" / "make_weights.py"]):
        name = str(path.relative_to(EXAMPLES))
        assert name in listed
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring is not None
        assert f":  python examples/{name}" in docstring
        assert len(path.read_text().splitlines()) <= 100
    for text in (listed, (ROOT / "docs" / "api.md").read_text()):
        links = re.findall(r"\]\(([^)#:]+)\)", text)
        assert links
        folder = EXAMPLES if text is listed else ROOT / "docs"
        assert [link for link in links if not (folder / link).exists()] == []
