"""Readers of a store as others would write them: scripts for processes that never import a package of ours."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

# Every reader fills `save`: fbank/KEY, hog/KEY, labels/KEY (ids), flac/KEY (bytes).
PROLOGUE = """
import glob, io, json, os, sys
import numpy as np

save = {}


def keep(key, fbank, hog, labels, flac):
    save["fbank/" + key], save["hog/" + key] = fbank, hog
    save["labels/" + key] = np.array(labels, dtype=str)
    save["flac/" + key] = np.frombuffer(flac or b"", np.uint8)
"""
EPILOGUE = """
ours = {"manifests", "ingest", "featurestore", "training"} & {name.split(".")[0] for name in sys.modules}
assert not ours, ours
np.savez(sys.argv[1], **save)
"""
TAR = """
import subprocess, tempfile

for shard in sorted(glob.glob("shards/*.tar")):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "xf", shard, "-C", folder], check=True)
        names = subprocess.run(["tar", "tf", shard], check=True, capture_output=True, text=True).stdout.split()
        for name in names:
            if name.endswith(".json"):
                stem = folder + "/" + name.removesuffix(".json")
                with open(stem + ".json") as file:
                    about = json.load(file)
                flac = open(stem + ".flac", "rb").read() if os.path.exists(stem + ".flac") else None
                fbank, hog = (np.load(f"{stem}.{kind}.npy", allow_pickle=False) for kind in ("fbank", "hog"))
                keep(about["key"], fbank, hog, about["labels"], flac)
"""
OFFSETS = """
import pyarrow.parquet as pq

rows = pq.read_table("manifest.parquet").to_pylist()
with open("store.json") as file:
    num_frames = json.load(file)["fbank"]["num_frames"]
shape = num_frames // 16, 8, 9
for sidecar in sorted(glob.glob("shards/*.parquet")):
    tar = sidecar.removesuffix(".parquet") + ".tar"
    for clip in pq.read_table(sidecar).to_pylist():
        row = rows.pop(0)
        assert row["key"] == clip["key"]
        if not clip["ok"]:
            continue
        fbank = np.fromfile(tar, "<f2", num_frames * 128, offset=clip["fbank_offset"]).reshape(num_frames, 128)
        hog = np.fromfile(tar, "<f2", num_frames // 16 * 72, offset=clip["hog_offset"]).reshape(shape)
        flac = None
        if clip["audio_offset"] is not None:
            flac = np.fromfile(tar, "u1", clip["audio_size"], offset=clip["audio_offset"]).tobytes()
        keep(clip["key"], fbank, hog, row["labels"], flac)
"""
INDEX = """
import tarfile

with open("index.json") as file:
    index = json.load(file)
assert index["__kind__"] == "wids-shard-index-v1", index
for shard in index["shardlist"]:
    assert os.path.getsize(shard["url"]) == shard["filesize"]
    with tarfile.open(shard["url"]) as tar:
        samples = {}
        for member in tar:
            key, _, kind = member.name.partition(".")
            samples.setdefault(key, {})[kind] = tar.extractfile(member).read()
    assert len(samples) == shard["nsamples"]
    for key, sample in samples.items():
        fbank, hog = (np.load(io.BytesIO(sample[kind + ".npy"]), allow_pickle=False) for kind in ("fbank", "hog"))
        keep(key, fbank, hog, json.loads(sample["json"])["labels"], sample.get("flac"))
"""
WEBDATASET = """
import webdataset

for clip in webdataset.WebDataset(sorted(glob.glob("shards/*.tar")), shardshuffle=False).decode():
    keep(clip["__key__"], clip["fbank.npy"], clip["hog.npy"], clip["json"]["labels"], clip.get("flac"))
"""
DATASETS = """
from datasets import load_dataset

clips = load_dataset(SOURCE, streaming=STREAMING)
for clip in clips:
    fbank, hog = (np.array(clip[kind], np.float16) for kind in ("fbank.npy", "hog.npy"))
    assert clip["__key__"] == clip["json"]["key"]
    keep(clip["__key__"], fbank, hog, clip["json"]["labels"], clip.get("flac"))
"""
CARD = 'os.getcwd(), split="clips"'
FILES = '"webdataset", data_files={"all_of_it": "shards/*.tar"}, split="all_of_it"'


def datasets_reader(source: str, *, streaming: bool) -> str:
    return DATASETS.replace("SOURCE", source).replace("STREAMING", str(streaming))


READERS = {
    "tar and numpy": TAR,
    "index.json": INDEX,
    "offsets": OFFSETS,
    "webdataset": WEBDATASET,
    "datasets, streamed": datasets_reader(CARD, streaming=True),
    "datasets, converted": datasets_reader(CARD, streaming=False),
}
# Without the card `datasets` guesses the types from the first clips, and needs torchcodec for KEY.flac.
GUESSING = {
    "streamed": datasets_reader(FILES, streaming=True),
    "converted": datasets_reader(FILES, streaming=False),
}
CROISSANT = """
import mlcroissant

dataset = mlcroissant.Dataset("croissant.json")
assert not dataset.metadata.ctx.issues.errors
labels = {row["clips/key"].decode(): row["clips/labels"] for row in dataset.records("clips")}
for row in dataset.records("ledger"):
    if row["ledger/ok"]:
        key = row["ledger/key"].decode()
        save["labels/" + key] = np.array([label.decode() for label in labels[key]], dtype=str)
"""


def environment(folder: Path) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **offline, "CROISSANT_CACHE": str(folder / "croissant")}


def read(store: Path, script: str, folder: Path) -> Arrays:
    """What a reader gets, run in the store's folder."""
    command = [sys.executable, "-c", PROLOGUE + script + EPILOGUE, str(folder / "read.npz")]
    subprocess.run(command, check=True, timeout=200, cwd=store, env=environment(folder))
    with np.load(folder / "read.npz") as arrays:
        return dict(arrays)
