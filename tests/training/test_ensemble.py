"""Averages of models against averages by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from featurestore.store import Store
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary
from training.checkpoint import About, Checkpoint, load_student, save_checkpoint
from training.checkpointtagger import load_checkpoint_tagger
from training.choices import Mode
from training.config import DataConfig
from training.ensemble import (
    Place,
    average_weights,
    check_ensemble,
    check_same_part,
    choose_common_part,
    evaluate_ensemble,
    read_abouts,
)
from training.evaluate import evaluate, judge, predict_split
from training.metrics import mean_average_precision
from training.model.networks import Student
from training.seeds import generator_for
from training.splits import choose_split
from training.teacher import load_checkpoint_teacher

CPU = torch.device("cpu")


def save_student(path: Path, about: About, seed: int) -> Path:
    student = Student(about.model, len(about.vocabulary), about.teacher_dim, generator_for(seed, "ensemble"))
    save_checkpoint(Checkpoint(about, student.state_dict()), path)
    return path


@pytest.fixture
def pair(about: About, tmp_path: Path) -> list[Path]:
    """Two models of one architecture; the second knows the labels in another order."""
    turned = Vocabulary(labels=about.vocabulary.labels[::-1])
    abouts = about, about.model_copy(update={"vocabulary": turned, "seed": 1, "best": 0.5})
    return [save_student(tmp_path / f"{n}.pt", one, n) for n, one in enumerate(abouts)]


def test_both_averages_by_hand(pair: list[Path], store: Store, about: About) -> None:
    part = choose_split(store, DataConfig(), 0)
    found = evaluate_ensemble(pair, Mode.BOTH, Place(store, part, CPU))
    # The networks, the second one's classes turned round to the store's order.
    first, second = (torch.load(path, weights_only=True)["network"] for path in pair)
    second |= {name: second[name].flip(0) for name in ("classifier.weight", "classifier.bias")}
    said = []
    for weights in (first, second, {name: (first[name] + second[name]) / 2 for name in first}):
        student = Student(about.model, 3, None, torch.Generator())
        student.load_state_dict(weights)
        said.append(predict_split(student, store, part, about.normalisation, CPU, one_label=True))
    assert list(found.models) == [str(path) for path in pair]
    assert list(found.models.values()) == [judge(one) for one in said[:2]]
    assert found.weights is not None
    assert found.weights.mean_average_precision == pytest.approx(judge(said[2]).mean_average_precision)
    assert found.predictions is not None
    mean = (said[0].scores + said[1].scores) / 2
    assert found.predictions.mean_average_precision == pytest.approx(mean_average_precision(mean, said[0].labels))
    assert found.predictions.feature_spread is None
    assert list(found.rows) == [str(pair[0]), str(pair[1]), "mean of weights", "mean of predictions"]


def test_the_averaged_checkpoint_is_one_of_ours(pair: list[Path], store: Store, tmp_path: Path) -> None:
    part = choose_split(store, DataConfig(), 0)
    found = evaluate_ensemble(pair, Mode.WEIGHTS, Place(store, part, CPU))
    assert found.predictions is None
    assert found.averaged is not None
    about = found.averaged.about
    assert (about.best, about.vocabulary, about.held_out) == (None, store.file.vocabulary, "test")
    save_checkpoint(found.averaged, tmp_path / "mean.pt")
    again = evaluate(load_student(found.averaged), store, part, about.normalisation, CPU, one_label=True)
    assert again == found.weights
    teacher = load_checkpoint_teacher(tmp_path / "mean.pt")
    fbank = torch.zeros(2, 256, 128)
    assert torch.equal(teacher.embed(fbank).embedding[0], teacher.embed(fbank).embedding[1])
    assert load_checkpoint_tagger(tmp_path / "mean.pt", CPU).vocabulary == store.file.vocabulary
    # Of itself, the mean is the same.
    twice = evaluate_ensemble([tmp_path / "mean.pt"] * 2, Mode.BOTH, Place(store, part, CPU))
    assert twice.weights == found.weights


def test_predictions_alone_of_models_that_differ(about: About, store: Store, tmp_path: Path) -> None:
    wider = about.model_copy(update={"model": about.model.model_copy(update={"width": 32})})
    paths = [save_student(tmp_path / "a.pt", about, 0), save_student(tmp_path / "b.pt", wider, 1)]
    abouts = read_abouts(paths)
    with pytest.raises(InputError, match=r"b\.pt can't be averaged, .* model\.width \(16 and 32\).*--mode predictions"):
        check_ensemble(paths, abouts, store, Mode.BOTH, None)
    check_ensemble(paths, abouts, store, Mode.PREDICTIONS, None)
    part = choose_common_part(paths, abouts, store, None, None)
    found = evaluate_ensemble(paths, Mode.PREDICTIONS, Place(store, part, CPU))
    assert found.weights is None
    assert found.averaged is None
    assert found.predictions is not None


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"mean": 1.5}, r"mean \(-?[\d.]+ and 1\.5\)"),
        ({"teacher_dim": 4}, r"teacher_dim \(None and 4\)"),
        ({"one_label": False}, r"one_label \(True and False\)"),
    ],
)
def test_what_differs_is_named(about: About, store: Store, changes: dict[str, object], pattern: str) -> None:
    abouts = [about, about.model_copy(update=changes)]
    with pytest.raises(InputError, match=pattern):
        check_ensemble([Path("a"), Path("b")], abouts, store, Mode.WEIGHTS, None)


def test_too_few_models_and_options_that_do_nothing(about: About, store: Store) -> None:
    with pytest.raises(InputError, match="two models or more"):
        check_ensemble([Path("a")], [about], store, Mode.BOTH, None)
    with pytest.raises(InputError, match="--mode predictions makes none"):
        check_ensemble([Path("a"), Path("b")], [about, about], store, Mode.PREDICTIONS, Path("mean.pt"))
    with pytest.raises(InputError, match=r"^x/\.\./a is named twice"):
        check_ensemble([Path("a"), Path("x/../a")], [about, about], store, Mode.BOTH, None)
    with pytest.raises(InputError, match=r"^--weights-out b is one of the models to average"):
        check_ensemble([Path("a"), Path("b")], [about, about], store, Mode.BOTH, Path("b"))
    unsure = about.model_copy(update={"classifies": False})
    with pytest.raises(InputError, match=r"^b learned from a teacher alone"):
        check_ensemble([Path("a"), Path("b")], [about, unsure], store, Mode.BOTH, None)


def test_iterations_of_a_run_with_its_own_teacher_can_be_averaged(about: About, store: Store) -> None:
    """The second one regressed embeddings of its own width, without a projection."""
    second = about.model_copy(update={"teacher_dim": about.model.width, "iteration": 2})
    check_ensemble([Path("a"), Path("b")], [about, second], store, Mode.BOTH, None)


def of_fold(about: About, fold: int) -> About:
    return about.model_copy(update={"data": DataConfig(eval_fold=fold), "held_out": f"fold {fold}"})


def test_models_that_have_heard_the_clips_are_refused(about: About, store: Store) -> None:
    paths, abouts = [Path("a"), Path("b")], [of_fold(about, 1), of_fold(about, 2)]
    with pytest.raises(
        InputError,
        match=r"b held out fold 2 and was trained, .* on \d+ of the \d+ clips of fold 1",
    ):
        choose_common_part(paths, abouts, store, None, None)
    with pytest.raises(
        InputError,
        match=r"a held out fold 1 and was trained, .* on \d+ of the \d+ clips of fold 2",
    ):
        choose_common_part(paths, abouts, store, None, 2)
    same = [of_fold(about, 1), of_fold(about, 1).model_copy(update={"seed": 5})]
    assert choose_common_part(paths, same, store, None, None).name == "fold 1"
    # Both held out the split "test" in their own way; nobody was trained on it.
    neither = [about, about.model_copy(update={"data": DataConfig(eval_split="test")})]
    assert choose_common_part(paths, neither, store, "test", None).name == "test"


def test_a_mean_of_models_of_different_clips_is_not_kept(about: About, store: Store) -> None:
    paths = [Path("a"), Path("b")]
    check_same_part(paths, [about, about.model_copy(update={"seed": 3})], store)
    with pytest.raises(InputError, match=r"a held out fold 1, and b fold 2, .*leave --weights-out away"):
        check_same_part(paths, [of_fold(about, 1), of_fold(about, 2)], store)
    strangers = [about.model_copy(update={"store_fingerprint": name * 64}) for name in "01"]
    with pytest.raises(InputError, match="leave --weights-out away"):
        check_same_part(paths, strangers, store)


def test_weights_are_summed_in_float64() -> None:
    """In float16, 2048 + 1 is 2048."""
    values: Sequence[float] = (2048.0, 1.0, 1.0, 1.0)
    networks = [{"w": torch.tensor([value], dtype=torch.float16), "n": torch.tensor(3)} for value in values]
    mean = average_weights(networks)
    assert mean["w"].dtype == torch.float16
    assert mean["w"].item() == np.float16(2051 / 4)
    assert mean["n"].item() == 3
    with pytest.raises(InputError, match="other names or shapes"):
        average_weights([{"w": torch.zeros(2)}, {"w": torch.zeros(3)}])
