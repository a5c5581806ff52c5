"""Neighbours and near-duplicates by cosine, against the slow way."""

import numpy as np
import pytest

from featurestore.pages import similar
from featurestore.pages.similar import find_similar


@pytest.mark.parametrize("block", [3, 512])
def test_like_the_slow_way(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "ROWS_A_BLOCK", block)
    embeddings = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    embeddings[7] = 3 * embeddings[2]
    embeddings[19] = embeddings[2] + 1e-3
    norms = np.linalg.norm(embeddings, axis=1)
    cosines = embeddings @ embeddings.T / norms[:, None] / norms[None, :]
    found = find_similar(embeddings, 4, 0.99)
    for row in range(20):
        others = [other for other in np.argsort(-cosines[row], kind="stable").tolist() if other != row]
        np.testing.assert_allclose(found.cosines[row], cosines[row, others[:4]], atol=1e-5)
        # Not their names: between 2, 7 and 19 rounding decides.
        np.testing.assert_allclose(cosines[row, found.neighbours[row]], cosines[row, others[:4]], atol=1e-5)
        assert len(set(found.neighbours[row].tolist()) - {row}) == 4
    assert [pair[:2] for pair in sorted(found.pairs)] == [(2, 7), (2, 19), (7, 19)]
    assert found.num_pairs == 3
    assert [cosine for *_, cosine in found.pairs] == sorted((cosine for *_, cosine in found.pairs), reverse=True)


def test_missing_rows_are_like_nothing() -> None:
    embeddings = np.array([[1, 0], [np.nan, np.nan], [0, 0], [1, 0.1]], np.float32)
    found = find_similar(embeddings, 2, 0.5)
    assert found.neighbours.tolist() == [[3, -1], [-1, -1], [-1, -1], [0, -1]]
    assert [pair[:2] for pair in found.pairs] == [(0, 3)]


def test_as_many_pairs_as_there_are_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "MAX_PAIRS", 4)
    found = find_similar(np.ones((6, 3), np.float32), 3, 0.9)
    assert [pair[:2] for pair in found.pairs] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert found.num_pairs == 15


def test_a_clip_alone() -> None:
    found = find_similar(np.ones((1, 3), np.float32), 5, 0.9)
    assert found.neighbours.shape == (1, 0)
    assert found.pairs == []
