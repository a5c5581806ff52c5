"""Fetching and featurising side by side: a shard is made as soon as all of its recordings are settled."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from ingest.executor import Executor, ShardDone
from ingest.fetching import Fetcher, FetchOutcome
from ingest.shards import ShardProgress, ShardTask

# Shards whose recordings are fetched at a time: enough to go on while one waits for a last slow download, and few
# enough that the disk isn't filled with what nobody featurises yet.
FETCHED_AHEAD = 3
# The display and the limiter are looked at so often.
MAX_WAIT_S = 1.0


@dataclass(frozen=True)
class Work:
    """The shards to make; what task makes one, once its recordings are settled, and which recordings it takes."""

    shards: Sequence[int]
    task: Callable[[int], ShardTask]
    recordings: Callable[[int], Sequence[str]]


def run_pipeline(work: Work, executor: Executor, fetcher: Fetcher | None) -> Iterator[ShardProgress | None]:
    """Makes all shards, and yields their progress as it comes; None when only time has passed."""
    waiting = deque(work.shards)
    running: set[int] = set()
    while waiting or running:
        for shard in list(islice(waiting, FETCHED_AHEAD if fetcher else executor.window)):
            settled = fetcher is None or fetcher.settled(shard, work.recordings)
            if settled and len(running) < executor.window:
                waiting.remove(shard)
                running.add(shard)
                executor.submit_shard(work.task(shard))
        events = executor.wait(_submit_downloads(executor, fetcher))
        for event in events:
            match event:
                case ShardDone(shard):
                    running.remove(shard)
                    if fetcher is not None:
                        fetcher.shard_done(shard)
                case FetchOutcome() if fetcher is not None:
                    fetcher.finished(event)
                case ShardProgress():
                    yield event
        if not events:
            yield None


def fetch_all(recordings: Sequence[str], executor: Executor, fetcher: Fetcher) -> Iterator[None]:
    """Fetches recordings, without a shard that waits for them; yields now and then."""
    fetcher.ask(recordings)
    while not fetcher.is_idle:
        for event in executor.wait(_submit_downloads(executor, fetcher)):
            if isinstance(event, FetchOutcome):
                fetcher.finished(event)
        yield None


def _submit_downloads(executor: Executor, fetcher: Fetcher | None) -> float:
    """Submits the downloads that are due; returns how long to wait for news."""
    if fetcher is None:
        return MAX_WAIT_S
    for task in fetcher.due():
        executor.submit_fetch(task)
    return min(MAX_WAIT_S, fetcher.wait_s())
