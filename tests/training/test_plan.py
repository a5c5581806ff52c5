"""The plan of a run: its arithmetic, its rates, the command, and mistakes told in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.errors import InputError
from manifests.geometry import FbankSpec
from training import rates
from training.config import RunConfig, load_config
from training.flops import distill_flops, multissl_flops, multissl_parameters, student_parameters
from training.gpus import DEVICES
from training.plan import Plan, Rate, make_plan
from training.rates import RateWish, choose_rate
from training.steptrial import Trial, TrialSizes, measure_step

CPU = torch.device("cpu")
RATE = Rate(2e14, 1e14, "the tests", memory_bytes=int(80e9))
H200 = ("--device-name", "h200")
Command = Callable[..., Any]


def base(*changes: str) -> RunConfig:
    return load_config("base", list(changes))


def plan_of(
    config: RunConfig, *, clips: int = 256_000, iterations: int = 1, gpus: int = 1, stored: FbankSpec | None = None
) -> Plan:
    return make_plan(config, clips, iterations, gpus, RATE, autocast=True, stored=stored)


def test_hours_by_hand() -> None:
    """30 epochs of 256,000 clips are 30,000 steps of 256."""
    config = base("distill.teacher=none")
    multissl, distill = plan_of(config).stages
    step = multissl_flops(config.model, config.multissl, 256).hardware
    assert (multissl.num_steps, distill.num_steps) == (30_000, 10_000)
    assert multissl.flops == 30_000 * step
    assert multissl.gpu_hours == pytest.approx(30_000 * step / 2e14 / 3600)
    labels = distill_flops(config.model, config.distill, 256, 527, None).hardware
    assert distill.gpu_hours == pytest.approx(10_000 * labels / 1e14 / 3600)
    assert multissl.clips_per_s_per_gpu == pytest.approx(256 / (step / 2e14))


def test_gpus_share_the_batch() -> None:
    config = base("distill.teacher=none")
    one, eight = plan_of(config), plan_of(config, gpus=8)
    assert [memory.batch_size_per_gpu for memory in eight.memory] == [32, 32]
    assert [cost.num_steps for cost in eight.stages] == [cost.num_steps for cost in one.stages]
    assert eight.gpu_hours == pytest.approx(one.gpu_hours, rel=1e-6)
    assert sum(cost.wall_hours for cost in eight.stages) == pytest.approx(one.gpu_hours / 8, rel=1e-6)
    assert eight.memory[0].keeping.activations * 8 == one.memory[0].keeping.activations
    assert eight.memory[0].keeping.adamw == one.memory[0].keeping.adamw


def test_the_own_teacher_is_one_forward_pass_from_the_second_iteration_on() -> None:
    config = base()
    stages = plan_of(config, iterations=3).stages
    assert [cost.stage for cost in stages if cost.iteration == 1] == ["multissl", "distill"]
    assert [cost.stage for cost in stages if cost.iteration == 3] == ["multissl", "teacher", "distill"]
    forward = distill_flops(config.model, config.distill, 1, 527, 768).forward
    assert stages[3].flops == 256_000 * forward
    short = plan_of(base("model.num_frames=256"), iterations=2).stages[3]
    at_256 = distill_flops(base("model.num_frames=256").model, config.distill, 1, 527, 768).forward
    assert short.flops == 4 * 256_000 * at_256  # four windows of a stored clip
    stored = plan_of(base("model.num_frames=256"), iterations=2, stored=FbankSpec(num_frames=512)).stages[3]
    assert stored.flops == 2 * 256_000 * at_256


def test_a_stage_without_epochs_costs_nothing() -> None:
    made = plan_of(base("multissl.optimiser.epochs=0"), iterations=2)
    assert [cost.stage for cost in made.stages] == ["distill", "teacher", "distill"]
    alone = plan_of(base("distill.optimiser.epochs=0"), iterations=2)
    assert [cost.stage for cost in alone.stages] == ["multissl", "multissl"]
    assert alone.disk.teacher_caches == 0
    assert alone.disk.checkpoints == (2 * 8 + 8) * multissl_parameters(base().model)


def test_recomputing_changes_hours_and_what_fits() -> None:
    kept, again = plan_of(base()), plan_of(base("model.recompute=true"))
    assert [kept.fits(memory) for memory in kept.memory] == [False, True]
    assert [again.fits(memory) for memory in again.memory] == [True, True]
    assert 1.2 < again.stages[0].gpu_hours / kept.stages[0].gpu_hours < 1.34
    assert kept.memory == again.memory


def test_disk() -> None:
    made = plan_of(base("distill.teacher=beats"), clips=1000, iterations=2)
    assert made.disk.shards == 1000 * 274_432  # docs/scale.md, measured on real shards
    short = plan_of(base("model.num_frames=256"), clips=1000, stored=FbankSpec(num_frames=256))
    assert short.disk.shards == 1000 * 70_656  # headers included: fbank 66,560, HOG 3,072, JSON 1,024
    assert made.disk.teacher_caches == 1000 * (768 + 527) * 2  # embedding and logits
    multissl, distill = multissl_parameters(base().model), student_parameters(base().model, 527, 768)
    assert made.disk.checkpoints == 2 * 8 * (multissl + distill) + 8 * max(multissl, distill)


def test_the_batch_of_a_stage_that_is_not_trained_does_not_matter() -> None:
    assert plan_of(base("multissl.optimiser.epochs=0", "multissl.optimiser.batch_size=7"), gpus=2).stages


def test_a_rate_from_a_peak() -> None:
    known = choose_rate(base(), RateWish(device_name="h200"), 1, CPU)
    assert (known.of("multissl"), known.of("teacher"), known.memory_bytes) == (494.5e12, 494.5e12, 139 * 2**30)
    other = choose_rate(base(), RateWish(tflops_per_s=200, mfu=0.25), 1, CPU)
    assert (other.of("distill"), other.memory_bytes, other.is_measured) == (50e12, None, False)
    exact = choose_rate(base("precision=float32"), RateWish(tflops_per_s=67), 1, CPU)
    assert exact.of("multissl") == 33.5e12


def test_a_measured_rate(monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> None:
    """The trial is a real one; the rate is the shapes' FLOPs by its seconds."""
    seconds: dict[str, float] = {}

    def noted(stage: Any, *arguments: Any) -> Any:
        measured = measure_step(stage, *arguments)
        seconds[stage] = measured.step_s
        return measured

    monkeypatch.setattr(rates, "measure_step", noted)
    rate = choose_rate(config, RateWish(), 1, CPU)
    flops = multissl_flops(config.model, config.multissl, 5).hardware
    assert rate.of("multissl") == pytest.approx(flops / seconds["multissl"])
    assert rate.of("distill") != rate.of("multissl")
    assert rate.is_measured
    made = make_plan(config, 50, 1, 1, rate, autocast=False)
    assert made.stages[0].gpu_hours == pytest.approx(20 * seconds["multissl"] / 3600)


def test_a_trial_trains(config: RunConfig) -> None:
    trial = Trial("distill", config, TrialSizes(4, 3, 16), CPU)
    first = trial.forward().item()
    for _ in range(20):
        trial.step()
    assert trial.forward().item() < first


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (("--clips", "0", "--iter", "1", *H200), "--clips 0 is no number of clips"),
        (("--clips", "nan", "--iter", "1", *H200), "--clips nan is no number of clips"),
        (("--clips", "1.5", "--iter", "1", *H200), r"--clips 1\.5 is no number of clips"),
        (("--clips", "10", "--iter", "0", *H200), "--iter 0 is no number of iterations"),
        (("--clips", "10", "--iter", "1", "--gpus", "0", *H200), "--gpus 0 is no number"),
        (("--clips", "10", "--iter", "1", "--gpus", "7", *H200), "batches of 256 can't be shared by 7 GPUs"),
        (("--clips", "10", "--iter", "1", "--preset", "huge", *H200), "there is no preset 'huge'"),
        (("--clips", "10", "--iter", "1", "--device-name", "abacus"), "'abacus' is not known; known are b200, h200"),
        (("--clips", "10", "--iter", "1", *H200, "--mfu", "1.2"), r"--mfu 1\.2 is no share"),
        (("--clips", "10", "--iter", "1", *H200, "--measure"), "--device-name and --measure say the same"),
        (
            ("--clips", "10", "--iter", "1", *H200, "--set", "precision=float32"),
            "--device-name h200 stands for its 16-bit peak, .* give the device's float32 peak as --tflops-per-s",
        ),
        (("--clips", "10", "--iter", "1", "--tflops-per-s", "0"), "--tflops-per-s 0 is no rate"),
        (("--clips", "10", "--iter", "1", "--preset", "demo", "--mfu", "0.4"), "--mfu is a share of a peak"),
    ],
)
def test_mistakes(training: Command, arguments: tuple[str, ...], pattern: str) -> None:
    outcome = training("plan", *arguments)
    assert outcome.status == 2
    assert re.fullmatch(rf"error: .*{pattern}.*\n", outcome.err), outcome.err


def test_a_model_too_large_to_measure_asks_for_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "memory_bytes", lambda device: int(1e12))
    with pytest.raises(InputError, match=r"would take minutes .*; give --device-name .* with --measure"):
        choose_rate(base(), RateWish(), 1, CPU)
    monkeypatch.setattr(rates, "memory_bytes", lambda device: 16 * 2**30)
    with pytest.raises(InputError, match=r"a multissl step takes about \d+ GiB and cpu has 16 GiB"):
        choose_rate(base(), RateWish(measure=True), 1, CPU)


def test_the_command(training: Command) -> None:
    outcome = training("plan", "--clips", "1.9e6", "--iter", "3", *H200, "--gpus", "8", "--teacher", "beats")
    assert outcome.status == 0
    assert "estimate: 50% of the 989 TFLOP/s of a h200" in outcome.out
    assert "222,656" in outcome.out  # 30 epochs of 1.9 million clips in batches of 256
    assert "shards 521.4 GB, caches of the teacher beats 4.92 GB" in outcome.out
    assert "The paper's own figure is 896 V100-hours" in outcome.out
    assert "fits in 139" in outcome.out


def test_a_batch_that_is_too_large(training: Command) -> None:
    at_256 = ("--clips", "1000", "--iter", "1")
    assert "tight in 139" in training("plan", *at_256, *H200).out
    outcome = training("plan", *at_256, "--device-name", "a100")
    assert "DOES NOT FIT in 79" in outcome.out
    assert "It does not fit: take more --gpus" in outcome.out


def test_the_command_as_json(training: Command) -> None:
    outcome = training("plan", "--clips", "1000", "--iter", "2", "--device-name", "a100", "--json")
    content = json.loads(outcome.out)
    stages = content["stages"]
    assert [stage["stage"] for stage in stages] == ["multissl", "distill", "multissl", "teacher", "distill"]
    assert content["gpu_hours"] == pytest.approx(sum(stage["gpu_hours"] for stage in stages))
    assert content["fits"] == {"multissl": False, "distill": True}
    assert content["rate"]["multissl_flops_per_s"] == DEVICES["a100"].peak_tflops_per_s * 0.5e12


def test_the_command_measures_by_itself(training: Command, preset: Path) -> None:
    outcome = training("plan", "--clips", "100", "--iter", "1", "--preset", preset, "--device", "cpu", "--json")
    content = json.loads(outcome.out)
    assert content["rate"]["source"].startswith("measured here: ")
    assert [stage["num_steps"] for stage in content["stages"]] == [40, 40]
    assert 0 < content["gpu_hours"] < 1
