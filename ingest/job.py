"""An ingest: plans a store, makes the shards that are missing, and closes it with a snapshot."""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ingest.atomic import atomic_path, atomic_write, exclusive, remove_stale
from ingest.executor import run_in_process, run_on_ray
from ingest.layout import (
    CHECKSUM_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    SHARD_FOLDER,
    STORE_FILE,
    Snapshot,
    StoreFile,
    read_store_file,
    sidecar_path,
    tar_path,
    write_store_file,
)
from ingest.ledger import LedgerRow
from ingest.progress import ProgressDisplay
from ingest.shards import ShardProgress, ShardTask, Sidecar, read_sidecar
from manifests.clips import Manifest
from manifests.errors import InputError
from manifests.geometry import FbankSpec, HogSpec

DEFAULT_CLIPS_PER_SHARD = 1000
# A small corpus is cut finer, so that it still keeps several workers busy.
MIN_SHARDS, MIN_CLIPS_PER_SHARD = 16, 50
# Before so many clips the share of failures says little, and a run isn't stopped for it.
MIN_CLIPS_FOR_FAILURE_SHARE = 50
# Libraries whose version can change the features.
RECORDED_LIBRARIES = ("torch", "torchaudio", "numpy", "soundfile", "soxr", "av")


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest. `num_workers`: 0 in this process, None one a core; `max_failures`: a share of the clips."""

    num_frames: int = 1024
    clips_per_shard: int | None = None
    keep_audio: bool = False
    num_workers: int | None = None
    max_failures: float = 0.5
    retry_failed: bool = False


def default_clips_per_shard(num_clips: int) -> int:
    """1000, or fewer for a small corpus; depends on the manifest alone, so that shards don't depend on the machine."""
    return max(MIN_CLIPS_PER_SHARD, min(DEFAULT_CLIPS_PER_SHARD, -(-num_clips // MIN_SHARDS)))


def ingest(manifest: Manifest, root: Path, options: IngestOptions) -> StoreFile:
    """Brings the store at `root` to hold every clip of `manifest`; what is there already is kept.

    Raises InputError when `root` holds a store of another recipe, when another ingest is at work on it, or when more
    clips failed than `options.max_failures` allows.
    """
    try:
        (root / SHARD_FOLDER).mkdir(parents=True, exist_ok=True)
        with exclusive(root, "ingest"):
            store = _open_or_create(manifest, root, options)
            remove_stale(root)
            remove_stale(root / SHARD_FOLDER)
            missing = _missing_shards(root, store, options.retry_failed)
            if missing:
                # Until it is closed again, the store must not pass for finished.
                store = store.model_copy(update={"snapshots": ()})
                write_store_file(root, store)
                _make_shards(manifest, root, store, missing, options)
            return _close(root, store, options.max_failures)
    except OSError as error:
        raise InputError(
            f"{root} can't be written: {error.strerror or error}; what was finished is kept, make room or mend the "
            "folder and run the same command again"
        ) from error


def _open_or_create(manifest: Manifest, root: Path, options: IngestOptions) -> StoreFile:
    wanted = StoreFile(
        dataset=manifest.dataset,
        num_clips_asked=len(manifest),
        clips_per_shard=min(options.clips_per_shard or default_clips_per_shard(len(manifest)), len(manifest)),
        seed=manifest.seed,
        keep_audio=options.keep_audio,
        manifest_sha256=manifest.sha256,
        fbank=FbankSpec.model_validate({"num_frames": options.num_frames}),
        hog=HogSpec(),
        vocabulary=manifest.vocabulary,
        versions={"python": platform.python_version(), **{name: version(name) for name in RECORDED_LIBRARIES}},
    )
    if (root / STORE_FILE).exists():
        store = read_store_file(root)
        differing = [name for name, value in wanted.recipe().items() if store.recipe()[name] != value]
        if differing:
            raise InputError(
                f"{root} holds another store: it differs in {', '.join(differing)}. Choose another folder with "
                "--store, or delete this one"
            )
    else:
        store = wanted
        write_store_file(root, store)
    # Written again on every run: the corpus may have moved, and its place is no part of the recipe.
    with atomic_path(root / MANIFEST_FILE) as temporary:
        manifest.write(temporary)
    return store


def _missing_shards(root: Path, store: StoreFile, retry_failed: bool) -> list[int]:
    return [shard for shard in range(store.num_shards) if not _is_done(root, store, shard, retry_failed)]


def _is_done(root: Path, store: StoreFile, shard: int, retry_failed: bool) -> bool:
    sidecar = read_sidecar(sidecar_path(root, store, shard))
    tar = tar_path(root, store, shard)
    if sidecar is None or not tar.exists() or tar.stat().st_size != sidecar.tar_size:
        return False
    return not (retry_failed and not all(sidecar.ledger["ok"].to_pylist()))


def _tasks(manifest: Manifest, root: Path, store: StoreFile, shards: Iterable[int]) -> Iterator[ShardTask]:
    size = store.clips_per_shard
    for shard in shards:
        clips = tuple(manifest.clips(shard * size, (shard + 1) * size))
        yield ShardTask(root.resolve(), manifest.root, store, shard, clips)


def _make_shards(manifest: Manifest, root: Path, store: StoreFile, missing: list[int], options: IngestOptions) -> None:
    tasks = _tasks(manifest, root, store, missing)
    size = store.clips_per_shard
    num_clips = sum(min(size, len(manifest) - shard * size) for shard in missing)
    reports = run_in_process(tasks) if options.num_workers == 0 else run_on_ray(tasks, options.num_workers)
    _follow(reports, num_clips, options.max_failures)


def _follow(reports: Iterator[ShardProgress], num_clips: int, max_failures: float) -> None:
    """Shows progress, and stops a run in which too large a share of clips fails."""
    num_done, failures = 0, list[LedgerRow]()
    with ProgressDisplay("clips", num_clips) as display:
        for report in reports:
            num_done += report.num_done
            failures.extend(report.failures)
            display.advance(report.num_done, f"{len(failures)} failed")
            if num_done >= MIN_CLIPS_FOR_FAILURE_SHARE and len(failures) > max_failures * num_done:
                raise _too_many_failures(failures, num_done, max_failures)


def _too_many_failures(failures: list[LedgerRow], num_done: int, max_failures: float) -> InputError:
    counts = Counter(row.reason for row in failures)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    return InputError(
        f"stopped: {len(failures)} of {num_done} clips failed, more than --max-failures {max_failures:g} allows "
        f"({reasons}; for instance {failures[0].key}: {failures[0].detail}). Mend the source and run again with "
        "--retry-failed, or allow more"
    )


def _close(root: Path, store: StoreFile, max_failures: float) -> StoreFile:
    """Writes index.json, SHA256SUMS and, last, store.json with its snapshot."""
    sidecars = [_required_sidecar(root, store, shard) for shard in range(store.num_shards)]
    failures = [LedgerRow(**row) for side in sidecars for row in side.ledger.to_pylist() if not row["ok"]]
    if len(failures) == store.num_clips_asked:
        raise InputError(
            f"not one of {len(failures)} clips could be had: for instance {failures[0].key}: {failures[0].reason}, "
            f"{failures[0].detail}. Mend the source and run again with --retry-failed"
        )
    if len(failures) > max_failures * store.num_clips_asked:
        raise _too_many_failures(failures, store.num_clips_asked, max_failures)
    _write_if_new(root / INDEX_FILE, _wids_index(root, store, sidecars))
    # Looked at even where the tars stay as they were: a clip tried again may fail in another way.
    _write_if_new(root / CHECKSUM_FILE, _checksums(root, store, sidecars))
    closed = store.model_copy(update={"snapshots": (_snapshot(store, sidecars),)})
    if closed != store:
        write_store_file(root, closed)
    return closed


def _write_if_new(path: Path, content: str) -> None:
    if not path.exists() or path.read_text() != content:
        atomic_write(path, content)


def _required_sidecar(root: Path, store: StoreFile, shard: int) -> Sidecar:
    sidecar = read_sidecar(sidecar_path(root, store, shard))
    if sidecar is None:
        raise InputError(f"shard {store.shard_stem(shard)} of {root} went missing during the ingest; run it again")
    return sidecar


def _snapshot(store: StoreFile, sidecars: list[Sidecar]) -> Snapshot:
    digest = hashlib.sha256(json.dumps(store.recipe(), sort_keys=True).encode())
    for sidecar in sidecars:
        digest.update(sidecar.tar_sha256.encode())
    num_clips = sum(int(np.sum(side.ledger["ok"].to_numpy())) for side in sidecars)
    num_values = num_clips * store.fbank.num_frames * store.fbank.num_mel_bins
    total = sum(float(np.nansum(side.ledger["fbank_sum"].to_numpy())) for side in sidecars)
    total_sq = sum(float(np.nansum(side.ledger["fbank_sum_sq"].to_numpy())) for side in sidecars)
    mean = total / num_values
    std = float(np.sqrt(max(total_sq / num_values - mean * mean, 0.0)))
    return Snapshot(
        number=1,
        num_shards=store.num_shards,
        num_clips=num_clips,
        mean=mean,
        std=std,
        fingerprint=digest.hexdigest(),
    )


def _wids_index(root: Path, store: StoreFile, sidecars: list[Sidecar]) -> str:
    """The index of wids-style readers."""
    shards = [
        {
            "url": tar_path(root, store, shard).relative_to(root).as_posix(),
            "nsamples": int(np.sum(sidecar.ledger["ok"].to_numpy())),
            "filesize": sidecar.tar_size,
        }
        for shard, sidecar in enumerate(sidecars)
    ]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": store.dataset, "shardlist": shards}
    return json.dumps(index, indent=1) + "\n"


def _checksums(root: Path, store: StoreFile, sidecars: list[Sidecar]) -> str:
    """For `sha256sum -c`; the tars' hashes were taken as they were written."""
    sums = {tar_path(root, store, shard): side.tar_sha256 for shard, side in enumerate(sidecars)}
    for path in [sidecar_path(root, store, shard) for shard in range(store.num_shards)] + [root / INDEX_FILE]:
        sums[path] = hashlib.sha256(path.read_bytes()).hexdigest()
    return "".join(f"{digest}  {path.relative_to(root).as_posix()}\n" for path, digest in sorted(sums.items()))
