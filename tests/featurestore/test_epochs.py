"""Batches epoch by epoch: nothing left out, nothing twice, on any number of ranks, from any place on."""

import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore
from featurestore import OpenStore
from featurestore.build import build_teacher
from featurestore.loader import Loader
from featurestore.store import Store
from manifests.errors import InputError


@pytest.fixture(scope="module")
def store(finished_store: Store) -> OpenStore:
    return featurestore.open(finished_store.root)


@settings(max_examples=20)
@given(batch_size=st.integers(1, 7), world_size=st.integers(1, 3), num_epochs=st.integers(1, 4), seed=st.integers(0, 3))
def test_epochs_are_the_stream(store: OpenStore, batch_size: int, world_size: int, num_epochs: int, seed: int) -> None:
    """One after the other they are the loader's stream, each ends where its clips do, and the ranks share it."""
    of_all = batch_size * world_size
    loaders = [store.loader(batch_size, seed=seed, rank=rank, world_size=world_size) for rank in range(world_size)]
    ends, seen = 0, list[int]()
    for epoch in range(num_epochs):
        of_ranks = [[batch.rows for batch in loader.epoch(epoch)] for loader in loaders]
        assert {len(batches) for batches in of_ranks} == {loaders[0].num_batches(epoch)}
        seen += [row for step in zip(*of_ranks, strict=True) for rows in step for row in rows.tolist()]
        # The first whole batch at or behind the epoch's last clip.
        ends = (epoch + 1) * len(store)
        assert ends <= len(seen) < ends + of_all
    order = Loader(store, store.rows(), 1, seed=seed).order
    assert seen == order.rows(0, len(seen)).tolist()
    assert sorted(seen[: len(store)]) == store.rows().tolist()


def test_going_on_in_the_middle(store: OpenStore) -> None:
    loader = store.loader(4)
    whole = [batch.keys for batch in loader.epoch(1)]
    assert [batch.keys for batch in loader.epoch(1, start=2)] == whole[2:]
    assert list(loader.epoch(1, start=len(whole))) == []
    in_order = store.loader(4, shuffle=False)
    assert [batch.keys for batch in in_order.epoch(3, start=5)] == [store.keys()[20:]]


@pytest.mark.parametrize("world_size", [1, 3])
def test_in_order_every_clip_once(store: OpenStore, world_size: int) -> None:
    loaders = [store.loader(5, shuffle=False, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(loader.epoch(0)) for loader in loaders]
    assert [key for of_rank in batches for batch in of_rank for key in batch.keys] == store.keys()
    assert [len(of_rank) for of_rank in batches] == [loader.num_batches() for loader in loaders]
    assert all(len(batch.keys) == 5 for of_rank in batches for batch in of_rank[:-1])


def test_parts(store: OpenStore) -> None:
    assert store.loader(2, split="test").rows.tolist() == store.rows(split="test").tolist()
    assert store.loader(2, split="train", fold=2).rows.tolist() == store.rows(split="train", fold=2).tolist()
    rows = store.rows()[[5, 3, 3]]
    assert store.loader(1, rows=rows).rows.tolist() == store.rows()[[3, 5]].tolist()


def test_tensors(store_copy: Any, waveform_stats: Any) -> None:
    build_teacher(Store(store_copy), waveform_stats(), "stats")
    store = featurestore.open(store_copy)
    loader = store.loader(store.snapshot.num_clips, teacher="stats")
    (batch,), (tensors,) = loader.epoch(0), loader.tensors(0, "cpu")
    expected = (batch.fbank.astype(np.float32) - store.snapshot.mean) / store.snapshot.std
    np.testing.assert_allclose(tensors.fbank.numpy(), expected, rtol=1e-5, atol=1e-5)
    # Of all clips together, and so normalised.
    assert float(tensors.fbank.mean()) == pytest.approx(0, abs=1e-3)
    assert float(tensors.fbank.std()) == pytest.approx(1, abs=1e-3)
    assert tensors.keys == batch.keys
    assert np.array_equal(tensors.hog.numpy(), batch.hog)
    assert np.array_equal(tensors.labels.numpy(), batch.labels)
    assert tensors.teacher is not None
    assert np.array_equal(tensors.teacher.numpy(), store.teacher("stats").embeddings(batch.rows))
    assert tensors.classes().tolist() == [store[key].label_indices[0] for key in batch.keys]
    assert tensors.classes().dtype == torch.int64


@pytest.mark.parametrize(("labels", "count"), [("bark;bell", 2), ("", 0)])
def test_a_class_is_exactly_one_label(make_store: Any, labels: str, count: int) -> None:
    store = featurestore.open(make_store(["bell", labels, "bark"], "labels").root)
    (tensors,) = store.loader(3).tensors(0)
    with pytest.raises(InputError, match=f"clip clip01 has {count} labels, and a class is exactly one; train on the"):
        tensors.classes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2: .*0 to world_size - 1"),
        ({"batch_size": 12, "world_size": 2}, "the 22 clips of an epoch don't fill one batch of 12 on 2 ranks; choose"),
        ({"split": "eval"}, "has no split 'eval'; it has: test, train"),
        ({"fold": 4}, "has no fold 4; it has: 1, 2, 3"),
        ({"rows": np.arange(3), "fold": 1}, "rows are given, and a split or fold as well; choose one"),
        ({"rows": np.arange(3), "split": "test"}, "rows are given, and a split or fold as well; choose one"),
        ({"rows": np.array([-1, 2])}, "are 0 to 22, and -1 to 2 are given; take them from `store.table"),
        ({"rows": np.array([3, 23])}, "are 0 to 22, and 3 to 23 are given"),
        ({"rows": np.ones(23, bool)}, "rows are whole numbers, and bool is given; `numpy.flatnonzero` takes a mask"),
        ({"rows": np.arange(23)}, "clip clip07 is among the rows, and it failed in the ingest"),
        ({"rows": np.arange(0)}, "no clip of .* is in the part asked for; see `store.table"),
        ({"rows": []}, "no clip of .* is in the part asked for; see `store.table"),
        ({"teacher": "beats"}, "has no cache of a teacher 'beats'"),
    ],
)
def test_what_cannot_be_loaded(store: OpenStore, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        store.loader(**{"batch_size": 1, **options})


def test_before_the_first(store: OpenStore) -> None:
    for shuffle in (True, False):
        loader = store.loader(4, shuffle=shuffle)
        for place in ({"number": -1}, {"number": 0, "start": -1}):
            with pytest.raises(InputError, match="both are counted from 0"):
                loader.epoch(**place)


def test_another_process_may_have_it(store_copy: Any, waveform_stats: Any) -> None:
    build_teacher(Store(store_copy), waveform_stats(), "stats")
    loader = featurestore.open(store_copy).loader(3, seed=4, teacher="stats", split="train")
    again = pickle.loads(pickle.dumps(loader))  # noqa: S301
    for one, other in zip(loader.epoch(1), again.epoch(1), strict=True):
        assert one.keys == other.keys
        np.testing.assert_array_equal(one.teacher, other.teacher)


class Ranks(torch.utils.data.IterableDataset[list[str]]):
    """A loader's keys, each worker of a DataLoader a rank of its own."""

    def __init__(self, store: OpenStore) -> None:
        self.store = store

    def __iter__(self) -> Iterator[list[str]]:
        worker = torch.utils.data.get_worker_info()
        assert worker is not None
        loader = self.store.loader(4, shuffle=False, rank=worker.id, world_size=worker.num_workers)
        return (batch.keys for batch in loader.epoch(0))


def test_workers_of_a_data_loader_as_ranks(store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where a worker finds this file
    workers = torch.utils.data.DataLoader(Ranks(store), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert sorted(key for batch in workers for key in batch) == sorted(store)


def test_workers_that_would_all_give_the_same(store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = store.loader(4)
    for num_workers, is_refused in ((1, False), (2, True)):
        worker = SimpleNamespace(num_workers=num_workers)
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda worker=worker: worker)
        with pytest.raises(InputError, match="2 workers would give all") if is_refused else nullcontext():
            loader.epoch(0)
