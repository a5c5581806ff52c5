"""A tour of the whole: makes a corpus of sounds, ingests it, looks, loads, asks a teacher, and queries a table.

Run it with a new store's folder:  python examples/tour.py data/tour
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import featurestore
from featurestore.build import build_teacher
from featurestore.teachers.base import FbankInput, TeacherOutput
from ingest.job import ingest
from ingest.plan import IngestOptions
from ingest.synthesis import write_demo_audio
from manifests.demo import demo_manifest
from manifests.geometry import FbankSpec


class MelStatistics(nn.Module):
    """The simplest teacher of all: the mean and the deviation of each mel band over time, (B, 2 x 128)."""

    name, embedding_dim, vocabulary = "mel-statistics", 256, None

    def __init__(self, spec: FbankSpec) -> None:
        super().__init__()
        self.input = FbankInput(spec)
        self.provenance: dict[str, Any] = {"family": self.name}

    @torch.inference_mode()
    def embed(self, batch: Tensor) -> TeacherOutput:
        return TeacherOutput(embedding=torch.cat([batch.mean(1), batch.std(1)], 1))


def main(address: str) -> None:
    print("1. Ingest: 240 sounds of 12 classes become shards. (On the command line: ingest demo)")
    sounds = demo_manifest(Path(address, "source", "demo-0"))
    write_demo_audio(sounds, seed=0)
    ingest(sounds, address, IngestOptions(num_frames=256, num_workers=0))

    print("2. Look: a store is a dictionary of clips.")
    store = featurestore.open(address)
    sample = store["siren_001"]
    print(f"   {len(store)} clips, {len(store.vocabulary)} classes; splits: {', '.join(store.splits)}")
    print(
        f"   {sample.key}: {', '.join(sample.label_names)}, fbank {sample.fbank.shape} {sample.fbank.dtype}, "
        f"{sample.ledger['duration_s']:.2f} s of {sample.ledger['codec']} at {sample.ledger['source_rate_hz']} Hz"
    )

    print("3. Teach: a teacher's embeddings are cached beside the shards. (featurestore build-teacher)")
    build_teacher(store, MelStatistics(store.file.fbank), "mel-statistics")

    print("4. Load: shuffled batches, with the teacher's embeddings joined.")
    part = store.hold_out()
    for batch in store.loader(32, rows=part.train, teacher="mel-statistics").epoch(0):
        arrays = (batch.fbank, batch.hog, batch.labels, batch.teacher)
        print("   fbank, hog, labels, teacher:", *(array.shape for array in arrays if array is not None))
        break

    print("5. Judge: the class whose mean embedding is nearest to that of a clip.")
    embeddings = store.teacher("mel-statistics").embeddings
    train, held_out = embeddings(part.train), embeddings(part.held_out)
    labels = store.labels(part.train)
    centres = labels.T @ train / labels.sum(0)[:, None]
    distances = np.linalg.norm(held_out[:, None] - centres[None], axis=-1)
    right = distances.argmin(1) == store.labels(part.held_out).argmax(1)
    print(f"   {right.mean():.0%} of {len(right)} clips of {part.name!r} are right; by chance {1 / len(centres):.0%}")

    print("6. Ask: the store as a table, here in SQL.")
    clips = store.table(["key", "label_names", "window_s", "rms", "silent"])
    try:
        import duckdb
    except ImportError:
        print(f"   duckdb is not installed (pip install duckdb); pandas can do it, too: {clips.num_rows} rows")
        return
    print(
        duckdb.sql(
            "select label_names[1] as label, count(*) as num_clips, round(avg(rms), 3) as loudness from clips "
            "group by label order by loudness desc limit 3"
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
