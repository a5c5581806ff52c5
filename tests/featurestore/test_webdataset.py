"""A reader who has webdataset and numpy, and not our packages, gets the same arrays and labels."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.store import Store

READER = """
import sys
import numpy as np
import webdataset

*shards, output = sys.argv[1:]
arrays = {}
for sample in webdataset.WebDataset(shards, shardshuffle=False).decode():
    key = sample["__key__"]
    arrays["fbank/" + key], arrays["hog/" + key] = sample["fbank.npy"], sample["hog.npy"]
    arrays["labels/" + key] = np.array(sample["json"]["labels"], dtype=str)
    arrays["indices/" + key] = np.array(sample["json"]["label_indices"], dtype=int)
    assert sample["json"]["key"] == key
ours = {"manifests", "ingest", "featurestore", "training"} & {name.split(".")[0] for name in sys.modules}
assert not ours, ours
np.savez(output, **arrays)
"""


def read(store: Store, folder: Path) -> dict[str, NDArray[Any]]:
    shards = [str(path) for path in sorted((store.root / "shards").glob("*.tar"))]
    command = [sys.executable, "-c", READER, *shards, str(folder / "read.npz")]
    subprocess.run(command, check=True, timeout=100, cwd=folder)
    with np.load(folder / "read.npz") as arrays:
        return dict(arrays)


def test_webdataset_reads_the_shards(
    finished_store: Store, tmp_path: Path, fbanks: dict[str, NDArray[Any]], hogs: dict[str, NDArray[Any]]
) -> None:
    arrays = read(finished_store, tmp_path)
    rows = finished_store.rows()
    # In the order of the store's rows: webdataset and we agree on what a shard holds.
    keys = [name.removeprefix("fbank/") for name in arrays if name.startswith("fbank/")]
    assert keys == finished_store.keys(rows)
    labels = finished_store.labels(rows)
    for key, row, hot in zip(keys, rows.tolist(), labels, strict=True):
        assert arrays[f"fbank/{key}"].dtype == arrays[f"hog/{key}"].dtype == np.float16
        assert (arrays[f"fbank/{key}"] == fbanks[key]).all()
        assert (arrays[f"hog/{key}"] == hogs[key]).all()
        assert tuple(arrays[f"labels/{key}"]) == finished_store.clip(row).labels
        assert arrays[f"indices/{key}"].tolist() == np.flatnonzero(hot).tolist()


def test_several_labels_and_audio(make_store: Callable[..., Store], tmp_path: Path) -> None:
    store = make_store(["rain;bark", "", "bell"], "labels", keep_audio=True)
    arrays = read(store, tmp_path)
    assert {key: arrays[f"labels/{key}"].tolist() for key in store.keys(store.rows())} == {
        "clip00": ["rain", "bark"],
        "clip01": [],
        "clip02": ["bell"],
    }
    assert arrays["indices/clip00"].tolist() == [2, 0]
