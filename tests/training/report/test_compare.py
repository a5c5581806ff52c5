"""The summary and the tables."""

import json
import shutil
from pathlib import Path

import pytest

from training.config import RunConfig
from training.report.compare import (
    configuration_table,
    figures_table,
    flatten,
    last_figures,
    progress,
    speed,
    summarise,
)
from training.report.read import read_run

from_line = json.dumps


def test_summary_of_a_finished_run(finished_run: Path) -> None:
    row = summarise(read_run(finished_run, "finished"))
    assert (row.preset, row.source, row.device, row.progress) == ("micro.toml", "the tests", "cpu", "1 evaluated")
    assert row.figures == {"accuracy": "75.0%", "mAP": "0.5"}
    assert (row.evaluated, row.clips_per_s, row.data_wait) == ("4 of 5", "10", "10.0%")


def test_speed_is_by_time(finished_run: Path, tmp_path: Path) -> None:
    """Batches of 5: one at 1 clip/s, all of it waiting, and one at 5 clips/s, none of it: 10 clips in 6 s, 5 waited."""
    shutil.copy(finished_run / "config.json", tmp_path)
    lines = [{"clips_per_s": 1, "data_wait_share": 1}, {"clips_per_s": 5, "data_wait_share": 0}]
    text = "\n".join(
        from_line({"stage": "iter1/distill", "step": step, **line}) for step, line in enumerate(lines, start=1)
    )
    (tmp_path / "metrics.jsonl").write_text(text)
    found = speed(read_run(tmp_path, "run"))
    assert found.clips_per_s == pytest.approx(10 / 6)
    assert found.data_wait_share == pytest.approx(5 / 6)
    assert found.hours == pytest.approx(6 / 3600)


def test_a_run_that_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "iter1/multissl", "step": 3, "clips_per_s": 2}')
    row = summarise(read_run(tmp_path, "run"))
    assert (row.preset, row.source, row.device, row.clips_per_s, row.hours, row.evaluated) == ("–",) * 6
    assert row.progress == "none evaluated; iter1/multissl: step 3"


@pytest.mark.parametrize(
    ("command", "preset"),
    [(["run", "--preset=base"], "base"), (["run", "--iter", "2"], "the default"), (["run", "--preset"], "the default")],
)
def test_preset_of_the_command(tmp_path: Path, command: list[str], preset: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "environment.json").write_text(json.dumps([{"command": command}]))
    assert summarise(read_run(tmp_path, "run")).preset == preset


def test_a_run_in_progress(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (folder / "iter1" / "eval.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "iter1/distill", "step": 6, "eval_accuracy": 0.5, "eval_num_evaluated": 4}\n')
    run = read_run(folder, "run")
    assert progress(run) == "none evaluated; iter1/distill: step 6 of 6"
    assert last_figures(run) == (None, {"accuracy": 0.5, "num_evaluated": 4.0})


def test_tables_of_two_runs(finished_run: Path, tmp_path: Path, config: RunConfig) -> None:
    other = Path(shutil.copytree(finished_run, tmp_path / "other"))
    changed = config.model_copy(update={"seed": 7, "multissl": config.multissl.model_copy(update={"intra": False})})
    (other / "config.json").write_text(changed.model_dump_json())
    (other / "iter2").mkdir()
    (other / "iter2" / "eval.json").write_text('{"accuracy": 1.0, "later": "x"}')
    runs = [read_run(finished_run, "one"), read_run(other, "two")]
    assert configuration_table(runs).rows == [("seed", ["0", "7"]), ("multissl.intra", ["true", "false"])]
    assert configuration_table(runs).columns == ["one", "two"]
    figures = figures_table(runs)
    assert figures.columns == ["one, iteration 1", "two, iteration 1", "two, iteration 2"]
    rows = dict(figures.rows)
    assert rows["accuracy"] == ["75.0%", "75.0%", "100.0%"]
    assert rows["mean_average_precision"] == ["0.5", "0.5", "–"]
    assert rows["later"] == ["–", "–", "x"]


def test_defaults_are_no_difference_to_an_older_run(finished_run: Path, tmp_path: Path) -> None:
    content = json.loads((finished_run / "config.json").read_text())
    del content["data"], content["multissl"]["hog_weight"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert configuration_table([read_run(finished_run, "new"), read_run(tmp_path, "old")]).rows == []


def test_configurations_of_other_versions_are_compared_as_they_stand(finished_run: Path, tmp_path: Path) -> None:
    content = json.loads((finished_run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "later": {"a": [1]}}))
    runs = [read_run(finished_run, "now"), read_run(tmp_path, "later")]
    assert configuration_table(runs).rows == [("later.a", ["–", "[1]"])]


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": "text"}) == {"a.b": "1", "a.c": "{}", "d": "text"}
