"""Warnings appear where their bound is crossed, and not before."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.report.read import read_run
from training.report.remarks import remarks


def warnings_of(folder: Path, steps: list[dict[str, Any]], figures: dict[str, Any] | None = None) -> list[str]:
    lines = [json.dumps({"stage": "iter1/multissl", "step": step, **line}) for step, line in enumerate(steps, start=1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    if figures is not None:
        (folder / "iter1").mkdir()
        (folder / "iter1" / "eval.json").write_text(json.dumps(figures))
    return [remark.text for remark in remarks(read_run(folder, "run")) if remark.is_warning]


@pytest.mark.parametrize(("spread", "warns"), [(0.09, True), (0.1, False)])
def test_collapse(tmp_path: Path, spread: float, warns: bool) -> None:
    """The last value counts, and the evaluation's own."""
    found = warnings_of(
        tmp_path, [{"feature_spread": 1 - warns}, {"feature_spread": spread}], {"feature_spread": spread}
    )
    assert len(found) == 2 * warns
    if warns:
        assert found[0].startswith("iter1/multissl, feature_spread: a feature spread of 0.090, under 0.1")
        assert found[1].startswith("iteration 1, evaluation: a feature spread of 0.090")


@pytest.mark.parametrize(("share", "warns"), [(0.21, True), (0.2, False)])
def test_data_wait_after_the_beginning(tmp_path: Path, share: float, warns: bool) -> None:
    found = warnings_of(tmp_path, [{"data_wait_share": 1.0}] + [{"data_wait_share": share}] * 9)
    assert len(found) == warns
    assert all("21% of the time went into waiting for data" in text for text in found)


@pytest.mark.parametrize(("norm", "warns"), [(0.009, True), (0.01, False)])
def test_a_term_without_weight(tmp_path: Path, norm: float, warns: bool) -> None:
    """Of all terms together, whatever the norm in all weights is."""
    terms = {"gradient_norm/inter_kl": norm, "gradient_norm/intra_kl": 0.5, "gradient_norm/intra_mse": 0.5 - norm}
    found = warnings_of(tmp_path, [{"gradient_norm": 50.0, **terms}])
    assert len(found) == warns
    assert all("the gradient of inter_kl has 0.90% of the norms of all terms" in text for text in found)


def test_without_any_gradient_no_term_is_weak(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, [{"gradient_norm/inter_kl": 0.0, "gradient_norm/intra_kl": 0.0}]) == []


def test_clips_that_were_not_evaluated(tmp_path: Path) -> None:
    (text,) = warnings_of(tmp_path, [], {"num_evaluated": 1990, "num_listed": 2000})
    assert text.startswith("iteration 1: 1,990 of the 2,000 clips listed were evaluated")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    (text,) = warnings_of(tmp_path, [{"loss": 1.0}, {"loss": float("nan")}, {"loss": float("inf")}])
    assert text.startswith("iter1/multissl: loss is not finite in 2 steps, first in step 2")


def test_a_sound_run_has_no_remark_but_its_notes(finished_run: Path) -> None:
    (only,) = remarks(read_run(finished_run, "finished"))
    assert "4 of the 5 clips listed" in only.text
