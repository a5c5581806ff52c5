"""Probes of a checkpoint's own features, beside probes of the same features from a cache."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featurestore.build import build_teacher
from featurestore.probe import ProbeOptions, probe
from featurestore.probeparts import PartOptions
from featurestore.store import Store
from manifests.errors import InputError
from training.checkpoint import About, Checkpoint, save_checkpoint
from training.model.networks import MultiSSLNetwork, Student
from training.probe import HeldOut, choose_model_parts, heard_warnings, probe_checkpoint
from training.teacher import load_checkpoint_teacher

KNN = ProbeOptions(kinds=["knn"])


def test_figures_are_those_of_a_cache_of_the_same_features(checkpoint_path: Path, own_store: Store) -> None:
    build_teacher(own_store, load_checkpoint_teacher(checkpoint_path), "same")
    expected = probe(own_store, "same", KNN)
    found = probe_checkpoint(checkpoint_path, own_store, HeldOut(all_folds=True), KNN)
    assert [part.name for part in found.parts] == ["fold 1", "fold 2", "fold 3"]
    assert found.parts == expected.parts
    assert found.provenance["checkpoint_sha256"] == expected.provenance["checkpoint_sha256"]


def test_a_multissl_checkpoint_has_the_features_of_its_aft(
    about: About, student: Student, checkpoint_path: Path, store: Store, tmp_path: Path
) -> None:
    network = MultiSSLNetwork(about.model, torch.Generator().manual_seed(3))
    network.aft.load_state_dict(student.aft.state_dict())
    path = tmp_path / "ssl.pt"
    save_checkpoint(Checkpoint(about.model_copy(update={"stage": "multissl"}), network.state_dict()), path)
    found = probe_checkpoint(path, store, HeldOut(), KNN)
    assert found.parts == probe_checkpoint(checkpoint_path, store, HeldOut(), KNN).parts
    assert found.chosen_by == "what the model's run held out"
    assert (found.parts[0].name, found.parts[0].num_train, found.parts[0].num_evaluated) == ("test", 14, 6)
    assert found.provenance["stage"] == "multissl"


@pytest.mark.parametrize(("max_clips", "num_computed"), [(50, 20), (8, None)])
def test_features_are_computed_once_where_they_fit(
    checkpoint_path: Path, store: Store, max_clips: int, num_computed: int | None
) -> None:
    counted: list[int] = []
    options = replace(KNN, max_clips=max_clips)
    report = probe_checkpoint(checkpoint_path, store, HeldOut(all_folds=True), options, counted.append)
    assert max(part.num_train for part in report.parts) == min(max_clips, 10)  # nor from the split "test"
    if num_computed is None:
        taken = sum(part.num_train + part.num_evaluated for part in report.parts)
        assert 20 < sum(counted) <= taken  # some were forgotten to make room
    else:
        assert sum(counted) == num_computed
    # What was kept and what was computed anew are the same.
    parts = [probe_checkpoint(checkpoint_path, store, HeldOut(folds=(n,)), options).parts[0] for n in (1, 2, 3)]
    assert report.parts == parts


def test_both_kinds_of_a_split(checkpoint_path: Path, store: Store) -> None:
    report = probe_checkpoint(checkpoint_path, store, HeldOut(split="test"), ProbeOptions())
    assert report.chosen_by == "the split asked for"
    assert set(report.parts[0].results) == {"linear", "knn"}
    assert 0 <= report.mean("linear", "accuracy") <= 1


def test_clips_of_several_labels(checkpoint_path: Path, multi_label_store: Store) -> None:
    report = probe_checkpoint(checkpoint_path, multi_label_store, HeldOut(), KNN)
    assert report.figure_names == ["mAP", "mAUC"]
    # Of clips 0 to 6, 0 and 4 are held out, and 2 and 5 have no label.
    assert (report.parts[0].num_train, report.parts[0].num_evaluated, report.num_unlabelled) == (3, 2, 2)


def test_parts_that_are_not_there(
    about: About, store: Store, unlabelled_store: Store, multi_label_store: Store
) -> None:
    with pytest.raises(InputError, match="one of --split, --fold and --all-folds"):
        choose_model_parts(about, store, HeldOut(split="test", folds=(1,)), 0)
    with pytest.raises(InputError, match=r"has no fold 9"):
        choose_model_parts(about, store, HeldOut(folds=(9,)), 0)
    with pytest.raises(InputError, match=r"has no split 'eval'"):
        choose_model_parts(about, store, HeldOut(split="eval"), 0)
    with pytest.raises(InputError, match="has no clip with a label"):
        choose_model_parts(about, unlabelled_store, HeldOut(), 0)
    assert choose_model_parts(about, multi_label_store, HeldOut(), 0).num_unlabelled == 2


def test_what_the_model_has_heard_is_said(about: About, store: Store) -> None:
    own, folds = (choose_model_parts(about, store, held, 0) for held in (HeldOut(), HeldOut(folds=(2,))))
    assert heard_warnings(about, store, own) == []
    heard = len(np.setdiff1d(store.rows(fold=2), store.rows(split="test")))
    (line,) = heard_warnings(about, store, folds)
    assert line.endswith(
        f"was trained on clips of fold 2: {heard} of {len(store.rows(fold=2))} clips, with their labels"
    )
    multissl = about.model_copy(update={"stage": "multissl"})
    assert "without their labels" in heard_warnings(multissl, store, folds)[0]


def test_a_store_of_shorter_clips_is_refused(about: About, student: Student, store: Store, tmp_path: Path) -> None:
    model = about.model.model_copy(update={"num_frames": 512})
    path = tmp_path / "long.pt"
    save_checkpoint(Checkpoint(about.model_copy(update={"model": model}), student.state_dict()), path)
    with pytest.raises(InputError, match="takes 512 frames"):
        probe_checkpoint(path, store, HeldOut(), ProbeOptions(parts=PartOptions()))
