"""Downloads files, and a dataset's archive, which is unpacked: whole or not at all."""

import hashlib
import http.client
import re
import shutil
import ssl
import stat
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from ingest.progress import ProgressDisplay
from manifests.errors import InputError

SCHEMES = ("http", "https", "file")
TIMEOUT_S = 60
RETRY_PAUSES_S = (1.0, 4.0)
_CHUNK_BYTES = 1 << 20
_RETRIED_STATUSES = (408, 429, 500, 502, 503, 504)
_REMEDY = "give another address with --url MIRROR, or a folder that you unpacked yourself with --root FOLDER"


class _TransientError(Exception):
    """A download that failed in a way that may pass: tried again."""


def fetch_archive(url: str, into: Path) -> Path:
    """Downloads the zip file at `url` (http, https or file) and unpacks it under the folder `into`.

    Returns the unpacked folder, or the one folder at its top where everything lies in one. A later call with the same
    `url` returns it again without asking the network. All work is done in a hidden folder beside it, and renamed at the
    end, so that what exists is whole. Members that would land outside, and links, are refused.

    Raises InputError, naming `url`, when it can't be had or isn't such a zip file.
    """
    folder = into / _name(url)
    if not folder.is_dir():
        try:
            into.mkdir(parents=True, exist_ok=True)
            for left in into.glob(".fetch-*"):  # by a download that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=into) as scratch:
                part, content = Path(scratch, "archive.zip.part"), Path(scratch, "content")
                download(url, part, _REMEDY)
                _unpack(url, part, content)
                _settle(content, folder)
        except OSError as error:
            raise InputError(
                f"can't unpack {url} into {into} ({error}); make room, or choose another folder"
            ) from error
    return _top(folder)


def _name(url: str) -> str:
    """A folder name that people can read and that two archives called master.zip don't share."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise InputError(f"can't download {url!r}: not an address ({error}); {_REMEDY}") from error
    if parts.scheme not in SCHEMES:
        raise InputError(f"can't download {url!r}: expected http://, https:// or file:// in front; {_REMEDY}")
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(parts.path).stem)
    return f"{stem or 'archive'}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def download(url: str, part: Path, remedy: str) -> None:
    """Downloads what `url` (http, https or file) gives into the file `part`; on failure a piece of it may be left.

    Raises InputError, which ends with `remedy`, when it can't be had: passing failures were tried again.
    """
    # A local file won't come into being by waiting.
    pauses_s = () if url.lower().startswith("file:") else RETRY_PAUSES_S
    for pause_s in (*pauses_s, None):
        try:
            _download_once(url, part, remedy)
            return
        except _TransientError as error:
            if pause_s is None:
                tries = f"tries: {len(pauses_s) + 1}"
                raise InputError(f"can't download {url} ({tries}): {error}; {remedy}") from error
            time.sleep(pause_s)


def _download_once(url: str, part: Path, remedy: str) -> None:
    # Not obstore's HTTPStore: it needs a Content-Length, which GitHub's archives don't have, and escapes a '?'.
    quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers={"User-Agent": "acm-sskd"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            expected = response.headers.get("Content-Length")
            num_bytes = _copy(response, part, None if expected is None else int(expected))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _RETRIED_STATUSES:
            raise _TransientError(f"HTTP status {error.code} {error.reason}") from error
        raise InputError(f"can't download {url}: HTTP status {error.code} {error.reason}; {remedy}") from error
    except urllib.error.URLError as error:
        raise _TransientError(str(error.reason)) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _TransientError(str(error) or type(error).__name__) from error
    if expected is not None and num_bytes != int(expected):
        raise _TransientError(f"only {num_bytes} of {expected} bytes came")


def _copy(response: IO[bytes], part: Path, expected: int | None) -> int:
    """Copies to `part` under a progress display; returns the bytes. `expected` is None where it is not told."""
    with part.open("wb") as file, ProgressDisplay("MB", expected and expected // 1_000_000) as display:
        display.describe("download")
        shown = 0
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            display.advance(file.tell() // 1_000_000 - shown)
            shown = file.tell() // 1_000_000
        return file.tell()


def _unpack(url: str, part: Path, content: Path) -> None:
    content.mkdir()
    try:
        with zipfile.ZipFile(part) as archive:
            for member in archive.infolist():
                _check_member(url, member)
            archive.extractall(content)
    # RuntimeError: an encrypted member, or a compression that zipfile lacks.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise InputError(f"what {url} gave is not a whole zip file ({error}); {_REMEDY}") from error


def _check_member(url: str, member: zipfile.ZipInfo) -> None:
    # Windows takes a backslash for a slash too, and C: for a drive.
    first, *others = re.split(r"[/\\]", member.filename)
    if not first or re.match(r"[A-Za-z]:", first) or ".." in (first, *others):
        raise InputError(f"{url} holds {member.filename!r}, which would land outside its folder; {_REMEDY}")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise InputError(f"{url} holds a link, {member.filename!r}, which is not followed; {_REMEDY}")


def _settle(content: Path, folder: Path) -> None:
    try:
        content.rename(folder)
    except OSError:
        # Another process may have been quicker with the same archive.
        if not folder.is_dir():
            raise


def _top(folder: Path) -> Path:
    inside = [path for path in folder.iterdir() if path.name != "__MACOSX"]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
