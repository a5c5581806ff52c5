"""Makes shards: plain WebDataset tars, each with the sidecar that is its index, ledger and commit."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from ingest.featurise import CLIPPING_PEAK, SILENCE_PEAK, Features, featurise
from ingest.heldshard import HeldShard, open_held
from ingest.layout import StoreFile
from ingest.ledger import ClipError, LedgerRow, Reason
from ingest.location import Location, open_location
from ingest.rawcache import RawCache
from ingest.sidecar import commit_sidecar, read_sidecar
from ingest.sources import SourceFile, Unavailable, local_source
from ingest.tarwriter import TarWriter
from manifests.clips import Clip
from manifests.errors import InputError

# A worker tells how far it is every so many clips.
CLIPS_PER_REPORT = 10


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Everything that a worker needs to make one shard; small enough to send anywhere.

    `location`: the store's. `sources`: of each clip its file, or why it has none. `settled`: clips that failed when the
    shard was published, and fail again for the same reason, without a try. `tar_sha256`: what the tar must come to;
    `sidecar_sha256`: what the shard's sidecar was.
    """

    location: str
    store: StoreFile
    shard: int
    recipe_sha256: str
    clips: tuple[Clip, ...]
    sources: tuple[SourceFile | Unavailable, ...]
    settled: Mapping[str, LedgerRow] = field(default_factory=dict)
    tar_sha256: str | None = None
    sidecar_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """Clips of a shard done since the last report, and the ledger rows of those that failed."""

    shard: int
    num_done: int
    failures: tuple[LedgerRow, ...]


def write_shard(task: ShardTask) -> Iterator[ShardProgress]:
    """Makes one shard, telling its progress; its sidecar's appearance says that it is whole.

    The bytes depend on the task alone; clips that a shard of the same recipe holds unharmed are copied. Raises
    InputError, and leaves what there is, when a clip that the shard holds can't be had any more, or the tar doesn't
    come to the bytes that it must have.
    """
    location = open_location(task.location)
    tar_name, sidecar_name = task.store.tar_name(task.shard), task.store.sidecar_name(task.shard)
    rows: list[LedgerRow] = []
    reported = 0
    with location.writing(tar_name) as temporary:
        with (
            open_held(location, tar_name, sidecar_name, task.recipe_sha256, task.sidecar_sha256) as held,
            temporary.open("wb") as file,
        ):
            had = _clips_in_shard(task, held)
            writer = TarWriter(file)
            for clip, source in zip(task.clips, task.sources, strict=True):
                row = task.settled.get(clip.key) or held.copy(clip.key, writer)
                rows.append(row or _add_clip(writer, clip, source, task.store))
                if not rows[-1].ok and clip.key in had:
                    raise _loss(rows[-1], task)
                if len(rows) - reported == CLIPS_PER_REPORT:
                    yield _progress(task, rows[reported:])
                    reported = len(rows)
            writer.close()
        if task.tar_sha256 not in (None, writer.sha256):
            raise _other_bytes(task, location)
        # A later run clears up after this one, should its driver be gone: then the shard is no longer ours to touch.
        temporary.stat()
        if _tar_sha256(location, sidecar_name) != writer.sha256:
            # An old sidecar must not vouch for the tar that is about to take its tar's place.
            location.delete(sidecar_name)
    commit_sidecar(location, sidecar_name, rows, writer, task.recipe_sha256)
    yield _progress(task, rows[reported:])


def _clips_in_shard(task: ShardTask, held: HeldShard) -> set[str]:
    """Keys of the clips that the shard must hold, when it is made once more."""
    if task.tar_sha256 is not None:
        return {clip.key for clip in task.clips} - task.settled.keys()
    return set(held.rows)


def _tar_sha256(location: Location, sidecar_name: str) -> str | None:
    """What the sidecar vouches for, None where it is missing or damaged."""
    try:
        sidecar = read_sidecar(location, sidecar_name)
    except InputError:
        return None
    return None if sidecar is None else sidecar.tar_sha256


def _loss(row: LedgerRow, task: ShardTask) -> InputError:
    published = task.tar_sha256 is not None  # and then holds these clips for ever
    sidecar = f"{task.location}/{task.store.sidecar_name(task.shard)}"
    return InputError(
        f"clip {row.key} is in {task.store.shard_stem(task.shard)} and can't be had any more "
        f"({row.reason}: {row.detail}); the shard stays as it is. Restore the source"
        + ("" if published else f", or delete {sidecar} to go on without the clip")
    )


def _other_bytes(task: ShardTask, location: Location) -> InputError:
    now = {name: version(name) for name in task.store.versions if name != "python"}
    changed = [
        f"{name} {was} then, {now[name]} now" for name, was in task.store.versions.items() if now.get(name, was) != was
    ]
    return InputError(
        f"{location}: {task.store.shard_stem(task.shard)} can't be made anew with the bytes that its snapshot names: a "
        f"source has changed, or a library has ({', '.join(changed) or 'the versions are the same'}); the shard stays "
        "as it is. Restore the sources, or ingest into another store"
    )


def _progress(task: ShardTask, rows: list[LedgerRow]) -> ShardProgress:
    return ShardProgress(task.shard, len(rows), tuple(row for row in rows if not row.ok))


def _add_clip(writer: TarWriter, clip: Clip, source: SourceFile | Unavailable, store: StoreFile) -> LedgerRow:
    """Featurises one clip into the tar; a clip that can't be had becomes a row with a reason."""
    try:
        if isinstance(source, Unavailable):
            raise ClipError(source.reason, source.detail)
        with local_source(source) as path:
            features = featurise(clip, path, store, source.is_cut, source.sha256)
    except ClipError as error:
        if error.reason is Reason.DAMAGED and isinstance(source, SourceFile):
            RawCache(open_location(source.location)).forget(clip.source)
        return LedgerRow(clip.key, ok=False, reason=error.reason.value, detail=error.detail)
    start = writer.start_sample()
    fbank_offset = writer.add_array(f"{clip.key}.fbank.npy", features.fbank)
    hog_offset = writer.add_array(f"{clip.key}.hog.npy", features.hog)
    audio_offset = None if features.flac is None else writer.add(f"{clip.key}.flac", features.flac)
    writer.add(f"{clip.key}.json", _sample_json(clip, features, store))
    row = _ledger_row(clip, features, store)
    return replace(
        row,
        fbank_offset=fbank_offset,
        hog_offset=hog_offset,
        audio_offset=audio_offset,
        sample_offset=start,
        sample_size=writer.size - start,
        sample_crc32=writer.sample_crc32,
    )


def _ledger_row(clip: Clip, features: Features, store: StoreFile) -> LedgerRow:
    """The row of a clip, but for its place in the tar."""
    window, values = features.window, features.fbank.astype(np.float64)
    return LedgerRow(
        key=clip.key,
        ok=True,
        audio_size=None if features.flac is None else len(features.flac),
        fbank_sha256=hashlib.sha256(features.fbank.data).hexdigest(),
        num_frames=features.num_frames,
        crop_start_ms=window.start_ms,
        clip_start_ms=window.clip_start_ms,
        source_sha256=features.source_sha256,
        codec=window.info.codec,
        source_rate_hz=window.info.sample_rate_hz,
        num_channels=window.info.num_channels,
        duration_s=window.info.duration_s,
        peak=features.peak,
        rms=float(np.sqrt(np.mean(np.square(window.waveform, dtype=np.float64)))),
        silent=features.peak < SILENCE_PEAK,
        short=window.waveform.size < store.fbank.num_samples,
        clipped=features.peak >= CLIPPING_PEAK,
        fbank_sum=float(values.sum()),
        fbank_sum_sq=float(np.square(values).sum()),
    )


def _sample_json(clip: Clip, features: Features, store: StoreFile) -> bytes:
    """KEY.json: labels by id, name and position, and where the sound comes from."""
    positions = store.vocabulary.indices(clip.labels)
    about: dict[str, Any] = {
        "key": clip.key,
        "labels": list(clip.labels),
        "label_names": [store.vocabulary.labels[position].name for position in positions],
        "label_indices": positions,
        "split": clip.split,
        "fold": clip.fold,
        "source": clip.source,
        "source_sha256": features.source_sha256,
        "start_ms": features.window.start_ms,
        "num_frames": features.num_frames,
    }
    return json.dumps(about, ensure_ascii=False).encode()
