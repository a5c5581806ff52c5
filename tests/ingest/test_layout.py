"""store.json: read back as written, and refused where it can't be trusted."""

import json
from pathlib import Path

import pytest

from ingest.layout import read_store_file, sidecar_path, tar_path, write_store_file
from manifests.errors import InputError


def test_read_back_as_written(store_root: Path, tmp_path: Path) -> None:
    store = read_store_file(store_root)
    write_store_file(tmp_path, store)
    assert read_store_file(tmp_path) == store
    assert (tmp_path / "store.json").read_bytes() == (store_root / "store.json").read_bytes()


def test_where_things_lie(store_root: Path) -> None:
    store = read_store_file(store_root)
    assert tar_path(Path("x"), store, 12) == Path("x/shards/tiny-000012.tar")
    assert sidecar_path(Path("x"), store, 12) == Path("x/shards/tiny-000012.parquet")
    for num_clips, num_shards in ((1, 1), (5, 1), (6, 2), (10, 2), (11, 3)):
        assert store.model_copy(update={"num_clips_asked": num_clips}).num_shards == num_shards


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a store: it has no store\.json; make one with `ingest`"):
        read_store_file(tmp_path / "none")


def test_another_format(store_root: Path, tmp_path: Path) -> None:
    content = json.loads((store_root / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(InputError, match=r"store\.json: format 2 is not one that this version reads \(format 1\)"):
        read_store_file(tmp_path)


@pytest.mark.parametrize("damage", ["[]", '"format"', "{", "\xff", "", "null"])
def test_no_json_of_ours(tmp_path: Path, damage: str) -> None:
    (tmp_path / "store.json").write_bytes(damage.encode("latin-1"))
    with pytest.raises(InputError, match=r"store\.json(: format None| is damaged)"):
        read_store_file(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("fbank", {"num_frames": 300}), ("seed", "x"), ("new", 1), ("hog", None)])
def test_a_field_that_is_wrong(store_root: Path, tmp_path: Path, field: str, value: object) -> None:
    content = json.loads((store_root / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**content, field: value}))
    with pytest.raises(InputError, match=r"store\.json is damaged") as caught:
        read_store_file(tmp_path)
    assert "\n" not in str(caught.value)
