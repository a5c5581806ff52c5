"""Teacher caches that go along with copied clips, and those that can't."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.build import build_teacher
from featurestore.copying import Choice
from featurestore.selection import choose_rows
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.verify import verify
from tests.featurestore.noisestores import a_fixture, all_of, b_fixture, copy, of_key, taught  # noqa: F401


def test_teacher_caches_come_along(a: Store, b: Store, fbank_stats: Any, waveform_stats: Any, tmp_path: Path) -> None:
    teachers = fbank_stats(), waveform_stats()
    sources = [taught(a, tmp_path / "a", *teachers), taught(b, tmp_path / "b", *teachers)]
    store = copy([Choice(one, choose_rows(one, split="train")) for one in sources], tmp_path / "copy")
    assert verify(store.location) == []
    assert store.teachers == ["one", "two"]
    for name in store.teachers:
        cache = TeacherCache(store, name)
        assert cache.attributes.store_fingerprint == store.snapshot.fingerprint
        for source in sources:
            theirs = TeacherCache(source, name)
            assert cache.outputs == theirs.outputs
            rows = choose_rows(source, split="train")
            for output in cache.outputs:
                ours = cache.gather(output, np.array([of_key(store, key) for key in source.keys(rows)]))
                expected = theirs.gather(output, rows)
                np.testing.assert_array_equal(ours, expected)
                assert np.isfinite(expected).reshape(len(rows), -1).all(1).tolist() == source.ok[rows].tolist()
    # What is complete is not computed again.
    again = fbank_stats()
    assert build_teacher(store, again, "one", with_tokens=True).num_rows == len(store)
    assert [len(batch) for batch in again.batches] == [1]


def test_teacher_caches_that_differ_stay_behind(
    a: Store, b: Store, fbank_stats: Any, waveform_stats: Any, tmp_path: Path
) -> None:
    other = waveform_stats()
    other.provenance = {**other.provenance, "checkpoint_sha256": "9" * 64}
    sources = [
        taught(a, tmp_path / "a", fbank_stats(), waveform_stats()),
        taught(b, tmp_path / "b", fbank_stats(), other),
    ]
    assert copy(all_of(*sources), tmp_path / "copy").teachers == ["one"]
    shutil.rmtree(sources[1].root / "teachers/one.zarr")
    assert copy(all_of(*sources), tmp_path / "none").teachers == []
    (sources[0].root / "teachers/two.zarr/zarr.json").write_text("{}")
    store = copy(all_of(sources[0]), tmp_path / "whole")
    assert store.teachers == ["one"]
    assert verify(store.location) == []


def test_a_cache_of_an_older_snapshot_stays_behind(growing: Any, fbank_stats: Any, tmp_path: Path) -> None:
    build_teacher(growing.ingest_first(), fbank_stats(), "one")
    store = growing.append()
    assert copy(all_of(store), tmp_path / "copy").teachers == []
    build_teacher(store, fbank_stats(), "one")
    store = copy(all_of(store), tmp_path / "copy")
    assert store.teachers == ["one"]
    assert verify(store.location) == []
