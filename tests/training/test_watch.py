"""What is watched of a stage: gradient norms by term, the guilty term and clips, and that watching changes nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featurestore.batches import Batch
from featurestore.store import Store
from manifests.errors import InputError
from training import loop
from training.checkpoint import load_checkpoint
from training.config import RunConfig
from training.iterations import run_iterations
from training.log import NoLog
from training.run import open_run
from training.watch import Watch, damaged_clips, norms_by_term

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """Two "blocks" of one matrix each, under the names of a network's."""

    def __init__(self) -> None:
        super().__init__()
        blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 1)])
        self.aft = nn.ModuleDict({"transformer": nn.ModuleDict({"blocks": blocks})})
        self.head = nn.Linear(1, 1)
        first, last = blocks
        with torch.no_grad():
            for weight, values in (
                (first.weight, [[1.0, 0.0], [0.0, 2.0]]),
                (first.bias, [0.0, 0.0]),
                (last.weight, [[1.0, -1.0]]),
                (last.bias, [0.5]),
                (self.head.weight, [[3.0]]),
                (self.head.bias, [0.0]),
            ):
                weight.copy_(torch.tensor(values))  # type: ignore[operator]

    def forward(self, values: Tensor) -> Tensor:
        first, last = self.aft["transformer"]["blocks"]  # type: ignore[index]
        return last(first(values))  # type: ignore[no-any-return]


def test_norms_are_those_worked_out_by_hand() -> None:
    """Of (3, 1) the blocks make (3, 2), then y = 3 - 2 + .5 = 1.5.

    y^2 has in the last block the gradients 2 y (3, 2) and 2 y, of norm 3 sqrt(14); the head's 3 y has (9, 6) and 3.
    """
    network = Tiny()
    y = network(torch.tensor([[3.0, 1.0]]))
    terms = {
        "loss": y.sum(),
        "square": y.square().sum(),
        "headed": network.head(y).sum(),
        "head_alone": network.head(torch.ones(1, 1)).sum(),
        "watched": y.detach().sum(),
    }
    norms = norms_by_term(terms, network)
    assert {name: float(norm) for name, norm in norms.items()} == {
        "gradient_norm/square": pytest.approx(3 * 14**0.5),
        "gradient_norm/headed": pytest.approx(126**0.5),
        "gradient_norm/head_alone": 0.0,
    }
    assert all(weight.grad is None for weight in network.parameters())
    terms["loss"].backward()  # type: ignore[no-untyped-call]
    assert network.head.weight.grad is None


def test_looking_closer_changes_nothing(
    store: Store, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closer looks of each second step, and those at the first and the last step of a stage alone."""
    lines, weights = [], []
    alone = config.model_copy(update={"distill": config.distill.model_copy(update={"teacher": "none"})})
    for number in (1, 3):
        monkeypatch.setattr(loop, "EVALUATIONS_PER_STAGE", number)
        with open_run([store], alone, tmp_path / str(number), CPU) as run:
            run_iterations(run, 1)
        folder = tmp_path / str(number)
        found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines.append([line for line in found if "loss" in line])
        weights.append(
            [load_checkpoint(folder / f"iter1/{stage}/last.pt").network for stage in ("multissl", "distill")]
        )
    looked = [[any("gradient_norm/" in name for name in line) for line in run] for run in lines]
    assert looked == [2 * [True, False, False, False, False, True], 2 * [True, True, False, True, False, True]]
    unequal = ("gradient_norm/", "clips_per_s", "data_wait_share")
    one, other = ([{k: v for k, v in line.items() if not k.startswith(unequal)} for line in run] for run in lines)
    assert one == other
    for first, second in zip(*weights, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def make_batch(**changes: Any) -> Batch:
    values: dict[str, Any] = {
        "rows": np.arange(3),
        "keys": ["a", "b", "c"],
        "fbank": np.zeros((3, 32, 16), np.float16),
        "hog": np.ones((3, 2, 1), np.float32),
        "labels": np.eye(3, dtype=np.float32),
        "teacher": np.full((3, 4), np.nan, np.float32),
    }
    return Batch(**{**values, **changes})


def test_damaged_clips_are_named_with_what_is_damaged() -> None:
    assert damaged_clips(make_batch()) == []
    fbank, hog = np.zeros((3, 32, 16), np.float16), np.ones((3, 2, 1), np.float32)
    fbank[1, 31, 15], hog[0, 1, 0], hog[1, 0, 0] = np.inf, np.nan, -np.inf
    assert damaged_clips(make_batch(fbank=fbank, hog=hog)) == ["b's fbank", "a's HOG", "b's HOG"]
    labels = np.array([[0, np.nan], [1, 0], [0, 1]], np.float32)
    assert damaged_clips(make_batch(labels=labels)) == ["a's labels"]


NAN = float("nan")


@pytest.mark.parametrize(
    ("figures", "guilty"),
    [
        ({"loss": NAN, "intra_kl": NAN, "inter_kl": 1.0, "gradient_norm": NAN, "feature_spread": 1.0}, "intra_kl"),
        ({"loss": NAN, "intra_kl": NAN, "gradient_norm/intra_kl": NAN, "feature_spread": NAN}, "intra_kl"),
        ({"loss": 1.0, "a": float("-inf"), "b": float("inf")}, "a, b"),
        ({"loss": 1.0, "a": 1.0, "gradient_norm": NAN, "gradient_norm/a": NAN}, "gradient_norm/a"),
        ({"loss": 1.0, "a": 1.0, "gradient_norm": float("inf")}, "gradient_norm"),
    ],
)
def test_the_guilty_are_named_alone(figures: dict[str, float], guilty: str) -> None:
    read = list[int]()

    def batch_of(step: int) -> Batch:
        read.append(step)
        return make_batch()

    watch = Watch("iter1/multissl", NoLog(), 1, batch_of)
    watch.add(6, {"loss": torch.tensor(1.0), "a": torch.tensor(2.0)}, ["x"], 0.1)
    watch.add(7, {name: torch.tensor(value) for name, value in figures.items()}, list("abcdefghij"), 0.1)
    with pytest.raises(InputError) as error:
        watch.flush()
    said = str(error.value)
    assert said.startswith(
        f"iter1/multissl, step 7: {guilty} is not finite; the batch held a, b, c, d, e, f, g, h .... "
    )
    assert "All of its clips' values are finite" in said
    assert read == [7]
    assert watch.recent_loss == [1.0]


def test_the_display_has_the_terms() -> None:
    watch = Watch("s", NoLog(), 1, lambda _: make_batch())
    values = {"loss": 2.5, "intra_kl": 0.12345, "inter_mse": 20.0, "feature_spread": 1.0, "gradient_norm/intra_kl": 3.0}
    watch.add(1, {name: torch.tensor(value) for name, value in values.items()}, ["k"], 0.1)
    assert watch.flush().startswith("loss 2.5000 (intra_kl 0.123, inter_mse 20), ")


def test_losses_are_averaged_and_logged_in_their_order() -> None:
    written: list[tuple[int, dict[str, Any]]] = []

    class Kept(NoLog):
        def write(self, step: int, values: dict[str, Any]) -> None:
            written.append((step, values))

    watch = Watch("s", Kept(), 1, lambda _: make_batch())
    assert watch.flush() == ""
    for step, loss in ((1, 2.0), (2, 4.0), (3, 9.0)):
        watch.add(step, {"loss": torch.tensor(loss), "gradient_norm": torch.tensor(0.5)}, ["k"], step / 10)
    assert watch.flush().startswith("loss 9.0000, ")
    assert watch.take_mean_loss() == 5.0
    assert [(step, values["loss"], values["learning_rate"]) for step, values in written] == [
        (1, 2.0, 0.1),
        (2, 4.0, 0.2),
        (3, 9.0, 0.3),
    ]


def test_it_is_full_after_ten_steps() -> None:
    watch = Watch("s", NoLog(), 1, lambda _: make_batch())
    for step in range(1, 11):
        assert not watch.is_full
        watch.add(step, {"loss": torch.tensor(1.0)}, ["k"], 0.1)
    assert watch.is_full
