"""The step on a CUDA device that isn't there: nothing meets a tensor of another device, and nothing waits for it."""

from typing import Any

import numpy as np
import pytest
import torch

from featurestore.batches import Batch, BatchViews
from tests.fakecuda import CUDA, FakeGenerator, fake_cuda, move
from training.augment import Augmentation
from training.config import RunConfig, load_config
from training.distill import Task, distill_losses
from training.inputs import Inputs, Normalisation, prepare
from training.model.networks import MultiSSLNetwork, Student
from training.multissl import multissl_losses

NUM_CLIPS, NUM_CLASSES, TEACHER_DIM = 4, 5, 24
SIZES = ["model.num_frames=256", "model.width=16", "model.depth=1", "model.num_heads=2"]
MAE = ["model.mae_width=16", "model.mae_depth=1", "model.mae_num_heads=2"]
GAINS = ["multissl.augment.gain_db=6", "distill.augment.gain_db=6"]
BANDS = ["distill.augment.time_mask_frames=96", "distill.augment.freq_mask_bins=24"]
TAUGHT = "distill.teacher=x"


def configured(*changes: str) -> RunConfig:
    return load_config("tiny", [*SIZES, *MAE, *changes])


def batch(**more: Any) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        rows=np.arange(NUM_CLIPS),
        keys=[f"clip{number}" for number in range(NUM_CLIPS)],
        fbank=rng.normal(size=(NUM_CLIPS, 512, 128)).astype(np.float16),
        hog=rng.random((NUM_CLIPS, 32, 8)).astype(np.float32),
        labels=np.eye(NUM_CLASSES, dtype=np.float32)[np.arange(NUM_CLIPS)],
        teacher=rng.normal(size=(NUM_CLIPS, TEACHER_DIM)).astype(np.float32),
        visits=np.zeros(NUM_CLIPS, np.int64),
        **more,
    )


def inputs(config: RunConfig, stage: str, given: Batch) -> Inputs:
    augment = config.multissl.augment if stage == "multissl" else config.distill.augment
    found = prepare(given, config.model.grid, Normalisation(-4.0, 4.0), CUDA, Augmentation(augment, 0, stage))
    for tensor in (found.fbank, found.gradient_magnitude, found.labels, found.teacher, found.teacher_logits):
        assert tensor is None or tensor.device == CUDA
    return found


def assert_there(terms: dict[str, torch.Tensor]) -> None:
    assert {name: term.device for name, term in terms.items()} == dict.fromkeys(terms, CUDA)
    assert terms["loss"].requires_grad


@pytest.mark.parametrize(
    "changes",
    [
        GAINS,
        ["multissl.sampling=uniform", "multissl.hog_weight=false"],
        ["multissl.sampling=inverted"],
        ["multissl.inter=false"],
        ["multissl.intra=false", "multissl.contrast=false"],
        ["model.parameter_free_attention=true"],
        ["model.recompute=true"],
    ],
)
def test_multissl(changes: list[str]) -> None:
    config = configured(*changes)
    network = MultiSSLNetwork(config.model, torch.Generator().manual_seed(0))
    with fake_cuda():
        move(network)
        assert_there(multissl_losses(network, inputs(config, "multissl", batch()), config.multissl, FakeGenerator()))


@pytest.mark.parametrize("one_label", [True, False])
@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ([TAUGHT], {}),
        ([TAUGHT, *GAINS, *BANDS, "distill.augment.mixup_share=0.5"], {}),
        (["distill.teacher=none"], {}),
        ([TAUGHT, "distill.classify=false"], {}),
        ([TAUGHT, "distill.probability_weight=0.5"], {"teacher_logits": np.ones((NUM_CLIPS, NUM_CLASSES), np.float32)}),
        ([TAUGHT, "distill.views=true"], {"views": BatchViews(np.arange(NUM_CLIPS), np.ones(NUM_CLIPS, np.float32))}),
    ],
)
def test_distillation(changes: list[str], more: dict[str, Any], one_label: bool) -> None:
    config = configured(*changes)
    student = Student(config.model, NUM_CLASSES, TEACHER_DIM, torch.Generator().manual_seed(0))
    with fake_cuda():
        move(student)
        assert_there(distill_losses(student, inputs(config, "distill", batch(**more)), config.distill, Task(one_label)))


def test_what_is_not_moved_is_found() -> None:
    """That the two errors come at all."""
    config = configured()
    network = MultiSSLNetwork(config.model, torch.Generator().manual_seed(0))
    with fake_cuda():
        given = inputs(config, "multissl", batch())
        with pytest.raises(RuntimeError, match="device"):
            multissl_losses(network, given, config.multissl, FakeGenerator())
        with pytest.raises(RuntimeError, match="_local_scalar_dense"):
            given.fbank.sum().item()
