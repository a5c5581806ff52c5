"""HOG's stars, and the axes that they are drawn on."""

import numpy as np
import pytest
import torch

from featurestore.pages.axes import khz_ticks, mel_position, time_ticks
from featurestore.pages.glyphs import hog_picture
from ingest.hog import hog_cells
from manifests.geometry import FbankSpec, HogSpec


def test_steady_tone_is_a_level_line_at_its_place() -> None:
    """A ridge along time: horizontal edges in its row of cells, which is counted from the bottom."""
    fbank = torch.zeros(256, 128)
    fbank[:, 40] = 10.0
    picture = hog_picture(hog_cells(fbank, HogSpec()).numpy())
    assert picture.shape == (128, 256)
    cells = picture.reshape(8, 16, 16, 16).mean((1, 3))
    assert (cells.argmax(0) == 7 - 40 // 16).all()
    cell = picture[80:96, 64:80]
    assert cell.mean(1).max() == cell[6:10].mean(1).max()
    assert cell[6:10].mean() > 3 * cell[:4].mean()
    assert cell[:, 2].max() > 0.5  # the line reaches the cell's sides


def test_click_is_an_upright_line() -> None:
    fbank = torch.zeros(256, 128)
    fbank[100] = 10.0
    picture = hog_picture(hog_cells(fbank, HogSpec()).numpy())
    cell = picture[48:64, 96:112]
    assert cell[:, 6:10].mean() > 3 * cell[:, :4].mean()
    assert picture[:, 16:80].max() == 0.0


def test_chirp_leans_as_it_does_in_the_spectrogram() -> None:
    """A tone that rises goes from the lower left to the upper right."""
    fbank = torch.zeros(256, 128)
    fbank[torch.arange(128), torch.arange(128)] = 10.0
    cell = hog_picture(hog_cells(fbank, HogSpec()).numpy())[64:80, 48:64]
    assert cell[2, 13] > 2 * cell[2, 2]
    assert cell[13, 2] > 2 * cell[13, 13]


def test_range() -> None:
    assert hog_picture(np.zeros((2, 8, 9), np.float16)).max() == 0.0
    assert hog_picture(np.random.default_rng(0).random((2, 8, 9))).max() == pytest.approx(1.0)


def test_frequency_axis_agrees_with_the_mel_banks() -> None:
    """A tone's energy is largest in the bin that its position on the axis falls into."""
    from ingest.fbank import fbank

    spec = FbankSpec(num_frames=256)
    time_s = torch.arange(spec.num_samples) / spec.sample_rate_hz
    for frequency_hz in (500.0, 1000.0, 2000.0, 4000.0):
        bins = fbank(torch.sin(2 * torch.pi * frequency_hz * time_s), spec).mean(0)
        assert abs(mel_position(frequency_hz, spec) * 128 - (int(bins.argmax()) + 0.5)) <= 0.75


def test_ticks() -> None:
    assert [text for _, text in time_ticks(FbankSpec())] == ["0", "2", "4", "6", "8", "10"]
    assert time_ticks(FbankSpec(num_frames=256))[1] == (pytest.approx(0.5 / 2.56), "0.5")
    places = [place for place, _ in khz_ticks(FbankSpec())]
    assert places == sorted(places)
    assert places[-1] == pytest.approx(1.0)
