"""Clips chosen by labels, keys, split and fold, and choices that mean nothing."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from featurestore.selection import choose_rows
from featurestore.store import Store
from ingest.job import ingest
from ingest.plan import IngestOptions
from manifests.clips import Clip, make_manifest
from manifests.errors import InputError
from manifests.vocabulary import Label, Vocabulary

# Clips 0, 3, 6, ... of the finished store are barks, then come bells and rain; clip07 failed.
BARKS, BELLS, RAIN = (list(range(first, 23, 3)) for first in range(3))
# Two classes of one name, and a name that is another's id.
VOCABULARY = Vocabulary(
    labels=(
        Label(id="/m/1", name="Bell"),
        Label(id="/m/2", name="Bell"),
        Label(id="/m/3", name="Rain"),
        Label(id="Rain", name="Snow"),
    )
)
KEYS = ("c#4", "c", "#1", "plain")


@pytest.fixture(scope="module")
def odd_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Clips with '#' in their keys; the k-th one has the k-th label, and the last one all but the last."""
    home = tmp_path_factory.mktemp("odd")
    soundfile.write(home / "noise.wav", np.random.default_rng(0).standard_normal(8000) / 10, 16_000)
    ids = VOCABULARY.ids
    labels = [(ids[0],), (ids[1],), (ids[2],), tuple(ids[:3])]
    clips = [Clip(key, "noise.wav", labels=some) for key, some in zip(KEYS, labels, strict=True)]
    manifest = make_manifest("odd", clips, VOCABULARY, home)
    ingest(manifest, home / "store", IngestOptions(num_frames=256, num_workers=0))
    return Store(home / "store")


def numbers(store: Store, rows: np.ndarray) -> list[int]:
    assert sorted(rows.tolist()) == rows.tolist()
    return sorted(int(key.removeprefix("clip")) for key in store.keys(rows))


def keys_file(folder: Path, text: str) -> Path:
    path = folder / "keys.txt"
    path.write_text(text)
    return path


def test_by_labels(finished_store: Store) -> None:
    assert numbers(finished_store, choose_rows(finished_store, labels=["bell"])) == BELLS
    assert numbers(finished_store, choose_rows(finished_store, labels=["rain", "bark"])) == sorted(BARKS + RAIN)
    assert numbers(finished_store, choose_rows(finished_store, labels=["rain", "rain"])) == RAIN
    assert 7 in BELLS  # the one that failed is among them
    assert numbers(finished_store, choose_rows(finished_store)) == list(range(23))


def test_by_id_before_name(odd_store: Store) -> None:
    def keys(*labels: str) -> set[str]:
        return set(odd_store.keys(choose_rows(odd_store, labels=labels)))

    assert keys("/m/1") == {"c#4", "plain"}
    assert keys("/m/2", "/m/3") == {"c", "#1", "plain"}
    assert keys("Rain") == set()  # Snow's id, of which there is none
    assert keys("Snow") == set()


def test_a_name_of_several_labels(odd_store: Store) -> None:
    with pytest.raises(InputError, match=r"odd.*store has 2 labels named 'Bell'; give an id: /m/1, /m/2"):
        choose_rows(odd_store, labels=["/m/1", "Bell"])


def test_an_unknown_label(finished_store: Store) -> None:
    with pytest.raises(InputError, match=r"tiny has no label 'Bark'; it has 3: bark, bell, rain, \.\.\."):
        choose_rows(finished_store, labels=["bark", "Bark"])


def test_clips_without_labels(tmp_path: Path) -> None:
    clips = [Clip("one", "noise.wav"), Clip("two", "noise.wav", labels=("/m/3",))]
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).standard_normal(8000) / 10, 16_000)
    manifest = make_manifest("some", clips, VOCABULARY, tmp_path)
    ingest(manifest, tmp_path / "store", IngestOptions(num_frames=256, num_workers=0))
    store = Store(tmp_path / "store")
    assert store.keys(choose_rows(store, labels=["/m/3"])) == ["two"]
    assert len(choose_rows(store)) == 2


def test_by_split_and_fold(finished_store: Store) -> None:
    test = [number for number in range(23) if number % 4 == 0]
    assert numbers(finished_store, choose_rows(finished_store, split="test")) == test
    assert numbers(finished_store, choose_rows(finished_store, fold=2)) == list(range(1, 23, 3))
    both = choose_rows(finished_store, split="test", fold=2, labels=["bell", "rain"])
    assert numbers(finished_store, both) == [4, 16]
    assert len(choose_rows(finished_store, fold=2, labels=["rain"])) == 0
    with pytest.raises(InputError, match="has no split 'eval'; it has: test, train"):
        choose_rows(finished_store, split="eval")
    with pytest.raises(InputError, match="has no fold 5; it has: 1, 2, 3"):
        choose_rows(finished_store, fold=5)


def test_no_splits_or_folds(odd_store: Store) -> None:
    with pytest.raises(InputError, match="has no split 'eval'; it has: none"):
        choose_rows(odd_store, split="eval")
    with pytest.raises(InputError, match="has no fold 1; it has: none"):
        choose_rows(odd_store, fold=1)


def test_by_a_file_of_keys(finished_store: Store, tmp_path: Path) -> None:
    path = keys_file(tmp_path, "# of the first day\n\nclip20\n  clip03  # nice\r\nclip07\nclip20\n")
    assert numbers(finished_store, choose_rows(finished_store, keys_file=path)) == [3, 7, 20]
    assert numbers(finished_store, choose_rows(finished_store, keys_file=path, labels=["bark"])) == [3]


def test_the_stores_own_lists_are_files_of_keys(finished_store: Store) -> None:
    rows = choose_rows(finished_store, keys_file=finished_store.root / "present_train.txt")
    assert rows.tolist() == finished_store.rows(split="train").tolist()


def test_a_key_of_a_clip_that_was_tried_again(grown_store: Store, tmp_path: Path) -> None:
    (row,) = choose_rows(grown_store, keys_file=keys_file(tmp_path, "clip07"))
    assert grown_store.ok[row]


def test_keys_that_hold_a_number_sign(odd_store: Store, tmp_path: Path) -> None:
    path = keys_file(tmp_path, "c#4\n#1\n# c\nplain#comment\n")
    assert set(odd_store.keys(choose_rows(odd_store, keys_file=path))) == {"c#4", "#1", "plain"}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("clip01\n\nclip1 # one\n", r"keys\.txt, line 3: no clip 'clip1' in .*tiny; correct the line"),
        ("clip01 clip02\n", r"line 1: no clip 'clip01 clip02' in "),
        ("# nothing\n\n", r"keys\.txt names no clip; write one key a line"),
        ("", r"keys\.txt names no clip"),
    ],
)
def test_mistakes_in_a_file_of_keys(finished_store: Store, tmp_path: Path, text: str, pattern: str) -> None:
    with pytest.raises(InputError, match=pattern):
        choose_rows(finished_store, keys_file=keys_file(tmp_path, text))


def test_no_file_of_keys(finished_store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt"):
        choose_rows(finished_store, keys_file=tmp_path / "none.txt")
