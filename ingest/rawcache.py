"""A cache of downloads: each recording as it came, and a small record that says what came of it.

raw/3f0a/ID.m4a     the file
raw/3f0a/ID.json    written after it: its name, size and sha256; or why the recording can't be had
"""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ingest.ledger import Reason
from ingest.location import Location
from ingest.sourcefile import file_sha256

# Records of an object store's cache are looked up so many at a time.
NUM_LOOKUPS = 16
_STATE_FILE = "fetching.json"


class RawEntry(BaseModel):
    """What is known of a recording: its file, or why there is none (no reason either: it was dropped after use)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    file: str | None = None
    size: int | None = None
    sha256: str | None = None
    format: str | None = None
    reason: Reason | None = None
    detail: str | None = None


class RawCache:
    """Recordings by id, in a folder or an object store."""

    def __init__(self, location: Location) -> None:
        self.location = location

    def find(self, recording: str) -> RawEntry | None:
        """What is known of a recording; None where nothing is, or where its record or its file is damaged."""
        try:
            entry = RawEntry.model_validate(json.loads(self.location.read(_record_name(recording))))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError, ValidationError):
            return None  # torn by a machine that died: it is fetched again
        if entry.id != recording or (entry.file is not None and self.location.size(entry.file) != entry.size):
            return None
        return entry

    def add(self, recording: str, path: Path, format_name: str) -> RawEntry:
        """Moves a download in; its record, which says that it is whole, comes last."""
        name = _stem(recording) + (path.suffix or ".bin")
        entry = RawEntry(
            id=recording, file=name, size=path.stat().st_size, sha256=file_sha256(path), format=format_name
        )
        self.location.take(path, name)
        self._record(entry)
        return entry

    def fail(self, recording: str, reason: Reason, detail: str) -> None:
        """Remembers why a recording can't be had."""
        self._record(RawEntry(id=recording, reason=reason, detail=detail))

    def drop(self, recording: str) -> None:
        """Removes the file of a recording, and keeps that it was there."""
        entry = self.find(recording)
        if entry is not None and entry.file is not None:
            self._record(entry.model_copy(update={"file": None}))
            self.location.delete(entry.file)

    def forget(self, recording: str) -> None:
        """Makes a recording one that was never fetched; its file stays until another one takes its place."""
        self.location.delete(_record_name(recording))

    def read_state(self) -> dict[str, object]:
        """What the last run left for the next one; empty where there is nothing readable."""
        try:
            state = json.loads(self.location.read(_STATE_FILE))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return {}
        return state if isinstance(state, dict) else {}

    def write_state(self, state: dict[str, object]) -> None:
        """Leaves something for the next run."""
        self.location.write(_STATE_FILE, json.dumps(state) + "\n")

    def _record(self, entry: RawEntry) -> None:
        self.location.write(_record_name(entry.id), entry.model_dump_json(exclude_none=True) + "\n")


def _stem(recording: str) -> str:
    """Ids differ in case, which some file systems don't tell apart: so the folder is a hash of the id."""
    return f"{hashlib.sha256(recording.encode()).hexdigest()[:4]}/{recording}"


def _record_name(recording: str) -> str:
    return f"{_stem(recording)}.json"
