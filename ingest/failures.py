"""When too many clips fail for a run to go on, or for its shards to be published."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ingest.fetching import Fetcher
from ingest.ledger import LedgerRow
from manifests.errors import InputError

# Before so many clips the share of failures says little, and a run isn't stopped for it.
MIN_CLIPS_FOR_SHARE = 50


@dataclass
class Tally:
    """Clips done, and why some of them failed; `max_failures` is the share that may."""

    max_failures: float
    num_done: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    example: LedgerRow | None = None

    @property
    def num_failed(self) -> int:
        return self.reasons.total()

    def add(self, num_done: int, failures: Iterable[LedgerRow]) -> None:
        """Counts `num_done` more clips, those that failed among them."""
        self.num_done += num_done
        for row in failures:
            self.example = self.example or row
            self.reasons[row.reason or ""] += 1

    def check_on_the_way(self, fetcher: Fetcher | None) -> None:
        """Stops a run that has gone on long enough to tell; raises InputError."""
        if self.num_done >= MIN_CLIPS_FOR_SHARE:
            self.check()
        if fetcher is None:
            return
        # Before a whole shard's recordings were asked for in vain, when the network is gone, say.
        num_done = fetcher.num_fetched + fetcher.num_failed
        if num_done >= MIN_CLIPS_FOR_SHARE and fetcher.num_failed > self.max_failures * num_done:
            raise InputError(
                f"stopped: {fetcher.num_failed} of {num_done} downloads failed, more than --max-failures "
                f"{self.max_failures:g} allows (the last one: {fetcher.last_failure}). What was fetched is kept: see "
                "`ingest doctor`, and run the same command again, or allow more"
            )

    def check(self) -> None:
        """Raises InputError when more failed than may."""
        if self.example is None or self.num_failed <= self.max_failures * self.num_done:
            return
        counts = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        raise InputError(
            f"stopped: {self.num_failed} of {self.num_done} clips failed, more than --max-failures "
            f"{self.max_failures:g} allows ({counts}; for instance {self.example.key}: {self.example.detail}). Mend "
            "the source and run again with --retry-failed, or allow more"
        )

    def check_any(self) -> None:
        """Raises InputError when none of the clips could be had."""
        if self.example is not None and self.num_failed == self.num_done:
            raise InputError(
                f"not one of {self.num_failed} clips could be had: for instance {self.example.key}: "
                f"{self.example.reason}, {self.example.detail}. Mend the source and run again with --retry-failed"
            )
