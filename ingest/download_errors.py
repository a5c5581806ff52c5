"""Why a download failed: what yt-dlp raises, as a reason for the ledger.

yt-dlp says it by an exception's type where the network failed, and elsewhere by YouTube's own words.
"""

import email.utils
import http.client
import re
import time
from collections.abc import Iterator
from http import HTTPStatus

from yt_dlp.networking.exceptions import HTTPError, RequestError, TransportError
from yt_dlp.utils import ExtractorError, GeoRestrictedError

from ingest.download import FetchError
from ingest.ledger import Reason

# YouTube's words, in the order in which they are looked for: several may stand in one message.
WORDINGS: tuple[tuple[Reason, tuple[str, ...]], ...] = (
    (Reason.PRIVATE, ("private video", "video is private")),
    (Reason.AGE_GATED, ("confirm your age", "verify your age", "age-restricted", "inappropriate")),
    (
        Reason.RATE_LIMITED,
        ("not a bot", "rate-limited", "content isn't available", "captcha", "ip is likely being blocked"),
    ),
    (Reason.TERMINATED, ("account has been terminated", "has been terminated", "closed their youtube account")),
    (Reason.GEO_BLOCKED, ("in your country", "in your region", "from your location")),
    (Reason.UNAVAILABLE, ("members-only", "members only", "join this channel", "channel's members", "premium members")),
    (Reason.UNAVAILABLE, ("requires payment", "drm protected", "premiere", "live event", "live stream", "is offline")),
    (Reason.UNAVAILABLE, ("video is not available",)),
    (Reason.REMOVED, ("has been removed", "no longer available", "isn't available anymore", "copyright claim")),
    (Reason.REMOVED, ("does not exist", "video unavailable", "video is unavailable")),
    (Reason.RATE_LIMITED, ("sign in",)),
)


def classify(error: BaseException, is_direct: bool, last: RequestError | None, broke_off: str | None) -> FetchError:
    """Why yt-dlp failed.

    `last` is what the network said last, in case yt-dlp dropped it; `broke_off` says how far the download got. What
    can't be made out is transient, since YouTube's words change. An OSError of this machine (a full disk) is raised.
    """
    said = None
    for cause in _causes(error):
        if isinstance(cause, FetchError):
            return cause
        if isinstance(cause, RequestError):
            return _refused(cause, is_direct)
        if isinstance(cause, OSError):
            raise cause
        if isinstance(cause, GeoRestrictedError):
            return FetchError(Reason.GEO_BLOCKED, one_line(cause.orig_msg))
        if isinstance(cause, ExtractorError):
            said = cause.orig_msg
    if last is not None and is_rate_limit(last):
        return _refused(last, is_direct)  # whatever YouTube says then of the video may not be so
    words = (said or str(error)).lower().replace("’", "'")
    for reason, fragments in () if is_direct else WORDINGS:
        if any(fragment in words for fragment in fragments):
            return FetchError(reason, one_line(said or str(error)))
    if last is not None:
        return _refused(last, is_direct)
    if broke_off is not None and said is None:
        return FetchError(Reason.NETWORK, broke_off)
    return FetchError(Reason.DOWNLOADER, one_line(said or str(error)) or type(error).__name__)


def is_rate_limit(error: RequestError | None) -> bool:
    """Whether the server said that it wants fewer requests."""
    return isinstance(error, HTTPError) and error.status == HTTPStatus.TOO_MANY_REQUESTS


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from, the outermost first."""
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        seen.add(id(error))
        yield error
        exc_info = getattr(error, "exc_info", None) or (None, None, None)
        error = getattr(error, "cause", None) or exc_info[1] or error.__cause__ or error.__context__


def _refused(error: RequestError, is_direct: bool) -> FetchError:
    if isinstance(error, HTTPError):
        retry_after_s = parse_retry_after(error.response.headers.get("Retry-After"), time.time())
        return FetchError(_reason_of(error.status, is_direct), _status_text(error), retry_after_s)
    root = list(_causes(error))[-1]
    what = getattr(root, "strerror", None) or type(root).__name__  # their texts hold addresses, with signatures
    if isinstance(error, TransportError):
        return FetchError(Reason.NETWORK, f"the connection failed: {what}")
    return FetchError(Reason.UNAVAILABLE, f"the server leads to an address that isn't followed: {what}")


def _reason_of(status: int, is_direct: bool) -> Reason:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Reason.RATE_LIMITED
    if status in (401, 403):
        return Reason.FORBIDDEN
    if status < 400 or status >= 500 or status in (408, 425):
        return Reason.NETWORK
    if not is_direct:
        return Reason.DOWNLOADER  # YouTube's own pages are always there
    return {404: Reason.REMOVED, 410: Reason.REMOVED, 451: Reason.GEO_BLOCKED}.get(status, Reason.UNAVAILABLE)


def _status_text(error: HTTPError) -> str:
    if error.redirect_loop:
        return f"HTTP status {error.status}: redirects without end"
    return f"HTTP status {error.status} {http.client.responses.get(error.status, '')}".rstrip()


def parse_retry_after(header: str | None, now_s: float) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; None without one that can be read."""
    if header is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", header):
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def one_line(text: str) -> str:
    """What a ledger can hold of a message: no colours, addresses, paths or advice about yt-dlp's options."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    text = re.split(r"\.?\s*(?:Use --cookies|It is recommended to use|; please report)", text)[0]
    text = re.sub(r"\w+://\S+|(?:/[\w.@~+-]+){2,}", "…", text)
    return " ".join(text.split())[:200]
