"""Where a clip's sound lies: a path, a file named by the recording's id, or a cache of downloads."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from ingest.ledger import ClipError, Reason
from ingest.location import open_location
from ingest.rawcache import NUM_LOOKUPS, RawCache
from ingest.sourcefile import source_path
from manifests.clips import Clip, Sources
from manifests.errors import InputError
from manifests.folder import AUDIO_EXTENSIONS


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file at a location; `is_cut`: see :func:`ingest.window.read_window`.

    `sha256`: what its content must come to, where that is known.
    """

    location: str
    name: str
    is_cut: bool | None = False
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why a clip has no file."""

    reason: Reason
    detail: str


class ClipSources(Protocol):
    """Finds the files of clips."""

    def find(self, clip: Clip) -> SourceFile:
        """The clip's file, which need not be readable. Raises ClipError where there is none."""
        ...


def open_sources(sources: Sources) -> ClipSources:
    """What finds the files of a manifest's clips. Raises InputError when their folder is gone."""
    match sources.kind:
        case "files":
            return _Files(sources.address)
        case "named_by_id":
            return NamedById(Path(sources.address))
        case "raw_cache":
            return _Downloads(RawCache(open_location(sources.address)))


def find_source(sources: ClipSources, clip: Clip) -> SourceFile | Unavailable:
    """The clip's file, or why there is none."""
    try:
        return sources.find(clip)
    except ClipError as error:
        return Unavailable(error.reason, error.detail)


def find_sources(sources: ClipSources, clips: Sequence[Clip]) -> tuple[SourceFile | Unavailable, ...]:
    """As :func:`find_source` for many clips: several at a time, since a cache may be far away."""
    with ThreadPoolExecutor(NUM_LOOKUPS, "lookup") as pool:
        return tuple(pool.map(partial(find_source, sources), clips))


@contextmanager
def local_source(source: SourceFile) -> Iterator[Path]:
    """The clip's file on this machine. Raises ClipError when it can't be had."""
    location = open_location(source.location)
    if location.folder is not None:
        yield source_path(location.folder, source.name)
        return
    with ExitStack() as stack:
        try:
            path = stack.enter_context(location.local_copy(source.name))
        except FileNotFoundError as error:
            raise ClipError(Reason.MISSING, "no such file") from error
        except OSError as error:
            raise ClipError(Reason.NETWORK, str(error)) from error
        yield path


class _Files:
    def __init__(self, root: str) -> None:
        self._root = root

    def find(self, clip: Clip) -> SourceFile:
        return SourceFile(self._root, clip.source)


class _Downloads:
    def __init__(self, cache: RawCache) -> None:
        self._cache = cache

    def find(self, clip: Clip) -> SourceFile:
        entry = self._cache.find(clip.source)
        if entry is None:
            raise ClipError(Reason.MISSING, f"{clip.source} was never fetched")
        if entry.file is None:
            raise ClipError(entry.reason or Reason.MISSING, entry.detail or "its download was not kept (--no-raw)")
        return SourceFile(str(self._cache.location), entry.file, sha256=entry.sha256)


# ID, YID, ID_30, ID_30.5, ID_30000_40000, ID_30_40, ID_000030; a YouTube id has 11 characters, '_' and '-' among them.
_NAME = re.compile(r"Y?(?P<id>[A-Za-z0-9_-]{11})(?:_(?P<start>\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?")
_NAME_WITHOUT_Y = re.compile(_NAME.pattern.removeprefix("Y?"))


class NamedById:
    """A folder, with subfolders, of files named by the id of a recording, in any of the habits that are about.

    A name with a start time, in seconds or milliseconds, is that clip alone. A name without one may be the whole
    recording or the only clip cut from it: the file's length tells.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(f"{root} is no folder; give the folder that holds the files named by their ids")
        self._root = root
        self._names: dict[str, list[tuple[str | None, str]]] = {}
        extensions = {f".{extension}" for extension in AUDIO_EXTENSIONS}
        for folder, subfolders, files in os.walk(root):
            subfolders.sort()
            inside = Path(folder).relative_to(root)
            for file in sorted(files):
                path = inside / file
                if path.suffix.lower() in extensions:
                    # Both readings of a name that starts with Y; that of an id takes precedence for a file of that id.
                    matches = (_NAME_WITHOUT_Y.fullmatch(path.stem), _NAME.fullmatch(path.stem))
                    for match in {m["id"]: m for m in matches if m}.values():
                        self._names.setdefault(match["id"], []).append((match["start"], path.as_posix()))
        if not self._names:
            raise InputError(
                f"{root} has no file named by a YouTube id (such as ID.m4a, YID.wav, ID_30.flac, ID_30000_40000.wav, "
                "ID_000030.mp4); is it the right folder?"
            )

    def find(self, clip: Clip) -> SourceFile:
        found = self._names.get(clip.source, [])
        for start, name in found:
            if start is not None and _is_start(start, clip.start_ms or 0):
                return SourceFile(str(self._root), name, is_cut=True)
        for start, name in found:
            if start is None:
                return SourceFile(str(self._root), name, is_cut=None)
        if found:
            raise ClipError(Reason.MISSING, f"no file of {clip.source} starts there, only {found[0][1]}")
        raise ClipError(Reason.MISSING, f"no file is named by {clip.source}")


def _is_start(text: str, start_ms: int) -> bool:
    """Whether a number in a file's name, seconds or milliseconds, means the start of a clip."""
    return float(text) * 1000 == start_ms or float(text) == start_ms
