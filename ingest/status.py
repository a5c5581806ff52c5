"""What an ingest has done so far: coverage per class, and the ledger's reasons."""

from collections import Counter
from dataclasses import dataclass, field

from ingest.book import Book, read_parts
from ingest.layout import StoreFile, read_store_file
from ingest.location import Location
from ingest.progress import ProgressDisplay
from manifests.clips import Clip


@dataclass
class Status:
    """Counts of a store, finished or not; the counters are by class name and by reason.

    A clip that was tried again counts once, as it came out last.
    """

    store: StoreFile
    num_shards_done: int = 0
    num_asked: int = 0
    num_ok: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    present: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        return sum(self.reasons.values())


def read_status(location: Location) -> Status:
    """Reads a store's manifest and ledgers. Raises InputError when there is no store."""
    store = read_store_file(location)
    book = Book(location, store, read_parts(location, store), None)
    status = Status(store)
    last: dict[str, tuple[Clip, str | None, str | None]] = {}
    with ProgressDisplay("shards", store.num_shards) as display:
        for shard in range(store.num_shards):
            sidecar = book.sidecar(shard)
            clips = book.clips(shard)
            status.num_shards_done += sidecar is not None
            rows = [None] * len(clips) if sidecar is None else sidecar.ledger.to_pylist()
            for clip, row in zip(clips, rows, strict=True):
                outcome = (None, None) if row is None else ("" if row["ok"] else row["reason"], row["detail"])
                last[clip.key] = (clip, *outcome)
            display.advance(1)
    _count(status, last)
    return status


def _count(status: Status, last: dict[str, tuple[Clip, str | None, str | None]]) -> None:
    """Fills the counters; a reason of '' means that the clip is in its shard, None that it wasn't tried yet."""
    names = {label.id: label.name for label in status.store.vocabulary.labels}
    status.num_asked = len(last)
    for clip, reason, detail in last.values():
        labels = [names[label] for label in clip.labels]
        status.asked.update(labels)
        if reason == "":
            status.num_ok += 1
            status.present.update(labels)
        elif reason is not None:
            status.reasons[reason] += 1
            status.examples.setdefault(reason, f"{clip.key} ({clip.source}): {detail}")
