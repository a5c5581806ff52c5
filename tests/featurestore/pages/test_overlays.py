"""The trainer's maths on the page, found by its entry point."""

import numpy as np
import torch

from featurestore.pages.overlays import find_overlays
from manifests.geometry import PatchGrid
from training.overlays import draw_overlays
from training.prior import saliency

GRID = PatchGrid(num_frames=256)


def magnitudes() -> np.ndarray:
    return np.random.default_rng(0).random((GRID.num_time, GRID.num_freq)).astype(np.float32)


def test_an_ordinary_installation_has_them() -> None:
    assert find_overlays() is draw_overlays


def test_prior_is_equation_1_patch_by_patch() -> None:
    x = magnitudes()
    expected = saliency(torch.from_numpy(x.reshape(1, -1))).numpy().reshape(x.shape)
    np.testing.assert_array_equal(draw_overlays(x, GRID, 0).prior, expected)
    np.testing.assert_allclose(expected, np.exp(-np.square(x - x.mean()) / x.var()), rtol=1e-4)


def test_masks_have_the_papers_shares_and_repeat() -> None:
    drawn, again, other = (draw_overlays(magnitudes(), GRID, seed) for seed in (1, 1, 2))
    assert drawn.inter_hidden.shape == (16, 8)
    assert drawn.inter_hidden.sum() == 96
    assert drawn.intra_hidden.shape == (256, 128)
    hidden_patches = drawn.intra_hidden.reshape(16, 16, 8, 16).any((1, 3)).mean()
    assert 0 < hidden_patches <= 0.5 + 1 / 128
    np.testing.assert_array_equal(drawn.intra_hidden, again.intra_hidden)
    np.testing.assert_array_equal(drawn.inter_hidden, again.inter_hidden)
    assert (drawn.inter_hidden != other.inter_hidden).any()
