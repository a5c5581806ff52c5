"""The helper process of :mod:`ingest.download`: asks yt-dlp for one recording after another."""

import copy
import io
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from yt_dlp import YoutubeDL
from yt_dlp.cookies import CookieLoadError
from yt_dlp.extractor.generic import GenericIE
from yt_dlp.extractor.youtube import YoutubeIE
from yt_dlp.networking.exceptions import RequestError
from yt_dlp.utils import DownloadError

from ingest.child import Reply, serve
from ingest.download import FetchError
from ingest.download_errors import classify, is_rate_limit
from ingest.ledger import Reason
from manifests.errors import InputError

OPTIONS: dict[str, Any] = {
    "format": "bestaudio/best",
    "outtmpl": {"default": "media"},
    "overwrites": True,
    "continuedl": False,
    "noplaylist": True,
    "cachedir": False,
    "fixup": "never",
    "external_downloader": {"default": "native"},
    "geo_bypass": False,
    # Only a body that breaks off is asked for again here, for the rest of it.
    "retries": 2,
    "fragment_retries": 2,
    "extractor_retries": 1,
    "file_access_retries": 0,
    "socket_timeout": 30,
    "quiet": True,
    "no_warnings": True,
    "noprogress": True,
    "color": "never",
    # By itself yt-dlp would look for deno alone.
    "js_runtimes": {"deno": {}, "node": {}, "bun": {}, "quickjs": {}},
}
MAX_REDIRECTS = 5
# A file's first bytes hold others than printable ones, whatever the format; a message of the server's doesn't.
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")


class DirectIE(GenericIE):  # type: ignore[misc]
    """yt-dlp's extractor for any address, for files alone: a page is not searched for something to play."""

    def _webpage_read_content(self, *args: Any, **kwargs: Any) -> str:
        raise FetchError(Reason.NOT_AUDIO, "the server sent a page or a playlist, not a file")


class Downloader(YoutubeDL):  # type: ignore[misc]
    """yt-dlp without its command line: no configuration files, no cache, no other protocols than http and https."""

    def __init__(self, cookies: str | None) -> None:
        # From a stream, since to a file yt-dlp would write the cookies back.
        jar = None if cookies is None else io.StringIO(cookies)
        options = {**copy.deepcopy(OPTIONS), "cookiefile": jar, "progress_hooks": [self._watch]}
        super().__init__(options, auto_init=False)
        self.add_info_extractor(YoutubeIE())
        self.add_info_extractor(DirectIE())
        self.start(0)

    def start(self, max_bytes: int) -> None:
        """Forgets the last recording."""
        self.max_bytes = max_bytes
        self.last_error: RequestError | None = None
        self.broke_off: str | None = None

    def urlopen(self, request: Any) -> Any:
        # Kept, because after its retries yt-dlp passes on nothing but a text.
        try:
            return super().urlopen(request)
        except RequestError as error:
            if not is_rate_limit(self.last_error):
                self.last_error = error
            raise

    def build_request_director(self, handlers: Any, preferences: Any = None) -> Any:
        # That of requests follows no redirect to another protocol; that of urllib follows those to ftp.
        chosen = [handler for handler in handlers if handler.RH_KEY == "Requests"]
        return super().build_request_director(chosen, preferences)

    def _watch(self, progress: dict[str, Any]) -> None:
        got, total = progress.get("downloaded_bytes") or 0, progress.get("total_bytes")
        self.broke_off = f"broke off after {got} of {total or 'unknown'} bytes"
        if max(got, total or 0) > self.max_bytes:
            raise FetchError(Reason.UNAVAILABLE, f"larger than the limit of {self.max_bytes} bytes")


def answer(request: dict[str, Any]) -> Reply:
    """The reply to one request of :func:`ingest.download.download`."""
    try:
        return fetch(request["url"], Path(request["into"]), request["max_bytes"], request["cookies"]), b""
    except FetchError as error:
        return {"reason": error.reason, "detail": error.detail, "retry_after_s": error.retry_after_s}, b""
    except InputError as error:
        return {"wrong_input": str(error)}, b""
    except OSError as error:
        return {"errno": error.errno, "strerror": error.strerror or str(error)}, b""


def fetch(url: str, into: Path, max_bytes: int, cookies: str | None) -> dict[str, Any]:
    """Downloads to a file in `into`; the fields of :class:`ingest.download.Downloaded`, with `name` for the path."""
    # yt-dlp expands '$', '~' and '%' in paths, and leaves none of its files anywhere else.
    os.chdir(into)
    downloader = _open_downloader(cookies)
    downloader.start(max_bytes)
    is_direct = not YoutubeIE.suitable(url)
    try:
        entry = _find(downloader, url, is_direct)
        # What went wrong so far was overcome.
        downloader.last_error, downloader.broke_off = None, "no data came"
        suffix = _hide_suffix(entry) if is_direct else None
        found = downloader.process_ie_result(entry, download=True)
    except Exception as error:  # extractors raise anything on what they don't foresee
        raise classify(error, is_direct, downloader.last_error, downloader.broke_off) from error
    return _deliver(Path("media"), found, suffix, is_direct)


def _open_downloader(cookies: str | None) -> Downloader:
    try:
        text = None if cookies is None else Path(cookies).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read the cookies in {cookies}: {error}") from error
    try:
        downloader = _downloader(text)
        if cookies is not None and not len(downloader.cookiejar):
            raise CookieLoadError
    except (CookieLoadError, DownloadError) as error:
        raise InputError(f"{cookies} holds no cookies in Netscape's format; export them as cookies.txt") from error
    return downloader


@lru_cache(maxsize=1)
def _downloader(cookies: str | None) -> Downloader:
    """Kept from one recording to the next: the script of YouTube's player, 2 MB, is then fetched but once."""
    return Downloader(cookies)


def _find(downloader: Downloader, url: str, is_direct: bool) -> dict[str, Any]:
    """What yt-dlp has found out about the address, before anything is downloaded."""
    key = DirectIE.ie_key() if is_direct else YoutubeIE.ie_key()
    entry: dict[str, Any] = downloader.extract_info(url, download=False, ie_key=key, process=False)
    for _ in range(MAX_REDIRECTS):
        if not is_direct or entry.get("_type") != "url":
            break
        entry = downloader.extract_info(entry["url"], download=False, ie_key=key, process=False)
    if is_direct and entry.get("_type") == "url":
        raise FetchError(Reason.NETWORK, "redirects without end")
    if is_direct and not entry.get("direct"):
        raise FetchError(Reason.NOT_AUDIO, "the server sent a page or a playlist, not a file")
    if entry.get("_type", "video") != "video":
        raise FetchError(Reason.UNAVAILABLE, "not a single video")
    if entry.get("live_status") in ("is_live", "is_upcoming"):
        raise FetchError(Reason.UNAVAILABLE, "a live stream that is not over")
    return entry


def _hide_suffix(entry: dict[str, Any]) -> str:
    """Takes the suffix out of an entry: yt-dlp refuses those that it doesn't know, and chooses protocols by it."""
    file = entry["formats"][0] if entry.get("formats") else entry
    suffix = str(file["ext"] or "")
    file.update(ext="unknown_video", protocol="https")
    return suffix


def _deliver(path: Path, found: dict[str, Any], suffix: str | None, is_direct: bool) -> dict[str, Any]:
    with path.open("rb") as file:
        if is_direct and not _BINARY.search(file.read(512)):
            raise FetchError(Reason.NOT_AUDIO, "the server sent a text, not a sound")
    extension = (suffix or str(found["ext"])).lower()
    if extension == "unknown_video" or not re.fullmatch("[a-z0-9]{1,8}", extension):
        extension = "bin"
    target = path.replace(f"{path.name}.{extension}")
    return {
        "name": target.name,
        "size": target.stat().st_size,
        "format_id": str(found["format_id"]),
        "extension": extension,
        "extractor": "direct" if is_direct else "youtube",
    }


if __name__ == "__main__":
    serve(answer)
