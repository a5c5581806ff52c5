"""A shard: a plain WebDataset tar and the sidecar Parquet that is its index, ledger and commit."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from ingest.atomic import atomic_path
from ingest.featurise import CLIPPING_PEAK, SILENCE_PEAK, Features, featurise
from ingest.layout import StoreFile, sidecar_path, tar_path
from ingest.ledger import SCHEMA, ClipError, LedgerRow
from manifests.clips import Clip, read_parquet, write_parquet
from manifests.errors import InputError

# A worker tells how far it is every so many clips.
CLIPS_PER_REPORT = 10


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Everything that a worker needs to make one shard; small enough to send anywhere."""

    store_root: Path
    source_root: Path
    store: StoreFile
    shard: int
    clips: tuple[Clip, ...]


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """Clips done since the last report, and the ledger rows of those that failed."""

    num_done: int
    failures: tuple[LedgerRow, ...]


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A committed shard: its tar's sha256 and size, and its ledger."""

    tar_sha256: str
    tar_size: int
    ledger: pa.Table


def write_shard(task: ShardTask) -> Iterator[ShardProgress]:
    """Makes one shard, telling its progress; its sidecar's appearance says that it is whole.

    The bytes depend on the task alone.
    """
    rows = []
    reported = 0
    had = _clips_in_shard(task)
    with atomic_path(tar_path(task.store_root, task.store, task.shard)) as temporary:
        with temporary.open("wb") as file:
            writer = _TarWriter(file)
            for clip in task.clips:
                rows.append(_add_clip(writer, clip, task))
                _refuse_loss(rows[-1], had, task)
                if len(rows) - reported == CLIPS_PER_REPORT:
                    yield _progress(rows[reported:])
                    reported = len(rows)
            writer.close()
        _drop_sidecar(task)
    _commit(task, rows, writer)
    yield _progress(rows[reported:])


def read_sidecar(path: Path) -> Sidecar | None:
    """The sidecar at `path`, None where there is none. Raises InputError for a damaged one."""
    if not path.exists():
        return None
    try:
        table = read_parquet(path)
        about = json.loads(table.schema.metadata[b"shard"])
        ledger = table.replace_schema_metadata(None).cast(SCHEMA)
        ledger.validate(full=True)
        return Sidecar(about["tar_sha256"], about["tar_size"], ledger)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and run the ingest command again") from error


def _clips_in_shard(task: ShardTask) -> set[str]:
    """Keys of the clips that the shard holds already, when it is made once more."""
    sidecar = read_sidecar(sidecar_path(task.store_root, task.store, task.shard))
    return set() if sidecar is None else {row["key"] for row in sidecar.ledger.to_pylist() if row["ok"]}


def _refuse_loss(row: LedgerRow, had: set[str], task: ShardTask) -> None:
    if not row.ok and row.key in had:
        path = sidecar_path(task.store_root, task.store, task.shard)
        raise InputError(
            f"clip {row.key} is in shard {path.stem} and can't be had any more ({row.reason}: {row.detail}); the shard "
            f"stays as it is. Restore the source, or delete {path} to go on without the clip"
        )


def _drop_sidecar(task: ShardTask) -> None:
    """An old sidecar must not vouch for the tar that is about to take its tar's place."""
    sidecar_path(task.store_root, task.store, task.shard).unlink(missing_ok=True)


def _commit(task: ShardTask, rows: list[LedgerRow], writer: "_TarWriter") -> None:
    about = json.dumps({"tar_sha256": writer.sha256, "tar_size": writer.size})
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA.with_metadata({"shard": about}))
    with atomic_path(sidecar_path(task.store_root, task.store, task.shard)) as temporary:
        write_parquet(table, temporary)


def _progress(rows: list[LedgerRow]) -> ShardProgress:
    return ShardProgress(len(rows), tuple(row for row in rows if not row.ok))


def _add_clip(writer: "_TarWriter", clip: Clip, task: ShardTask) -> LedgerRow:
    """Featurises one clip into the tar; a clip that can't be had becomes a row with a reason."""
    store = task.store
    try:
        features = featurise(clip, task.source_root, store.fbank, store.hog, store.seed, store.keep_audio)
    except ClipError as error:
        return LedgerRow(clip.key, ok=False, reason=error.reason.value, detail=error.detail)
    fbank_offset = writer.add_array(f"{clip.key}.fbank.npy", features.fbank)
    hog_offset = writer.add_array(f"{clip.key}.hog.npy", features.hog)
    audio_offset = None if features.flac is None else writer.add(f"{clip.key}.flac", features.flac)
    writer.add(f"{clip.key}.json", _sample_json(clip, features, store))
    return _ledger_row(clip, features, store, fbank_offset, hog_offset, audio_offset)


def _ledger_row(
    clip: Clip, features: Features, store: StoreFile, fbank_offset: int, hog_offset: int, audio_offset: int | None
) -> LedgerRow:
    window, values = features.window, features.fbank.astype(np.float64)
    peak = float(np.abs(window.waveform).max())
    return LedgerRow(
        key=clip.key,
        ok=True,
        fbank_offset=fbank_offset,
        hog_offset=hog_offset,
        audio_offset=audio_offset,
        audio_size=None if features.flac is None else len(features.flac),
        num_frames=features.num_frames,
        crop_start_ms=window.start_ms,
        source_sha256=features.source_sha256,
        codec=window.info.codec,
        source_rate_hz=window.info.sample_rate_hz,
        num_channels=window.info.num_channels,
        duration_s=window.info.duration_s,
        peak=peak,
        rms=float(np.sqrt(np.mean(np.square(window.waveform, dtype=np.float64)))),
        silent=peak < SILENCE_PEAK,
        short=window.waveform.size < store.fbank.num_samples,
        clipped=peak >= CLIPPING_PEAK,
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


class _TarWriter:
    """Writes an uncompressed ustar archive with fixed owner and time, hashing it on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def add(self, name: str, content: bytes) -> int:
        """Appends a member; returns the offset of its content in the archive."""
        info = tarfile.TarInfo(name)
        info.size = len(content)
        info.mode = 0o444
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.size
        self._write(content)
        self._write(bytes(-self.size % tarfile.BLOCKSIZE))
        return offset

    def add_array(self, name: str, array: np.ndarray[Any, Any]) -> int:
        """Appends an array as npy; returns the offset of its data."""
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
        return self.add(name, buffer.getvalue()) + buffer.tell() - array.nbytes

    def close(self) -> None:
        """Writes the end of the archive."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.size += len(content)
