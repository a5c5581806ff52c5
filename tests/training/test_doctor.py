"""`training doctor` names what is there and what is missing, and its dry run gives the plan's figures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from featurestore.build import build_teacher
from featurestore.store import Store
from featurestore.teachers.registry import load_teacher
from manifests.errors import InputError
from manifests.findings import Finding, Status, is_fit
from manifests.vocabulary import Vocabulary
from training import doctor, rates
from training.checkpoint import About, Checkpoint, save_checkpoint
from training.config import RunConfig, load_config
from training.doctor import Wish, examine
from training.experiment import check_start
from training.flops import multissl_flops
from training.model.networks import Student
from training.plan import Rate, flops_of, make_plan, stages_of
from training.rates import small_enough
from training.run import open_run

CPU = torch.device("cpu")
RATE = Rate(2e9, 1e9, "measured here: two fingers", 2**30, is_measured=True)


def wish(config: RunConfig, folder: Path, store: Store | None = None, num_clips: int = 64) -> Wish:
    return Wish(config, 2, CPU, store, folder, num_clips)


def by_name(findings: Any) -> dict[str, Finding]:
    return {finding.name.split()[0]: finding for finding in findings}


def test_a_store_and_a_configuration_that_go_together(store: Store, config: RunConfig, tmp_path: Path) -> None:
    findings = by_name(examine(wish(config, tmp_path, store)))
    findings.pop("data", None)  # that a toy's steps are quicker than reading, as they are on a busy machine
    assert list(findings) == ["versions", "device", "store", "training", "reading", "time", "memory", "disk"]
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


@pytest.fixture
def taught_store(own_store: Store, checkpoint_path: Path, about: About, student: Student, tmp_path: Path) -> Store:
    """A store with the caches "whole", "torn", which lacks a shard, and "foreign", whose labels are others."""
    for name in ("whole", "torn"):
        build_teacher(own_store, load_teacher("checkpoint", checkpoint_path), name)
    embeddings = own_store.root / "teachers/torn.zarr/embedding/c"
    min(path for path in embeddings.rglob("*") if path.is_file()).unlink()
    foreign = about.model_copy(update={"vocabulary": Vocabulary.from_names(["a", "b", "c"])})
    save_checkpoint(Checkpoint(foreign, student.state_dict()), tmp_path / "foreign.pt")
    build_teacher(own_store, load_teacher("checkpoint", tmp_path / "foreign.pt"), "foreign")
    return own_store


def assert_as_the_run(store: Store, config: RunConfig, folder: Path) -> list[Finding]:
    """The doctor's findings, which are fit exactly where `training run` begins; what it would say is among them."""
    findings = list(examine(wish(config, folder, store), with_trial=False))
    try:
        check_start(config)
        with open_run([store], config, folder / "run", CPU):
            refused = None
    except InputError as error:
        refused = str(error)
    missing = [finding for finding in findings if finding.status is Status.MISSING]
    said = [text for finding in missing for text in (finding.found, f"{finding.found}; {finding.remedy}")]
    assert not missing if refused is None else refused in said
    return missing


@pytest.mark.parametrize(
    ("changes", "name", "found", "remedy"),
    [
        (["distill.teacher=whole"], None, "", ""),
        (["distill.teacher=whole", "distill.probability_weight=0.5"], None, "", ""),
        (["distill.teacher=nosuch", "distill.optimiser.epochs=0"], None, "", ""),
        (["distill.teacher=nosuch"], "teacher nosuch", "has no cache of a teacher", "featurestore build-teacher "),
        (["distill.teacher=torn"], "training run", "of the 14 clips to train on", "run `featurestore build-teacher`"),
        (["distill.teacher=whole", "distill.views=true"], "training run", "has none", "--views K"),
        (["distill.teacher=foreign", "distill.probability_weight=0.5"], "training run", "", ""),
        (["initialise=nofile.safetensors"], "initialise", "nofile.safetensors", ""),
    ],
)
def test_it_finds_what_a_run_would_refuse(
    taught_store: Store, preset: Path, tmp_path: Path, changes: list[str], name: str | None, found: str, remedy: str
) -> None:
    missing = assert_as_the_run(taught_store, load_config(str(preset), changes), tmp_path)
    assert [finding.name for finding in missing] == ([] if name is None else [name])
    for finding in missing:
        assert found in finding.found
        assert remedy in finding.remedy


def test_a_store_without_labels(unlabelled_store: Store, preset: Path, tmp_path: Path) -> None:
    (missing,) = assert_as_the_run(unlabelled_store, load_config(str(preset)), tmp_path)
    assert missing.found.endswith("has a label")
    assert missing.remedy.startswith("do Multi-SSL alone with --set distill.optimiser.epochs=0, or regress a teacher")
    alone = load_config(str(preset), ["distill.optimiser.epochs=0"])
    assert not assert_as_the_run(unlabelled_store, alone, tmp_path)


def _remove(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


@pytest.mark.parametrize("damage", [_remove, _cut])
def test_a_shard_that_is_damaged_leaves_the_other_findings(
    own_store: Store, config: RunConfig, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(own_store.root / own_store.tar_name(0))
    findings = by_name(examine(wish(config, tmp_path, own_store)))
    assert list(findings) == ["versions", "device", "store", "training", "reading", "time", "memory", "disk"]
    assert findings["reading"].status is Status.MISSING
    assert own_store.tar_name(0) in findings["reading"].found
    assert "featurestore " in findings["reading"].remedy


def test_a_store_that_is_unfit_is_not_read(
    store: Store, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(doctor, "examine_reading", refuse)
    longer = config.model_copy(update={"model": config.model.model_copy(update={"num_frames": 512})})
    assert list(by_name(examine(wish(longer, tmp_path, store)))) == ["versions", "device", "store"]


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

    assert flops(size) <= rates.DRY_RUN_FLOPS_PER_STEP < flops(2 * size)
    assert (tried.distill, tried.model) == (config.distill, config.model)
    assert tried.compile == "off"


@pytest.mark.parametrize("preset_name", ["base", "spfa", "finetune-audioset", "small", "tiny", "demo"])
def test_the_trial_of_a_large_model_on_a_cpu_is_of_fewer_blocks_and_frames(preset_name: str) -> None:
    config = load_config(preset_name)
    tried = small_enough(config, CPU)
    for stage in stages_of(tried):
        assert flops_of(tried, stage, 1).hardware <= rates.DRY_RUN_FLOPS_PER_STEP
        assert tried.optimiser_of(stage).batch_size >= 2
    assert tried.model.width == config.model.width
    if preset_name == "base":
        assert (tried.model.depth, tried.model.num_frames) == (1, 512)
    if preset_name == "tiny":
        assert tried.model == config.model


def test_what_was_timed_is_said_and_the_hours_are_those_of_the_wish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = list[RunConfig]()

    def noted(config: RunConfig, *_: object) -> Rate:
        timed.append(config)
        return RATE

    monkeypatch.setattr(doctor, "measured_rate", noted)
    config = load_config("base")
    found = by_name(examine(wish(config, tmp_path)))["time"].found
    (tried,) = timed
    plan = make_plan(config, 64, 2, 1, RATE, autocast=False)
    assert found.startswith(f"{plan.gpu_hours:,.2f} hours on 64 clips")
    size = tried.distill.optimiser.batch_size
    assert found.endswith(f"steps of 2 and {size} clips, 1 of 12 blocks, 512 of 1024 frames, not compiled)")


def test_the_own_teachers_windows_are_those_of_the_stores_clips(
    store: Store, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store's clips have 256 frames, as many as the model takes: one window, and not four."""
    rate = Rate(1.0, 1.0, "an abacus", 2**30)
    monkeypatch.setattr(doctor, "measured_rate", lambda *_: rate)
    plan = make_plan(config, 14, 2, 1, rate, autocast=False, stored=store.file.fbank)
    assert plan.gpu_hours < make_plan(config, 14, 2, 1, rate, autocast=False).gpu_hours
    found = by_name(examine(wish(config, tmp_path, store)))["time"].found
    assert found.startswith(f"{plan.gpu_hours:,.2f} hours on 14 clips")


def test_memory_that_is_too_small_is_missing(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "measured_rate", lambda *_: Rate(1e9, 1e9, "a toy", 1000))
    found = by_name(examine(wish(config, tmp_path)))["memory"]
    assert found.status is Status.MISSING
    assert "model.recompute=true" in found.remedy


@pytest.mark.parametrize(("share", "status"), [(0.89, Status.OK), (0.91, Status.WARNING), (1.01, Status.MISSING)])
def test_memory_that_is_nearly_used_up_is_a_warning(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, status: Status
) -> None:
    needed = max(memory.keeping.total for memory in make_plan(config, 64, 2, 1, RATE, autocast=False).memory)
    monkeypatch.setattr(doctor, "measured_rate", lambda *_: Rate(1e9, 1e9, "a toy", int(needed / share)))
    found = by_name(examine(wish(config, tmp_path)))["memory"]
    assert found.status is status
    assert (found.remedy == "") == (status is Status.OK)


def test_memory_is_what_a_container_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(rates, "MEMORY_LIMITS", (limit,))
    everything = rates.memory_bytes(CPU)  # there is no such file
    for text, expected in (("max\n", everything), ("1073741824\n", 2**30), (f"{2**62}\n", everything)):
        limit.write_text(text)
        assert rates.memory_bytes(CPU) == expected


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    assert doctor.examine_disk(tmp_path / "runs", 1).status is Status.OK
    found = doctor.examine_disk(tmp_path / "runs", 10**18)
    assert (found.status, found.remedy) == (Status.MISSING, "make room, or choose another --run")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    for device, compiler in (("cuda", "gcc"), ("cpu", "g++")):
        found = doctor.examine_compiler(load_config("tiny"), torch.device(device))
        assert (found.status, found.remedy) == (Status.MISSING, f"install {compiler}, or --set compile=off")
    assert doctor.examine_compiler(load_config("tiny", ['compile="off"']), torch.device("cuda")).status is Status.OK


def test_the_command(training: Any, store: Store, preset: Path, tmp_path: Path) -> None:
    arguments = ["--preset", preset, "--store", store.root, "--run", tmp_path / "runs", "--device", "cpu"]
    done = training("doctor", *arguments, "--json", "--no-trial")
    assert done.status == 0
    assert [finding["status"] for finding in json.loads(done.out)] == ["ok"] * 5
    failed = training("doctor", *arguments, "--no-trial", "--teacher", "beats")
    assert failed.status == 1
    assert "build-teacher" in failed.out
