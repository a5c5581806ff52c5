"""One recording, downloaded whole by yt-dlp in a helper process, so that no server can hang or fill a worker."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ingest.child import Child, ChildDiedError, ChildTimeoutError
from ingest.ledger import ClipError, Reason
from manifests.errors import InputError

YOUTUBE = "youtube"
HELPER = "ingest.download_child"
MAX_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """What to download: a video's page on YouTube, or the address of a file; http or https.

    A download that takes longer than `time_limit_s`, or has more than `max_bytes`, is given up. `cookies` is a file in
    Netscape's format; it is never written to.
    """

    url: str
    time_limit_s: float = 600.0
    max_bytes: int = MAX_BYTES
    cookies: Path | None = None


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A whole file: `format_id` is yt-dlp's (such as 251), `extractor` is "youtube" or "direct"."""

    path: Path
    size: int
    format_id: str
    extension: str
    extractor: str


class FetchError(ClipError):
    """A recording that can't be had; `retry_after_s` is how long the server wants to be left alone, if it said so."""

    def __init__(self, reason: Reason, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason, detail)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is otherwise rebuilt, behind Ray, from its text alone.
        return type(self), (self.reason, self.detail, self.retry_after_s)


def video_url(source: str, recording: str) -> str:
    """The address of a recording: `source` is "youtube" or a template such as http://host/{id}.m4a.

    Raises InputError for a template that isn't one.
    """
    if source == YOUTUBE:
        return f"https://www.youtube.com/watch?v={quote(recording, safe='')}"
    if "{id}" not in source:
        raise InputError(f"--source {_shown(source)} has no {{id}}; give an address such as http://host/{{id}}.m4a")
    url = source.replace("{id}", quote(recording, safe=""))
    if "{" in url or "}" in url:
        raise InputError(f"--source {_shown(source)} has other braces than {{id}}, the only part that is filled in")
    _check_address(url)
    return url


def download(request: DownloadRequest, into: Path, child: Child) -> Downloaded:
    """Downloads the best sound as the server has it, without cutting or converting, to media.EXTENSION in `into`.

    `into` is a folder; after an error it may hold a piece, which no later call goes on with. `child` is a
    Child(HELPER), to be used again for the next recording.

    Raises FetchError when the recording can't be had; InputError for an address that is neither http nor https, or
    cookies that can't be read; OSError when it can't be stored (the disk is full).
    """
    _check_address(request.url)
    question = {
        "url": request.url,
        "into": str(into.absolute()),
        "max_bytes": request.max_bytes,
        "cookies": None if request.cookies is None else str(request.cookies.absolute()),
    }
    try:
        answer, _ = child.call(question, request.time_limit_s)
    except ChildTimeoutError as error:
        raise FetchError(Reason.TIMEOUT, f"not done within {request.time_limit_s:g} s") from error
    except ChildDiedError as error:
        raise FetchError(Reason.DOWNLOADER, f"the downloader crashed: {error}") from error
    match answer:
        case {"reason": reason, "detail": detail, "retry_after_s": retry_after_s}:
            raise FetchError(Reason(reason), detail, retry_after_s)
        case {"wrong_input": message}:
            raise InputError(message)
        case {"errno": errno, "strerror": strerror}:
            raise OSError(errno, strerror, str(into))
    return Downloaded(path=into / answer.pop("name"), **answer)


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise InputError(f"{_shown(url)} is not an address: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(f"{_shown(url)} is not an address to download from; it must start with http:// or https://")


def _shown(url: str) -> str:
    """An address without the password and the signature that it may hold."""
    scheme, _, rest = url.partition("?")[0].rpartition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if scheme else rest
