"""Evaluation against one clip at a time."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from featurestore.loader import sequential_batches
from featurestore.store import Store
from manifests.errors import InputError
from training.checkpoint import About
from training.config import DataConfig, ModelConfig
from training.evaluate import Evaluation, evaluate, judge, predict_rows, predict_split
from training.inputs import Normalisation
from training.model.networks import Student
from training.model.patches import patchify
from training.splits import Split, choose_split

CPU = torch.device("cpu")


def one_by_one(student: Student, store: Store, rows: np.ndarray, about: About) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        fbanks = [torch.from_numpy(batch.fbank.copy()).float() for batch in sequential_batches(store, rows, 1)]
        outputs = [student(patchify((fbank - about.mean) / about.std, student.grid)) for fbank in fbanks]
    return torch.cat([output.logits for output in outputs]), torch.cat([output.pooled for output in outputs])


def test_predictions_are_in_the_order_of_the_rows(student: Student, store: Store, about: About) -> None:
    rows = store.rows()[::-1].copy()
    scores, pooled = predict_rows(student, store, rows, about.normalisation, CPU, one_label=True)
    expected = one_by_one(student, store, rows, about)
    torch.testing.assert_close(scores, expected[0].softmax(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, expected[1], rtol=1e-4, atol=1e-5)


def test_the_figures(student: Student, store: Store, about: About) -> None:
    split = choose_split(store, DataConfig(), 0)
    found = evaluate(student, store, split, about.normalisation, CPU, one_label=True)
    logits, pooled = one_by_one(student, store, split.held_out, about)
    labels = store.labels(split.held_out)
    accuracy = (logits.argmax(1).numpy() == labels.argmax(1)).mean()
    assert found.accuracy == pytest.approx(accuracy)
    present = labels.any(0)
    scores = logits.softmax(1).numpy()
    expected = average_precision_score(labels[:, present], scores[:, present], average="macro")
    assert found.mean_average_precision == pytest.approx(expected, abs=1e-5)
    both = present & ~labels.all(0)
    expected = roc_auc_score(labels[:, both], scores[:, both], average="macro")
    assert found.mean_auc == pytest.approx(expected, abs=1e-5)
    assert found.d_prime is not None
    assert NormalDist().cdf(found.d_prime / 2**0.5) == pytest.approx(expected, abs=1e-5)
    keys = "".join(f"{key}\n" for key in sorted(store.keys(split.held_out)))
    assert found.keys_sha256 == hashlib.sha256(keys.encode()).hexdigest()
    unit = pooled / pooled.norm(dim=1, keepdim=True)
    assert found.feature_spread == pytest.approx(4 * float(unit.numpy().std(0).mean()), rel=1e-4)
    assert (found.split, found.num_evaluated, found.num_listed) == ("test", len(split.held_out), 6)
    assert (found.num_classes_evaluated, found.num_classes) == (int(present.sum()), 3)


def test_several_labels_have_no_accuracy(multi_label_store: Store, student: Student, about: About) -> None:
    rows = multi_label_store.rows()
    split = Split(rows[:0], rows, 7, "all")
    found = evaluate(student, multi_label_store, split, about.normalisation, CPU, one_label=False)
    labels = multi_label_store.labels(rows)
    labelled = labels.any(1)
    logits, _ = one_by_one(student, multi_label_store, rows[labelled], about)
    expected = average_precision_score(labels[labelled], logits.sigmoid().numpy(), average="macro")
    assert found.mean_average_precision == pytest.approx(expected, abs=1e-5)
    assert found.accuracy is None
    # Clips 2 and 5 have no label.
    assert (found.num_evaluated, found.num_listed, found.num_unlabelled) == (5, 7, 2)
    nothing = Split(rows[:0], rows[~labelled], 2, "what has no label")
    with pytest.raises(InputError, match=r"no clip of what has no label in .* has a label to evaluate against"):
        evaluate(student, multi_label_store, nothing, about.normalisation, CPU, one_label=False)


def test_the_mode_is_put_back(tiny: ModelConfig, store: Store) -> None:
    student = Student(tiny, 3, None, torch.Generator().manual_seed(0))
    for mode in (True, False):
        student.train(mode)
        predict_rows(student, store, store.rows()[:1], Normalisation(0.0, 1.0), CPU, one_label=True)
        assert student.training == mode
        assert student.aft.training == mode


def test_scores_that_are_not_finite_are_refused(tiny: ModelConfig, store: Store, about: About) -> None:
    broken = Student(tiny, 3, None, torch.Generator().manual_seed(0))
    torch.nn.init.constant_(broken.classifier.bias, float("nan"))
    split = choose_split(store, DataConfig(), 0)
    with pytest.raises(InputError, match=r"scores of 6 of 6 clips are not finite, for instance of clip"):
        evaluate(broken, store, split, about.normalisation, CPU, one_label=True)


def test_clips_are_counted_as_they_are_done(student: Student, store: Store, about: About) -> None:
    split, counted = choose_split(store, DataConfig(), 0), list[int]()
    said = predict_split(student, store, split, about.normalisation, CPU, one_label=True, advance=counted.append)
    assert sum(counted) == len(said.keys) == 6
    assert judge(said) == evaluate(student, store, split, about.normalisation, CPU, one_label=True)


def test_perfect_scores_have_an_infinite_d_prime(student: Student, store: Store, about: About) -> None:
    split = choose_split(store, DataConfig(), 0)
    said = predict_split(student, store, split, about.normalisation, CPU, one_label=True)
    perfect = judge(replace(said, scores=said.labels))
    assert (perfect.mean_auc, perfect.d_prime) == (1.0, None)


def test_an_evaluation_always_says_of_how_many() -> None:
    evaluation = Evaluation("fold 1", 0.4567, 0.5, 0.9, 7, 8, 3, 4, 0.75, 0.954, 1, "00")
    figures = "mAP 0.457, mAUC 0.750, d' 0.954 on fold 1 (7 of 8 clips listed, 1 without a label, 3 of 4 classes)"
    assert str(evaluation) == f"accuracy 50.0%, {figures}"
    assert str(replace(evaluation, accuracy=None)) == figures
    bare = replace(evaluation, accuracy=None, mean_auc=None, d_prime=None, num_unlabelled=0)
    assert str(bare) == "mAP 0.457 on fold 1 (7 of 8 clips listed, 3 of 4 classes)"
    assert evaluation.as_dict() == {
        "split": "fold 1",
        "mean_average_precision": 0.4567,
        "accuracy": 0.5,
        "feature_spread": 0.9,
        "num_evaluated": 7,
        "num_listed": 8,
        "num_classes_evaluated": 3,
        "num_classes": 4,
        "mean_auc": 0.75,
        "d_prime": 0.954,
        "num_unlabelled": 1,
        "keys_sha256": "00",
        "heard": None,
    }


def test_figures_of_an_earlier_version_are_read() -> None:
    """Its eval.json has no more than these."""
    old = {"split": "fold 1", "mean_average_precision": 0.5, "accuracy": None, "feature_spread": 0.9}
    counts = {"num_evaluated": 7, "num_listed": 8, "num_classes_evaluated": 3, "num_classes": 4}
    assert Evaluation(**old, **counts).mean_auc is None


def test_a_damaged_shard_is_named(student: Student, store: Store, about: About, tmp_path: Path) -> None:
    damaged = Store(Path(shutil.copytree(store.root, tmp_path / "copy")))
    tar = sorted(damaged.root.glob("shards/*.tar"))[2]
    tar.write_bytes(tar.read_bytes()[:100_000])
    with pytest.raises(InputError, match=rf"{tar.name} .*`featurestore verify`"):
        predict_rows(student, damaged, damaged.rows(), about.normalisation, CPU, one_label=True)
