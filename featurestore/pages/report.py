"""Writes a report: pictures and sounds of the clips, then the page, in a folder that appears whole."""

import base64
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurestore.pages.audio import window_as_mp3
from featurestore.pages.features import read_features, sample_rows
from featurestore.pages.overlays import DrawOverlays, find_overlays
from featurestore.pages.page import page_parts
from featurestore.pages.pictures import colour_sheet, mask_sheet
from featurestore.pages.records import clip_records, duplicate_records, failure_records, picture_name
from featurestore.pages.survey import survey
from featurestore.pages.taught import read_taught
from featurestore.store import Store
from ingest.progress import ProgressDisplay
from manifests.errors import InputError
from manifests.geometry import PatchGrid

MAX_CLIPS = 20_000
PAGE_FILE, MARK_FILE, CLIP_FOLDER = "index.html", "report.json", "clips"
# Up to this much, pictures and sounds go into the page itself.
MAX_INLINE_BYTES = 20 << 20
_NUM_THREADS = 2
_MIME = {".webp": "image/webp", ".png": "image/png", ".mp3": "audio/mpeg"}


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """num_clips None: all of them. `teacher` None: the first cache that can be used."""

    num_clips: int | None = 200
    seed: int = 0
    with_audio: bool = True
    teacher: str | None = None
    duplicate_cosine: float = 0.995


@dataclass(frozen=True, slots=True)
class Report:
    """What was written; `is_one_file`: the page holds its pictures and sounds itself."""

    page: Path
    num_clips: int
    num_failures: int
    num_with_audio: int
    is_one_file: bool
    teacher: str | None


def write_report(store: Store, out: Path, options: ReportOptions) -> Report:
    """Writes the report into the folder `out`, in place of an earlier one.

    Raises InputError for a folder with anything else in it, more than MAX_CLIPS clips, an unusable teacher, or a
    damaged store; then `out` stays as it was.
    """
    rows = _choose(store, options)
    with _report_folder(out) as folder:
        taught = read_taught(store, rows, options.teacher, options.duplicate_cosine)
        surveyed = survey(store, rows)
        overlays = find_overlays()
        (folder / CLIP_FOLDER).mkdir()
        audio = _draw_clips(store, rows, folder / CLIP_FOLDER, overlays, options.with_audio)
        inline = _inlined(folder / CLIP_FOLDER)
        data = {
            "clips": clip_records(store, rows, surveyed, taught, audio),
            "failures": failure_records(store, surveyed.failures),
            "duplicates": duplicate_records(store, rows, surveyed, taught),
            "classes": [[label.id, label.name] for label in store.file.vocabulary.labels],
            "overlays": overlays is not None,
            "teacher": taught.name,
            "shape": f"{store.file.fbank.num_frames} / {store.file.fbank.num_mel_bins}",
        }
        facts = {"taught": taught, "num_clips": len(rows), "options": options}
        with (folder / PAGE_FILE).open("w", encoding="utf-8") as file:
            file.writelines(page_parts(store, surveyed, facts, data, inline))
        (folder / MARK_FILE).write_text(_mark(store, rows, options))
    num_with_audio = sum(reason is None for reason in audio.values())
    num_failures = sum(surveyed.reasons.values())
    return Report(out / PAGE_FILE, len(rows), num_failures, num_with_audio, bool(inline), taught.name)


def _choose(store: Store, options: ReportOptions) -> NDArray[np.int64]:
    rows = store.rows()
    num_clips = len(rows) if options.num_clips is None else min(options.num_clips, len(rows))
    if num_clips > MAX_CLIPS:
        raise InputError(
            f"{num_clips} clips of {store.location} are too many for a page, which takes {MAX_CLIPS}; choose some with "
            "--num-clips, or make a smaller store with `featurestore subset`"
        )
    return sample_rows(rows, num_clips, options.seed)


def _draw_clips(
    store: Store, rows: NDArray[np.int64], folder: Path, overlays: DrawOverlays | None, with_audio: bool
) -> dict[int, str | None]:
    """Writes the files of all clips; returns of each why it has no sound, None where it has."""
    grid = PatchGrid(num_frames=store.file.fbank.num_frames)
    keys = dict(zip(rows.tolist(), store.keys(rows), strict=True))

    def draw(row: int) -> str | None:
        features, path = read_features(store, row), folder / picture_name(row)
        path.with_suffix(".webp").write_bytes(colour_sheet(features))
        if overlays is not None:
            seed = int.from_bytes(hashlib.sha256(keys[row].encode()).digest()[:4], "big")
            masks = mask_sheet(overlays(features.gradient_magnitude, grid, seed), grid)
            path.with_suffix(".png").write_bytes(masks)
        sound = window_as_mp3(store, row) if with_audio else "left out (--no-audio)"
        if isinstance(sound, bytes):
            path.with_suffix(".mp3").write_bytes(sound)
            return None
        return sound

    audio = {}
    with ProgressDisplay("clips", len(rows)) as display, ThreadPoolExecutor(_NUM_THREADS, "draw") as pool:
        for row, why_not in zip(rows.tolist(), pool.map(draw, rows.tolist()), strict=True):
            audio[row] = why_not
            display.advance(1)
    return audio


def _inlined(folder: Path) -> dict[str, str]:
    """The clips' files as data: URLs, in place of the folder; nothing where they are too large together."""
    paths = sorted(folder.iterdir())
    if sum(path.stat().st_size for path in paths) > MAX_INLINE_BYTES:
        return {}
    urls = {
        path.name: f"data:{_MIME[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}" for path in paths
    }
    shutil.rmtree(folder)
    return urls


def _mark(store: Store, rows: NDArray[np.int64], options: ReportOptions) -> str:
    about = {
        "made_by": "featurestore inspect",
        "store_fingerprint": store.snapshot.fingerprint,
        "snapshot": store.snapshot.number,
        "num_clips": len(rows),
        "seed": options.seed,
    }
    return json.dumps(about, indent=1) + "\n"


@contextmanager
def _report_folder(out: Path) -> Iterator[Path]:
    """Yields an empty folder beside `out` that takes its place unless an error comes out.

    A kill leaves it behind, and the next report clears it away.
    """
    _refuse_other_folder(out)
    temporary = out.absolute().with_name(f".{out.absolute().name}.partial")
    temporary.mkdir(parents=True, exist_ok=True)
    lock = os.open(temporary, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another `featurestore inspect` is writing {out}; wait for it, or stop it") from error
        _empty(temporary)
        try:
            yield temporary
            # Once more, since somebody may have put files there meanwhile.
            _refuse_other_folder(out)
            if out.exists():
                shutil.rmtree(out)
            temporary.rename(out)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary)
    finally:
        os.close(lock)


def _refuse_other_folder(out: Path) -> None:
    """Raises InputError unless there is nothing at `out`, an empty folder, or a report and nothing else."""
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or not out.is_dir():
        raise InputError(f"--out {out} is not a folder of its own; name another one, or one that doesn't exist yet")
    found = {path.name for path in out.iterdir()}
    if found and (MARK_FILE not in found or found - {PAGE_FILE, MARK_FILE, CLIP_FOLDER}):
        raise InputError(
            f"--out {out} holds other things than a report ({', '.join(sorted(found)[:3])}); name another folder, or "
            "one that doesn't exist yet"
        )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
