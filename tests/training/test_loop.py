"""The loop of one stage: it learns, it goes on where it was stopped, and it refuses what is not finite."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featurestore.loader import Loader
from featurestore.store import Store
from manifests.errors import InputError
from training import loop
from training.augment import Augmentation
from training.checkpoint import About, Checkpoint, load_checkpoint
from training.config import AugmentConfig, DistillConfig, MultiSSLConfig, OptimiserConfig
from training.distill import Task, distill_losses
from training.evaluate import Evaluation, evaluate
from training.inputs import Inputs
from training.loop import BEST, LAST, Machine, StagePlan, train_stage
from training.model.networks import MultiSSLNetwork, Student
from training.multissl import multissl_losses
from training.schedule import learning_rate
from training.seeds import generator_for
from training.splits import Split

CPU = Machine(torch.device("cpu"), None)
Stream = list[dict[str, Any]]
ReadStream = Callable[[Path], Stream]
MakePlan = Callable[..., StagePlan]


@pytest.fixture
def multissl(store: Store, about: About) -> MakePlan:
    """Makes the plan of a Multi-SSL stage of 13 steps, saved every 3."""

    def make(of: Store = store, num_steps: int = 13, **changes: Any) -> StagePlan:
        optimiser = OptimiserConfig(epochs=1, batch_size=5, peak_lr=3e-3)
        config = MultiSSLConfig(optimiser=optimiser)
        network = MultiSSLNetwork(about.model, generator_for(0, "initialise"))
        plan = StagePlan(
            name="iter1/multissl",
            network=network,
            losses=lambda inputs, generator: multissl_losses(network, inputs, config, generator),
            loader=Loader(of, of.rows(split="train"), 5, seed=1),
            optimiser=optimiser,
            peak_lr=3e-3,
            about=about.model_copy(update={"stage": "multissl", "step": 0, "num_steps": num_steps}),
            seed=0,
            augmentation=Augmentation(AugmentConfig(), 0, "iter1/multissl"),
            checkpoint_every_steps=3,
        )
        return replace(plan, **changes)

    return make


@pytest.fixture
def distill(store: Store, about: About) -> MakePlan:
    """Makes the plan of a distillation of labels on the first clips alone, which it is evaluated on."""

    def make(num_clips: int, num_steps: int, peak_lr: float) -> StagePlan:
        optimiser = OptimiserConfig(epochs=1, batch_size=num_clips, peak_lr=peak_lr)
        config, rows = DistillConfig(optimiser=optimiser), store.rows()[:num_clips]
        student = Student(about.model, 3, None, generator_for(0, "initialise"))

        def figures(network: nn.Module) -> Evaluation:
            assert network is student
            split = Split(rows, rows, num_clips, "what is trained on")
            return evaluate(student, store, split, about.normalisation, CPU.device, one_label=True)

        return StagePlan(
            name="iter1/distill",
            network=student,
            losses=lambda inputs, _: distill_losses(student, inputs, config, Task(one_label=True)),
            loader=Loader(store, rows, num_clips, seed=1),
            optimiser=optimiser,
            peak_lr=peak_lr,
            about=about.model_copy(update={"step": 0, "num_steps": num_steps}),
            seed=0,
            augmentation=Augmentation(AugmentConfig(roll=False), 0, "iter1/distill"),
            checkpoint_every_steps=20,
            evaluate=figures,
        )

    return make


def stopped_at(plan: StagePlan, call: int) -> StagePlan:
    """The plan, interrupted in the `call`th step that it does."""
    losses, steps = plan.losses, set[int]()

    def interrupted(inputs: Inputs, generator: torch.Generator) -> dict[str, Tensor]:
        steps.add(generator.initial_seed())
        if len(steps) == call:
            raise KeyboardInterrupt
        return losses(inputs, generator)

    return replace(plan, losses=interrupted)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_learns_a_few_clips_by_heart(distill: MakePlan, tmp_path: Path, read_stream: ReadStream) -> None:
    plan = distill(num_clips=5, num_steps=60, peak_lr=1e-2)
    train_stage(plan, tmp_path, CPU)
    stream = read_stream(tmp_path)
    values = [line["loss"] for line in stream if "loss" in line]
    assert len(values) == 60
    assert values[0] > 0.8
    assert values[-1] < 0.1
    assert plan.evaluate is not None
    assert plan.evaluate(plan.network).accuracy == 1.0


def test_multissl_learns(multissl: MakePlan, tmp_path: Path, read_stream: ReadStream) -> None:
    train_stage(multissl(num_steps=60), tmp_path, CPU)
    stream = [line for line in read_stream(tmp_path) if "loss" in line]
    for term in ("loss", "intra_restore", "inter_restore"):
        values = [line[term] for line in stream]
        assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5]), term


def test_what_is_logged(multissl: MakePlan, tmp_path: Path, read_stream: ReadStream) -> None:
    train_stage(multissl(), tmp_path, CPU)
    stream = read_stream(tmp_path)
    assert [(line["stage"], line["step"]) for line in stream] == [("iter1/multissl", step) for step in range(1, 14)]
    assert [line["learning_rate"] for line in stream] == [learning_rate(step, 13, 3e-3, 0.05) for step in range(13)]
    for line in stream:
        terms = [value for name, value in line.items() if name.startswith(("intra", "inter"))]
        assert len(terms) == 8
        assert line["loss"] == pytest.approx(sum(terms), rel=1e-5)
        assert line["gradient_norm"] > 0


def test_evaluations_and_the_best(distill: MakePlan, tmp_path: Path, read_stream: ReadStream) -> None:
    train_stage(distill(num_clips=5, num_steps=12, peak_lr=3e-3), tmp_path, CPU)
    evaluated = [line for line in read_stream(tmp_path) if "loss" not in line]
    assert [line["step"] for line in evaluated] == [3, 6, 9, 12]
    assert all(line["eval_num_evaluated"] == line["eval_num_listed"] == 5 for line in evaluated)
    scores = [line["eval_accuracy"] for line in evaluated]
    best = load_checkpoint(tmp_path / "iter1/distill" / BEST)
    assert best.about.best == max(scores)
    assert evaluated[scores.index(max(scores))]["step"] >= best.about.step
    assert best.optimiser is None
    assert load_checkpoint(tmp_path / "iter1/distill" / LAST).about.best == max(scores)


def test_lines_are_on_disk_before_their_checkpoint(
    distill: MakePlan, tmp_path: Path, read_stream: ReadStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed right after a checkpoint goes on from there, and would not write them again."""
    on_disk = {}

    def noted(checkpoint: Checkpoint, path: Path) -> None:
        on_disk[path.name, checkpoint.about.step] = read_stream(tmp_path)

    monkeypatch.setattr(loop, "save_checkpoint", noted)
    train_stage(distill(num_clips=5, num_steps=12, peak_lr=3e-3), tmp_path, CPU)
    whole = read_stream(tmp_path)
    for step in (3, 6, 9, 12):
        assert on_disk[LAST, step] == [line for line in whole if line["step"] <= step]


@pytest.mark.parametrize("call", [1, 2, 4, 8, 12, 13])
def test_an_interrupted_stage_goes_on_to_the_same_end(
    call: int, multissl: MakePlan, tmp_path: Path, read_stream: ReadStream
) -> None:
    clean = train_stage(multissl(), tmp_path / "clean", CPU)
    with pytest.raises(KeyboardInterrupt):
        train_stage(stopped_at(multissl(), call), tmp_path / "run", CPU)
    last = tmp_path / "run/iter1/multissl" / LAST
    # Every 3 steps and at 5 evaluations of 13 steps, which is every 3 as well.
    assert (load_checkpoint(last).about.step if last.exists() else 0) == (call - 1) // 3 * 3
    resumed = train_stage(multissl(), tmp_path / "run", CPU)
    assert read_stream(tmp_path / "run") == read_stream(tmp_path / "clean")
    assert_same(resumed.network, clean.network)
    ends = [load_checkpoint(tmp_path / run / "iter1/multissl" / LAST) for run in ("run", "clean")]
    assert ends[0].about == ends[1].about
    torch.testing.assert_close(ends[0].optimiser, ends[1].optimiser, rtol=0, atol=0)


def test_interrupted_again_and_again(multissl: MakePlan, tmp_path: Path, read_stream: ReadStream) -> None:
    clean = train_stage(multissl(), tmp_path / "clean", CPU)
    for call in (5, 2, 5, 1):
        with pytest.raises(KeyboardInterrupt):
            train_stage(stopped_at(multissl(), call), tmp_path / "run", CPU)
    assert_same(train_stage(multissl(), tmp_path / "run", CPU).network, clean.network)
    assert read_stream(tmp_path / "run") == read_stream(tmp_path / "clean")


@pytest.mark.parametrize("checkpoint_every_steps", [2, 4])
def test_the_best_of_an_interrupted_stage(multissl: MakePlan, tmp_path: Path, checkpoint_every_steps: int) -> None:
    """Evaluated after each third step of 13, and saved between, wherever it is interrupted."""
    whole = []
    for call in (0, 3, 6, 8, 13):
        run = tmp_path / str(call)
        plan = multissl(checkpoint_every_steps=checkpoint_every_steps)
        if call:
            with pytest.raises(KeyboardInterrupt):
                train_stage(stopped_at(plan, call), run, CPU)
        train_stage(multissl(checkpoint_every_steps=checkpoint_every_steps), run, CPU)
        whole.append([(run / "iter1/multissl" / name).read_bytes() for name in (LAST, BEST)])
    assert all(files == whole[0] for files in whole[1:])


def test_a_finished_stage_is_read(multissl: MakePlan, tmp_path: Path) -> None:
    first = train_stage(multissl(), tmp_path, CPU)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = train_stage(multissl(), tmp_path, CPU)
    assert_same(again.network, first.network)
    assert again.about == first.about
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("changes", [{"num_steps": 14}, {"store_fingerprint": "f" * 64}, {"iteration": 2}])
def test_a_checkpoint_of_something_else_is_refused(multissl: MakePlan, tmp_path: Path, changes: dict[str, Any]) -> None:
    plan = multissl()
    with pytest.raises(KeyboardInterrupt):
        train_stage(stopped_at(plan, 5), tmp_path, CPU)
    other = multissl(about=plan.about.model_copy(update=changes))
    with pytest.raises(InputError, match=r"last\.pt belongs to another configuration or store; choose another --run"):
        train_stage(other, tmp_path, CPU)


def test_a_clip_with_nan_is_named(store: Store, multissl: MakePlan, tmp_path: Path, read_stream: ReadStream) -> None:
    damaged = Store(Path(shutil.copytree(store.root, tmp_path / "damaged")))
    plan = multissl(damaged, num_steps=20)
    # A clip that is seen for the first time in the third batch.
    third = plan.loader.orders[0].rows(10, 15)
    row = int(third[0])
    with (damaged.root / damaged.tar_name(row // 5)).open("r+b") as tar:
        tar.seek(int(damaged.fbank_offset[row]))
        tar.write(np.full(128, np.nan, np.float16).tobytes())
    keys = damaged.keys(third)
    with pytest.raises(InputError) as error:
        train_stage(replace(plan, checkpoint_every_steps=2), tmp_path / "run", CPU)
    message = str(error.value)
    assert message.startswith("iter1/multissl, step 3: intra_restore, intra_mse, ")
    assert f"the batch held {', '.join(keys)}." in message
    assert "`featurestore verify`" in message
    last = load_checkpoint(tmp_path / "run/iter1/multissl" / LAST)
    assert last.about.step == 2
    assert all(weight.isfinite().all() for weight in last.network.values())
    stream = read_stream(tmp_path / "run")
    assert [line["step"] for line in stream] == [1, 2]
    assert all(math.isfinite(line["loss"]) for line in stream)


def test_an_infinite_gradient_is_refused(multissl: MakePlan, tmp_path: Path) -> None:
    plan = multissl()

    def steep(inputs: Inputs, generator: torch.Generator) -> dict[str, Tensor]:
        weight = plan.network.restore.bias
        return {"loss": (weight - weight.detach()).abs().sum().sqrt()}  # type: ignore[union-attr]

    with pytest.raises(InputError, match="iter1/multissl, step 1: gradient_norm is not finite"):
        train_stage(replace(plan, losses=steep), tmp_path, CPU)


def still(plan: StagePlan) -> StagePlan:
    """The plan with a loss that has no slope anywhere."""
    weights = list(plan.network.parameters())
    return replace(plan, losses=lambda *_: {"loss": sum((weight * 0.0).sum() for weight in weights)})


@pytest.mark.parametrize("place", ["training.loop.norms_by_term", "torch.optim.AdamW.step", "training.loop.prepare"])
def test_a_device_without_memory_is_one_line(
    multissl: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(place, full)
    with pytest.raises(InputError, match=r"iter1/multissl: the device's memory is too small for batches of \d+; set a"):
        train_stage(multissl(), tmp_path, CPU)


def test_matrices_decay_and_vectors_and_positions_do_not(multissl: MakePlan, tmp_path: Path) -> None:
    plan = still(multissl())
    with torch.no_grad():
        for weight in plan.network.parameters():
            weight.fill_(1.0)
    train_stage(plan, tmp_path, CPU)
    left = math.prod(1 - 0.05 * learning_rate(step, 13, 3e-3, 0.05) for step in range(13))
    for name, weight in plan.network.named_parameters():
        expected = left if weight.ndim == 2 and not name.endswith("positions") else 1.0
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, expected), msg=name)


def test_gradients_are_clipped(multissl: MakePlan, tmp_path: Path) -> None:
    """With a gradient of 1e6 in one weight Adam's first moment holds .1 x 3, the largest norm."""
    plan = multissl(checkpoint_every_steps=1)

    def loss(*_: Any) -> dict[str, Tensor]:
        return {"loss": 1e6 * plan.network.get_parameter("restore.bias")[0]}

    with pytest.raises(KeyboardInterrupt):
        train_stage(stopped_at(replace(plan, losses=loss), 2), tmp_path, CPU)
    saved = load_checkpoint(tmp_path / "iter1/multissl" / LAST)
    assert saved.optimiser is not None
    largest = max(float(state["exp_avg"].abs().max()) for state in saved.optimiser["state"].values())
    assert largest == pytest.approx(0.3, rel=1e-4)


def test_bfloat16_is_close_to_float32(multissl: MakePlan, tmp_path: Path, read_stream: ReadStream) -> None:
    train_stage(multissl(num_steps=3), tmp_path / "float32", CPU)
    train_stage(multissl(num_steps=3), tmp_path / "bfloat16", Machine(CPU.device, torch.bfloat16))
    losses = [[line["loss"] for line in read_stream(tmp_path / run)] for run in ("float32", "bfloat16")]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    assert losses[0] != losses[1]
