"""Groups of weights: decay, and layer-wise learning rates by hand."""

import pytest
import torch

from training.config import ModelConfig, OptimiserConfig
from training.model.networks import Student
from training.optimiser import layer_of, make_optimiser, num_blocks, set_learning_rate

CPU = torch.device("cpu")
DEEP = ModelConfig(num_frames=256, width=16, depth=3, num_heads=2, mae_width=8, mae_depth=1, mae_num_heads=2)


@pytest.fixture
def student() -> Student:
    return Student(DEEP, 3, 5, torch.Generator())


def test_layers() -> None:
    assert layer_of("aft.embedding.project.weight", 3) == 0
    assert layer_of("aft.embedding.positions", 3) == 0
    assert layer_of("aft.transformer.blocks.0.attention.qkv.weight", 3) == 1
    assert layer_of("aft.transformer.blocks.2.perceptron_norm.bias", 3) == 3
    for name in (
        "aft.transformer.norm.weight",
        "classifier.weight",
        "projection.bias",
        "aft.perceptrons.0.expand.bias",
    ):
        assert layer_of(name, 3) == 4


def test_without_layer_decay_there_are_two_groups(student: Student) -> None:
    optimiser = make_optimiser(student, OptimiserConfig(epochs=1, batch_size=4, peak_lr=1e-3), 1e-3, CPU)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.05, 0.0]
    assert num_blocks(student) == 3
    set_learning_rate(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.5]


def test_each_layer_learns_more_slowly_than_the_one_above(student: Student) -> None:
    config = OptimiserConfig(epochs=1, batch_size=4, peak_lr=1e-3, layer_decay=0.5)
    optimiser = make_optimiser(student, config, 1e-3, CPU)
    set_learning_rate(optimiser, 1.0)
    names = {id(weight): name for name, weight in student.named_parameters()}
    rates = {names[id(weight)]: group["lr"] for group in optimiser.param_groups for weight in group["params"]}
    assert rates.keys() == dict(student.named_parameters()).keys()
    assert rates["classifier.weight"] == rates["aft.transformer.norm.bias"] == 1.0
    assert rates["aft.transformer.blocks.2.attention.qkv.weight"] == 0.5
    assert rates["aft.transformer.blocks.0.attention.qkv.bias"] == 0.125
    assert rates["aft.embedding.positions"] == 0.0625
    decays = {names[id(w)]: group["weight_decay"] for group in optimiser.param_groups for w in group["params"]}
    assert decays["aft.embedding.positions"] == 0.0
    assert decays["aft.embedding.project.weight"] == 0.05
