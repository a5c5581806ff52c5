"""A lock in an object store, for writers on several machines: an object that its holder refreshes while it works.

Whoever writes it does so on condition that it is still what they saw, so that of two contenders one wins. It is never
deleted, since stores can't do that on condition; a released one names no holder. A holder that stops refreshing
(killed, cut off, asleep) loses it to the next who asks, and is told at its end. So the lock keeps two from working side
by side, and a moment's overlap must do no harm: files appear whole, and the same work gives the same bytes.
"""

import json
import os
import secrets
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import ObjectStore

from ingest.atomic import TEMPORARY_SUFFIX
from ingest.objectclient import Patience, attempt
from manifests.errors import InputError


@dataclass(frozen=True)
class LeaseTimes:
    """When a holder refreshes, and after how long without that it counts as gone."""

    refresh_s: float = 30.0
    stale_s: float = 120.0


@dataclass(frozen=True)
class Lock:
    """Which object is the lock, and how it is spoken of."""

    store: ObjectStore
    key: str
    where: str
    work: str
    times: LeaseTimes
    patience: Patience


@dataclass(frozen=True)
class _Seen:
    content: bytes
    version: dict[str, str]
    modified: datetime

    @property
    def holder(self) -> dict[str, Any] | None:
        """Who holds it; None when nobody does. Raises ValueError when this is no lock."""
        holder = json.loads(self.content)["holder"]
        return None if holder is None else {name: holder[name] for name in ("host", "machine", "pid", "since")}


@contextmanager
def leased(lock: Lock) -> Iterator[None]:
    """Holds the lock.

    Raises InputError when another process does, OSError when there is no such bucket or it may not be written to, and
    at the end when the lock was lost meanwhile.
    """
    lease = _Lease(lock)
    lease.acquire()
    try:
        yield
    except BaseException as error:
        try:
            lease.release()
        except OSError as lost:
            error.add_note(str(lost))
        raise
    lease.release()


class _Lease:
    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._version: dict[str, str] = {}
        self._is_lost = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="lease", daemon=True)
        self._holder = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def acquire(self) -> None:
        taken = False
        while not taken:
            seen = self._look()
            if seen is not None:
                self._check_free(seen)
            # When this fails, another contender was faster: then the next look says who.
            taken = self._put("create" if seen is None else seen.version, self._holder)
        self._thread.start()

    def release(self) -> None:
        self._done.set()
        self._thread.join()
        if self._is_lost or not self._put(self._version, None):
            raise OSError(
                f"{self._lock.where}: this {self._lock.work} lost its lock, since it could not refresh it for "
                f"{self._lock.times.stale_s:g} s, and another process may have been at work too; run it again"
            )

    def _refresh(self) -> None:
        while not self._is_lost and not self._done.wait(self._lock.times.refresh_s):
            try:
                self._is_lost = not self._put(self._version, self._holder)
            except OSError:
                # The store may be back at the next turn; if not, the release fails in the same way and says so.
                continue

    def _put(self, condition: Any, holder: dict[str, Any] | None) -> bool:
        """Writes the lock on that condition, and says whether it held; raises OSError when that can't be found out."""
        lock = self._lock
        # The random part tells this write from all others, the holder's own earlier ones too.
        content = json.dumps({"holder": holder, "write": secrets.token_hex(16)}).encode()
        try:
            made = attempt(
                lambda: obstore.put(lock.store, lock.key, content, mode=condition),
                f"{lock.where}: can't write the lock",
                lock.patience,
            )
        except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
            if condition == "create" and isinstance(error, FileNotFoundError):
                raise  # what is missing is the bucket
            # Also when the write was done, its answer lost, and the repeated one refused.
            seen = self._look()
            if seen is None or seen.content != content:
                return False
            self._version = seen.version
            return True
        self._version = _version_of(made)
        return True

    def _look(self) -> _Seen | None:
        lock = self._lock

        def read() -> _Seen:
            found = obstore.get(lock.store, lock.key)
            return _Seen(found.bytes().to_bytes(), _version_of(found.meta), found.meta["last_modified"])

        try:
            return attempt(read, f"{lock.where}: can't read the lock", lock.patience)
        except FileNotFoundError:
            return None

    def _check_free(self, seen: _Seen) -> None:
        """Raises InputError unless nobody holds the lock any more."""
        try:
            holder = seen.holder
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._lock.where}: the object {self._lock.key} is not a lock; remove it") from error
        if holder is None:
            return
        if holder["machine"] == self._holder["machine"]:
            gone = not _is_running(holder["pid"])
        else:
            gone = (self._store_time() - seen.modified).total_seconds() > self._lock.times.stale_s
        if not gone:
            raise InputError(
                f"another {self._lock.work} is at work on {self._lock.where}: process {holder['pid']} on "
                f"{holder['host']}, since {holder['since']}; wait for it, or stop it. If that machine is gone, "
                f"try again in {self._lock.times.stale_s:g} s"
            )

    def _store_time(self) -> datetime:
        """The store's own clock, which also dates the lock: those of two machines may differ."""
        lock = self._lock
        folder, _, name = lock.key.rpartition("/")
        key = f"{folder}/{name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}".lstrip("/")

        def probe() -> datetime:
            obstore.put(lock.store, key, b"")
            now = obstore.head(lock.store, key)["last_modified"]
            obstore.delete(lock.store, key)
            return now

        return attempt(probe, f"{lock.where}: can't write beside the lock", lock.patience)


def _version_of(meta: Any) -> dict[str, str]:
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}


def _machine() -> str:
    """What processes that see each other's ids have in common, and no others: names of machines are not unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode():x}"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
