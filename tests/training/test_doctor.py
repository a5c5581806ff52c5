"""`training doctor` names what is there and what is missing, and its dry run gives the plan's figures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from featurestore.store import Store
from manifests.findings import Finding, Status, is_fit
from training import doctor
from training.config import RunConfig, load_config
from training.doctor import Wish, examine, small_enough
from training.flops import multissl_flops
from training.plan import Rate, make_plan

CPU = torch.device("cpu")
RATE = Rate(2e9, 1e9, "measured here: two fingers", 2**30, is_measured=True)


def wish(config: RunConfig, folder: Path, store: Store | None = None, num_clips: int = 64) -> Wish:
    return Wish(config, 2, CPU, store, folder, num_clips)


def by_name(findings: Any) -> dict[str, Finding]:
    return {finding.name.split()[0]: finding for finding in findings}


def test_a_store_and_a_configuration_that_go_together(store: Store, config: RunConfig, tmp_path: Path) -> None:
    findings = by_name(examine(wish(config, tmp_path, store)))
    assert list(findings) == ["versions", "device", "store", "reading", "time", "memory", "disk"]
    assert is_fit(list(findings.values()))
    assert f"torch {torch.__version__.partition('+')[0]}" in findings["versions"].found
    assert findings["store"].found == "20 clips, 3 labels; 14 to train on, 6 held out (test)"
    assert "on 14 clips, iterations: 2;" in findings["time"].found
    assert "(20 clips read)" in findings["reading"].found
    assert not list(tmp_path.iterdir())


def test_hours_and_checkpoints_are_those_of_the_plan(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "measured_rate", lambda *_: RATE)
    findings = by_name(examine(wish(config, tmp_path, num_clips=10**9)))
    plan = make_plan(config, 10**9, 2, 1, RATE, autocast=False)
    assert findings["time"].found.startswith(f"{plan.gpu_hours:,.2f} hours on 1,000,000,000 clips")
    assert f"checkpoints take {plan.disk.checkpoints / 1e9:,.2f} GB" in findings["disk"].found
    assert findings["memory"].found.endswith("of 1 (worked out)")


def test_no_trial_means_none(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Rate:
        raise AssertionError

    monkeypatch.setattr(doctor, "measured_rate", refuse)
    assert list(by_name(examine(wish(config, tmp_path), with_trial=False))) == ["versions", "device"]


def test_clips_shorter_than_the_model_takes(store: Store, config: RunConfig) -> None:
    longer = config.model_copy(update={"model": config.model.model_copy(update={"num_frames": 512})})
    found, _ = doctor.examine_store(store, longer)
    assert found.status is Status.MISSING
    assert found.found == "its clips have 256 frames, and the model takes 512"
    assert found.remedy == "--set model.num_frames=256, or ingest with --num-frames 512"


def test_a_store_without_labels(unlabelled_store: Store, config: RunConfig) -> None:
    nothing_held_out = config.model_copy(update={"data": config.data.model_copy(update={"holdout_share": 0.0})})
    assert doctor.examine_store(unlabelled_store, nothing_held_out)[0].status is Status.WARNING


def test_a_split_that_is_not_there(store: Store, config: RunConfig, tmp_path: Path) -> None:
    elsewhere = config.model_copy(update={"data": config.data.model_copy(update={"eval_split": "moon"})})
    findings = by_name(examine(wish(elsewhere, tmp_path, store)))
    found = findings["store"]
    assert (found.status, "has no split 'moon'" in found.found) == (Status.MISSING, True)
    # Of how many clips the hours would be, nobody knows.
    assert "time" not in findings


def test_a_teacher_that_was_not_built(store: Store) -> None:
    found = doctor.examine_teacher(store, "beats")
    assert found.status is Status.MISSING
    assert found.remedy.startswith("featurestore build-teacher ")


def test_batches_are_halved_until_a_step_is_quick(config: RunConfig) -> None:
    large = config.multissl.optimiser.model_copy(update={"batch_size": 1 << 16})
    config = config.model_copy(update={"multissl": config.multissl.model_copy(update={"optimiser": large})})
    tried = small_enough(config, CPU)
    size = tried.multissl.optimiser.batch_size

    def flops(size: int) -> float:
        return multissl_flops(config.model, config.multissl, size, 1).hardware

    assert flops(size) <= doctor.MAX_CPU_FLOPS_PER_STEP < flops(2 * size)
    assert tried.distill == config.distill
    assert tried.compile == "off"


def test_memory_that_is_too_small_is_missing(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "measured_rate", lambda *_: Rate(1e9, 1e9, "a toy", 1000))
    found = by_name(examine(wish(config, tmp_path)))["memory"]
    assert found.status is Status.MISSING
    assert "model.recompute=true" in found.remedy


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    assert doctor.examine_disk(tmp_path / "runs", 1).status is Status.OK
    found = doctor.examine_disk(tmp_path / "runs", 10**18)
    assert (found.status, found.remedy) == (Status.MISSING, "make room, or choose another --run")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.delenv("CC", raising=False)
    found = doctor.examine_compiler(load_config("tiny"))
    assert (found.status, found.remedy) == (Status.MISSING, "install gcc, or --set compile=off")
    assert doctor.examine_compiler(load_config("tiny", ['compile="off"'])).status is Status.OK


def test_the_command(training: Any, store: Store, preset: Path, tmp_path: Path) -> None:
    arguments = ["--preset", preset, "--store", store.root, "--run", tmp_path / "runs", "--device", "cpu"]
    done = training("doctor", *arguments, "--json", "--no-trial")
    assert done.status == 0
    assert [finding["status"] for finding in json.loads(done.out)] == ["ok"] * 4
    failed = training("doctor", *arguments, "--no-trial", "--teacher", "beats")
    assert failed.status == 1
    assert "build-teacher" in failed.out
