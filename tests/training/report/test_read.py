"""What is read of runs that are whole, in progress, killed, damaged, or another version's."""

import json
from pathlib import Path

import numpy as np
import pytest

from manifests.errors import InputError
from training.config import RunConfig
from training.report.read import read_run, read_runs


def test_a_finished_run(finished_run: Path, config: RunConfig) -> None:
    run = read_run(finished_run, "finished")
    assert run.settings == config
    assert run.notes == []
    assert list(run.curves) == ["iter1/multissl", "iter1/distill"]
    loss = run.curves["iter1/multissl"]["loss"]
    assert loss.steps.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(loss.values, [10, 5, 10 / 3, 2.5, 2, 10 / 6])
    assert run.evaluations[1]["accuracy"] == 0.75
    assert list(run.checkpoints) == ["iter1/multissl", "iter1/distill"]
    found = run.last_checkpoint("multissl")
    assert found is not None
    assert found[0] == finished_run / "iter1" / "multissl" / "last.pt"


def write_lines(folder: Path, *lines: str) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


def test_a_run_of_nothing_but_a_torn_log(tmp_path: Path) -> None:
    folder = write_lines(tmp_path / "run", '{"stage": "iter1/multissl", "step": 1, "loss": 2}', '{"stage": "it')
    run = read_run(folder, "run")
    assert run.curves["iter1/multissl"]["loss"].values.tolist() == [2.0]
    assert run.notes == [
        "There is no config.json.",
        "There is no environment.json.",
        "There is no store.json.",
        "The last line of metrics.jsonl is not whole: a run was killed, or is writing it now.",
    ]


def test_lines_that_are_no_metrics_are_counted_and_left_out(tmp_path: Path) -> None:
    good = '{"stage": "s", "step": 2, "loss": 1, "text": "no figure", "flag": true, "list": [1]}'
    bad = ["[1]", "null", '{"step": 1}', '{"stage": "s", "step": -1}', '{"stage": 3, "step": 1}', "[" * 100_000]
    huge = '{"stage": "s", "step": 1, "loss": 1' + "0" * 400 + "}"
    run = read_run(write_lines(tmp_path / "run", *bad, good, huge), "run")
    assert list(run.curves["s"]) == ["loss"]
    assert run.curves["s"]["loss"].steps.tolist() == [2]
    assert run.curves["s"]["loss"].not_finite.tolist() == [1]
    assert run.notes[-1] == "6 lines of metrics.jsonl can't be read, and are left out."


def test_values_that_are_not_finite_are_kept_apart(tmp_path: Path) -> None:
    lines = [f'{{"stage": "s", "step": {step}, "x": {value}}}' for step, value in enumerate(("1", "NaN", "-Infinity"))]
    curve = read_run(write_lines(tmp_path / "run", *lines), "run").curves["s"]["x"]
    assert curve.values.tolist() == [1.0]
    assert curve.not_finite.tolist() == [1, 2]


def test_unknown_keys_of_another_version(finished_run: Path, tmp_path: Path) -> None:
    content = json.loads((finished_run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "later": 1}))
    run = read_run(tmp_path, "later")
    assert run.settings is None
    assert run.config["later"] == 1
    assert "config.json is another version's (later: Extra inputs are not permitted); it is shown as it stands." in (
        run.notes
    )


@pytest.mark.parametrize("content", ["{", "[]", "3", '"text"', "\x00\xff"])
def test_damaged_files_are_notes(tmp_path: Path, content: str) -> None:
    for name in ("config.json", "store.json", "environment.json"):
        (tmp_path / name).write_text(content)
    (tmp_path / "iter1" / "multissl").mkdir(parents=True)
    (tmp_path / "iter1" / "eval.json").write_text(content)
    (tmp_path / "iter1" / "multissl" / "last.pt").write_text(content)
    (tmp_path / "iterX").mkdir()
    (tmp_path / "iterX" / "eval.json").write_text("{}")
    run = read_run(tmp_path, "damaged")
    assert (run.config, run.store, run.calls, run.evaluations, run.checkpoints) == ({}, {}, [], {}, {})
    assert any("config.json" in note for note in run.notes)
    assert any("eval.json" in note for note in run.notes)
    assert any(note.startswith("A checkpoint is left out: ") for note in run.notes)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone is not a run: there is no such folder, so neither config.json nor"):
        read_runs([tmp_path / "gone"])
    with pytest.raises(InputError, match=r"is not a run: it has neither config.json nor metrics.jsonl; name a folder"):
        read_runs([tmp_path])


def test_names_differ_and_a_run_comes_once(finished_run: Path, tmp_path: Path) -> None:
    other = write_lines(tmp_path / finished_run.name, '{"stage": "s", "step": 1}')
    names = [run.name for run in read_runs([finished_run, other, finished_run / "iter1" / ".."])]
    assert names == [str(finished_run), str(other)]
