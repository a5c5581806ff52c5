"""What an ingest has done so far: coverage per class, and the ledger's reasons."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ingest.layout import MANIFEST_FILE, StoreFile, read_store_file, sidecar_path
from ingest.shards import read_sidecar
from manifests.clips import Manifest


@dataclass
class Status:
    """Counts of a store, finished or not; the counters are by class name and by reason."""

    store: StoreFile
    num_shards_done: int = 0
    num_ok: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    present: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        return sum(self.reasons.values())


def read_status(root: Path) -> Status:
    """Reads a store's manifest and ledgers. Raises InputError when `root` is not a store."""
    store = read_store_file(root)
    manifest = Manifest.read(root / MANIFEST_FILE)
    status = Status(store)
    names = {label.id: label.name for label in store.vocabulary.labels}
    for shard in range(store.num_shards):
        sidecar = read_sidecar(sidecar_path(root, store, shard))
        first = shard * store.clips_per_shard
        clips = list(manifest.clips(first, first + store.clips_per_shard))
        rows = [None] * len(clips) if sidecar is None else sidecar.ledger.to_pylist()
        status.num_shards_done += sidecar is not None
        for clip, row in zip(clips, rows, strict=True):
            labels = [names[label] for label in clip.labels]
            status.asked.update(labels)
            if row is None:
                continue
            if row["ok"]:
                status.num_ok += 1
                status.present.update(labels)
            else:
                status.reasons[row["reason"]] += 1
                status.examples.setdefault(row["reason"], f"{clip.key} ({clip.source}): {row['detail']}")
    return status
