"""The real extractor of YouTube, on answers as YouTube gives them; the media comes from a real server."""

import io
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from yt_dlp import YoutubeDL
from yt_dlp.networking import Response
from yt_dlp.networking.exceptions import HTTPError

from ingest import download_child
from ingest.download import FetchError
from ingest.ledger import TRANSIENT
from tests.ingest.badserver import BadServer

VIDEO = "https://www.youtube.com/watch?v=-9VPvTfV1_4"
FILES = {"best.webm": bytes(range(256)) * 400, "good.m4a": bytes(9_000), "both.mp4": bytes(200_000)}


@pytest.fixture(scope="module")
def server() -> Iterator[BadServer]:
    with BadServer(FILES) as server:
        yield server


@pytest.fixture
def youtube(server: BadServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Asks the real extractor for a video of a YouTube whose answers are given; only the transport is not real."""
    monkeypatch.chdir(tmp_path)
    real_urlopen = YoutubeDL.urlopen

    def fetch(player: dict[str, Any], status: int = 200) -> dict[str, Any]:
        body = json.dumps({"videoDetails": {"videoId": "-9VPvTfV1_4", "title": "t", "lengthSeconds": "2"}, **player})

        def urlopen(self: YoutubeDL, request: Any) -> Any:
            url = request if isinstance(request, str) else request.url
            if url.startswith(server.url):
                return real_urlopen(self, request)
            content = body.encode() if "/youtubei/" in url else b"<html></html>"
            response = Response(io.BytesIO(content), url, {}, status)
            if status != 200:
                raise HTTPError(response)
            return response

        monkeypatch.setattr(YoutubeDL, "urlopen", urlopen)
        download_child._downloader.cache_clear()
        return download_child.fetch(VIDEO, tmp_path, 1 << 30, None)

    return fetch


def format_of(server: BadServer, itag: int, mime: str, name: str, **about: object) -> dict[str, object]:
    size = str(len(server.files[name]))
    url = f"{server.url}/good/{name}?itag={itag}"
    return {"itag": itag, "url": url, "mimeType": mime, "contentLength": size, "approxDurationMs": "2000", **about}


def test_the_best_sound_of_a_video_is_taken_as_it_is(
    youtube: Callable[..., dict[str, Any]], server: BadServer, tmp_path: Path
) -> None:
    sounds = [
        format_of(server, 251, 'audio/webm; codecs="opus"', "best.webm", bitrate=130_000, audioSampleRate="48000"),
        format_of(server, 139, 'audio/mp4; codecs="mp4a.40.5"', "good.m4a", bitrate=48_000, audioSampleRate="22050"),
    ]
    both = format_of(server, 18, 'video/mp4; codecs="avc1.42001E, mp4a.40.2"', "both.mp4", bitrate=300_000, height=360)
    streams = {"formats": [both], "adaptiveFormats": sounds}
    got = youtube({"playabilityStatus": {"status": "OK"}, "streamingData": streams})
    size = len(FILES["best.webm"])
    expected = {"name": "media.webm", "size": size, "format_id": "251", "extension": "webm", "extractor": "youtube"}
    assert got == expected
    assert (tmp_path / "media.webm").read_bytes() == FILES["best.webm"]
    assert [path.name for path in tmp_path.iterdir()] == ["media.webm"]


@pytest.mark.parametrize(
    ("player", "status", "reason"),
    [
        (
            {"playabilityStatus": {"status": "LOGIN_REQUIRED", "reason": "Sign in to confirm you’re not a bot"}},
            200,
            None,
        ),
        (
            {"playabilityStatus": {"status": "LIVE_STREAM_OFFLINE", "reason": "Premieres in 3 hours"}},
            200,
            "unavailable",
        ),
        ({"playabilityStatus": {"status": "OK"}}, 200, "downloader"),
        ({}, 429, None),
        ({}, 403, "forbidden"),
        ({}, 404, "downloader"),
        ({}, 500, "network"),
    ],
)
def test_the_real_extractors_errors_have_their_reason(
    youtube: Callable[..., dict[str, Any]], player: dict[str, Any], status: int, reason: str | None
) -> None:
    with pytest.raises(FetchError) as caught:
        youtube(player, status)
    assert caught.value.reason == (reason or "rate_limited")
    assert (caught.value.reason in TRANSIENT) == (reason != "unavailable")


def test_a_video_forbidden_at_its_last_step_may_pass(youtube: Callable[..., dict[str, Any]], server: BadServer) -> None:
    sound_format = format_of(server, 251, 'audio/webm; codecs="opus"', "best.webm", bitrate=130_000)
    sound_format["url"] = f"{server.url}/status/403/best.webm?secret=1"
    with pytest.raises(FetchError, match=r"forbidden: HTTP status 403 Forbidden$"):
        youtube({"playabilityStatus": {"status": "OK"}, "streamingData": {"adaptiveFormats": [sound_format]}})


def test_a_live_stream_is_not_waited_for(youtube: Callable[..., dict[str, Any]], server: BadServer) -> None:
    streams = {"adaptiveFormats": [format_of(server, 251, 'audio/webm; codecs="opus"', "best.webm", bitrate=130_000)]}
    details = {"videoId": "-9VPvTfV1_4", "title": "t", "isLive": True, "isLiveContent": True}
    with pytest.raises(FetchError, match="unavailable: a live stream that is not over"):
        youtube({"playabilityStatus": {"status": "OK"}, "streamingData": streams, "videoDetails": details})


def test_a_full_disk_is_no_fault_of_the_recording(
    server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.files["huge.m4a"] = bytes(30_000_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            download_child.fetch(f"{server.url}/good/huge.m4a", tmp_path, 1 << 30, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        del server.files["huge.m4a"]
