"""The demo manifest: how many clips of which class in which split, and how sizes and seeds change that."""

from collections import Counter
from pathlib import Path

import pytest

from manifests.clips import Manifest
from manifests.demo import CLASSES, demo_manifest
from manifests.errors import InputError


def _labels(manifest: Manifest) -> Counter[str]:
    return Counter(label for clip in manifest.clips() for label in clip.labels)


def test_twelve_classes_of_twenty_clips(tmp_path: Path) -> None:
    manifest = demo_manifest(tmp_path)
    assert len(CLASSES) == 12
    assert _labels(manifest) == dict.fromkeys(CLASSES, 20)
    assert manifest.vocabulary.ids == sorted(CLASSES)
    assert manifest.root == tmp_path.resolve()


def test_every_fourth_clip_of_each_class_is_eval(tmp_path: Path) -> None:
    counts = Counter((clip.labels[0], clip.split) for clip in demo_manifest(tmp_path).clips())
    assert counts == {(label, split): n for label in CLASSES for split, n in (("train", 15), ("eval", 5))}


def test_rows(tmp_path: Path) -> None:
    clips = {clip.key: clip for clip in demo_manifest(tmp_path).clips()}
    siren = clips["siren_007"]
    assert (siren.source, siren.labels, siren.split) == ("audio/siren_007.wav", ("siren",), "train")
    assert clips["siren_005"].split == "eval"
    assert all(clip.fold is clip.start_ms is clip.end_ms is None for clip in clips.values())


@pytest.mark.parametrize(("num_clips", "most", "fewest"), [(1, 1, 0), (5, 1, 0), (12, 1, 1), (30, 3, 2), (48, 4, 4)])
def test_any_number_is_dealt_evenly(tmp_path: Path, num_clips: int, most: int, fewest: int) -> None:
    manifest = demo_manifest(tmp_path, num_clips=num_clips)
    counts = [_labels(manifest)[label] for label in CLASSES]
    assert (sum(counts), max(counts), min(counts)) == (num_clips, most, fewest)
    assert manifest.vocabulary.ids == sorted(CLASSES)


def test_two_clips_a_class_have_both_splits(tmp_path: Path) -> None:
    assert Counter(clip.split for clip in demo_manifest(tmp_path, num_clips=24).clips()) == {"train": 12, "eval": 12}


def test_a_smaller_corpus_is_a_subset(tmp_path: Path) -> None:
    assert set(demo_manifest(tmp_path, num_clips=30).clips()) < set(demo_manifest(tmp_path).clips())


def test_the_seed_changes_the_order_and_nothing_else(tmp_path: Path) -> None:
    first, again, other = (list(demo_manifest(tmp_path, seed=seed).clips()) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert set(first) == set(other)


@pytest.mark.parametrize("num_clips", [0, -3])
def test_an_empty_corpus_is_refused(tmp_path: Path, num_clips: int) -> None:
    with pytest.raises(InputError, match=f"{num_clips} clips"):
        demo_manifest(tmp_path, num_clips=num_clips)
