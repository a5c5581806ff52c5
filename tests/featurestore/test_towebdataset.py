"""A store as webdataset's pipeline: this snapshot's clips, in their order, whole."""

import gc
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import featurestore
from featurestore.store import Store
from manifests.errors import InputError

# webdataset leaves the closing of its files to Python.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Before the next test, whose warnings count."""
    yield
    gc.collect()


def test_all_clips(finished_store: Store, fbanks: dict[str, NDArray[Any]], hogs: dict[str, NDArray[Any]]) -> None:
    store = featurestore.open(finished_store.root)
    found = list(store.to_webdataset())
    assert [one["__key__"] for one in found] == store.keys()
    for one in found:
        assert np.array_equal(one["fbank.npy"], fbanks[one["__key__"]])
        assert np.array_equal(one["hog.npy"], hogs[one["__key__"]])
        assert tuple(one["json"]["label_indices"]) == store[one["__key__"]].label_indices


@pytest.mark.parametrize("snapshot", [1, 2, 3])
def test_an_older_snapshot_sees_its_own_shards(grown_store: Store, snapshot: int) -> None:
    store = featurestore.open(grown_store.root, snapshot)
    assert [one["__key__"] for one in store.to_webdataset()] == store.keys()


def test_a_part(finished_store: Store) -> None:
    store = featurestore.open(finished_store.root)
    for part in ({"split": "test"}, {"fold": 2}, {"split": "train", "fold": 1}):
        pipeline = store.to_webdataset(**part)
        assert [one["__key__"] for one in pipeline] == store.keys(store.rows(**part))
        # As DataLoader's workers get it.
        assert len(list(pickle.loads(pickle.dumps(pipeline)))) == len(store.rows(**part))  # noqa: S301
    with pytest.raises(InputError, match="has no split 'eval'; it has: test, train"):
        store.to_webdataset(split="eval")


def test_its_own_options(finished_store: Store) -> None:
    store = featurestore.open(finished_store.root)
    shuffled = [one["__key__"] for one in store.to_webdataset(shardshuffle=100, seed=1)]
    assert shuffled != store.keys()
    assert sorted(shuffled) == sorted(store.keys())


def test_without_webdataset(finished_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(InputError, match=r"webdataset is not installed: `pip install webdataset`; or use `store\.load"):
        featurestore.open(finished_store.root).to_webdataset()
