"""Which clips of earlier runs are worth another try."""

from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from ingest.book import Book
from ingest.ledger import TRANSIENT, Reason
from manifests.clips import Clip, Manifest


class RetryOptions(Protocol):
    """retry_failed: whatever the reason; append: clips whose file was missing, too, since it may be there now."""

    @property
    def retry_failed(self) -> bool: ...

    @property
    def append(self) -> bool: ...


def retriable(book: Book, num_rows: int, wanted: Manifest, options: RetryOptions) -> list[Clip]:
    """Clips of `wanted` that failed in the store's first `num_rows` rows, for a reason that may have passed."""
    if book.index is None:
        return []
    ledger = book.index.table
    failed = ledger.slice(0, num_rows).filter(pc.invert(ledger["ok"].slice(0, num_rows)))
    if not failed.num_rows:
        return []
    # A clip that was tried again has several rows, of which the last one counts.
    reasons = dict(zip(failed["key"].to_pylist(), failed["reason"].to_pylist(), strict=True))
    present = ledger["key"].filter(pc.and_(ledger["ok"], pc.is_in(ledger["key"], pa.array(reasons))))
    for key in present.to_pylist():
        reasons.pop(key, None)
    allowed = {*TRANSIENT, *([Reason.MISSING] if options.append else [])}
    keys = [key for key, reason in reasons.items() if options.retry_failed or reason in allowed]
    rows = wanted.table.filter(pc.is_in(wanted.table["key"], pa.array(keys, pa.string())))
    return list(Manifest(wanted.dataset, wanted.vocabulary, wanted.sources, wanted.seed, rows).clips())
