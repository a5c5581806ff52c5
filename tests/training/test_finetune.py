"""Fine-tuning: what it starts from, and that its summary is that of separate runs."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from featurestore.store import Store
from manifests.errors import InputError
from tests.training.model.vits import made_up
from training import finetune as module
from training.checkpoint import load_checkpoint
from training.config import load_config
from training.evaluate import Evaluation
from training.finetune import finetune, starting_from
from training.iterations import run_iterations
from training.run import open_run

CPU = torch.device("cpu")
LABELS_ONLY = ["multissl.optimiser.epochs=0", "distill.optimiser.epochs=0.7"]
WIDER = ["model.width=24", "model.num_heads=3"]


@pytest.fixture(scope="module")
def pretrained(store: Store, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of Multi-SSL alone, of a model of other sizes than the preset's."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    config = load_config(str(preset), [*WIDER, "multissl.optimiser.epochs=0.3", "distill.optimiser.epochs=0"])
    with open_run([store], config, folder, CPU) as run:
        run_iterations(run, 1)
    return folder


def test_names_are_taken_as_they_are(preset: Path) -> None:
    for source in ("random", "timm:vit_tiny_patch16_224"):
        config = starting_from(source, str(preset), ["seed=4"])
        assert config == load_config(str(preset), ["seed=4", f"initialise={source}"])


def test_a_model_of_ours_keeps_its_sizes_but_for_the_frames(pretrained: Path, preset: Path) -> None:
    config = starting_from(str(pretrained), str(preset), ["model.num_frames=512", "model.recompute=true"])
    path = pretrained / "iter1/multissl/last.pt"
    ours = load_checkpoint(path).about.model
    assert (ours.width, ours.num_frames, ours.recompute) == (24, 256, False)
    assert config.initialise == str(path)
    assert config.model == ours.model_copy(update={"num_frames": 512, "recompute": True})
    assert starting_from(str(path), str(preset)).model == ours
    with pytest.raises(InputError, match=r"--set model.depth=2: the model's sizes are those of .*last.pt; leave it"):
        starting_from(str(pretrained), str(preset), ["model.depth=2"])


def test_another_file_is_left_to_the_preset(preset: Path, tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(made_up(4), path)
    config = starting_from(str(path), str(preset), ["model.depth=2"])
    assert config == load_config(str(preset), ["model.depth=2", f"initialise={path}"])


def test_what_is_not_there_is_named(preset: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no model nothere; expected a run's folder"):
        starting_from("nothere", str(preset))
    (tmp_path / "iter1").mkdir()
    (tmp_path / "iter1/eval.json").touch()
    with pytest.raises(InputError, match=rf"there is no model {tmp_path} \(no .*iter1/distill/last.pt\)"):
        starting_from(str(tmp_path), str(preset))


def test_folds_and_seeds_are_separate_runs(store: Store, pretrained: Path, preset: Path, tmp_path: Path) -> None:
    config = starting_from(str(pretrained), str(preset), [*LABELS_ONLY, "seed=3"])
    result = finetune(config, [store], tmp_path / "all", CPU, folds="1,3", num_seeds=2, keep="last")
    places = [f"fold{fold}-seed{seed}" for seed in (3, 4) for fold in (1, 3)]
    assert list(result.by_trial) == places
    for fold, seed in ((1, 4), (3, 3)):
        alone = load_config(str(preset), [*WIDER, *LABELS_ONLY, f"seed={seed}", f"data.eval_fold={fold}"])
        alone = alone.model_copy(update={"initialise": str(pretrained / "iter1/multissl/last.pt")})
        with open_run([store], alone, tmp_path / f"alone{fold}", CPU) as run:
            (expected,) = run_iterations(run, 1)
        assert result.by_trial[f"fold{fold}-seed{seed}"] == expected.evaluation

    told = json.loads((tmp_path / "all/summary.json").read_text())
    accuracies = [told["runs"][place]["accuracy"] for place in places]
    assert (told["figure"], told["num"], told["initialised"]) == ("accuracy", 4, config.initialise)
    assert told["mean"] == pytest.approx(statistics.mean(accuracies))
    assert told["deviation"] == pytest.approx(statistics.stdev(accuracies))
    assert {place: evaluation.as_dict() for place, evaluation in result.by_trial.items()} == told["runs"]
    # Multi-SSL held out the split "test", and has heard all the others.
    held_out = {fold: set(store.keys(store.rows(fold=fold))) for fold in (1, 3)}
    heard = {fold: len(keys - set(store.keys(store.rows(split="test")))) for fold, keys in held_out.items()}
    assert told["heard"] == {
        f"fold {fold}": f"{heard[fold]} of {len(held_out[fold])} clips, without their labels" for fold in (1, 3)
    }


def test_what_is_done_is_not_trained_again(
    store: Store, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(str(preset), LABELS_ONLY)
    done: list[str] = []
    train = run_iterations

    def killed_at_the_third(run: Any, number: int) -> Any:
        done.append(run.folder.name)
        if len(done) == 3:
            raise KeyboardInterrupt
        return train(run, number)

    monkeypatch.setattr("training.experiment.run_iterations", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, [store], tmp_path, CPU, folds="all")
    assert done == ["fold1-seed0", "fold2-seed0", "fold3-seed0"]
    assert not (tmp_path / "summary.json").exists()
    result = finetune(config, [store], tmp_path, CPU, folds="all")
    assert done == ["fold1-seed0", "fold2-seed0", "fold3-seed0", "fold3-seed0"]
    # The figures of another start are not replaced.
    with pytest.raises(InputError, match=r"has the figures of random, and this is elsewhere.pt; choose another --run"):
        finetune(config.model_copy(update={"initialise": "elsewhere.pt"}), [store], tmp_path, CPU)
    # More seeds later: only those are trained.
    more = finetune(config, [store], tmp_path, CPU, folds="all", num_seeds=2)
    assert done[4:] == ["fold1-seed1", "fold2-seed1", "fold3-seed1"]
    assert {place: more.by_trial[place] for place in result.by_trial} == result.by_trial


def test_folds_of_one_label_and_of_several_are_not_averaged(
    store: Store, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([(0.2, 0.9), (0.4, None), (0.6, 0.7)])

    def told(*_: Any) -> list[Evaluation]:
        mean_average_precision, accuracy = next(figures)
        return [Evaluation("fold", mean_average_precision, accuracy, 0.5, 4, 4, 3, 3)]

    monkeypatch.setattr(module, "run_trial", told)
    result = finetune(load_config(str(preset)), [store], tmp_path, CPU, folds="all")
    assert (result.figure, result.spread.mean, result.spread.num) == ("mAP", pytest.approx(0.4), 3)
