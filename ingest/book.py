"""A store while an ingest holds its lock: what was asked for, what is published, and how both grow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ingest.describe import StoreFacts, describe, described_files, is_description
from ingest.heldshard import held_rows
from ingest.index import (
    Index,
    checksums,
    extended,
    last_rows,
    make_snapshot,
    shard_entry,
    wids_index,
    write_index,
)
from ingest.layout import (
    CHECKSUM_FILE,
    MANIFEST_FILE,
    STORE_FILE,
    WIDS_FILE,
    Part,
    StoreFile,
    store_text,
    write_store_file,
)
from ingest.ledger import LedgerRow
from ingest.location import Location
from ingest.sidecar import Sidecar, read_sidecar
from manifests.clips import Clip, Manifest
from manifests.errors import InputError
from manifests.parts import ManifestFile, write_manifests


@dataclass
class Book:
    """store.json, a manifest for each of its parts, and the index of the published shards (None: there are none)."""

    location: Location
    store: StoreFile
    parts: list[Manifest]
    index: Index | None

    def __post_init__(self) -> None:
        self._shards = list(self.store.shard_rows())
        self._first_rows = [0]
        for part in self.store.parts:
            self._first_rows.append(self._first_rows[-1] + part.num_clips_asked)

    def part_of(self, shard: int) -> int:
        return self._shards[shard][0]

    def clips(self, shard: int) -> tuple[Clip, ...]:
        """The clips of a shard, in order."""
        part, first, stop = self._shards[shard]
        offset = self._first_rows[part]
        return tuple(self.parts[part].clips(first - offset, stop - offset))

    @property
    def is_retrying(self) -> bool:
        """Whether the last part has clips that are tried again, and isn't published."""
        return self.store.num_shards > self.store.num_shards_published and self.store.parts[-1].is_retry

    def is_published(self, shard: int) -> bool:
        return shard < self.store.num_shards_published

    def sidecar(self, shard: int) -> Sidecar | None:
        """What a shard's sidecar says; None where there is none. Raises InputError for a damaged one."""
        return read_sidecar(self.location, self.store.sidecar_name(shard))

    def settled(self, shard: int) -> dict[str, LedgerRow]:
        """The clips of a published shard that failed, as they are in its ledger."""
        if self.index is None or not self.is_published(shard):
            return {}
        _, first, stop = self._shards[shard]
        rows = self.index.table.select(["key", "ok", "reason", "detail"]).slice(first, stop - first).to_pylist()
        return {row["key"]: LedgerRow(**row) for row in rows if not row["ok"]}

    def held(self, shard: int) -> set[str]:
        """Keys of the clips that a shard, not published yet, holds already."""
        if self.is_published(shard):
            return set()
        name, recipe = self.store.sidecar_name(shard), self.store.recipe_sha256(self.part_of(shard))
        return (
            set(held_rows(self.location, name, recipe)) if self.location.exists(self.store.tar_name(shard)) else set()
        )

    def add_part(self, part: Part, manifest: Manifest) -> None:
        """Asks for further clips, in shards behind all others."""
        self.store = self.store.model_copy(update={"parts": (*self.store.parts, part)})
        self.parts.append(manifest)
        self.save()

    def drop_last_part(self) -> None:
        """Forgets a part that no snapshot covers, with its shards."""
        kept = self.store.model_copy(update={"parts": self.store.parts[:-1]})
        for shard in range(kept.num_shards, self.store.num_shards):
            self.location.delete(self.store.sidecar_name(shard))
            self.location.delete(self.store.tar_name(shard))
        self.store = kept
        self.save_checksums()
        del self.parts[-1]
        # First store.json: a manifest may have rows that it doesn't count, but not lack some.
        write_store_file(self.location, kept)
        self.save()

    def save(self) -> None:
        """Writes manifest.parquet and then store.json, whose parts say how many of the manifest's rows count."""
        self.__post_init__()
        self.write_manifest()
        write_store_file(self.location, self.store)
        self.save_checksums()

    def save_checksums(self) -> None:
        """Writes SHA256SUMS where there are published shards, and it is another."""
        published = self.store.num_shards_published
        if published and self.index is not None and len(self.index.shards) >= published:
            self._write_checksums(self.index, described_files(self._facts(self.index)))

    def write_manifest(self) -> None:
        """Writes manifest.parquet alone."""
        with self.location.writing(MANIFEST_FILE) as path:
            write_manifests(self.parts, path)

    def close(self) -> None:
        """Publishes all shards as a snapshot (or finds that they are), with all that is derived from them.

        Raises InputError when a shard is missing, or the shards aren't those that the last snapshot names.
        """
        index = self.published_index()
        snapshot = make_snapshot(self.store, index, number=len(self.store.snapshots) + 1)
        if self.store.num_shards > self.store.num_shards_published:
            self.store = self.store.model_copy(update={"snapshots": (*self.store.snapshots, snapshot)})
        elif snapshot.fingerprint != self.store.snapshots[-1].fingerprint:
            raise InputError(
                f"{self.location}: its shards are not those that snapshot {self.store.snapshots[-1].number} names; run "
                "`featurestore verify` to see which, and `featurestore repair`"
            )
        if index != self.index:
            write_index(self.location, index)
            self.index = index
        described = describe(self._facts(index))
        for name, text in {WIDS_FILE: wids_index(self.store, index), **described}.items():
            self._write_if_new(name, text)
        for name in self.location.files_directly_in():
            if is_description(name) and name not in described:  # of a split's list, before there were splits
                self.location.delete(name)
        self._write_checksums(index, list(described))
        self._write_if_new(STORE_FILE, store_text(self.store))

    def published_index(self) -> Index:
        """The index over all shards, of which those that it lacks are read from their sidecars."""
        first = 0 if self.index is None else len(self.index.shards)
        new = range(first, self.store.num_shards)
        if self.index is not None and not new:
            return self.index
        sidecars = [self.required_sidecar(shard) for shard in new]
        entries = [
            shard_entry(sidecar, self.location.read(self.store.sidecar_name(shard)))
            for shard, sidecar in zip(new, sidecars, strict=True)
        ]
        return extended(self.index, [sidecar.ledger for sidecar in sidecars], entries)

    def forget(self, shards: Sequence[int]) -> None:
        """Lets the index be made anew from these shards' sidecars on, since they were written again."""
        if self.index is not None and shards:
            first = min(shards)
            rows = self._shards[first][1]
            self.index = Index(self.index.table.slice(0, rows), self.index.shards[:first]) if first else None

    def required_sidecar(self, shard: int) -> Sidecar:
        """What a shard's sidecar says. Raises InputError where there is none."""
        sidecar = self.sidecar(shard)
        if sidecar is None:
            raise InputError(
                f"{self.store.shard_stem(shard)} of {self.location} went missing during the ingest; run it again"
            )
        return sidecar

    def num_ok(self, shard: int) -> int:
        """Clips in a shard."""
        return int(np.sum(self.required_sidecar(shard).ledger["ok"].to_numpy()))

    def _facts(self, index: Index) -> StoreFacts:
        store, snapshot = self.store, self.store.snapshots[-1]
        asked = pa.concat_tables([part.table for part in self.parts[: snapshot.num_parts]])
        ledger = index.table.slice(0, snapshot.num_rows)
        clips = asked.select(["key", "labels", "split", "fold"])
        for name in ("ok", "reason"):
            clips = clips.append_column(name, ledger[name])
        clips = clips.filter(pa.array(last_rows(clips["key"])))
        shards = index.shards[: snapshot.num_shards]
        return StoreFacts(
            dataset=store.dataset,
            vocabulary=store.vocabulary,
            fbank=store.fbank,
            hog=store.hog,
            clips_per_shard=store.clips_per_shard,
            num_shards=snapshot.num_shards,
            num_clips=snapshot.num_clips,
            num_clips_asked=snapshot.num_clips_asked,
            mean=snapshot.mean,
            std=snapshot.std,
            snapshot=snapshot.number,
            fingerprint=snapshot.fingerprint,
            keep_audio=store.keep_audio,
            tar_names=tuple(store.tar_name(shard) for shard in range(len(shards))),
            tar_sizes=tuple(entry.tar_size for entry in shards),
            tar_sha256=tuple(entry.tar_sha256 for entry in shards),
            clips=clips,
            lists={name: digest for part in store.parts for name, digest in part.lists.items()},
            versions=store.versions,
        )

    def _write_checksums(self, index: Index, described: Sequence[str]) -> None:
        self._write_if_new(CHECKSUM_FILE, checksums(self.location, self.store, index, described))

    def _write_if_new(self, name: str, text: str) -> None:
        if self.location.size(name) is None or self.location.read(name) != text.encode():
            self.location.write(name, text)


def read_parts(location: Location, store: StoreFile) -> list[Manifest]:
    """The manifests of a store's parts. Raises InputError where manifest.parquet is missing, damaged or another's."""
    where = f"{location}/{MANIFEST_FILE}"
    try:
        file = ManifestFile(pa.BufferReader(location.read(MANIFEST_FILE)), where)
    except FileNotFoundError as error:
        raise InputError(f"{where} is missing; run the ingest command again") from error
    # A run that was killed while it added a part may have left more rows than store.json counts.
    sizes = [part.num_clips_asked for part in store.parts]
    if file.part_sizes[: len(sizes)] != sizes:
        raise InputError(f"{where} and {STORE_FILE} disagree about the clips; run the ingest command again")
    return file.manifests()[: len(sizes)]
