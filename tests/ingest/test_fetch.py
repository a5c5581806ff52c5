"""Archives over a real loopback server: whole or not at all."""

import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ingest import fetch
from ingest.fetch import fetch_archive
from manifests.errors import InputError


def zipped(members: dict[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


GOOD = zipped({"ESC-50-master/meta/esc50.csv": b"filename\n", "ESC-50-master/audio/a.wav": bytes(3_000_000)})


class Server(ThreadingHTTPServer):
    """Serves `answers` by path: bytes, or a status; counts what is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, bytes | int] = {"/good.zip": GOOD}
        self.asked: list[str] = []
        self.failures_left = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        route, _, query = self.path.partition("?")
        answer = self.server.answers.get(route, 404)
        if query == "redirect":
            self.reply(302, b"", Location=route)
        elif query == "busy" and self.server.failures_left:
            self.server.failures_left -= 1
            self.reply(503, b"")
        elif isinstance(answer, int):
            self.reply(answer, b"")
        elif query == "truncated":
            self.reply(200, answer[: len(answer) // 2], length=len(answer))
        else:
            # GitHub's archives come without a length.
            self.reply(200, answer, length=None if query == "unsized" else len(answer))

    def reply(self, status: int, body: bytes, length: int | None = 0, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch, "RETRY_PAUSES_S", (0.01, 0.01))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def message(url: str, into: Path) -> str:
    """The one line of the error; nothing may be left in `into`."""
    with pytest.raises(InputError) as caught:
        fetch_archive(url, into)
    text = str(caught.value)
    assert url in text
    assert "\n" not in text
    assert "--url MIRROR" in text
    assert "--root FOLDER" in text
    assert not into.exists() or list(into.iterdir()) == []
    return text


@pytest.mark.parametrize("query", ["", "?redirect", "?unsized"])
def test_a_good_archive(server: Server, tmp_path: Path, query: str) -> None:
    folder = fetch_archive(f"{server.url}/good.zip{query}", tmp_path / "deep" / "into")
    assert folder.name == "ESC-50-master"
    assert (folder / "meta" / "esc50.csv").read_bytes() == b"filename\n"
    assert (folder / "audio" / "a.wav").stat().st_size == 3_000_000
    assert [path.name.partition("-")[0] for path in (tmp_path / "deep" / "into").iterdir()] == ["good"]


def test_the_second_call_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    first = fetch_archive(f"{server.url}/good.zip", tmp_path)
    assert fetch_archive(f"{server.url}/good.zip", tmp_path) == first
    assert server.asked == ["/good.zip"]
    # Another archive by the same name is another folder.
    assert fetch_archive(f"{server.url}/good.zip?again", tmp_path) != first


def test_a_local_archive_without_one_top_folder(tmp_path: Path) -> None:
    path = tmp_path / "my data.zip"
    path.write_bytes(zipped({"a.wav": b"a", "b/c.wav": b"c"}))
    folder = fetch_archive(path.as_uri(), tmp_path / "into")
    assert folder.parent == tmp_path / "into"
    assert sorted(item.name for item in folder.iterdir()) == ["a.wav", "b"]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.failures_left = 2
    fetch_archive(f"{server.url}/good.zip?busy", tmp_path)
    assert len(server.asked) == 3


def test_a_server_that_stays_busy(server: Server, tmp_path: Path) -> None:
    server.failures_left = 9
    assert "(tries: 3): HTTP status 503" in message(f"{server.url}/good.zip?busy", tmp_path)
    assert len(server.asked) == 3


def test_not_found_is_final(server: Server, tmp_path: Path) -> None:
    assert "HTTP status 404 Not Found" in message(f"{server.url}/none.zip", tmp_path)
    assert len(server.asked) == 1


def test_a_truncated_download(server: Server, tmp_path: Path) -> None:
    text = message(f"{server.url}/good.zip?truncated", tmp_path)
    assert "(tries: 3): " in text
    assert str(len(GOOD) // 2) in text


@pytest.mark.parametrize("data", [b"<html>moved</html>", b"", GOOD[:-10], GOOD[: len(GOOD) // 2]])
def test_not_a_zip_file(server: Server, tmp_path: Path, data: bytes) -> None:
    server.answers["/bad.zip"] = data
    assert "is not a whole zip file" in message(f"{server.url}/bad.zip?unsized", tmp_path)


def test_a_damaged_member(server: Server, tmp_path: Path) -> None:
    middle = len(GOOD) // 2
    server.answers["/bad.zip"] = (
        GOOD[:middle] + bytes(255 - byte for byte in GOOD[middle : middle + 9]) + GOOD[middle + 9 :]
    )
    assert "is not a whole zip file" in message(f"{server.url}/bad.zip", tmp_path)


@pytest.mark.parametrize("name", ["../out.wav", "a/../../out.wav", "/out.wav", "..\\out.wav", "C:\\out.wav"])
def test_a_member_that_would_land_outside(server: Server, tmp_path: Path, name: str) -> None:
    server.answers["/slip.zip"] = zipped({"a.wav": b"", name: b"x"})
    assert f"holds {name!r}, which would land outside its folder" in message(f"{server.url}/slip.zip", tmp_path / "in")
    assert not list(tmp_path.rglob("out.wav"))


def test_a_link_in_the_archive(server: Server, tmp_path: Path) -> None:
    server.answers["/link.zip"] = zipped({"a.wav": b""}, link="b.wav")
    assert "holds a link, 'b.wav'" in message(f"{server.url}/link.zip", tmp_path)


def test_nobody_listens(server: Server, tmp_path: Path) -> None:
    assert "(tries: 3): " in message("http://127.0.0.1:9/x.zip", tmp_path)
    assert "(tries: 1): " in message((tmp_path / "none.zip").as_uri(), tmp_path)


@pytest.mark.parametrize("url", ["ftp://host/x.zip", "data/x.zip", "http://[bad/x.zip"])
def test_what_is_no_address(tmp_path: Path, url: str) -> None:
    message(url, tmp_path)


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"can't unpack .* into .*file .*; make room, or choose another folder"):
        fetch_archive("http://127.0.0.1:9/x.zip", tmp_path / "file")
