"""store.json: read back as written, and refused where it can't be trusted."""

import json
import shutil
from pathlib import Path

import pytest

from ingest.layout import Part, StoreFile, choose_store, read_store_file, write_store_file
from ingest.location import LocalFolder, open_location
from manifests.errors import InputError
from tests.s3server import Fault, FlakyProxy, flaky_s3_fixture, s3_server_fixture  # noqa: F401


def test_read_back_as_written(store_root: Path, tmp_path: Path) -> None:
    store = read_store_file(LocalFolder(store_root))
    write_store_file(LocalFolder(tmp_path), store)
    assert read_store_file(LocalFolder(tmp_path)) == store
    assert (tmp_path / "store.json").read_bytes() == (store_root / "store.json").read_bytes()


def test_where_things_lie(store_root: Path) -> None:
    store = read_store_file(LocalFolder(store_root))
    assert store.tar_name(12) == "shards/tiny-000012.tar"
    assert store.sidecar_name(12) == "shards/tiny-000012.parquet"


def with_parts(store: StoreFile, *sizes: int) -> StoreFile:
    parts = tuple(Part(num_clips_asked=size, manifest_sha256="a", wanted_sha256="a") for size in sizes)
    return store.model_copy(update={"parts": parts, "snapshots": ()})


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ((1,), [(0, 0, 1)]),
        ((5,), [(0, 0, 5)]),
        ((6,), [(0, 0, 5), (0, 5, 6)]),
        ((12,), [(0, 0, 5), (0, 5, 10), (0, 10, 12)]),
        # A part begins a shard of its own, and the part before it keeps its short one.
        ((6, 1, 5), [(0, 0, 5), (0, 5, 6), (1, 6, 7), (2, 7, 12)]),
    ],
)
def test_the_rows_of_shards(store_root: Path, sizes: tuple[int, ...], rows: list[tuple[int, int, int]]) -> None:
    store = with_parts(read_store_file(LocalFolder(store_root)), *sizes)
    assert list(store.shard_rows()) == rows
    assert (store.num_shards, store.num_rows, store.num_shards_published) == (len(rows), sum(sizes), 0)


def test_a_recipe_is_named_with_the_clips_of_a_part(store_root: Path) -> None:
    store = read_store_file(LocalFolder(store_root))
    (part,) = store.parts
    assert not {"parts", "snapshots", "versions"} & store.recipe().keys()
    twice = store.model_copy(update={"parts": (part, part, part.model_copy(update={"manifest_sha256": "other"}))})
    assert store.recipe_sha256(0) == twice.recipe_sha256(0) == twice.recipe_sha256(1) != twice.recipe_sha256(2)
    moved = part.model_copy(update={"wanted_sha256": "other", "lists": {"a.csv": "b"}})
    assert store.model_copy(update={"parts": (moved,)}).recipe_sha256(0) == store.recipe_sha256(0)
    for change in ({"seed": 1}, {"drop_silent": True}, {"keep_audio": True}, {"clips_per_shard": 6}):
        assert store.model_copy(update=change).recipe_sha256(0) != store.recipe_sha256(0)


def test_the_one_store_under_data_is_meant(store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"there is no store under \./data; make one"):
        choose_store(None)
    for name in ("b", "a"):
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(store_root / "store.json", tmp_path / "data" / name)
        if name == "b":
            assert choose_store(None) == LocalFolder(Path("data/b"))
    with pytest.raises(InputError, match=r"several stores under \./data: data/a, data/b; choose one"):
        choose_store(None)
    assert str(choose_store("data/c")) == "data/c"


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a store: it has no store\.json; make one with `ingest`"):
        read_store_file(LocalFolder(tmp_path / "none"))


def test_a_place_that_fails_is_named_once(flaky_s3: tuple[str, FlakyProxy], tmp_path: Path) -> None:
    address, proxy = flaky_s3
    proxy.inject(Fault.DENIED)
    with pytest.raises(InputError) as caught:
        read_store_file(open_location(f"{address}/a"))
    denied = "denied (HTTP 403 AccessDenied); check the credentials and what they allow"
    assert str(caught.value) == f"{address}/a/store.json can't be read: {denied}"
    (tmp_path / "store.json").mkdir()
    with pytest.raises(InputError) as caught:
        read_store_file(LocalFolder(tmp_path))
    assert str(caught.value) == f"{tmp_path}/store.json can't be read: Is a directory"


def test_another_format(store_root: Path, tmp_path: Path) -> None:
    content = json.loads((store_root / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(InputError, match=r"store\.json: format 2 is not one that this version reads \(format 1\)"):
        read_store_file(LocalFolder(tmp_path))


@pytest.mark.parametrize("damage", ["[]", '"format"', "{", "\xff", "", "null"])
def test_no_json_of_ours(tmp_path: Path, damage: str) -> None:
    (tmp_path / "store.json").write_bytes(damage.encode("latin-1"))
    with pytest.raises(InputError, match=r"store\.json(: format None| is damaged)"):
        read_store_file(LocalFolder(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fbank", {"num_frames": 300}),
        ("seed", "x"),
        ("new", 1),
        ("hog", None),
        ("dataset", "../up"),
        ("clips_per_shard", 0),
        ("parts", [{"num_clips_asked": 0, "manifest_sha256": "", "wanted_sha256": ""}]),
    ],
)
def test_a_field_that_is_wrong(store_root: Path, tmp_path: Path, field: str, value: object) -> None:
    content = json.loads((store_root / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**content, field: value}))
    with pytest.raises(InputError, match=r"store\.json is damaged") as caught:
        read_store_file(LocalFolder(tmp_path))
    assert "\n" not in str(caught.value)
