"""metrics.jsonl and the TensorBoard events: what goes in, and what a resumed run drops."""

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.log import METRICS_FILE, MetricsLog, read_metrics


def write(run: Path, stage: str, steps_done: int, steps: list[int], **values: Any) -> None:
    with MetricsLog(run, stage, steps_done) as log:
        for step in steps:
            log.write(step, {"loss": step / 8, **values})


def test_a_line_a_step(tmp_path: Path) -> None:
    write(tmp_path, "iter1/multissl", 0, [1, 2], eval_split="test")
    assert read_metrics(tmp_path) == [
        {"stage": "iter1/multissl", "step": 1, "loss": 0.125, "eval_split": "test"},
        {"stage": "iter1/multissl", "step": 2, "loss": 0.25, "eval_split": "test"},
    ]


def test_a_resumed_stage_drops_its_later_lines_alone(tmp_path: Path) -> None:
    write(tmp_path, "iter1/multissl", 0, [1, 2, 3, 4])
    write(tmp_path, "iter1/distill", 0, [1, 2, 3])
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"stage": "iter1/distill", "step": 4, "lo')  # torn
    write(tmp_path, "iter1/distill", 2, [3])
    found = [(line["stage"], line["step"]) for line in read_metrics(tmp_path)]
    assert found == [*(("iter1/multissl", step) for step in (1, 2, 3, 4)), *(("iter1/distill", s) for s in (1, 2, 3))]
    write(tmp_path, "iter1/distill", 0, [])
    assert {line["stage"] for line in read_metrics(tmp_path)} == {"iter1/multissl"}


def test_a_last_line_without_its_end_is_kept_whole(tmp_path: Path) -> None:
    write(tmp_path, "a", 0, [1, 2])
    path = tmp_path / METRICS_FILE
    path.write_text(path.read_text().removesuffix("\n"))
    write(tmp_path, "a", 2, [3])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_what_is_flushed_can_be_read(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, "a", 0) as log:
        log.write(1, {"loss": 1.0})
        log.flush()
        assert json.loads((tmp_path / METRICS_FILE).read_text())["loss"] == 1.0


@pytest.mark.parametrize("resumed_after", [2, 4])
def test_tensorboard_has_the_same_values(tmp_path: Path, resumed_after: int) -> None:
    write(tmp_path, "iter1/distill", 0, [1, 2, 3, 4], eval_split="test")
    write(tmp_path, "iter1/distill", resumed_after, [5])
    events = EventAccumulator(str(tmp_path / "tensorboard" / "iter1/distill"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (step, step / 8) for step in [*range(1, resumed_after + 1), 5]
    ]
