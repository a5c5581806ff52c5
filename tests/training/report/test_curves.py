"""Thinning shows every extreme; each figure has its place."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.report.curves import GROUPS, curve_data, group_of, thin
from training.report.read import Curve, read_run

NONE = np.array([], np.int64)


def curve_of(values: list[float]) -> Curve:
    return Curve(np.arange(1, len(values) + 1), np.array(values, np.float64), NONE)


def test_short_curves_stay_as_they_are() -> None:
    assert thin(curve_of([1.0, 2.5, 1 / 3]), 3) == {"x": [1, 2, 3], "y": [1.0, 2.5, 0.33333]}


def test_a_point_stands_for_its_steps() -> None:
    assert thin(curve_of([1, 3, 5, 7, 0, 8]), 2) == {"x": [2, 5], "y": [3, 5], "low": [1, 0], "high": [5, 8]}


@given(st.lists(st.integers(-99, 99).map(float), min_size=1, max_size=300), st.integers(1, 40))
def test_no_peak_gets_lost(values: list[float], max_points: int) -> None:
    thinned = thin(curve_of(values), max_points)
    assert len(thinned["x"]) == min(len(values), max_points)
    assert max(thinned.get("high", thinned["y"])) == max(values)
    assert min(thinned.get("low", thinned["y"])) == min(values)
    sizes = np.diff(np.linspace(0, len(values), len(thinned["x"]) + 1).astype(int))
    np.testing.assert_allclose((sizes * thinned["y"]).sum(), sum(values), atol=0.02 * len(values))


def test_groups() -> None:
    wanted = {
        "loss": 0, "inter_kl": 0, "intra_variance": 0, "classify": 0,
        "gradient_norm": 1, "gradient_norm/intra_restore": 1,
        "feature_spread": 2, "feature_spread/raw": 2, "eval_accuracy": 3, "clips_per_s": 4,
    }  # fmt: skip
    assert {key: group_of(key) for key in wanted} == {key: GROUPS[place] for key, place in wanted.items()}
    assert group_of("memory/peak_gib") == "memory"
    assert group_of("memory_gib") == "Other figures"


def test_tabs_lines_and_groups_of_terms(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage": "iter1/multissl", "step": 1, "loss": 1, "gradient_norm": 3}\n'
        '{"stage": "iter1/multissl", "step": 1, "gradient_norm/inter_kl": 2, "new/x": 4}\n'
        '{"stage": "iter2/multissl", "step": 1, "loss": 2, "eval_num_listed": 80}\n'
        '{"stage": "iter1/distill", "step": 1, "loss": NaN}\n'
    )
    first, second = curve_data([read_run(tmp_path, "run")])["tabs"]
    assert [line["name"] for line in first["lines"]] == ["iter1/multissl", "iter2/multissl"]
    assert first["lines"][1]["curves"] == {"loss": {"x": [1], "y": [2.0]}}
    assert first["groups"] == [
        ("Loss and its terms", ["loss"], False),
        ("Gradient norms", ["gradient_norm"], False),
        ("Gradient norms by term, on one scale", ["gradient_norm/inter_kl"], True),
        ("new, on one scale", ["new/x"], True),
    ]
    assert second == {"name": "distill", "lines": [{"name": "iter1/distill", "curves": {}}], "groups": []}
