"""Stores whose clips have any labels, folds and splits, and a cache of embeddings that say something of the labels."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from featurestore.cachefiles import TeacherAttributes
from featurestore.store import Store
from featurestore.teachercache import TeacherCache, create_cache
from ingest.job import IngestOptions, ingest
from manifests.folder import FolderOptions, folder_manifest

WIDTH = 8


def noise(number: int) -> NDArray[np.float64]:
    """A quarter of a second at 16 kHz."""
    return 0.1 * np.random.default_rng(number).standard_normal(4000)


def labelled_store(
    home: Path, columns: Mapping[str, Sequence[object]], sound: Callable[[int], NDArray[np.float64]] = noise
) -> Store:
    """A clip of `sound` for every row of `columns`, which are those of a folder's CSV."""
    corpus = home / "corpus"
    corpus.mkdir(parents=True)
    num_clips = len(next(iter(columns.values())))
    columns = {"file": [f"clip{number:03d}.wav" for number in range(num_clips)], **columns}
    for number, name in enumerate(sorted({str(name) for name in columns["file"]})):
        soundfile.write(corpus / name, sound(number), 16000, subtype="PCM_16")
    with (corpus / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    manifest = folder_manifest(corpus, FolderOptions(dataset="labelled", labels_csv=corpus / "clips.csv"))
    ingest(manifest, home / "store", IngestOptions(num_frames=256, clips_per_shard=16, num_workers=0))
    return Store(home / "store")


def write_embeddings(store: Store, name: str, embeddings: NDArray[np.float32]) -> TeacherCache:
    """A cache of `embeddings` (rows, D), in the order of `store.rows()`."""
    attributes = TeacherAttributes(
        name=name,
        teacher="made-up",
        embedding_dim=embeddings.shape[1],
        provenance={"checkpoint_sha256": "2" * 64},
        store_fingerprint=store.snapshot.fingerprint,
        snapshot=store.snapshot.number,
        vocabulary=None,
    )
    cache = create_cache(store, name, attributes, {"embedding": (embeddings.shape[1],)})
    of_row = dict(zip(store.rows().tolist(), embeddings.astype(np.float16), strict=True))
    for shard in range(store.snapshot.num_shards):
        values = np.full((store.file.clips_per_shard, embeddings.shape[1]), np.nan, np.float16)
        for place, row in enumerate(store.rows_of_shard(shard).tolist()):
            if row in of_row:
                values[place] = of_row[row]
        cache.write(shard, {"embedding": values})
    return TeacherCache(store, name)


def telling(store: Store, noise: float, seed: int = 0) -> NDArray[np.float32]:
    """Embeddings (rows, 8) that are the mean of a direction for each of a clip's labels, and noise."""
    directions = np.random.default_rng(5).standard_normal((store.num_classes, WIDTH))
    labels = store.labels(store.rows())
    rng = np.random.default_rng(seed)
    embeddings: NDArray[np.float32] = labels @ directions + noise * rng.standard_normal((len(labels), WIDTH))
    return embeddings.astype(np.float32)
