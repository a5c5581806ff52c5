"""Real yt-dlp against a real server that misbehaves: a whole file, or a reason."""

import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ingest.child import Child
from ingest.download import HELPER, Downloaded, DownloadRequest, FetchError, download, video_url
from ingest.ledger import Reason
from manifests.errors import InputError
from tests.ingest.audio_writers import Track, mux, sound
from tests.ingest.badserver import BadServer

LIMIT_S = 20.0
SHORT_LIMIT_S = 2.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Real sounds by name, some under names that tell nothing or the wrong thing."""
    folder = tmp_path_factory.mktemp("files")
    for name, codec in (("tone.m4a", "aac"), ("tone.webm", "libopus"), ("tone.ogg", "libopus")):
        mux(folder / name, Track(sound(2.0, 48_000), codec, 48_000))
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    others = ("tone", "tone.exe", "tone.m3u8", "-9VPvTfV1_4.m4a", "two words & more.m4a")
    return {**content, **dict.fromkeys(others, content["tone.m4a"]), "large.webm": content["tone.webm"] * 40}


@pytest.fixture(scope="module")
def server(files: dict[str, bytes]) -> Iterator[BadServer]:
    with BadServer(files) as server:
        yield server


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with pytest.MonkeyPatch.context() as patch, closing(Child(HELPER)) as child:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        yield child


Get = Callable[..., Downloaded]


@pytest.fixture
def get(server: BadServer, child: Child, tmp_path: Path) -> Get:
    server.asked.clear()
    server.headers.clear()
    server.failures_left, server.retry_after = 0, None

    def get(path: str, time_limit_s: float = LIMIT_S, **options: Any) -> Downloaded:
        url = path if "://" in path else f"{server.url}/{path}"
        return download(DownloadRequest(url, time_limit_s, **options), tmp_path, child)

    return get


@pytest.mark.parametrize(
    ("path", "extension"),
    [
        ("good/tone.m4a", "m4a"),
        ("good/tone.webm", "webm"),
        ("good/tone.ogg", "ogg"),
        ("good/tone", "bin"),
        ("good/tone.exe", "bin"),
        ("good/tone.m3u8", "m3u8"),
        ("good/-9VPvTfV1_4.m4a", "m4a"),
        ("good/two%20words%20%26%20more.m4a", "m4a"),
        ("good/tone.m4a?token=a%2Fb&x=%25", "m4a"),
        ("untyped/tone.m4a", "m4a"),
        ("mistyped/tone.m4a", "m4a"),
        ("redirect/tone.webm", "webm"),
        ("resumable/large.webm", "webm"),
    ],
)
def test_the_file_comes_as_it_is(get: Get, files: dict[str, bytes], tmp_path: Path, path: str, extension: str) -> None:
    name = path.partition("?")[0].rpartition("/")[2].replace("%20", " ").replace("%26", "&")
    got = get(path)
    assert got.path == tmp_path / f"media.{extension}"
    assert got.path.read_bytes() == files[name]
    assert (got.size, got.extension, got.extractor) == (len(files[name]), extension, "direct")
    assert list(tmp_path.iterdir()) == [got.path]


@pytest.mark.parametrize(
    ("path", "reason", "num_asked", "detail"),
    [
        ("good/none.m4a", Reason.REMOVED, 1, "HTTP status 404 Not Found"),
        ("status/410/a.m4a", Reason.REMOVED, 1, "HTTP status 410 Gone"),
        ("status/403/a.m4a", Reason.FORBIDDEN, 1, "HTTP status 403 Forbidden"),
        ("status/401/a.m4a", Reason.FORBIDDEN, 1, "HTTP status 401 Unauthorized"),
        ("status/451/a.m4a", Reason.GEO_BLOCKED, 1, "HTTP status 451 Unavailable For Legal Reasons"),
        ("status/400/a.m4a", Reason.UNAVAILABLE, 1, "HTTP status 400 Bad Request"),
        ("status/500/a.m4a", Reason.NETWORK, 1, "HTTP status 500 Internal Server Error"),
        ("status/599/a.m4a", Reason.NETWORK, 1, "HTTP status 599"),
        ("busy/a.m4a", Reason.RATE_LIMITED, 1, "HTTP status 429 Too Many Requests"),
        ("broken/tone.m4a", Reason.NETWORK, 4, "HTTP status 500 Internal Server Error"),
        ("page/a.m4a", Reason.NOT_AUDIO, 1, "the server sent a page or a playlist, not a file"),
        ("novel/a.m4a", Reason.NOT_AUDIO, 1, "the server sent a page or a playlist, not a file"),
        ("playlist/a.m3u", Reason.NOT_AUDIO, 2, "the server sent a page or a playlist, not a file"),
        ("json/a.m4a", Reason.NOT_AUDIO, 2, "the server sent a text, not a sound"),
        ("text/a.mp3", Reason.NOT_AUDIO, 2, "the server sent a text, not a sound"),
        ("empty/a.m4a", Reason.NETWORK, 2, "no data came"),
        ("truncated/large.webm", Reason.NETWORK, 4, None),
        ("chunked/large.webm", Reason.NETWORK, 4, None),
        ("reset/tone.webm", Reason.NETWORK, 4, None),
        ("loop/a.m4a", Reason.NETWORK, None, "HTTP status 302: redirects without end"),
        ("wander/a.m4a", Reason.NETWORK, None, "redirects without end"),
        ("file/a.m4a", Reason.UNAVAILABLE, 1, "the server leads to an address that isn't followed: InvalidSchema"),
        ("ftp/a.m4a", Reason.UNAVAILABLE, 1, "the server leads to an address that isn't followed: InvalidSchema"),
    ],
)
def test_each_misbehaviour_has_its_reason(
    get: Get, server: BadServer, tmp_path: Path, path: str, reason: Reason, num_asked: int | None, detail: str | None
) -> None:
    with pytest.raises(FetchError) as caught:
        get(path)
    assert caught.value.reason == reason
    assert caught.value.detail == detail or (detail is None and caught.value.detail.startswith("broke off after "))
    assert num_asked is None or len(server.asked) == num_asked
    # A piece may be left, never under the name of a whole file.
    assert {path.name for path in tmp_path.iterdir()} <= {"media", "media.part"}


@pytest.mark.parametrize("path", ["slow/tone.m4a", "silent/tone.m4a"])
def test_what_takes_too_long_is_killed_and_the_next_one_works(get: Get, files: dict[str, bytes], path: str) -> None:
    start_s = time.monotonic()
    with pytest.raises(FetchError, match="timeout: not done within 2 s"):
        get(path, SHORT_LIMIT_S)
    assert time.monotonic() - start_s < SHORT_LIMIT_S + 5
    assert get("good/tone.m4a").path.read_bytes() == files["tone.m4a"]


@pytest.mark.parametrize(("path", "num_bytes"), [("endless/a.m4a", 3_000_000), ("good/large.webm", 100_000)])
def test_more_than_the_limit_is_given_up(get: Get, tmp_path: Path, path: str, num_bytes: int) -> None:
    with pytest.raises(FetchError, match=f"unavailable: larger than the limit of {num_bytes} bytes"):
        get(path, max_bytes=num_bytes)
    # The block on which it was noticed may be there, or the first one where the server told the size.
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < num_bytes + 5_000_000


def test_a_piece_of_an_earlier_download_is_not_gone_on_with(get: Get, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "media.part").write_bytes(b"x" * 1000)
    (tmp_path / "media").write_bytes(b"y" * 1000)
    assert get("good/tone.m4a").path.read_bytes() == files["tone.m4a"]


@pytest.mark.parametrize(("header", "expected_s"), [("120", 120.0), (None, None), ("soon", None)])
def test_the_server_says_how_long_to_wait(
    get: Get, server: BadServer, header: str | None, expected_s: float | None
) -> None:
    server.retry_after = header
    with pytest.raises(FetchError) as caught:
        get("busy/a.m4a")
    assert caught.value.retry_after_s == expected_s
    assert pickle.loads(pickle.dumps(caught.value)).retry_after_s == expected_s  # noqa: S301 (as Ray does)


def test_no_connection_and_no_such_host_are_network(get: Get) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(FetchError) as caught:
        get(f"http://me:password@127.0.0.1:{port}/a.m4a?signature=topsecret")
    assert str(caught.value) == "network: the connection failed: Connection refused"


def test_cookies_go_along_and_their_file_stays_as_it_is(get: Get, server: BadServer, tmp_path: Path) -> None:
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\tabc123\n")
    before = cookies.read_bytes()
    get("good/tone.m4a", cookies=cookies)
    assert [headers.get("cookie") for headers in server.headers] == ["session=abc123"] * 2
    server.headers.clear()
    get("good/tone.m4a")
    assert [headers.get("cookie") for headers in server.headers] == [None] * 2
    assert cookies.read_bytes() == before


def test_cookies_that_cant_be_read_are_the_users_mistake(get: Get, server: BadServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't read the cookies in .*none.txt"):
        get("good/tone.m4a", cookies=tmp_path / "none.txt")
    for content in ('[{"name": "session"}]', "session=abc123", "# Netscape HTTP Cookie File\nsession abc123\n", ""):
        (tmp_path / "cookies.txt").write_text(content)
        with pytest.raises(InputError, match=r"cookies.txt holds no cookies in Netscape's format"):
            get("good/tone.m4a", cookies=tmp_path / "cookies.txt")
    assert not server.asked


def test_a_password_in_the_address_goes_to_the_server(get: Get, server: BadServer) -> None:
    get(server.url.replace("http://", "http://me:secret@") + "/good/tone.m4a")
    assert [headers.get("authorization") for headers in server.headers] == ["Basic bWU6c2VjcmV0"] * 2


def test_a_folder_that_is_gone_is_no_fault_of_the_recording(server: BadServer, child: Child, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        download(DownloadRequest(f"{server.url}/good/tone.m4a"), tmp_path / "gone", child)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.m4a", "/etc/passwd", "ytsearch:cats", "http:///a"])
def test_only_http_is_downloaded_from(get: Get, child: Child, tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="must start with http"):
        download(DownloadRequest(url), tmp_path, child)


def test_addresses_of_recordings() -> None:
    assert video_url("youtube", "-9VPvTfV1_4") == "https://www.youtube.com/watch?v=-9VPvTfV1_4"
    assert video_url("http://host/{id}.m4a", "-9VPvTfV1_4") == "http://host/-9VPvTfV1_4.m4a"
    assert video_url("https://host/a?v={id}&w={id}", "a/b c") == "https://host/a?v=a%2Fb%20c&w=a%2Fb%20c"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("http://me:password@host/a.m4a?key=secret", "--source http://host/a.m4a has no {id}"),
        ("http://host/{id}/{start}.m4a", "other braces"),
        ("ftp://host/{id}", "must start with http"),
        ("host/{id}", "must start with http"),
        ("http:///{id}", "must start with http"),
        ("http://[host/{id}", "is not an address"),
    ],
)
def test_a_template_that_is_none_is_the_users_mistake(source: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        video_url(source, "abc")
    assert message in str(caught.value)
    assert "password" not in str(caught.value)
    assert "secret" not in str(caught.value)
