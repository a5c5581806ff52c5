"""Which clips are learnt from and which are judged by."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from featurestore.probeparts import PartOptions, choose_parts, deal_folds, labels_of_rows, recordings
from featurestore.store import Store
from manifests.errors import InputError
from tests.featurestore.labelledstores import labelled_store

LABELS = ["a", "b", "c"] * 8


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """24 clips of three classes and two without a label; two clips a file; neither folds nor splits."""
    files = [f"clip{number // 2:03d}.wav" for number in range(26)]
    # Both clips of a file have its label.
    labels = [LABELS[number // 2] for number in range(24)] + ["", ""]
    starts = [0.1 * (number % 2) for number in range(26)]
    columns = {"file": files, "labels": labels, "start_s": starts, "end_s": [start + 0.1 for start in starts]}
    return labelled_store(tmp_path_factory.mktemp("plain"), columns)


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """24 clips of three classes in three folds, and in splits train, valid and test."""
    folds = [number // 3 % 3 + 1 for number in range(24)]
    splits = [("train", "train", "valid", "test")[number // 3 % 4] for number in range(24)]
    return labelled_store(tmp_path_factory.mktemp("folded"), {"label": LABELS, "fold": folds, "split": splits})


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Store:
    splits = [("train", "train", "valid", "test")[number // 3 % 4] for number in range(24)]
    return labelled_store(tmp_path_factory.mktemp("split"), {"label": LABELS, "split": splits})


def test_each_fold_is_held_out_once(folded: Store) -> None:
    parts = choose_parts(folded, PartOptions())
    assert [part.name for part in parts.parts] == ["fold 1", "fold 2", "fold 3"]
    assert parts.chosen_by == "the store's folds, each held out in turn"
    for fold, part in enumerate(parts.parts, start=1):
        assert part.test.tolist() == folded.rows(fold=fold).tolist()
        learned = [row for row in folded.rows().tolist() if row not in part.test and folded.clip(row).split == "train"]
        assert part.train.tolist() == learned
        assert len(learned) < len(folded.rows()) - len(part.test)


def test_folds_asked_for(folded: Store) -> None:
    (part,) = choose_parts(folded, PartOptions(folds=[2])).parts
    assert part.test.tolist() == folded.rows(fold=2).tolist()
    with pytest.raises(InputError, match="has no fold 7; it has: 1, 2, 3"):
        choose_parts(folded, PartOptions(folds=[7]))


def test_splits_asked_for(folded: Store) -> None:
    (part,) = choose_parts(folded, PartOptions(train_split="train", test_split="valid")).parts
    assert part.train.tolist() == folded.rows(split="train").tolist()
    assert part.test.tolist() == folded.rows(split="valid").tolist()
    with pytest.raises(InputError, match="no split 'dev'; it has: test, train, valid"):
        choose_parts(folded, PartOptions(train_split="train", test_split="dev"))
    for contradiction in (
        PartOptions(train_split="train"),
        PartOptions(train_split="train", test_split="train"),
        PartOptions(train_split="train", test_split="test", folds=[1]),
    ):
        with pytest.raises(InputError, match="together, two different ones"):
            choose_parts(folded, contradiction)


def test_the_eval_split_is_judged_by_and_no_other_is_learnt_from(split: Store) -> None:
    parts = choose_parts(split, PartOptions())
    (part,) = parts.parts
    assert parts.chosen_by == "the store's split 'test'"
    assert part.test.tolist() == split.rows(split="test").tolist()
    assert part.train.tolist() == split.rows(split="train").tolist()


def test_seeded_parts_keep_recordings_together(plain: Store) -> None:
    parts = choose_parts(plain, PartOptions(seed=3))
    assert "dealt by seed 3" in parts.chosen_by
    assert parts.num_unlabelled == 2
    judged = np.sort(np.concatenate([part.test for part in parts.parts]))
    labelled = plain.rows()[labels_of_rows(plain, plain.rows()) >= 0]
    assert judged.tolist() == labelled.tolist()
    for part in parts.parts:
        assert not set(recordings(plain, part.train)) & set(recordings(plain, part.test))
        assert sorted([*part.train, *part.test]) == labelled.tolist()
    again = choose_parts(plain, PartOptions(seed=3)).parts
    assert all(a.test.tolist() == b.test.tolist() for a, b in zip(parts.parts, again, strict=True))
    other = choose_parts(plain, PartOptions(seed=4)).parts
    assert any(a.test.tolist() != b.test.tolist() for a, b in zip(parts.parts, other, strict=True))


def test_dealing_is_even_in_each_stratum() -> None:
    groups = np.repeat(np.arange(60), 2)
    strata = groups % 3
    folds = deal_folds(groups, strata, 5, seed=0)
    assert set(Counter(zip(strata.tolist(), folds.tolist(), strict=True)).values()) == {8}
    assert (folds[::2] == folds[1::2]).all()


def test_no_labels_or_too_few_recordings(tmp_path: Path) -> None:
    unlabelled = labelled_store(tmp_path / "none", {"labels": ["", "", ""]})
    with pytest.raises(InputError, match="no clip with a label"):
        choose_parts(unlabelled, PartOptions())
    few = labelled_store(tmp_path / "few", {"label": ["a", "b", "a"]})
    with pytest.raises(InputError, match="3 labelled recordings, too few for 5"):
        choose_parts(few, PartOptions())


def test_the_rarest_label_stands_for_several(tmp_path: Path) -> None:
    store = labelled_store(tmp_path, {"labels": ["a;b", "a", "a;c", "c", ""]})
    names = [store.clip(row).labels for row in store.rows()]
    found = [store.file.vocabulary.ids[n] if n >= 0 else None for n in labels_of_rows(store, store.rows())]
    expected = {("a", "b"): "b", ("a",): "a", ("a", "c"): "c", ("c",): "c", (): None}
    assert found == [expected[labels] for labels in names]
