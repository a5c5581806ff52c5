"""Iterations: what each starts from, that done ones are kept, and that a run folder belongs to one configuration."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import Tensor

from featurestore.build import build_cache, build_teacher
from featurestore.cacheplan import CacheOptions, plan_cache
from featurestore.device import choose_device
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.teacherpool import InProcess
from featurestore.teachers.ensemble import Ensemble
from featurestore.teachers.registry import load_teacher
from manifests.errors import InputError
from training import iterations, stages
from training.checkpoint import Checkpoint, load_checkpoint
from training.config import RunConfig, differences, load_config
from training.iterations import IterationResult, run_iterations
from training.loop import Machine, StagePlan
from training.run import choose_machine, open_run
from training.runfolder import choose_run, read_config, recorded_store

CPU = torch.device("cpu")
STAGES = [f"iter{iteration}/{stage}" for iteration in (1, 2) for stage in ("multissl", "distill")]
ReadStream = Callable[[Path], list[dict[str, Any]]]


def train(store: Store, config: RunConfig, folder: Path, num_iterations: int) -> list[IterationResult]:
    with open_run([store], config, folder, CPU) as run:
        return run_iterations(run, num_iterations)


def changed(config: RunConfig, preset: Path, *changes: str) -> RunConfig:
    other = load_config(str(preset), list(changes))
    assert differences(config, other) != []
    return other


@dataclass(frozen=True)
class Started:
    """A stage's plan and the weights it began with."""

    plan: StagePlan
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class CleanRun:
    store: Store
    folder: Path
    results: list[IterationResult]
    started: dict[str, Started]

    def weights(self, stage: str) -> dict[str, Tensor]:
        return load_checkpoint(self.folder / stage / "last.pt").network


@pytest.fixture(scope="module")
def clean(store: Store, config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> CleanRun:
    """Two iterations that nothing disturbed."""
    home = tmp_path_factory.mktemp("clean")
    copy = Store(Path(shutil.copytree(store.root, home / "store")))
    started: dict[str, Started] = {}
    train_stage = iterations.train_stage

    def noted(plan: StagePlan, run: Path, machine: Machine) -> Checkpoint:
        started[plan.name] = Started(plan, {k: v.clone() for k, v in plan.network.state_dict().items()})
        return train_stage(plan, run, machine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iterations, "train_stage", noted)
        results = train(copy, config, home / "run", 2)
    return CleanRun(copy, home / "run", results, started)


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    chosen = {name: weight for name, weight in weights.items() if name.startswith(prefix)}
    assert chosen
    return chosen


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_each_stage_starts_from_the_one_before(clean: CleanRun) -> None:
    assert list(clean.started) == STAGES
    for before, after in pairwise(STAGES):
        assert same(part(clean.started[after].weights, "aft."), part(clean.weights(before), "aft."))
    first, second = STAGES[0], STAGES[2]
    for name in ("mae.", "restore."):
        assert same(part(clean.started[second].weights, name), part(clean.weights(first), name))
    # The classifier begins anew.
    began, ended = (part(w, "classifier.weight") for w in (clean.started[STAGES[3]].weights, clean.weights(STAGES[1])))
    assert not same(began, ended)


def test_each_stage_moves_its_weights(clean: CleanRun) -> None:
    for stage in STAGES:
        assert not same(part(clean.started[stage].weights, "aft."), part(clean.weights(stage), "aft."))


def test_peaks_and_orders_differ(clean: CleanRun) -> None:
    peaks = [clean.started[stage].plan.peak_lr for stage in STAGES]
    assert peaks == pytest.approx([1e-3, 1e-3, 0.8e-3, 0.8e-3])
    orders = {tuple(clean.started[stage].plan.loader.orders[0].rows(0, 15).tolist()) for stage in STAGES}
    assert len(orders) == 4


def test_the_own_teacher_is_the_student_before(clean: CleanRun) -> None:
    first, second = clean.results
    assert (first.teacher, first.iteration, second.iteration) == (None, 1, 2)
    assert second.teacher is not None
    cache = TeacherCache(clean.store, second.teacher)
    assert cache.attributes.provenance["iteration"] == 1
    assert cache.embedding_dim == 16
    abouts = [load_checkpoint(clean.folder / stage / "last.pt").about for stage in STAGES]
    assert [about.teacher_dim for about in abouts] == [None, None, None, 16]
    assert [about.iteration for about in abouts] == [1, 1, 2, 2]


def test_results_are_the_files(clean: CleanRun, read_stream: ReadStream) -> None:
    stream = read_stream(clean.folder)
    assert [(line["stage"], line["step"]) for line in stream if "loss" in line] == [
        (stage, step) for stage in STAGES for step in range(1, 7)
    ]
    for result in clean.results:
        assert result.evaluation is not None
        assert result.checkpoint == clean.folder / f"iter{result.iteration}/distill/last.pt"
        told = json.loads((clean.folder / f"iter{result.iteration}/eval.json").read_text())
        assert told == {"teacher": result.teacher, **result.evaluation.as_dict()}
        assert (told["split"], told["num_evaluated"], told["num_listed"]) == ("test", 6, 6)
        last = [line for line in stream if line["stage"] == f"iter{result.iteration}/distill" and "loss" not in line][
            -1
        ]
        assert last["eval_accuracy"] == told["accuracy"]


def test_the_run_keeps_what_it_was_made_from(clean: CleanRun, config: RunConfig) -> None:
    kept = read_config(clean.folder)
    resolved = ['compile ("off" and "auto")', 'distill.loss ("ce" and "auto")', 'precision ("float32" and "auto")']
    assert sorted(differences(kept, config)) == resolved
    about = json.loads((clean.folder / "store.json").read_text())
    assert about["fingerprint"] == clean.store.snapshot.fingerprint
    (call,) = json.loads((clean.folder / "environment.json").read_text())
    assert set(call["versions"]) == {"torch", "numpy", "zarr", "acm-sskd"}
    assert call["device"] == "cpu"


@pytest.mark.parametrize("call", [1, 5, 12, 16, 24])
def test_an_interrupted_run_goes_on_to_the_same_end(
    call: int,
    clean: CleanRun,
    own_store: Store,
    config: RunConfig,
    tmp_path: Path,
    read_stream: ReadStream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the passes in four stages (24 steps, and the closer looks at some) the `call`th is interrupted."""
    calls = iter(range(1, 1000))

    def interrupting(losses: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            if next(calls) == call:
                raise KeyboardInterrupt
            return losses(*arguments)

        return step

    for name in ("multissl_losses", "distill_losses"):
        monkeypatch.setattr(stages, name, interrupting(getattr(stages, name)))
    with pytest.raises(KeyboardInterrupt):
        train(own_store, config, tmp_path / "run", 2)
    results = train(own_store, config, tmp_path / "run", 2)
    assert [(result.evaluation, result.teacher) for result in results] == [
        (result.evaluation, result.teacher) for result in clean.results
    ]
    assert read_stream(tmp_path / "run") == read_stream(clean.folder)
    for stage in STAGES:
        assert same(load_checkpoint(tmp_path / "run" / stage / "last.pt").network, clean.weights(stage)), stage


def test_interrupted_while_the_own_teacher_speaks(
    clean: CleanRun, own_store: Store, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = TeacherCache.write, iter(range(1000))

    def interrupted(*arguments: Any) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(TeacherCache, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(own_store, config, tmp_path / "run", 2)
    train(own_store, config, tmp_path / "run", 2)
    assert same(load_checkpoint(tmp_path / "run" / STAGES[-1] / "last.pt").network, clean.weights(STAGES[-1]))


def test_killed_while_the_own_cache_is_made(
    clean: CleanRun, own_store: Store, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that was not made to its end is made anew."""
    run = Path(shutil.copytree(clean.folder, tmp_path / "run"))
    shutil.rmtree(run / "iter2")
    with monkeypatch.context() as patch:
        patch.setattr(zarr.Group, "create_array", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(own_store, config, run, 2)
    train(own_store, config, run, 2)
    assert same(load_checkpoint(run / STAGES[-1] / "last.pt").network, clean.weights(STAGES[-1]))


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_store_that_cant_have_the_own_cache_is_refused_at_once(
    clean: CleanRun, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(shutil.copytree(clean.store.root, tmp_path / "store"))
    shutil.rmtree(store.root / "teachers")
    (store.root / "teachers").write_text("a file, where a folder must be")
    with pytest.raises(InputError, match="teachers can't be written to: Not a directory"):
        train(store, config, tmp_path / "run", 2)
    assert not (tmp_path / "run/iter1").exists()
    # What is done needs no cache any more.
    monkeypatch.setattr(iterations, "disk_room", lambda _: pytest.fail("asked for room"))
    train(clean.store, config, Path(shutil.copytree(clean.folder, tmp_path / "done")), 2)


def test_more_iterations_keep_those_that_are_done(clean: CleanRun, config: RunConfig, tmp_path: Path) -> None:
    run = Path(shutil.copytree(clean.folder, tmp_path / "run"))
    store = Store(Path(shutil.copytree(clean.store.root, tmp_path / "store")))
    done = {path: path.stat().st_mtime_ns for path in [*run.glob("iter*/*/*.pt"), *run.glob("iter*/eval.json")]}
    assert len(done) == 10
    results = train(store, config, run, 3)
    assert [result.evaluation for result in results[:2]] == [result.evaluation for result in clean.results]
    assert {path: path.stat().st_mtime_ns for path in done} == done
    third = load_checkpoint(run / "iter3/distill/last.pt").about
    assert (third.iteration, third.finished) == (3, True)
    assert len(json.loads((run / "environment.json").read_text())) == 2


def test_another_configuration_is_refused(clean: CleanRun, config: RunConfig, preset: Path) -> None:
    other = changed(config, preset, "seed=1", "multissl.mask_ratio=0.5")
    with pytest.raises(
        InputError, match=r"differs in seed \(0 and 1\), multissl\.mask_ratio \(0\.75 and 0\.5\): choose"
    ):
        train(clean.store, other, clean.folder, 2)


def test_another_store_is_refused(clean: CleanRun, multi_label_store: Store, config: RunConfig) -> None:
    fingerprint = multi_label_store.snapshot.fingerprint[:12]
    with pytest.raises(
        InputError, match=f"was trained on .*; .* now has {fingerprint}: choose another folder with --run"
    ):
        train(multi_label_store, config, clean.folder, 2)


def test_a_folder_that_is_a_file_is_refused(store: Store, config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="choose another"):
            train(store, config, folder, 1)


def test_a_model_longer_than_the_store_is_refused(
    store: Store, config: RunConfig, preset: Path, tmp_path: Path
) -> None:
    longer = changed(config, preset, "model.num_frames=512")
    with pytest.raises(InputError, match=r"takes 512 frames and .* holds 256: set model\.num_frames=256, or ingest"):
        train(store, longer, tmp_path / "run", 1)
    assert not (tmp_path / "run").exists()


def test_a_named_teacher(
    own_store: Store, config: RunConfig, preset: Path, checkpoint_path: Path, tmp_path: Path
) -> None:
    named = changed(
        config, preset, "distill.teacher=ours", "distill.probability_weight=0.5", "multissl.optimiser.epochs=0"
    )
    with pytest.raises(InputError, match=r"no cache of a teacher 'ours' \(there are: none\)"):
        train(own_store, named, tmp_path / "run", 1)
    cache = build_teacher(own_store, load_teacher("checkpoint", checkpoint_path), "ours").cache
    whole = cache.shard_values(1)
    cache.write(1, {name: np.full_like(values, np.nan) for name, values in whole.items()})
    with pytest.raises(
        InputError, match=r"lacks \d of the 14 clips to train on.*run `featurestore build-teacher` again"
    ):
        train(own_store, named, tmp_path / "run", 1)
    assert not (tmp_path / "run").exists()
    cache.write(1, whole)
    (result,) = train(own_store, named, tmp_path / "run", 1)
    assert result.teacher == "ours"
    losses = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(line["regress"] > 0 for line in losses if "loss" in line)
    assert not (tmp_path / "run/iter1/multissl").exists()
    about = load_checkpoint(tmp_path / "run/iter1/distill/last.pt").about
    assert about.teacher == {"name": "ours", **cache.attributes.provenance}


def test_views_of_a_named_teacher(
    own_store: Store, config: RunConfig, preset: Path, checkpoint_path: Path, tmp_path: Path
) -> None:
    changes = ["distill.views=true", "multissl.optimiser.epochs=0"]
    consistent = changed(config, preset, "distill.teacher=ours", *changes)
    teacher = Ensemble([load_teacher("checkpoint", checkpoint_path)])
    build_cache(plan_cache(own_store, teacher, "ours", CacheOptions()), InProcess())
    with pytest.raises(InputError, match=r"ours\.zarr has none; make them with `featurestore build-teacher --views K`"):
        train(own_store, consistent, tmp_path / "run", 1)
    assert not (tmp_path / "run").exists()
    build_cache(plan_cache(own_store, teacher, "views", CacheOptions(num_views=2)), InProcess())
    wanted = changed(config, preset, "distill.teacher=views", *changes)
    (result,) = train(own_store, wanted, tmp_path / "run", 1)
    assert result.teacher == "views"
    losses = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(line["regress"] > 0 for line in losses if "loss" in line)
    with pytest.raises(InputError, match=r"distill\.views needs distill\.teacher, the name of a cache"):
        changed(config, preset, "distill.views=true", "distill.teacher=own")


def test_labels_alone(clean: CleanRun, own_store: Store, config: RunConfig, preset: Path, tmp_path: Path) -> None:
    alone = changed(config, preset, "distill.teacher=none")
    results = train(own_store, alone, tmp_path / "run", 2)
    assert [result.teacher for result in results] == [None, None]
    assert not (own_store.root / "teachers").exists()
    # The first iteration has no teacher in either case.
    assert results[0].evaluation == clean.results[0].evaluation


def test_a_store_without_labels(unlabelled_store: Store, config: RunConfig, preset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no clip to train on .* has a label; .* --set distill\.optimiser\.epochs=0"):
        train(unlabelled_store, config, tmp_path / "labels", 1)
    assert not (tmp_path / "labels").exists()
    alone = changed(config, preset, "distill.optimiser.epochs=0")
    results = train(unlabelled_store, alone, tmp_path / "run", 2)
    assert results == [IterationResult(1, None, None, None), IterationResult(2, None, None, None)]
    first, second = (load_checkpoint(tmp_path / f"run/iter{k}/multissl/last.pt") for k in (1, 2))
    assert first.about.finished
    assert second.about.finished
    assert not same(first.network, second.network)


def test_several_labels(multi_label_store: Store, config: RunConfig, preset: Path, tmp_path: Path) -> None:
    folded = changed(config, preset, "data.eval_fold=1")
    (result,) = train(multi_label_store, folded, tmp_path / "run", 1)
    assert result.evaluation is not None
    assert result.evaluation.accuracy is None
    assert not load_checkpoint(tmp_path / "run/iter1/distill/last.pt").about.one_label
    forced = changed(config, preset, "data.eval_fold=1", "distill.loss=ce")
    with open_run([multi_label_store], forced, tmp_path / "forced", CPU) as run:
        assert run.one_label


def test_devices_and_precision(config: RunConfig) -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("tpu9", "meta", "cuda:99"):
        with pytest.raises(InputError, match=f"--device '{name}'"):
            choose_device(name)
    assert choose_machine(config.model_copy(update={"precision": "float32"}), CPU).autocast is None
    asked = config.model_copy(update={"precision": "bfloat16"})
    assert choose_machine(asked, CPU).autocast == torch.bfloat16


def test_a_damaged_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run: it has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"tempo": 1}')
    with pytest.raises(InputError, match=r"config\.json is not a configuration that this version reads"):
        read_config(tmp_path)


def test_a_damaged_evaluation_is_told(clean: CleanRun, config: RunConfig, tmp_path: Path) -> None:
    run = Path(shutil.copytree(clean.folder, tmp_path / "run"))
    for content in ("{", '{"teacher": null}', '{"split": "test"}'):
        (run / "iter1/eval.json").write_text(content)
        with pytest.raises(InputError, match=r"iter1/eval\.json is damaged .*; delete it"):
            train(clean.store, config, run, 1)
    (run / "iter1/eval.json").unlink()
    assert train(clean.store, config, run, 1)[0].evaluation == clean.results[0].evaluation
    (run / "store.json").write_text("{")
    with pytest.raises(InputError, match=r"store\.json is damaged"):
        train(clean.store, config, run, 1)


def test_halves_that_a_killed_writer_left_are_removed(clean: CleanRun, config: RunConfig, tmp_path: Path) -> None:
    run = Path(shutil.copytree(clean.folder, tmp_path / "run"))
    for name in (".config.json.1.partial", "iter1/distill/.last.pt.2.partial", "iter1/.eval.json.3.partial"):
        (run / name).touch()
    train(clean.store, config, run, 1)
    assert list(run.rglob("*.partial")) == []


def test_the_store_and_the_run_are_found_again(
    clean: CleanRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recorded_store(clean.folder / "iter1/distill/last.pt") == str(clean.store.root)
    assert recorded_store(tmp_path / "last.pt") is None
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no run under \./runs"):
        choose_run(None)
    assert choose_run(clean.folder) == clean.folder
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        assert name == "two" or shutil.copy(clean.folder / "config.json", tmp_path / "runs" / name)
    assert choose_run(None) == Path("runs/one")
    shutil.copy(clean.folder / "config.json", tmp_path / "runs/two")
    with pytest.raises(InputError, match=r"several runs under \./runs: runs/one, runs/two; choose one"):
        choose_run(None)
