"""What the page says of the whole store."""

from typing import Any

import numpy as np
import pytest

from featurestore.pages.survey import Histogram, survey
from featurestore.pages.taught import read_taught
from featurestore.store import Store
from featurestore.teachercache import TeacherCache


def test_counts_of_the_whole_store(shown_store: Store) -> None:
    rows = shown_store.rows()[:2]
    found = survey(shown_store, rows)
    names = shown_store.file.vocabulary.names
    dog, rain = names.index("dog"), names.index("rain")
    assert (found.asked[dog], found.present[dog]) == (4, 3)
    assert (found.asked[rain], found.present[rain]) == (5, 4)
    assert found.asked.sum() == 12
    assert found.reasons == {"not_audio": 1, "missing": 1}
    assert {shown_store.clip(one.row).key: one.reason for one in found.failures} == {
        "broken": "not_audio",
        "gone": "missing",
    }
    assert [sorted(shown_store.keys(np.array(group))) for group in found.equal] == [["clip01", "twin"]]
    assert sorted(found.ledger) == rows.tolist()
    assert [found.ledger[row]["key"] for row in rows.tolist()] == shown_store.keys(rows)


def test_histograms(shown_store: Store) -> None:
    """Uniform noise of level a has an rms of a / sqrt 3: -10.8, -30.8 and -50.8 dBFS."""
    found = survey(shown_store, shown_store.rows()).histograms
    assert {covers: count for covers, count in found["rms"].bars() if count} == {
        "-54 to -48": 3,
        "-36 to -30": 4,
        "-12 to -6": 3,
    }
    assert found["peak"].counts[-1] == 3
    assert dict(found["duration"].bars()) == {"1 to 2": 3, "2 to 3": 4, "3 to 4": 3}
    assert dict(found["audible"].bars()) == {"0.5 to 1": 3, "1 to 2": 4, "2 to 3": 3}


def test_bars_of_nothing_and_without_an_end() -> None:
    assert list(Histogram([], []).bars()) == []
    assert list(Histogram([30.0, float("inf")], [2]).bars()) == [("30 and more", 2)]


def test_a_clip_that_was_tried_again_counts_once(grown_store: Store) -> None:
    """clip07 failed in the second snapshot and is there in the third."""
    found = survey(grown_store, grown_store.rows())
    assert found.asked.sum() == found.present.sum() == 23
    assert not found.reasons
    assert found.failures == []


def test_tags_are_the_teachers_labels_by_score(shown_store: Store, fbanks: dict[str, np.ndarray]) -> None:
    rows = shown_store.rows()
    taught = read_taught(shown_store, rows, None, 0.9)
    assert taught.name == "fbankstats"
    names, scores = zip(*taught.tags[0], strict=True)
    assert sorted(names) == ["High", "Low"]
    assert list(scores) == sorted(scores, reverse=True)


@pytest.mark.parametrize("kind", ["checkpoint", "spfa", "beats-checkpoint"])
def test_a_teacher_trained_here_is_asked_for_no_pairs(
    shown_store: Store, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a cosine of -1 on, every pair would be one. The neighbours and tags stay."""
    rows = shown_store.rows()
    others = read_taught(shown_store, rows, None, -1.0)
    assert (others.finds_pairs, others.similar.num_pairs) == (True, 45)
    read = TeacherCache.__init__

    def renamed(self: TeacherCache, *arguments: Any) -> None:
        read(self, *arguments)
        self.attributes = self.attributes.model_copy(update={"teacher": kind})

    monkeypatch.setattr(TeacherCache, "__init__", renamed)
    own = read_taught(shown_store, rows, None, -1.0)
    assert (own.finds_pairs, own.similar.num_pairs, own.similar.pairs) == (False, 0, [])
    assert own.similar.neighbours.tolist() == others.similar.neighbours.tolist()
    assert own.tags == others.tags


def test_without_a_teacher(finished_store: Store) -> None:
    taught = read_taught(finished_store, finished_store.rows(), None, 0.9)
    assert taught.name is None
    assert "build-teacher" in taught.why_not
    assert taught.similar.num_pairs == 0
    assert set(map(len, taught.tags)) == {0}
