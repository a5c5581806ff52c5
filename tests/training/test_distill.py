"""Equations (11)-(13), and a teacher's labels joined by id."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from manifests.errors import InputError
from manifests.vocabulary import Label, Vocabulary
from training import losses
from training.config import DistillConfig, ModelConfig, OptimiserConfig
from training.distill import Task, distill_losses, teacher_columns
from training.inputs import Inputs
from training.model.networks import Student
from training.model.patches import patchify


def configured(**changes: Any) -> DistillConfig:
    return DistillConfig(optimiser=OptimiserConfig(epochs=1, batch_size=4, peak_lr=1e-3), **changes)


@pytest.fixture
def student(tiny: ModelConfig) -> Student:
    return Student(tiny, 3, 16, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
def test_the_loss_is_classify_plus_gamma_regress(gamma: float, student: Student, inputs: Inputs) -> None:
    terms = distill_losses(student, inputs, configured(gamma=gamma), Task(one_label=True))
    output = student(patchify(inputs.fbank, student.grid))
    torch.testing.assert_close(terms["classify"], F.cross_entropy(output.logits, inputs.labels.argmax(1)))
    torch.testing.assert_close(terms["regress"], losses.feature_regression(output.regressed, inputs.teacher))
    torch.testing.assert_close(terms["loss"], terms["classify"] + gamma * terms["regress"])


def test_without_classify_the_features_alone_are_learned(student: Student, inputs: Inputs) -> None:
    terms = distill_losses(student, inputs, configured(gamma=2.0, classify=False), Task(one_label=True))
    torch.testing.assert_close(terms["loss"], 2 * terms["regress"])
    assert terms["classify"] > 0
    # DDP waits for the gradients of all that has a graph.
    assert not terms["classify"].requires_grad
    terms["loss"].backward()
    assert student.classifier.weight.grad is None or not student.classifier.weight.grad.any()


def test_without_a_teacher_there_is_no_regression(tiny: ModelConfig, student: Student, inputs: Inputs) -> None:
    alone = Student(tiny, 3, None, torch.Generator().manual_seed(0))
    for network, some in ((alone, inputs), (student, replace(inputs, teacher=None))):
        terms = distill_losses(network, some, configured(), Task(one_label=False))
        assert set(terms) == {"loss", "classify", "feature_spread"}
        logits = network(patchify(some.fbank, network.grid)).logits
        torch.testing.assert_close(terms["loss"], F.binary_cross_entropy_with_logits(logits, some.labels))


@pytest.mark.parametrize("one_label", [False, True])
def test_the_teachers_probabilities_are_mixed_in_by_weight(one_label: bool, student: Student, inputs: Inputs) -> None:
    assert inputs.teacher_logits is not None
    columns = torch.tensor([2, 0, 1])
    task = Task(one_label, columns)
    terms = distill_losses(student, inputs, configured(probability_weight=0.3), task)
    said = inputs.teacher_logits[:, columns]
    said = said.softmax(1) if one_label else said.sigmoid()
    logits = student(patchify(inputs.fbank, student.grid)).logits
    target = 0.7 * inputs.labels + 0.3 * said
    slow = F.cross_entropy(logits, target) if one_label else F.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(terms["classify"], slow)


def test_a_teachers_probabilities_are_mixed_as_labels_are(student: Student, inputs: Inputs) -> None:
    """Of a yes and a no with logits of 10 and -10, three to one: .75, where their logits' mean would say .99."""
    partner, weight = torch.tensor([1, 0, 2, 3]), torch.tensor([0.75, 0.75, 1.0, 1.0])
    logits = torch.full((4, 3), -10.0)
    logits[0] = 10.0
    labels = torch.full((4, 3), 0.5)  # mixed already
    mixed = replace(inputs, labels=labels, teacher_logits=logits, mixup=(partner, weight))
    task = Task(one_label=False, teacher_columns=torch.arange(3))
    terms = distill_losses(student, mixed, configured(probability_weight=1.0), task)
    target = torch.tensor([0.75, 0.25, 0.0, 0.0])[:, None].expand(4, 3)
    said = student(patchify(inputs.fbank, student.grid)).logits
    torch.testing.assert_close(terms["classify"], F.binary_cross_entropy_with_logits(said, target), rtol=1e-3, atol=0)


def test_a_missing_teacher_row_leaves_the_labels(student: Student, inputs: Inputs) -> None:
    nothing = replace(inputs, teacher=torch.full((4, 16), torch.nan), teacher_logits=torch.full((4, 3), torch.nan))
    task = Task(one_label=True, teacher_columns=torch.arange(3))
    terms = distill_losses(student, nothing, configured(probability_weight=1.0), task)
    logits = student(patchify(inputs.fbank, student.grid)).logits
    torch.testing.assert_close(terms["loss"], F.cross_entropy(logits, inputs.labels.argmax(1)))
    terms["loss"].backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in student.parameters())


def vocabulary(*ids: str) -> Vocabulary:
    return Vocabulary(labels=tuple(Label(id=name, name=f"the {name}") for name in ids))


def test_teacher_columns_are_found_by_id() -> None:
    columns = teacher_columns(vocabulary("b", "d", "a"), vocabulary("a", "b", "c", "d"))
    assert columns.tolist() == [1, 3, 0]


def test_a_teacher_without_our_labels_is_refused() -> None:
    ours = vocabulary("b", "x", "y", "z", "w")
    with pytest.raises(InputError, match=r"all 5 labels by id; it lacks x, y, z \.\.\.; set it to 0 or choose another"):
        teacher_columns(ours, vocabulary("a", "b"))
    with pytest.raises(InputError, match=r"it lacks b, x, y \.\.\."):
        teacher_columns(ours, None)
