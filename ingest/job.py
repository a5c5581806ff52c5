"""An ingest: plans a store, makes the shards that are missing, and closes it with a snapshot."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow.compute as pc

from ingest.book import Book
from ingest.executor import Executor, in_process, on_ray
from ingest.failures import Tally
from ingest.fetching import Fetcher, remove_scratch
from ingest.layout import SHARD_FOLDER, Part, StoreFile
from ingest.ledger import TRANSIENT, LedgerRow
from ingest.location import Location, open_location
from ingest.opening import open_book
from ingest.pipeline import Work, fetch_all, run_pipeline
from ingest.plan import IngestOptions, new_store
from ingest.progress import ProgressDisplay
from ingest.rawcache import RawCache
from ingest.retry import retriable
from ingest.shards import ShardTask
from ingest.sources import ClipSources, SourceFile, find_sources, open_sources
from manifests.clips import Clip, Manifest, make_manifest
from manifests.errors import InputError


def ingest(
    manifest: Manifest, store: Location | Path | str, options: IngestOptions, lists: Mapping[str, str] | None = None
) -> StoreFile:
    """Brings the store to hold every clip of `manifest`; what is there already is kept.

    Published shards never change: clips that failed and can be had now go into new shards, and a new snapshot. `lists`:
    sha256 of the files that the manifest was read from.

    Raises InputError when `store` holds a store of another recipe, when another ingest is at work on it, or when more
    clips failed than `options.max_failures` allows.
    """
    location = open_location(store)
    try:
        location.create()
        with location.lock("ingest"):
            for folder in ("", SHARD_FOLDER):
                location.remove_stale(folder)
            book = open_book(location, manifest, new_store(manifest, options, location, lists), append=options.append)
            _Run(book, manifest, options).run()
            # What workers left that were killed meanwhile.
            location.remove_stale(SHARD_FOLDER)
            return book.store
    except OSError as error:
        trouble = (error.strerror or str(error)).removeprefix(f"{location} ")
        raise InputError(
            f"{location} can't be written: {trouble}; what was finished is kept, make room or mend the "
            "place and run the same command again"
        ) from error


def rebuild(book: Book, shards: Sequence[int], num_workers: int | None) -> None:
    """Makes published shards anew, to the same bytes; the caller holds the store's lock. Raises InputError.

    Nothing is downloaded: who repairs a store didn't ask for that, and nobody says here from where.
    """
    _Run(book, book.parts[0], IngestOptions(num_workers=num_workers, max_failures=1.0, fetch=None)).make(shards)


@dataclass
class _Run:
    """One call of an ingest on an open store."""

    book: Book
    wanted: Manifest
    options: IngestOptions

    def run(self) -> None:
        store = self.book.store
        published = store.snapshots
        first_new = store.num_shards_published
        if self._is_of_another_list():
            # Only what is published is looked after: that other ingest goes on when it is asked for.
            self.make([shard for shard in range(first_new) if not self._is_done(shard)])
            self.book.save_checksums()
            return
        self.make([shard for shard in range(store.num_shards) if not self._is_done(shard)])
        if self.book.is_retrying:
            # A run was killed while it tried clips again.
            self._publish_what_came(first_new)
            return
        self._check_failures(first_new)
        self.book.close()
        if published:
            self._retry(published[-1].num_rows)

    def _is_of_another_list(self) -> bool:
        """Whether clips wait to be made that this run wasn't asked for."""
        store = self.book.store
        is_unfinished = store.num_shards > store.num_shards_published
        return is_unfinished and not self.book.is_retrying and store.parts[-1].wanted_sha256 != self.wanted.sha256

    def make(self, shards: Sequence[int]) -> None:
        """Makes shards, fetching their recordings first where they come from a raw cache."""
        for _, of_part in groupby(shards, self.book.part_of):
            self._make_of_one_part(list(of_part))

    def _make_of_one_part(self, shards: Sequence[int]) -> None:
        manifest = self.book.parts[self.book.part_of(shards[0])]
        # Clips that are tried again may all fail once more, and those of published shards have failed for good.
        is_limited = not (self.book.is_retrying or self.book.is_published(shards[0]))
        tally = Tally(self.options.max_failures if is_limited else 1.0)
        sources = open_sources(manifest.sources)
        work = Work(shards, lambda shard: self._task(shard, sources), self._recordings)
        total = sum(len(self.book.clips(shard)) for shard in shards)
        with (
            self._fetcher(manifest, shards) as fetcher,
            self._executor() as executor,
            ProgressDisplay("clips", total) as display,
        ):
            for report in run_pipeline(work, executor, fetcher):
                if report is not None:
                    tally.add(report.num_done, report.failures)
                note = f"{tally.num_failed} failed" + (f", {fetcher.note}" if fetcher else "")
                display.advance(report.num_done if report else 0, note)
                tally.check_on_the_way(fetcher)

    def _executor(self) -> AbstractContextManager[Executor]:
        options = self.options
        num_downloads = 1 if options.fetch is None else options.fetch.num_parallel
        if options.num_workers == 0:
            return in_process(num_downloads)
        return on_ray(options.num_workers, options.ray_address, num_downloads)

    @contextmanager
    def _fetcher(self, manifest: Manifest, shards: Sequence[int]) -> Iterator[Fetcher | None]:
        """The one fetcher of the manifest's raw cache, as long as the context lasts; None where there is no such."""
        if manifest.sources.kind != "raw_cache" or self.options.fetch is None:
            yield None
            return
        raw = open_location(manifest.sources.address)
        raw.create()
        # Stores may share a cache, and its server is asked by one at a time.
        with raw.lock("download"):
            remove_scratch(raw)
            uses = Counter(name for shard in shards for name in set(self._recordings(shard)))
            retry_failed = self.options.retry_failed
            yield Fetcher(RawCache(raw), self.options.fetch, retry_failed=retry_failed, num_uses=uses)

    def _recordings(self, shard: int) -> list[str]:
        needless = self.book.settled(shard).keys() | self.book.held(shard)
        return [clip.source for clip in self.book.clips(shard) if clip.key not in needless]

    def _task(self, shard: int, sources: ClipSources) -> ShardTask:
        book, clips = self.book, self.book.clips(shard)
        published = book.index.shards[shard] if book.index is not None and book.is_published(shard) else None
        return ShardTask(
            # A worker on another machine, or in another folder, must find it.
            location=str(book.location if book.location.folder is None else book.location.folder.resolve()),
            store=book.store,
            shard=shard,
            recipe_sha256=book.store.recipe_sha256(book.part_of(shard)),
            clips=clips,
            sources=find_sources(sources, clips),
            settled=book.settled(shard),
            tar_sha256=None if published is None else published.tar_sha256,
            sidecar_sha256=None if published is None else published.sidecar_sha256,
        )

    def _is_done(self, shard: int) -> bool:
        book = self.book
        try:
            sidecar = book.sidecar(shard)
        except InputError:
            if not book.is_published(shard):
                raise
            return False
        if sidecar is None or book.location.size(book.store.tar_name(shard)) != sidecar.tar_size:
            return False
        if sidecar.recipe_sha256 != book.store.recipe_sha256(book.part_of(shard)):
            return False
        if book.is_published(shard):
            return book.index is not None and sidecar.tar_sha256 == book.index.shards[shard].tar_sha256
        reasons = {row["reason"] for row in sidecar.ledger.select(["reason"]).to_pylist() if row["reason"]}
        return not (reasons if self.options.retry_failed else reasons & TRANSIENT)

    def _check_failures(self, first_shard: int) -> None:
        """Refuses to publish shards with more failures than the user allows; an append without any clip is undone."""
        tally = Tally(self.options.max_failures)
        for shard in range(first_shard, self.book.store.num_shards):
            ledger = self.book.required_sidecar(shard).ledger
            failed = ledger.filter(pc.invert(ledger["ok"])).select(["key", "ok", "reason", "detail"])
            tally.add(ledger.num_rows, (LedgerRow(**row) for row in failed.to_pylist()))
        try:
            tally.check_any()
        except InputError:
            if first_shard:
                self.book.drop_last_part()
            raise
        tally.check()

    def _retry(self, num_rows: int) -> None:
        """Clips that failed in earlier runs, and can be had now, become a part of their own."""
        clips = self._available(retriable(self.book, num_rows, self.wanted, self.options))
        if not clips:
            return
        first_new = self.book.store.num_shards
        manifest = make_manifest(
            self.wanted.dataset, clips, self.wanted.vocabulary, self.wanted.sources, seed=self.wanted.seed
        )
        part = Part(
            num_clips_asked=len(clips),
            manifest_sha256=manifest.sha256,
            wanted_sha256=self.wanted.sha256,
            is_retry=True,
        )
        self.book.add_part(part, manifest)
        self.make(range(first_new, self.book.store.num_shards))
        self._publish_what_came(first_new)

    def _publish_what_came(self, first_new: int) -> None:
        """Publishes clips that were tried again, from shard `first_new` on; takes them back when none came."""
        if not any(self.book.num_ok(shard) for shard in range(first_new, self.book.store.num_shards)):
            self.book.drop_last_part()
        self.book.close()

    def _available(self, clips: list[Clip]) -> list[Clip]:
        """Those whose file there is now, after fetching."""
        if not clips:
            return []
        with self._fetcher(self.wanted, []) as fetcher:
            if fetcher is not None:
                with self._executor() as executor, ProgressDisplay("clips to try again", len(clips)) as display:
                    for _ in fetch_all([clip.source for clip in clips], executor, fetcher):
                        display.advance(0, fetcher.note)
        sources = open_sources(self.wanted.sources)
        found = zip(clips, find_sources(sources, clips), strict=True)
        return [clip for clip, source in found if isinstance(source, SourceFile)]
