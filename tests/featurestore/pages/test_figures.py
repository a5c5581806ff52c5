"""Figures 5 and 7, from any store."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurestore.pages.figures import FigureOptions, choose_examples, draw_figures, hog_statistics
from featurestore.store import Store
from manifests.errors import InputError


def test_statistics_are_those_of_the_hog(finished_store: Store, hogs: dict[str, np.ndarray]) -> None:
    found = hog_statistics(finished_store, len(hogs), seed=0)
    magnitudes = np.stack([hog.astype(np.float64).sum(-1) for hog in hogs.values()])  # (N, 16, 8)
    np.testing.assert_allclose(found.mean, magnitudes.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.std, magnitudes.std(0), rtol=1e-3)
    assert found.num_clips == 22


def test_examples_have_their_class(finished_store: Store) -> None:
    examples = choose_examples(finished_store, FigureOptions(num_classes=3))
    assert [name for name, _ in examples] == ["bark", "bell", "rain"]
    for name, row in examples:
        assert finished_store.clip(row).labels == (name,)
        assert finished_store.ok[row]
    assert choose_examples(finished_store, FigureOptions(num_classes=3)) == examples
    assert [name for name, _ in choose_examples(finished_store, FigureOptions(labels=("rain",)))] == ["rain"]


def test_files_by_suffix(finished_store: Store, tmp_path: Path) -> None:
    options = FigureOptions(num_clips=5, num_classes=2)
    paths = draw_figures(finished_store, tmp_path / "figures", (".png", ".svg", ".pdf"), options)
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert [path.name for path in paths[:3]] == ["figure5.png", "figure5.svg", "figure5.pdf"]
    with Image.open(paths[0]) as picture:
        assert picture.size == (1650, 900)
    assert "<svg" in paths[1].read_text()
    assert paths[2].read_bytes().startswith(b"%PDF")
    again = draw_figures(finished_store, tmp_path / "again", (".png",), options)
    assert again[1].read_bytes() == (tmp_path / "figures" / "figure7.png").read_bytes()


def test_a_label_of_any_text_can_be_a_title(shown_store: Store, tmp_path: Path) -> None:
    hostile = next(name for name in shown_store.file.vocabulary.names if "script" in name)
    assert draw_figures(shown_store, tmp_path, (".png",), FigureOptions(num_clips=2, labels=(hostile,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FigureOptions(), "has 22 clips, and figure 5 takes 100; take fewer with --num-clips"),
        (FigureOptions(num_clips=5), "has clips of 3 classes, and figure 7 shows 4; take fewer with --num-classes"),
        (FigureOptions(num_clips=5, labels=("cat",)), "has no label 'cat'"),
    ],
)
def test_too_small_stores(finished_store: Store, tmp_path: Path, options: FigureOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_figures(finished_store, tmp_path / "figures", (".png",), options)
    assert not (tmp_path / "figures").exists()
