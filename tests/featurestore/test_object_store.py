"""A store in an object store, by HTTP to moto on loopback: bytes, batches, checks and caches are those of a folder."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.build import build_teacher
from featurestore.loader import Loader, sequential_batches
from featurestore.openstore import OpenStore
from featurestore.repair import repair
from featurestore.store import Store
from featurestore.teachercache import TeacherCache
from featurestore.verify import verify
from ingest.job import ingest
from ingest.location import Location, open_location
from ingest.plan import IngestOptions
from manifests.errors import InputError
from manifests.folder import FolderOptions, folder_manifest
from tests.s3server import Fault, FlakyProxy, flaky_s3_fixture, s3_fixture, s3_server_fixture  # noqa: F401


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shards that are read are kept here, and not in the user's own cache."""
    monkeypatch.setenv("ACM_SSKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def upload(root: Path, url: str) -> Location:
    """Copies a store as it is."""
    location = open_location(url)
    for path in root.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            location.write(path.relative_to(root).as_posix(), path.read_bytes())
    return location


def assert_same_batches(store: Store, other: Store, *, num_steps: int) -> None:
    loaders = [Loader(one, one.rows(), 5, seed=4).batches(num_steps=num_steps) for one in (store, other)]
    for ours, theirs in zip(*loaders, strict=True):
        assert ours.keys == theirs.keys
        for name in ("fbank", "hog", "labels"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))


def test_an_ingest_into_it_gives_the_bytes_of_a_folder(s3: str, growing: Any) -> None:
    local = growing.ingest_first()
    url = f"{s3}/data/tiny"
    manifest = folder_manifest(growing.corpus, FolderOptions(dataset="tiny", labels_csv=growing.corpus / "first.csv"))
    ingest(manifest, url, IngestOptions(num_frames=256, clips_per_shard=5, num_workers=0))
    location = open_location(url)
    for name in local.location.files():
        assert location.read(name) == local.location.read(name), name
    assert location.files() == local.location.files()
    assert verify(location) == []
    assert_same_batches(Store(url), local, num_steps=5)


def test_epochs(s3: str, grown_store: Store, cache_folder: Path) -> None:
    store = Store(upload(grown_store.root, f"{s3}/tiny"))
    assert_same_batches(store, grown_store, num_steps=10)
    rows = store.rows(split="test")
    seen = [batch.rows for batch in sequential_batches(store, rows, 4)]
    assert np.concatenate(seen).tolist() == rows.tolist()
    assert len(list(cache_folder.glob("*/*.tar"))) == 7
    assert_same_batches(Store(store.location, 1), Store(grown_store.root, 1), num_steps=5)


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.REFUSED, Fault.BUSY])
def test_connections_that_drop(flaky_s3: tuple[str, FlakyProxy], grown_store: Store, fault: Fault) -> None:
    url, proxy = flaky_s3
    store = Store(upload(grown_store.root, f"{url}/tiny"))
    for shard in (0, 3, 6):
        proxy.inject(fault, times=1, method="GET", path=f"tiny-00000{shard}.tar")
    assert_same_batches(store, grown_store, num_steps=5)
    assert proxy.pending() == 0


def test_a_clip_whose_shard_is_gone(s3: str, grown_store: Store) -> None:
    location = upload(grown_store.root, f"{s3}/tiny")
    store = OpenStore(location)
    name = store.tar_name(0)
    location.delete(name)
    with pytest.raises(InputError) as caught:
        store[store.keys(store.rows_of_shard(0)[:1])[0]]
    assert str(caught.value).count(f"{location}/{name} can't be read") == 1
    assert str(caught.value).endswith("; run `featurestore verify`")


def test_verify_finds_what_is_wrong(s3: str, grown_store: Store) -> None:
    location = upload(grown_store.root, f"{s3}/tiny")
    assert verify(location) == []
    tar = bytearray(location.read("shards/tiny-000003.tar"))
    tar[70_000] ^= 1
    location.write("shards/tiny-000003.tar", bytes(tar))
    location.delete("shards/tiny-000001.parquet")
    location.write("shards/extra", b"")
    assert {problem.where for problem in verify(location)} == {
        "shards/tiny-000003.tar",
        "shards/tiny-000001.parquet",
        "shards/extra",
    }
    with pytest.raises(
        InputError, match=r"tiny-000003\.tar is not the tar that its index names; run `featurestore ver"
    ):
        list(sequential_batches(Store(location), Store(location).rows(), 5))


def test_repair(s3: str, growing: Any) -> None:
    growing.ingest_first()
    location = upload(growing.root, f"{s3}/tiny")
    before = {name: location.read(name) for name in location.files()}
    location.write("shards/tiny-000001.tar", before["shards/tiny-000001.tar"][:-700])
    location.delete("index.parquet")
    result = repair(location)
    assert (result.rebuilt, result.left) == (["tiny-000001"], [])
    assert {name: location.read(name) for name in location.files()} == before


def test_a_teacher_cache_in_it(s3: str, growing: Any, waveform_stats: Any) -> None:
    local = growing.ingest_first()
    location = upload(growing.root, f"{s3}/tiny")
    result = build_teacher(Store(location), waveform_stats(), "stats")
    assert (result.num_rows, result.failures) == (11, [])
    theirs = build_teacher(local, waveform_stats(), "stats").cache.embeddings(local.rows())
    np.testing.assert_array_equal(TeacherCache(Store(location), "stats").embeddings(local.rows()), theirs)
    assert verify(location) == []
    for batch in sequential_batches(Store(location), local.rows(), 4, TeacherCache(Store(location), "stats")):
        np.testing.assert_array_equal(batch.teacher, theirs[np.searchsorted(local.rows(), batch.rows)])
    chunk = bytearray(location.read("teachers/stats.zarr/embedding/c/1/0"))
    chunk[9] ^= 8
    location.write("teachers/stats.zarr/embedding/c/1/0", bytes(chunk))
    assert "teachers/stats.zarr/embedding/c/1/0" in {problem.where for problem in verify(location)}
    teacher = waveform_stats()
    build_teacher(Store(location), teacher, "stats")
    # Clips of one length go through the teacher together.
    assert sum(len(batch) for batch in teacher.batches) == 1 + 5
    assert verify(location) == []


def test_a_teacher_cache_through_dropped_connections(
    flaky_s3: tuple[str, FlakyProxy], grown_store: Store, fbank_stats: Any
) -> None:
    url, proxy = flaky_s3
    store = Store(upload(grown_store.root, f"{url}/tiny"))
    proxy.inject(Fault.UPLOAD_CUT, times=1, method="PUT", path="embedding/c/2/0")
    proxy.inject(Fault.LOST, times=1, method="PUT", path="logits/c/3/0")
    proxy.inject(Fault.CUT, times=1, method="GET", path="tiny-000004.tar")
    result = build_teacher(store, fbank_stats(), "stats")
    assert (result.num_rows, result.failures) == (23, [])
    assert proxy.pending() == 0
    proxy.inject(Fault.CUT, times=1, method="GET", path="embedding/c/1/0")
    assert np.isfinite(TeacherCache(store, "stats").embeddings(store.rows())).all()
    assert proxy.pending() == 0
    assert verify(store.location) == []


def test_a_store_that_grows_in_it(s3: str, growing: Any, waveform_stats: Any) -> None:
    """Of the sources only the new ones are at hand; the cache of the first clips is kept."""
    growing.ingest_first()
    location = upload(growing.root, f"{s3}/tiny")
    build_teacher(Store(location), waveform_stats(), "stats")
    manifest = folder_manifest(growing.corpus, FolderOptions(dataset="tiny", labels_csv=growing.corpus / "clips.csv"))
    ingest(manifest, location, IngestOptions(num_frames=256, num_workers=0, append=True))
    shutil.rmtree(growing.root)
    store = Store(location)
    assert (store.snapshot.number, len(store), len(Store(location, 1))) == (2, 22, 11)
    with pytest.raises(InputError, match="lacks the clips that were appended since"):
        TeacherCache(store, "stats")
    teacher = waveform_stats()
    assert build_teacher(store, teacher, "stats").num_rows == 22
    assert sum(len(batch) for batch in teacher.batches) == 1 + 11
    assert verify(location) == []


def test_the_folder_of_a_store_that_has_none(s3: str, grown_store: Store) -> None:
    store = Store(upload(grown_store.root, f"{s3}/tiny"))
    with pytest.raises(InputError, match=r"/tiny is no folder on this machine, which is needed here; copy the store"):
        _ = store.root
