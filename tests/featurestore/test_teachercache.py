"""A teacher's cache: what goes in comes out, whose it is, and that damage is noticed."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from featurestore.cachefiles import TeacherAttributes
from featurestore.store import Store
from featurestore.teachercache import TeacherCache, create_cache
from manifests.errors import InputError
from manifests.vocabulary import Vocabulary

SHARD_ROWS = 5


@pytest.fixture
def store(store_copy: Path) -> Store:
    return Store(store_copy)


def attributes(store: Store, **changes: Any) -> TeacherAttributes:
    usual: dict[str, Any] = {
        "name": "random",
        "teacher": "random",
        "embedding_dim": 4,
        "provenance": {"checkpoint_sha256": "ab" * 32, "rates": (16000, 0.5)},
        "store_fingerprint": store.snapshot.fingerprint,
        "snapshot": 1,
        "vocabulary": Vocabulary.from_names(["x", "y", "z"]),
    }
    return TeacherAttributes.model_validate(usual | changes)


def shard_values(shard: int, *shape: int) -> NDArray[np.float16]:
    return np.random.default_rng(shard).standard_normal((SHARD_ROWS, *shape)).astype(np.float16)


def create(store: Store, **changes: Any) -> TeacherCache:
    return create_cache(store, "random", attributes(store, **changes), {"embedding": (4,), "logits": (3,)})


@pytest.fixture
def cache(store: Store) -> TeacherCache:
    """Shards 0, 2, 3 and 4 are there, shard 1 is missing."""
    made = create(store)
    for shard in (0, 2, 3, 4):
        made.write(shard, {"embedding": shard_values(shard, 4), "logits": shard_values(shard, 3)})
    return made


def chunk(cache: TeacherCache, shard: int, output: str = "embedding") -> Path:
    return Path(cache.path) / output / "c" / str(shard) / "0"


def test_round_trip(store: Store, cache: TeacherCache) -> None:
    reopened = TeacherCache(store, "random")
    rows = np.array([22, 0, 11, 0, 14])
    embeddings = reopened.embeddings(rows)
    assert embeddings.dtype == np.float32
    expected = [shard_values(int(row) // SHARD_ROWS, 4)[row % SHARD_ROWS] for row in rows]
    assert (embeddings == np.stack(expected)).all()
    assert (reopened.read("logits", 3) == shard_values(3, 3)).all()
    assert reopened.outputs == ["embedding", "logits"]
    assert reopened.embedding_dim == 4
    assert reopened.attributes.vocabulary == Vocabulary.from_names(["x", "y", "z"])
    assert reopened.embeddings(np.zeros(0, np.int64)).shape == (0, 4)


def test_logits_by_row(store: Store, cache: TeacherCache) -> None:
    rows = np.array([12, 3])
    assert (cache.logits(rows) == np.stack([shard_values(2, 3)[2], shard_values(0, 3)[3]])).all()
    with pytest.raises(InputError, match=r"random\.zarr has no tokens, only embedding, logits"):
        cache.read("tokens", 0)


def test_missing_rows_are_nan(store: Store, cache: TeacherCache) -> None:
    embeddings = cache.embeddings(np.array([4, 5, 9, 10]))
    assert np.isnan(embeddings).all(1).tolist() == [False, True, True, False]
    assert [cache.has_shard(shard) for shard in range(5)] == [True, False, True, True, True]
    partly = shard_values(1, 4)
    partly[int(np.flatnonzero(store.ok[5:10])[0])] = np.nan
    cache.write(1, {"embedding": partly, "logits": shard_values(1, 3)})
    assert not cache.has_shard(1)


def test_rows_of_failed_clips_may_be_nan(store: Store, cache: TeacherCache) -> None:
    shard, position = divmod(int(np.flatnonzero(~store.ok)[0]), SHARD_ROWS)
    values = shard_values(shard, 4)
    values[position] = np.nan
    cache.write(shard, {"embedding": values, "logits": shard_values(shard, 3)})
    assert cache.has_shard(shard)


def test_writing_replaces_what_was_read_before(cache: TeacherCache) -> None:
    assert np.isnan(cache.embeddings(np.array([5]))).all()
    cache.write(1, {"embedding": shard_values(7, 4)})
    assert (cache.embeddings(np.array([5, 6])) == shard_values(7, 4)[:2]).all()


def test_more_shards_than_are_kept_in_memory(cache: TeacherCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two loaders, for training and evaluation, read from one cache at a time."""
    monkeypatch.setattr("featurestore.teachercache.MAX_CHUNKS_IN_MEMORY", 1)
    cache.write(1, {"embedding": shard_values(1, 4)})
    expected = np.concatenate([shard_values(shard, 4) for shard in range(5)])
    wrong: list[str] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(40):
                rows = rng.permutation(23)
                if not (cache.embeddings(rows) == expected[rows]).all():
                    wrong.append("values")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_one_chunk_file_belongs_to_one_tar(store: Store, cache: TeacherCache) -> None:
    cache.write(1, {"embedding": shard_values(1, 4), "logits": shard_values(1, 3)})
    folder = Path(cache.path)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("c/**/*") if path.is_file())
    assert files == [f"{output}/c/{shard}/0" for output in ("embedding", "logits") for shard in range(5)]
    assert len(list((store.root / "shards").glob("*.tar"))) == 5
    before = {shard: chunk(cache, shard).read_bytes() for shard in range(5)}
    cache.write(2, {"embedding": shard_values(9, 4)})
    assert [shard for shard in range(5) if chunk(cache, shard).read_bytes() != before[shard]] == [2]


def test_plain_zarr_reads_it(store: Store, cache: TeacherCache) -> None:
    group = zarr.open_group(cache.path, mode="r")
    assert group.metadata.zarr_format == 3
    assert group["embedding"].shape == (25, 4)
    assert group["embedding"].dtype == np.float16
    values = np.asarray(group["embedding"][:])
    assert (values[10:15] == shard_values(2, 4)).all()
    assert np.isnan(values[5:10]).all()
    assert dict(group.attrs) == {
        "format": 1,
        "name": "random",
        "teacher": "random",
        "embedding_dim": 4,
        "provenance": {"checkpoint_sha256": "ab" * 32, "rates": [16000, 0.5]},
        "store_fingerprint": store.snapshot.fingerprint,
        "snapshot": 1,
        "vocabulary": {"labels": [{"id": name, "name": name} for name in "xyz"]},
        "inputs": [],
        "precision": "float32",
        "num_views": 0,
        "views_seed": 0,
    }


def test_an_unknown_name_lists_those_there(store: Store, cache: TeacherCache) -> None:
    with pytest.raises(InputError, match=r"copy has no cache of a teacher 'beats' \(there are: random\); make it with"):
        TeacherCache(store, "beats")
    shutil.rmtree(cache.path)
    with pytest.raises(InputError, match=r"\(there are: none\)"):
        TeacherCache(store, "random")


def test_another_content_of_the_store_is_refused(store: Store, cache: TeacherCache) -> None:
    metadata = Path(cache.path) / "zarr.json"
    metadata.write_text(metadata.read_text().replace(store.snapshot.fingerprint, "f00d" * 16))
    own = store.snapshot.fingerprint[:12]
    with pytest.raises(InputError, match=rf"fingerprint f00df00df00d, the store's is {own}\); delete it and run"):
        TeacherCache(store, "random")


def test_an_open_cache_is_opened_for_more_rows(store: Store, cache: TeacherCache) -> None:
    again = create(store)
    assert [again.has_shard(shard) for shard in range(5)] == [True, False, True, True, True]


def test_another_teacher_is_refused_naming_the_field(store: Store, cache: TeacherCache) -> None:
    for changes, field in (
        (
            {"provenance": {"checkpoint_sha256": "cd" * 32, "rates": (16000, 0.5)}},
            rf"provenance\.checkpoint_sha256 \({'ab' * 10}\.\.\. there, {'cd' * 10}\.\.\. wanted\)",
        ),
        ({"provenance": {"checkpoint_sha256": "ab" * 32, "rates": (32000, 0.5)}}, r"provenance\.rates"),
        ({"teacher": "other"}, r"teacher \(random there, other wanted\)"),
        ({"vocabulary": None, "embedding_dim": 5}, r"embedding_dim \(4 there, 5 wanted\), vocabulary"),
        ({"precision": "bfloat16"}, r"precision \(float32 there, bfloat16 wanted\)"),
        ({"inputs": ({"kind": "waveform", "sample_rate_hz": 16000},)}, "inputs"),
        ({"num_views": 2, "views_seed": 5}, r"num_views \(0 there, 2 wanted\), views_seed \(0 there, 5 wanted\)"),
    ):
        with pytest.raises(InputError, match=rf"random\.zarr is another cache: it differs in {field}; delete it or"):
            create(store, **changes)
    with pytest.raises(InputError, match="differs in outputs"):
        create_cache(store, "random", attributes(store), {"embedding": (4,)})


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
@pytest.mark.parametrize("output", ["embedding", "logits"])
def test_a_damaged_chunk_is_noticed_and_made_anew(store: Store, cache: TeacherCache, output: Any, damage: str) -> None:
    path = chunk(cache, 2, output)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"torn": content[:-1], "flipped": content, "empty": b""}[damage])
    reopened = TeacherCache(store, "random", writable=True)
    with pytest.raises(InputError, match=rf"random\.zarr/{output} is damaged in the rows of shard 2 .*build-teacher"):
        reopened.read(output, 2)
    assert [reopened.has_shard(shard) for shard in range(5)] == [True, False, False, True, True]
    reopened.write(2, {"embedding": shard_values(2, 4), "logits": shard_values(2, 3)})
    assert reopened.has_shard(2)
    assert (reopened.read("embedding", 2) == shard_values(2, 4)).all()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("zarr.json", None),
        ("zarr.json", "{"),
        ("zarr.json", '{"zarr_format": 3, "node_type": "group"}'),
        ("zarr.json", '{"zarr_format": 3, "node_type": "group", "attributes": {}, "colour": 1}'),
        ("embedding/zarr.json", None),
        ("embedding/zarr.json", "{"),
        ("embedding/zarr.json", '{"zarr_format": 3, "node_type": "array"}'),
        ("logits/zarr.json", "\xff"),
    ],
)
def test_damaged_metadata(store: Store, cache: TeacherCache, name: str, content: str | None) -> None:
    path = Path(cache.path) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"random\.zarr is .*; delete it and build (it|the teacher) again"):
        TeacherCache(store, "random")


def test_an_array_of_another_size(store: Store, cache: TeacherCache) -> None:
    path = Path(cache.path) / "embedding/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [20, 4]}))
    with pytest.raises(InputError, match=r"random\.zarr is damaged, its arrays are too short; delete it and build it"):
        TeacherCache(store, "random")


def test_views_by_row(store: Store) -> None:
    shapes: dict[Any, tuple[int, ...]] = {"embedding": (4,), "embedding_views": (2, 4)}
    made = create_cache(store, "random", attributes(store, num_views=2), shapes)
    for shard in range(5):
        made.write(shard, {"embedding": shard_values(shard, 4), "embedding_views": shard_values(shard, 2, 4)})
    rows, opened = np.array([12, 3, 4]), TeacherCache(store, "random")
    assert opened.outputs == ["embedding", "embedding_views"]
    first, second, third = shard_values(2, 2, 4)[2], shard_values(0, 2, 4)[3], shard_values(0, 2, 4)[4]
    assert (opened.gather_view("embedding", rows, 1) == np.stack([first[1], second[1], third[1]])).all()
    each = opened.gather_view("embedding", rows, np.array([1, 0, 1]))
    assert (each == np.stack([first[1], second[0], third[1]])).all()
    assert (opened.gather("embedding_views", rows) == np.stack([first, second, third])).all()
    with pytest.raises(InputError, match=r"has 2 augmented views of each clip, and 3 are wanted; build it with more"):
        opened.gather_view("embedding", rows, 2)
    with pytest.raises(InputError, match=r"has no logits_views, only embedding, embedding_views"):
        opened.gather_view("logits", rows, 0)
