"""Patches, their order and their positions."""

import math

import pytest
import torch

from manifests.geometry import PatchGrid
from training.model.patches import PatchEmbedding, patchify, sine_positions, unpatchify

GRID = PatchGrid(num_frames=256)


def test_patches_are_time_major_and_so_are_their_pixels() -> None:
    frames, bins = torch.meshgrid(torch.arange(256.0), torch.arange(128.0), indexing="ij")
    fbank = torch.stack([1000 * frames + bins, -1000 * frames - bins])
    patches = patchify(fbank, GRID)
    assert patches.shape == (2, 128, 256)
    assert patches[0, 0, :17].tolist() == [*range(16), 1000]
    for time, freq in ((0, 1), (1, 0), (5, 3), (15, 7)):
        patch = patches[:, 8 * time + freq].reshape(2, 16, 16)
        assert (patch == fbank[:, 16 * time : 16 * time + 16, 16 * freq : 16 * freq + 16]).all()


@pytest.mark.parametrize("num_frames", [256, 512, 1024])
def test_unpatchify_is_the_inverse(num_frames: int) -> None:
    grid = PatchGrid(num_frames=num_frames)
    fbank = torch.randn(3, num_frames, 128, generator=torch.Generator().manual_seed(0))
    assert (unpatchify(patchify(fbank, grid), grid) == fbank).all()


def test_sine_positions_by_hand() -> None:
    table = sine_positions(GRID, 8)  # two frequencies, 1 and 1/100
    assert table.shape == (128, 8)
    time, freq = 3, 5
    expected = [f(place * rate) for place in (time, freq) for f in (math.sin, math.cos) for rate in (1.0, 0.01)]
    torch.testing.assert_close(table[8 * time + freq], torch.tensor(expected))


def test_no_two_places_share_a_position() -> None:
    table = sine_positions(PatchGrid(num_frames=1024), 48)
    assert (torch.cdist(table, table) + 9 * torch.eye(512)).min() > 0.1


def test_embedding_is_linear_and_starts_with_sines() -> None:
    embedding = PatchEmbedding(GRID, 8)
    patches = torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(0))
    expected = patches @ embedding.project.weight.T + embedding.project.bias
    torch.testing.assert_close(embedding(patches), expected)
    assert (embedding.positions == sine_positions(GRID, 8)).all()
    assert embedding.positions.requires_grad
