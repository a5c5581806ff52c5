"""A store as a dictionary of clips."""

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

import featurestore
from featurestore import MissingClipError, OpenStore
from featurestore.build import build_teacher
from featurestore.openstore import KEYS_A_PIECE
from featurestore.store import Store
from ingest.location import open_location
from manifests.errors import InputError
from tests.s3server import s3_fixture, s3_server_fixture  # noqa: F401


@pytest.fixture
def store(finished_store: Store) -> OpenStore:
    return featurestore.open(finished_store.root)


def test_a_clip_is_what_tar_and_numpy_find(
    store: OpenStore, fbanks: dict[str, NDArray[Any]], hogs: dict[str, NDArray[Any]]
) -> None:
    assert sorted(store) == sorted(fbanks)
    for key in store:
        sample, row = store[key], store.row_of(key)
        clip = store.clip(row)
        assert (sample.key, sample.row, store.keys(np.array([row]))) == (key, row, [key])
        assert sample.fbank.dtype == sample.hog.dtype == np.float16
        assert np.array_equal(sample.fbank, fbanks[key])
        assert np.array_equal(sample.hog, hogs[key])
        assert (sample.labels, sample.split, sample.fold, sample.source) == (
            clip.labels,
            clip.split,
            clip.fold,
            clip.source,
        )
        assert list(sample.label_indices) == np.flatnonzero(store.labels(np.array([row]))[0]).tolist()
        assert [store.vocabulary.names[place] for place in sample.label_indices] == list(sample.label_names)
        assert sample.ledger == store.ledger(row)
    assert "fbank" not in repr(store["clip00"])


def test_keys_length_and_membership(store: OpenStore) -> None:
    assert len(store) == 22
    assert store.keys() == list(store) == [key for key in store if key in store]
    assert {f"clip{number:02d}" for number in range(23)} - set(store) == {"clip07"}
    assert "clip07" not in store
    assert "clip99" not in store
    assert 3 not in store


def test_it_is_a_mapping(store: OpenStore) -> None:
    assert isinstance(store, Mapping)
    assert [(key, sample.key) for key, sample in store.items()] == [(key, key) for key in store]
    assert [sample.row for sample in store.values()] == store.rows().tolist()
    sample = store.get("clip00")
    assert (sample.key, sample.row) == ("clip00", store.row_of("clip00"))
    assert (store.get("clip07"), store.get("clip99", 5)) == (None, 5)
    assert hash(store) == hash(store)


def test_iteration_goes_on_behind_the_first_piece(store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEYS_A_PIECE > 1000
    monkeypatch.setattr("featurestore.openstore.KEYS_A_PIECE", 4)
    assert list(store) == store.keys()


def test_a_clip_that_is_not_there_says_why(store: OpenStore) -> None:
    with pytest.raises(MissingClipError) as failed:
        store["clip07"]
    assert isinstance(failed.value, KeyError)
    assert isinstance(failed.value, InputError)
    assert str(failed.value).startswith(
        f"{store.root} (snapshot 1) has no clip 'clip07': it failed in the ingest with "
    )
    assert str(store.ledger(store.column("key").to_pylist().index("clip07"))["detail"]) in str(failed.value)
    assert "--retry-failed" in str(failed.value)
    with pytest.raises(
        MissingClipError, match=r"has no clip 'clip99', and was never asked for it; it has 22, for instance clip\d\d$"
    ):
        store["clip99"]


def test_a_snapshot_has_its_own_clips(grown_store: Store) -> None:
    first, second, last = (featurestore.open(grown_store.root, snapshot=number) for number in (1, 2, 3))
    assert (len(first), len(second), len(last)) == (11, 22, 23)
    assert "clip20" not in first
    assert "clip20" in second
    # Tried again: of its two rows the last one counts.
    assert "clip07" not in second
    assert last["clip07"].fbank.shape == (256, 128)
    assert last.keys().count("clip07") == 1


def test_a_flipped_bit_is_not_handed_out(store_copy: Path) -> None:
    store = featurestore.open(store_copy)
    row = store.row_of("clip03")
    tar = store_copy / store.tar_name(int(store.shard_of(np.array([row]))[0]))
    content = bytearray(tar.read_bytes())
    content[int(store.fbank_offset[row]) + 1000] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(content)
    with pytest.raises(InputError, match="clip clip03 is damaged; run `featurestore repair` to make it anew"):
        store["clip03"]
    tar.unlink()
    with pytest.raises(InputError, match=r"tar can't be read \(No such file or directory\); run `featurestore verify`"):
        store["clip03"]


def test_the_waveform(growing: Any) -> None:
    growing.ingest_first()
    store = featurestore.open(growing.root)
    path = growing.corpus / "clip00.wav"  # 0.7 s at 16 kHz
    expected, rate_hz = soundfile.read(path, dtype="float32")
    assert rate_hz == 16000
    assert np.array_equal(store["clip00"].waveform(), expected)
    assert len(store["clip00"].waveform(8000)) == len(expected) // 2
    path.unlink()
    with pytest.raises(InputError, match=r"the sound of clip clip00 can't be had \(missing.*; bring its source back"):
        store["clip00"].waveform()


@pytest.mark.parametrize("rate_hz", [-1, 0, 16000.5, "16000", 2_000_000])
def test_a_rate_that_is_none(store: OpenStore, rate_hz: Any) -> None:
    with pytest.raises(InputError, match=r"^a sample rate is a whole number of Hz from 1 to 1000000, not "):
        store["clip00"].waveform(rate_hz)


def test_the_kept_audio_stands_in_for_the_source(make_store: Any, tmp_path: Path) -> None:
    store = featurestore.open(make_store(["bark", "bell"], keep_audio=True).root)
    expected, _ = soundfile.read(tmp_path / "corpus" / "clip00.wav", dtype="float32")
    (tmp_path / "corpus" / "clip00.wav").unlink()
    assert np.array_equal(store["clip00"].waveform(), expected)


def test_embeddings(store_copy: Path, waveform_stats: Any) -> None:
    build_teacher(Store(store_copy), waveform_stats(), "stats")
    store = featurestore.open(store_copy)
    sample = store["clip00"]
    sound = sample.waveform()
    expected = [sound.mean(), np.sqrt((sound**2).mean()), 1000 * len(sound) / 16000]
    np.testing.assert_allclose(sample.embedding("stats"), expected, rtol=2e-3, atol=1e-4)
    assert store.teacher("stats") is store.teacher("stats")
    with pytest.raises(InputError, match=r"has no cache of a teacher 'other' \(there are: stats\)"):
        sample.embedding("other")


def test_a_cache_that_is_built_again_is_read_again(store_copy: Path, waveform_stats: Any) -> None:
    store = featurestore.open(store_copy)
    build_teacher(store, waveform_stats(), "stats")
    first = store["clip00"].embedding("stats")
    shutil.rmtree(store_copy / "teachers" / "stats.zarr")
    louder = waveform_stats()
    embed = louder.embed
    louder.embed = lambda batch: embed(2 * batch)
    build_teacher(store, louder, "stats")
    np.testing.assert_allclose(store["clip00"].embedding("stats")[:2], 2 * first[:2], rtol=1e-2)


def test_another_process_may_have_it(grown_store: Store) -> None:
    store = featurestore.open(grown_store.root, snapshot=2)
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert (again.snapshot, again.keys()) == (store.snapshot, store.keys())
    # Opening takes time, and a DataLoader's worker may send thousands of clips.
    one, other = (pickle.loads(pickle.dumps(store[key])) for key in store.keys()[:2])  # noqa: S301
    assert one._store is other._store


def test_parts_held_out(store: OpenStore) -> None:
    def numbers(rows: NDArray[np.int64]) -> list[int]:
        return sorted(int(key[4:]) for key in store.keys(rows))

    chosen = store.hold_out()
    assert (numbers(chosen.held_out), chosen.name) == ([0, 4, 8, 12, 16, 20], "test")
    assert numbers(chosen.train) == [n for n in range(23) if n % 4 and n != 7]
    assert numbers(store.hold_out(fold=2).held_out) == [n for n in range(23) if n % 3 == 1 and n != 7]
    with pytest.raises(InputError, match=r"a split \(test\) and a fold \(1\) are both given; choose one"):
        store.hold_out(split="test", fold=1)
    with pytest.raises(InputError, match=r"a share of 0\.5 is to be held out of .*; leave the share out, or name"):
        store.hold_out(share=0.5)
    with pytest.raises(InputError, match="has no split 'eval'; it has: test, train"):
        store.hold_out(split="eval")


def test_an_object_store(s3: str, store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACM_SSKD_CACHE", str(tmp_path / "cache"))
    location = open_location(f"{s3}/data/tiny")
    for name in store.location.files():
        location.write(name, store.location.read(name))
    there = featurestore.open(f"{s3}/data/tiny")
    assert np.array_equal(there["clip05"].fbank, store["clip05"].fbank)
    assert there.table().equals(store.table())
    batches = zip(there.loader(5).epoch(0), store.loader(5).epoch(0), strict=True)
    assert all(np.array_equal(one.fbank, other.fbank) for one, other in batches)
    # Nothing went through the cache for the one clip: it is read by a request of its own.
    with pytest.raises(InputError, match="is no folder on this machine, which is needed here; copy the store to one"):
        there.to_webdataset()
