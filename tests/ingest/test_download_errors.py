"""Whatever yt-dlp raises has a reason, by its type first and by YouTube's words after."""

import email.utils
import io

import pytest
from yt_dlp.networking import Response
from yt_dlp.networking.exceptions import HTTPError, TransportError
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError

from ingest.download_errors import classify, one_line, parse_retry_after
from ingest.ledger import Reason

# YouTube's words, as yt-dlp's extractor raises them.
SAID = {
    "Private video. Sign in if you've been granted access to this video": Reason.PRIVATE,
    "This video is private": Reason.PRIVATE,
    "Video unavailable. This video is private": Reason.PRIVATE,
    "Video unavailable. This video has been removed by the uploader": Reason.REMOVED,
    "This video has been removed for violating YouTube's policy on hate speech": Reason.REMOVED,
    "Video unavailable. This video is no longer available due to a copyright claim by Someone": Reason.REMOVED,
    "Video unavailable. This video isn't available anymore": Reason.REMOVED,
    "Video unavailable": Reason.REMOVED,
    "This video does not exist.": Reason.REMOVED,
    "Video unavailable. This video is no longer available because the YouTube account associated with this video has "
    "been terminated.": Reason.TERMINATED,
    "Video unavailable. This video is no longer available because the uploader has closed their YouTube account": (
        Reason.TERMINATED
    ),
    "Video unavailable. The uploader has not made this video available in your country": Reason.GEO_BLOCKED,
    "Video unavailable. This video contains content from A, who has blocked it in your country on copyright grounds": (
        Reason.GEO_BLOCKED
    ),
    "Sign in to confirm your age. This video may be inappropriate for some users": Reason.AGE_GATED,
    "This video is age-restricted and only available on YouTube": Reason.AGE_GATED,
    "Sign in to confirm you’re not a bot": Reason.RATE_LIMITED,
    "Sign in to confirm you're not a bot": Reason.RATE_LIMITED,
    "Please sign in": Reason.RATE_LIMITED,
    "Video unavailable. This content isn’t available, try again later. The current session has been rate-limited by "
    "YouTube for up to an hour. It is recommended to use `-t sleep`": Reason.RATE_LIMITED,
    "All player responses are invalid. Your IP is likely being blocked by Youtube": Reason.RATE_LIMITED,
    "Join this channel to get access to members-only content like this video, and other exclusive perks.": (
        Reason.UNAVAILABLE
    ),
    "This video is available to this channel's members on level: Gold (or any higher level)": Reason.UNAVAILABLE,
    "Premieres in 3 hours": Reason.UNAVAILABLE,
    "This live event will begin in 5 days.": Reason.UNAVAILABLE,
    "This live stream recording is not available.": Reason.UNAVAILABLE,
    "This video requires payment to watch": Reason.UNAVAILABLE,
    "This video is DRM protected": Reason.UNAVAILABLE,
    "Video unavailable. This video is not available": Reason.UNAVAILABLE,
    "Something that nobody has said before": Reason.DOWNLOADER,
    "Requested format is not available. Use --list-formats for a list of available formats": Reason.DOWNLOADER,
}
HINT = (
    ". Use --cookies-from-browser or --cookies for the authentication. See  https://github.com/yt-dlp/yt-dlp/wiki/FAQ  "
    "for how to manually pass cookies. Also see  https://github.com/yt-dlp/  for tips on exporting YouTube cookies"
)


def as_raised(error: Exception) -> DownloadError:
    """What YoutubeDL makes of an extractor's error."""
    try:
        raise error
    except Exception as caught:
        info = getattr(caught, "exc_info", None)
        return DownloadError(f"ERROR: {caught}", info if info and info[0] else (type(caught), caught, None))


@pytest.mark.parametrize("said", SAID)
def test_youtubes_words_have_their_reason(said: str) -> None:
    error = as_raised(ExtractorError(said + HINT, expected=True, video_id="-9VPvTfV1_4", ie="youtube"))
    found = classify(error, False, None, None)
    assert found.reason == SAID[said]
    assert found.detail
    assert not any(word in found.detail for word in ("--cookies", "http", "\n", "[youtube]"))


def test_types_count_before_words() -> None:
    response = Response(io.BytesIO(), "https://host/?secret", {"Retry-After": "60"}, 429)
    refused = ExtractorError("Private video", cause=HTTPError(response))
    assert classify(as_raised(refused), False, None, None).reason == Reason.RATE_LIMITED
    assert classify(as_raised(GeoRestrictedError("Not for you")), False, None, None).reason == Reason.GEO_BLOCKED
    broken = TransportError(cause=ConnectionResetError(104, "Connection reset by peer"))
    found = classify(as_raised(ExtractorError("Unable to download webpage", cause=broken)), False, None, None)
    assert str(found) == "network: the connection failed: Connection reset by peer"
    with pytest.raises(OSError, match="No space left"):
        classify(as_raised(OSError(28, "No space left on device")), False, None, None)


def test_when_requests_were_refused_a_no_is_not_believed() -> None:
    refused = HTTPError(Response(io.BytesIO(), "https://host/", {"Retry-After": "60"}, 429))
    found = classify(as_raised(ExtractorError("Video unavailable", expected=True)), False, refused, None)
    assert (found.reason, found.retry_after_s) == (Reason.RATE_LIMITED, 60.0)


def test_a_detail_is_one_short_line() -> None:
    assert (
        one_line("\x1b[0;31mERROR:\x1b[0m no\n\n way: https://host/?key=1 in /home/me/x.part")
        == "ERROR: no way: … in …"
    )
    assert len(one_line("word " * 1000)) <= 200


def test_retry_after_may_be_a_date() -> None:
    now_s = 1_800_000_000.0
    assert parse_retry_after(email.utils.formatdate(now_s + 90, usegmt=True), now_s) == 90
    assert parse_retry_after(email.utils.formatdate(now_s - 90, usegmt=True), now_s) == 0
    assert [parse_retry_after(text, now_s) for text in ("", "-5", "1e3", "Mon, 99 Foo 2026")] == [None] * 4
