"""Batches as the networks see them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from featurestore.batches import Batch, BatchViews
from featurestore.views import apply_to_fbank, view_of
from manifests.geometry import PatchGrid
from training.augment import Augmentation
from training.config import AugmentConfig
from training.inputs import Normalisation, prepare

CPU = torch.device("cpu")
NORMALISATION = Normalisation(mean=-4.0, std=3.0)
ROLL = Augmentation(AugmentConfig(), 0, "test")


@pytest.fixture
def batch() -> Batch:
    """6 clips of 512 frames."""
    rng = np.random.default_rng(0)
    return Batch(
        rows=np.arange(6),
        keys=[f"clip{number}" for number in range(6)],
        fbank=rng.normal(-4, 3, (6, 512, 128)).astype(np.float16),
        hog=rng.random((6, 32, 8), np.float32),
        labels=np.eye(6, 4, dtype=np.float32),
        teacher=rng.random((6, 5), np.float32),
    )


def normalised(fbank: np.ndarray) -> np.ndarray:
    return (fbank.astype(np.float32) + 4.0) / 3.0


@pytest.mark.parametrize("num_frames", [256, 512])
def test_without_augmentation_clips_start_at_0(batch: Batch, num_frames: int) -> None:
    inputs = prepare(batch, PatchGrid(num_frames=num_frames), NORMALISATION, CPU, None)
    assert inputs.fbank.dtype == torch.float32
    np.testing.assert_allclose(inputs.fbank, normalised(batch.fbank)[:, :num_frames], rtol=1e-6, atol=1e-6)
    assert (inputs.gradient_magnitude.numpy() == batch.hog[:, : num_frames // 16].reshape(6, -1)).all()
    assert (inputs.labels.numpy() == batch.labels).all()
    assert inputs.teacher is not None
    assert (inputs.teacher.numpy() == batch.teacher).all()
    assert inputs.teacher_logits is None


@pytest.mark.parametrize("num_frames", [256, 512])
def test_fbank_and_hog_roll_alike_by_whole_patches(batch: Batch, num_frames: int) -> None:
    starts = []
    for epoch in range(20):
        visit = replace(batch, visits=np.full(6, epoch))
        inputs = prepare(visit, PatchGrid(num_frames=num_frames), NORMALISATION, CPU, ROLL)
        for clip in range(6):
            wanted = inputs.gradient_magnitude[clip].reshape(-1, 8).numpy()
            rolled = [np.roll(batch.hog[clip], -start, 0)[: num_frames // 16] for start in range(32)]
            (start,) = [start for start in range(32) if (rolled[start] == wanted).all()]
            fbank = np.roll(normalised(batch.fbank[clip]), -16 * start, 0)[:num_frames]
            np.testing.assert_allclose(inputs.fbank[clip], fbank, rtol=1e-6, atol=1e-6)
            starts.append(start)
    # 120 draws of 32: each clip has its own.
    assert len(set(starts)) > 24


def test_a_batch_is_not_changed(batch: Batch) -> None:
    before = batch.fbank.copy()
    inputs = prepare(batch, PatchGrid(num_frames=512), NORMALISATION, CPU, ROLL)
    inputs.fbank.zero_()
    assert (batch.fbank == before).all()


@pytest.mark.parametrize("num_frames", [256, 512])
def test_a_view_is_the_one_that_the_teacher_got(batch: Batch, num_frames: int) -> None:
    """And no other roll comes on top of it."""
    views = [view_of(key, 3, 7, 512) for key in batch.keys]
    rolls = np.array([view.roll_frames for view in views])
    batch = replace(batch, views=BatchViews(rolls, np.array([view.gain_db for view in views], np.float32)))
    louder = Augmentation(AugmentConfig(gain_db=20), 0, "test")
    for augmentation in (None, ROLL, louder):
        inputs = prepare(batch, PatchGrid(num_frames=num_frames), NORMALISATION, CPU, augmentation)
        for clip, view in enumerate(views):
            wanted = normalised(apply_to_fbank(batch.fbank[clip], view))[:num_frames]
            np.testing.assert_allclose(inputs.fbank[clip], wanted, rtol=1e-5, atol=1e-5)
