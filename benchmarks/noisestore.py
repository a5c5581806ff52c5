"""A small store of noise made without decoding anything, so that it can be made where only torch and pyarrow are."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from featurestore.cachefiles import TeacherAttributes
from featurestore.store import Store
from featurestore.teachercache import create_cache
from ingest.index import COLUMNS, Index, ShardEntry, make_snapshot, write_index
from ingest.layout import MANIFEST_FILE, SHARD_FOLDER, Part, StoreFile, write_store_file
from ingest.ledger import SCHEMA
from ingest.location import LocalFolder
from ingest.tarwriter import TarWriter
from manifests.clips import Clip, make_manifest
from manifests.geometry import FbankSpec, HogSpec
from manifests.parts import write_manifests
from manifests.vocabulary import Vocabulary

CLIPS_PER_SHARD = 256
NAME = "noise"


def make_noise_store(root: Path, num_clips: int, num_classes: int, teacher_dim: int) -> Store:
    """Clips of 1024 frames, one label each, and a teacher's cache called `random`."""
    rng = np.random.default_rng(0)
    (root / SHARD_FOLDER).mkdir(parents=True)
    names = [f"class{number}" for number in range(num_classes)]
    clips = [Clip(f"c{n}", f"{n}.wav", labels=(names[n % num_classes],)) for n in range(num_clips)]
    manifest = make_manifest(NAME, clips, Vocabulary.from_names(names), root)
    write_manifests([manifest], root / MANIFEST_FILE)
    store = StoreFile(
        dataset=NAME,
        clips_per_shard=CLIPS_PER_SHARD,
        seed=0,
        keep_audio=False,
        fbank=FbankSpec(),
        hog=HogSpec(),
        vocabulary=manifest.vocabulary,
        versions={},
        parts=(Part(num_clips_asked=num_clips, manifest_sha256="0" * 64, wanted_sha256="0" * 64),),
    )
    keys = manifest.table["key"].to_pylist()
    parts = [_write_shard(root / store.tar_name(n), keys[first:stop], rng) for n, first, stop in _ranges(store)]
    index = Index(pa.concat_tables([table for table, _ in parts]), tuple(entry for _, entry in parts))
    location = LocalFolder(root)
    write_index(location, index)
    write_store_file(location, store.model_copy(update={"snapshots": (make_snapshot(store, index, 1),)}))
    opened = Store(root)
    _write_teacher(opened, teacher_dim, rng)
    return opened


def _ranges(store: StoreFile) -> list[tuple[int, int, int]]:
    return [(number, first, stop) for number, (_, first, stop) in enumerate(store.shard_rows())]


def _write_shard(path: Path, keys: list[str], rng: np.random.Generator) -> tuple[pa.Table, ShardEntry]:
    fbank, hog = FbankSpec(), HogSpec()
    cells = (fbank.num_frames // hog.cell_size, fbank.num_mel_bins // hog.cell_size, hog.num_orientations)
    fbanks, hogs, total, total_sq = list[int](), list[int](), 0.0, 0.0
    with path.open("wb") as file:
        writer = TarWriter(file)
        for key in keys:
            values = rng.standard_normal((fbank.num_frames, fbank.num_mel_bins), np.float32)
            total, total_sq = total + float(values.sum()), total_sq + float(np.square(values).sum())
            fbanks.append(writer.add_array(f"{key}.fbank.npy", values.astype(np.float16)))
            hogs.append(writer.add_array(f"{key}.hog.npy", rng.random(cells, np.float32).astype(np.float16)))
            writer.add(f"{key}.json", json.dumps({"key": key}).encode())
        writer.close()
    columns = {
        "key": keys,
        "ok": [True] * len(keys),
        "reason": [None] * len(keys),
        "detail": [None] * len(keys),
        "fbank_offset": fbanks,
        "hog_offset": hogs,
        "num_frames": [fbank.num_frames] * len(keys),
    }
    table = pa.table(columns, schema=pa.schema([SCHEMA.field(name) for name in COLUMNS]))
    sidecar_sha256 = hashlib.sha256(b"none").hexdigest()
    return table, ShardEntry(
        tar_sha256=writer.sha256,
        tar_size=writer.size,
        sidecar_sha256=sidecar_sha256,
        num_clips=len(keys),
        fbank_sum=total,
        fbank_sum_sq=total_sq,
    )


def _write_teacher(store: Store, teacher_dim: int, rng: np.random.Generator) -> None:
    attributes = TeacherAttributes(
        name="random",
        teacher="random",
        embedding_dim=teacher_dim,
        provenance={},
        store_fingerprint=store.snapshot.fingerprint,
        snapshot=1,
        vocabulary=None,
    )
    cache = create_cache(store, "random", attributes, {"embedding": (teacher_dim,)})
    for shard in range(store.file.num_shards):
        cache.write(shard, {"embedding": rng.standard_normal((CLIPS_PER_SHARD, teacher_dim)).astype(np.float16)})
