"""HOG cells against scikit-image, a slow loop and cases done by hand."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.feature import hog as skimage_hog
from skimage.feature._hoghistogram import hog_histograms
from torch import Tensor

from ingest.fbank import fbank
from ingest.hog import hog, hog_cells, interpolate_empty_bin
from manifests.geometry import FbankSpec, HogSpec

SPEC = HogSpec()
Image = NDArray[np.float64]


def gradients(image: Image) -> tuple[Image, Image]:
    """Central differences along time (rows) and frequency (columns), 0 on the border."""
    along_time, along_freq = np.zeros_like(image), np.zeros_like(image)
    along_time[1:-1] = image[2:] - image[:-2]
    along_freq[:, 1:-1] = image[:, 2:] - image[:, :-2]
    return along_time, along_freq


def skimage_cells(image: Image) -> Image:
    along_time, along_freq = gradients(image)
    rows, columns = image.shape
    out = np.zeros((rows // 16, columns // 16, 9))
    hog_histograms(along_freq, along_time, 16, 16, columns, rows, columns // 16, rows // 16, 9, out)
    return out


def slow_cells(image: Image) -> Image:
    along_time, along_freq = gradients(image)
    out = np.zeros((image.shape[0] // 16, image.shape[1] // 16, 9))
    for t, f in np.ndindex(image.shape):
        degrees = math.degrees(math.atan2(along_time[t, f], along_freq[t, f])) % 180
        out[t // 16, f // 16, int(degrees // 20) % 9] += math.hypot(along_time[t, f], along_freq[t, f]) / 256
    return out


def random_image(seed: int, num_frames: int = 64) -> Tensor:
    return 3 * torch.randn(num_frames, 128, generator=torch.Generator().manual_seed(seed))


def noise_fbank() -> Tensor:
    spec = FbankSpec(num_frames=256)
    waveform = 0.1 * torch.randn(spec.num_samples, generator=torch.Generator().manual_seed(0))
    return fbank(waveform, spec).half().float()


@pytest.mark.parametrize("num_frames", [256, 512, 1024])
def test_equals_scikit_images_cells(num_frames: int) -> None:
    image = random_image(num_frames, num_frames)
    ours = hog_cells(image, SPEC)
    assert ours.shape == (num_frames // 16, 8, 9)
    np.testing.assert_allclose(ours.numpy(), skimage_cells(image.double().numpy()), atol=2e-5)


def test_equals_scikit_images_cells_on_an_fbank() -> None:
    filled = interpolate_empty_bin(noise_fbank(), SPEC)
    np.testing.assert_allclose(
        hog(noise_fbank(), SPEC).numpy(), skimage_cells(filled.double().numpy()), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("norm", "order"), [("L1", 1), ("L2", 2)])
def test_normalised_per_cell_equals_scikit_images_public_hog(norm: str, order: int) -> None:
    image = random_image(5)
    theirs = skimage_hog(
        image.double().numpy(),
        orientations=9,
        pixels_per_cell=(16, 16),
        cells_per_block=(1, 1),
        block_norm=norm,
        feature_vector=False,
    )[:, :, 0, 0]
    ours = hog_cells(image, SPEC).double().numpy()
    ours /= np.linalg.norm(ours, ord=order, axis=2, keepdims=True)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_equals_the_slow_loop() -> None:
    image = random_image(2, 32)
    np.testing.assert_allclose(hog_cells(image, SPEC).numpy(), slow_cells(image.double().numpy()), atol=2e-5)


@pytest.mark.parametrize("slope", [1.0, -1.0, 0.25, -0.37])
def test_a_ramp_in_frequency_lies_in_the_first_orientation(slope: float) -> None:
    cells = hog_cells((slope * torch.arange(128.0)).repeat(64, 1), SPEC)
    expected = torch.zeros(4, 8, 9)
    expected[..., 0] = 2 * abs(slope)
    expected[:, [0, -1], 0] *= 15 / 16  # the border's gradient is 0
    torch.testing.assert_close(cells, expected)


@pytest.mark.parametrize("slope", [1.0, -1.0, -0.37])
def test_a_ramp_in_time_lies_in_the_middle_orientation(slope: float) -> None:
    cells = hog_cells((slope * torch.arange(64.0))[:, None].repeat(1, 128), SPEC)
    expected = torch.zeros(4, 8, 9)
    expected[..., 4] = 2 * abs(slope)  # 90 degrees, of 80 to 100
    expected[[0, -1], :, 4] *= 15 / 16
    torch.testing.assert_close(cells, expected)


@pytest.mark.parametrize(("along_time", "orientation"), [(1.0, 2), (-1.0, 6)])
def test_diagonal_ramps(along_time: float, orientation: int) -> None:
    """45 degrees is of 40 to 60; -45 is 135, of 120 to 140."""
    image = along_time * torch.arange(64.0)[:, None] + torch.arange(128.0)
    inner = hog_cells(image, SPEC)[1:-1, 1:-1]
    expected = torch.zeros_like(inner)
    expected[..., orientation] = 2 * math.sqrt(2)
    torch.testing.assert_close(inner, expected)


def test_a_single_edge() -> None:
    """A step of 5 between mel bins 39 and 40 gives two columns of gradient 5 in the cell of bins 32 to 47."""
    image = torch.zeros(64, 128)
    image[:, 40:] = 5.0
    expected = torch.zeros(4, 8, 9)
    expected[:, 2, 0] = 2 * 16 * 5.0 / 256
    torch.testing.assert_close(hog_cells(image, SPEC), expected)


def test_the_sum_over_orientations_is_the_mean_gradient_magnitude() -> None:
    image = random_image(4)
    magnitude = np.hypot(*gradients(image.double().numpy()))
    means = magnitude.reshape(4, 16, 8, 16).mean((1, 3))
    np.testing.assert_allclose(hog_cells(image, SPEC).sum(2).numpy(), means, rtol=1e-5)


def test_a_constant_image_has_no_gradient() -> None:
    assert torch.count_nonzero(hog_cells(torch.full((64, 128), -15.94), SPEC)) == 0


def test_the_empty_bin_is_the_mean_of_its_neighbours() -> None:
    image = random_image(6)
    filled = interpolate_empty_bin(image, SPEC)
    torch.testing.assert_close(filled[:, 3], (image[:, 2] + image[:, 4]) / 2)
    others = [i for i in range(128) if i != 3]
    assert torch.equal(filled[:, others], image[:, others])


def test_hog_does_not_see_the_empty_bin() -> None:
    energies = noise_fbank()
    before, changed = energies.clone(), energies.clone()
    changed[:, 3] = 1000.0
    assert torch.equal(hog(energies, SPEC), hog(changed, SPEC))
    assert torch.equal(energies, before)
    # Left in, the floor is an edge along frequency: its magnitude falls to the first and last orientations.
    ratio = (hog_cells(energies, SPEC)[:, 0] / hog(energies, SPEC)[:, 0]).mean(0)
    assert ratio[0] > 1.5
    assert ratio[8] > 1.2
