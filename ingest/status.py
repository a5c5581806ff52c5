"""What an ingest has done so far: coverage per class, and the ledger's reasons."""

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from ingest.book import Book, read_parts
from ingest.index import last_rows
from ingest.layout import StoreFile, read_store_file
from ingest.location import Location
from ingest.progress import ProgressDisplay

_OUTCOME = pa.schema([("ok", pa.bool_()), ("reason", pa.string()), ("detail", pa.string())])


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
    outcomes = []
    with ProgressDisplay("shards", store.num_shards) as display:
        for shard, (_, first, stop) in enumerate(store.shard_rows()):
            sidecar = book.sidecar(shard)
            status.num_shards_done += sidecar is not None
            outcomes.append(
                _untried(stop - first) if sidecar is None else sidecar.ledger.select(_OUTCOME.names).cast(_OUTCOME)
            )
            display.advance(1)
    clips = pa.concat_tables([part.table.select(["key", "source", "labels"]) for part in book.parts])
    for column in _OUTCOME.names:
        clips = clips.append_column(column, pa.concat_tables(outcomes)[column])
    _count(status, clips.filter(pa.array(last_rows(clips["key"]))))
    return status


def _untried(num_clips: int) -> pa.Table:
    return pa.table({field.name: pa.nulls(num_clips, field.type) for field in _OUTCOME})


def _count(status: Status, clips: pa.Table) -> None:
    """Fills the counters; `ok` is null for a clip that wasn't tried yet."""
    names = {label.id: label.name for label in status.store.vocabulary.labels}
    present = clips.filter(pc.fill_null(clips["ok"], False))
    failed = clips.filter(pc.fill_null(pc.invert(clips["ok"]), False))
    status.num_asked, status.num_ok = clips.num_rows, present.num_rows
    for counter, table in ((status.asked, clips), (status.present, present)):
        counter.update({names[label]: count for label, count in _counts(pc.list_flatten(table["labels"]))})
    status.reasons.update(dict(_counts(failed["reason"])))
    for reason in status.reasons:
        row = failed.slice(pc.index(failed["reason"], reason).as_py(), 1).to_pylist()[0]
        status.examples[reason] = f"{row['key']} ({row['source']}): {row['detail']}"


def _counts(values: pa.ChunkedArray) -> list[tuple[str, int]]:
    return [(row["values"], row["counts"]) for row in pc.value_counts(values).to_pylist()]
