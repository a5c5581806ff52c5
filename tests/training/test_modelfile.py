"""Models as commands name them."""

import shutil
from pathlib import Path

import pytest
import torch

from featurestore.store import Store
from manifests.errors import InputError
from manifests.vocabulary import Label, Vocabulary
from training.checkpoint import About, Checkpoint, load_student, save_checkpoint
from training.config import DataConfig
from training.evaluate import evaluate
from training.model.networks import Student
from training.modelfile import (
    check_fits,
    choose_part,
    find_checkpoint,
    load_fitting,
    own_predictions_file,
    reorder,
)
from training.splits import choose_split

CPU = torch.device("cpu")


@pytest.fixture
def run(checkpoint_path: Path, tmp_path: Path) -> Path:
    """A run whose iterations 2 and 10 are finished."""
    for iteration in (2, 10, 11):
        folder = tmp_path / f"run/iter{iteration}"
        (folder / "distill").mkdir(parents=True)
        shutil.copy(checkpoint_path, folder / "distill/last.pt")
        if iteration != 11:
            (folder / "eval.json").touch()
    return tmp_path / "run"


def test_runs_iterations_and_files(run: Path) -> None:
    assert find_checkpoint(run) == run / "iter10/distill/last.pt"
    assert find_checkpoint(run / "iter2") == run / "iter2/distill/last.pt"
    assert find_checkpoint(run / "iter11/distill/last.pt") == run / "iter11/distill/last.pt"
    with pytest.raises(InputError, match=r"iter11 has no finished iteration"):
        find_checkpoint(run / "iter11")
    with pytest.raises(InputError, match=r"has no finished iteration"):
        find_checkpoint(run.parent, either_stage=True)


def test_a_run_of_multissl_alone_has_a_model_for_a_probe(run: Path, checkpoint_path: Path, tmp_path: Path) -> None:
    for iteration in (2, 10):
        (tmp_path / f"ssl/iter{iteration}/multissl").mkdir(parents=True)
        shutil.copy(checkpoint_path, tmp_path / f"ssl/iter{iteration}/multissl/last.pt")
    assert find_checkpoint(tmp_path / "ssl", either_stage=True) == tmp_path / "ssl/iter10/multissl/last.pt"
    assert find_checkpoint(run, either_stage=True) == run / "iter10/distill/last.pt"
    one = tmp_path / "ssl/iter2"
    assert find_checkpoint(one, either_stage=True) == one / "multissl/last.pt"
    assert find_checkpoint(one / "multissl", either_stage=True) == one / "multissl/last.pt"
    for model in (tmp_path / "ssl", one):
        with pytest.raises(InputError, match=rf"{model.name} has no finished iteration"):
            find_checkpoint(model)


@pytest.mark.parametrize(("name", "hint"), [("model.onnx", "take it as --onnx"), ("model.pt2", "export onnx or")])
def test_an_exported_graph_is_no_checkpoint(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).touch()
    for model in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=hint):
            find_checkpoint(model)


def test_predictions_lie_beside_the_evaluation_of_the_same_clips(run: Path, about: About, store: Store) -> None:
    path = run / "iter2/distill/last.pt"
    own, other = choose_part(about, store, None, None), choose_part(about, store, None, 2)
    assert (own.name, other.name) == ("test", "fold 2")
    assert own_predictions_file(path, about, store, own) == run / "iter2/predictions.parquet"
    assert own_predictions_file(path, about, store, other) is None
    assert own_predictions_file(path.with_name("best.pt"), about, store, own) is None
    assert own_predictions_file(run / "iter11/distill/last.pt", about, store, own) is None
    elsewhere = about.model_copy(update={"store_fingerprint": "0" * 64})
    assert own_predictions_file(path, elsewhere, store, own) is None


def test_a_store_that_does_not_fit_is_refused(store: Store, about: About) -> None:
    check_fits(about, store)
    longer = about.model_copy(update={"model": about.model.model_copy(update={"num_frames": 512})})
    with pytest.raises(InputError, match=r"takes 512 frames and .* holds 256; ingest with --num-frames 512"):
        check_fits(longer, store)
    other = about.model_copy(update={"vocabulary": Vocabulary.from_names(["a", "b"])})
    with pytest.raises(InputError, match=r"knows 2 labels \(a, b \.\.\.\), .* has 3 others"):
        check_fits(other, store)


def test_labels_in_another_order_are_the_same_model(
    store: Store, about: About, student: Student, tmp_path: Path
) -> None:
    """A model that learnt its classes in another order gives the same figures, class by class."""
    order = [2, 0, 1]
    labels = about.vocabulary.labels
    permuted = Vocabulary(labels=tuple(Label(id=labels[n].id, name="other name") for n in order))
    weights = student.state_dict()
    weights = {name: value[order] if name.startswith("classifier.") else value for name, value in weights.items()}
    moved = Checkpoint(about.model_copy(update={"vocabulary": permuted}), weights, {"any": 1})
    save_checkpoint(moved, tmp_path / "moved.pt")
    loaded = load_fitting(tmp_path / "moved.pt", store)
    assert loaded.about.vocabulary == store.file.vocabulary
    assert loaded.optimiser is None
    split = choose_split(store, DataConfig(), 0)
    found = evaluate(load_student(loaded), store, split, about.normalisation, CPU, one_label=True)
    assert found == evaluate(student, store, split, about.normalisation, CPU, one_label=True)
    assert load_student(moved).classifier.bias.shape == (3,)
    same = Checkpoint(about, student.state_dict())
    assert reorder(same, about.vocabulary) is same
