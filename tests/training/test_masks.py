"""The masks: how much they hide, where, and how often, against the distributions that the design names."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from manifests.geometry import PatchGrid
from training.masks import MIN_PROBABILITY, Sampling, inter_mask, intra_mask
from training.model.patches import patchify

GRID = PatchGrid(num_frames=256)
NUM_CLIPS = 400


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within(share: float, expected: float, count: int) -> bool:
    """Within four standard deviations of a binomial share."""
    return abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5


@pytest.fixture(scope="module")
def hidden() -> Tensor:
    """(B, L, 16, 16): the hidden pixels of each patch, time before frequency."""
    mask = intra_mask(NUM_CLIPS, GRID, 0.5, seeded(0))
    assert mask.shape == (NUM_CLIPS, 256, 128)
    assert mask.dtype == torch.bool
    return patchify(mask, GRID).unflatten(2, (16, 16))


@pytest.mark.parametrize("max_share", [0.5, 0.1, 1.0])
def test_the_share_of_masked_patches_is_uniform(max_share: float) -> None:
    masked = patchify(intra_mask(NUM_CLIPS, GRID, max_share, seeded(1)), GRID).any(2)
    assert masked.sum(1).min() >= 1
    assert masked.sum(1).max() <= np.ceil(max_share * GRID.num_patches)
    # Kolmogorov and Smirnov: a share up to n / L masks up to n patches; 1 in 1000 is further than 1.95 / sqrt(N).
    counts = torch.arange(GRID.num_patches + 1)
    found = (masked.sum(1, keepdim=True) <= counts).float().mean(0)
    expected = (counts / GRID.num_patches / max_share).clamp(max=1.0)
    assert (found - expected).abs().max() < 1.95 / NUM_CLIPS**0.5


def test_any_patch_may_be_masked(hidden: Tensor) -> None:
    share = hidden.flatten(2).any(2).float().mean(0)
    assert share.mean() == pytest.approx(0.25, abs=0.03)
    assert share.min() > 0.15
    assert share.max() < 0.36


def test_a_masked_patch_lacks_a_time_band_a_frequency_band_or_both(hidden: Tensor) -> None:
    rows, columns = hidden.all(3), hidden.all(2)  # (B, L, 16) each
    assert (hidden == rows[..., :, None] | columns[..., None, :]).all()
    time, freq = rows.any(2), columns.any(2)
    masked = time | freq
    count = int(masked.sum())
    for kind, expected in ((time & ~freq, 0.3), (freq & ~time, 0.3), (time & freq, 0.4)):
        assert within(int(kind.sum()) / count, expected, count)


def test_bands_are_1_to_4_wide_at_any_place(hidden: Tensor) -> None:
    for bands in (hidden.all(3), hidden.all(2)):
        bands = bands[bands.any(2)].int()  # (N, 16)
        assert (bands.diff(dim=1).clamp(min=0).sum(1) + bands[:, 0] == 1).all()  # one run
        width, start = bands.sum(1), bands.argmax(1)
        counts = torch.bincount(width, minlength=5)
        assert counts[0] == 0
        assert len(counts) == 5
        assert all(within(share, 0.25, len(width)) for share in (counts[1:] / len(width)).tolist())
        for size in (1, 4):
            starts = torch.bincount(start[width == size], minlength=17 - size)
            assert len(starts) == 17 - size
            total = int(starts.sum())
            assert all(within(share, 1 / (17 - size), total) for share in (starts / total).tolist())


def test_masks_repeat_for_a_generator() -> None:
    prior = torch.rand(3, 128, generator=seeded(4))

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        generator = seeded(seed)
        return intra_mask(3, GRID, 0.5, generator), inter_mask(prior, 0.75, "hog", generator).masked

    first, again, other = draw(7), draw(7), draw(8)
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert all((one != two).any() for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize(("ratio", "num_patches"), [(0.75, 512), (0.75, 128), (0.6, 33), (0.01, 8), (0.99, 8)])
@pytest.mark.parametrize("sampling", ["hog", "inverted", "uniform"])
def test_the_inter_mask_hides_an_exact_count(ratio: float, num_patches: int, sampling: Sampling) -> None:
    prior = torch.rand(5, num_patches, generator=seeded(2))
    mask = inter_mask(prior, ratio, sampling, seeded(3))
    num_masked = min(max(round(ratio * num_patches), 1), num_patches - 1)
    assert (mask.masked.sum(1) == num_masked).all()
    assert mask.ids_keep.shape == (5, num_patches - num_masked)
    assert (mask.ids_keep.diff(dim=1) > 0).all()
    visible = torch.zeros_like(mask.masked).scatter_(1, mask.ids_keep, True)
    assert (visible != mask.masked).all()


WEIGHTS: dict[Sampling, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "hog": lambda prior: prior,
    "inverted": lambda prior: 1 - prior,
    "uniform": np.ones_like,
}
PRIOR = np.array([1.0, 0.9, 0.6, 0.3, 0.1, 0.02])


def draw_one_by_one(weights: NDArray[np.float64], count: int, rng: np.random.Generator) -> list[int]:
    """The slow reference: each draw in proportion to the weights of what is left."""
    left, drawn = weights.clip(MIN_PROBABILITY), []
    for _ in range(count):
        drawn.append(int(rng.choice(len(left), p=left / left.sum())))
        left = left.copy()
        left[drawn[-1]] = 0.0
    return drawn


def subset_probability(weights: NDArray[np.float64], subset: frozenset[int]) -> float:
    """The probability that drawing one by one gives this set, over all orders."""
    if not subset:
        return 1.0
    total = weights.clip(MIN_PROBABILITY).sum()
    probability = 0.0
    for last in subset:
        # The set without `last` was drawn first, then `last` from what was left.
        before = subset - {last}
        left = total - weights.clip(MIN_PROBABILITY)[list(before)].sum()
        probability += subset_probability(weights, before) * max(weights[last], MIN_PROBABILITY) / left
    return probability


@pytest.mark.parametrize("sampling", ["hog", "inverted", "uniform"])
def test_the_inter_mask_draws_in_proportion_without_replacement(sampling: Sampling) -> None:
    weights, num_draws = WEIGHTS[sampling](PRIOR), 20_000
    prior = torch.tensor(PRIOR, dtype=torch.float32).expand(num_draws, -1)
    masked = inter_mask(prior, 0.5, sampling, seeded(11)).masked
    names = (masked.long() @ (2 ** torch.arange(6))).bincount(minlength=64)
    chi_square = 0.0
    for subset in map(frozenset, combinations(range(6), 3)):
        expected = num_draws * subset_probability(weights, subset)
        found = int(names[sum(2**index for index in subset)])
        if expected < 5:
            assert found < 5 + 5 * expected**0.5
        else:
            chi_square += (found - expected) ** 2 / expected
    # 19 degrees of freedom or fewer: 1 in 10,000 lies above 49.
    assert chi_square < 49
    rng = np.random.default_rng(0)
    reference = np.bincount(np.concatenate([draw_one_by_one(weights, 3, rng) for _ in range(2000)]), minlength=6) / 2000
    np.testing.assert_allclose(masked.float().mean(0), reference, atol=4 * (0.25 / 2000) ** 0.5)


@pytest.mark.parametrize("sampling", ["hog", "inverted", "uniform"])
def test_a_single_draw_is_in_proportion(sampling: Sampling) -> None:
    weights = WEIGHTS[sampling](PRIOR)
    prior = torch.tensor(PRIOR, dtype=torch.float32).expand(20_000, -1)
    shares = inter_mask(prior, 1 / 6, sampling, seeded(12)).masked.float().mean(0)
    for share, expected in zip(shares.tolist(), (weights / weights.sum()).tolist(), strict=True):
        assert within(share, max(expected, 1e-5), 20_000)


def test_an_inverted_prior_of_ones_still_gives_a_mask() -> None:
    mask = inter_mask(torch.ones(200, 8), 0.5, "inverted", seeded(0))
    assert (mask.masked.sum(1) == 4).all()
    assert mask.masked.float().mean(0).std() < 0.1
