"""Work on many files kept in parts beside its result: stopped anywhere, the same work goes on after the last part."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from ingest.atomic import atomic_path, atomic_write, exclusive, remove_stale
from ingest.ledger import ClipError
from manifests.csvtext import csv_lines
from manifests.errors import InterruptedWorkError
from training.audiofiles import shown
from training.hearing import FileEnd, HeardWindow
from training.written import writing

# A part is finished after so many files, or seconds: no more is lost to an interruption.
FILES_PER_PART, PART_S = 1000, 20.0
JOB_FILE = "job.json"
NOTHING_KEPT = "no part of the work was finished yet, so nothing is kept; the same command begins anew"
Hear = Callable[[Sequence[Path]], AbstractContextManager[Iterator[HeardWindow | FileEnd]]]


@dataclass(frozen=True, slots=True)
class Failure:
    """A row of the ledger: `reason` is one of :class:`ingest.ledger.Reason`."""

    file: str
    reason: str
    message: str


class PartWriter(Protocol):
    """Writes what was heard into one part."""

    def add(self, file: str, window: HeardWindow) -> None:
        """The next window of `file`."""
        ...

    def end(self, file: str, *, ok: bool) -> None:
        """`file` has no more windows; not `ok`: it broke, before its first window or after."""
        ...


OpenPart = Callable[[Path], AbstractContextManager[PartWriter]]


@dataclass
class Parts:
    """The finished parts of one result, of which each holds the next files of the work.

    `num_dropped`: files that an earlier call of another job, or of other files, had finished.
    """

    folder: Path
    num_dropped: int = 0
    num_files: int = 0
    num_parts: int = 0
    failures: list[Failure] = field(default_factory=list)

    def paths(self) -> list[Path]:
        """The parts in the order of the work."""
        return [self.folder / _name(number) for number in range(self.num_parts)]

    def empty_place(self, name: str) -> Path:
        """A path beside the parts for the result while it is made; what a killed call left there is removed."""
        place = self.folder / name
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        return place

    def write(
        self, files: Sequence[Path], hear: Hear, open_part: OpenPart, advance: Callable[[int, str], None]
    ) -> None:
        """Makes the parts of the files that no part has yet; `advance` is told of each file, and of all failures."""
        left = files[self.num_files :]
        names = [shown(path) for path in left]
        with hear(left) as items:
            while self.num_files < len(files):
                self._write_part(names, items, open_part, advance)

    def _write_part(
        self,
        names: list[str],
        items: Iterator[HeardWindow | FileEnd],
        open_part: OpenPart,
        advance: Callable[[int, str], None],
    ) -> None:
        path, started = self.folder / _name(self.num_parts), time.monotonic()
        failures: list[Failure] = []
        num_files = 0
        with atomic_path(path) as temporary, open_part(temporary) as writer:
            for item in items:
                name = names[item.file]
                if isinstance(item, HeardWindow):
                    writer.add(name, item)
                    continue
                writer.end(name, ok=item.error is None)
                num_files += 1
                failures += _failures(name, item.error)
                advance(1, _note(len(self.failures) + len(failures)))
                if num_files == FILES_PER_PART or time.monotonic() - started > PART_S:
                    break
        # What says how many files it holds comes last, and makes it count.
        self._commit(num_files, failures)

    def _commit(self, num_files: int, failures: list[Failure]) -> None:
        rows = [[failure.file, failure.reason, failure.message] for failure in failures]
        content = {"num_files": num_files, "failures": rows}
        atomic_write(self.folder / f"{_name(self.num_parts)}.json", json.dumps(content))
        self.num_files, self.num_parts = self.num_files + num_files, self.num_parts + 1
        self.failures += failures


@contextmanager
def open_parts(out: Path, job: dict[str, Any], files: Sequence[Path]) -> Iterator[Parts]:
    """The parts of `out`, of an earlier call with the same job and unchanged files, else none; gone on success.

    They lie beside `out`, in a hidden folder. Raises InputError where that can't be, or another process is at it, and
    InterruptedWorkError for an interruption before the first part is finished.
    """
    folder = out.with_name(f".{out.name}.parts")
    identity = _identity({"acm_sskd": version("acm-sskd"), **job}, files)
    with writing(out):
        folder.mkdir(exist_ok=True)
        with exclusive(folder, f"command that writes {out}"):
            parts = _reopened(folder, identity)
            try:
                yield parts
            except BaseException as error:
                if parts.num_parts:
                    raise
                shutil.rmtree(folder)
                if isinstance(error, KeyboardInterrupt):
                    raise InterruptedWorkError(NOTHING_KEPT) from error
                raise
        shutil.rmtree(folder)


def failures_path(out: Path) -> Path:
    """Where the ledger of `out` lies."""
    return out.with_name(f"{out.name}.failures.csv")


def write_failures(out: Path, failures: Sequence[Failure]) -> Path | None:
    """The ledger beside `out`, replaced; removed, and None, where nothing failed."""
    path = failures_path(out)
    if not failures:
        path.unlink(missing_ok=True)
        return None
    rows = [(failure.file, failure.reason, failure.message) for failure in failures]
    atomic_write(path, csv_lines([("file", "reason", "message"), *rows]))
    return path


def _reopened(folder: Path, identity: str) -> Parts:
    remove_stale(folder)
    job, parts = folder / JOB_FILE, Parts(folder)
    _read_parts(parts)
    if not job.exists() or job.read_text() != identity:
        # Killed in the midst of this, the next call must not take what is left for its own.
        job.unlink(missing_ok=True)
        for old in folder.glob("part-*"):
            old.unlink()
        parts = Parts(folder, num_dropped=parts.num_files)
        atomic_write(job, identity)
    return parts


def _read_parts(parts: Parts) -> None:
    """Counts what is there: a part is finished when there is what says so."""
    while (about := parts.folder / f"{_name(parts.num_parts)}.json").exists():
        content = json.loads(about.read_bytes())
        parts.num_files, parts.num_parts = parts.num_files + content["num_files"], parts.num_parts + 1
        parts.failures += [Failure(*row) for row in content["failures"]]


def _identity(job: dict[str, Any], files: Sequence[Path]) -> str:
    """What says that work is the same: the model, the options, and the files as they are now."""
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode())
    for path in files:
        digest.update(f"{shown(path)}\0{_state(path)}\n".encode())
    return digest.hexdigest()


def _state(path: Path) -> str:
    try:
        about = path.stat()
    except (OSError, ValueError):
        return "absent"
    return f"{about.st_size} {about.st_mtime_ns}"


def _name(number: int) -> str:
    return f"part-{number:06d}"


def _failures(file: str, error: ClipError | None) -> list[Failure]:
    return [] if error is None else [Failure(file, str(error.reason), error.detail)]


def _note(num_failures: int) -> str:
    return f"{num_failures} failed" if num_failures else ""
