"""Lists over a real loopback server: once, whole or not at all, and never a web page."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ingest import fetch
from ingest.lists import open_lists
from ingest.location import Location, open_location
from manifests.errors import InputError
from tests.s3server import s3_fixture, s3_server_fixture  # noqa: F401

LIST = b"# a list\n" + b"x" * 3_000_000


class Server(ThreadingHTTPServer):
    """Serves `answers` by path: bytes (half of them under /cut/), or a status; counts what is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, bytes | int] = {"/a.csv": LIST, "/b.csv": b"b\n", "/cut/a.csv": LIST}
        self.asked: list[str] = []
        self.failures_left = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        answer = self.server.answers.get(self.path, 404)
        if self.server.failures_left:
            self.server.failures_left -= 1
            answer = 503
        body = b"<html>sorry</html>" if isinstance(answer, int) else answer
        self.send_response(answer if isinstance(answer, int) else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path.startswith("/cut/") else body)


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


def contents(lists: dict[str, str], into: Path | Location, metadata: Path | None = None) -> dict[str, bytes]:
    """The content of the lists, and of what else is in their folder."""
    with open_lists(lists, open_location(into), metadata) as folder:
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def message(url: str, into: Path) -> str:
    """The one line of the error; nothing may be left in `into`."""
    with pytest.raises(InputError) as caught:
        contents({"a.csv": url}, into)
    text = str(caught.value)
    assert url in text
    assert "\n" not in text
    assert text.endswith("download it by hand and name its folder with --metadata FOLDER")
    assert list(into.iterdir()) == []
    return text


def test_lists_are_downloaded_once(server: Server, tmp_path: Path) -> None:
    into = tmp_path / "store" / "lists"
    lists = {"a.csv": f"{server.url}/a.csv"}
    assert contents(lists, into) == {"a.csv": LIST}
    assert (into / "a.csv").read_bytes() == LIST
    lists["b.csv"] = f"{server.url}/b.csv"
    assert list(contents(lists, into)) == ["a.csv", "b.csv"]
    assert sorted(path.name for path in into.iterdir()) == ["a.csv", "b.csv"]
    with open_lists(lists, open_location(into)) as folder:
        assert folder == into
    assert server.asked == ["/a.csv", "/b.csv"]


def test_lists_are_kept_in_an_object_store(server: Server, s3: str) -> None:
    into = open_location(f"{s3}/store/lists")
    lists = {"a.csv": f"{server.url}/a.csv"}
    assert contents(lists, into) == {"a.csv": LIST}
    lists["b.csv"] = f"{server.url}/b.csv"
    assert contents(lists, into) == {"a.csv": LIST, "b.csv": b"b\n"}
    assert server.asked == ["/a.csv", "/b.csv"]
    assert into.files() == ["a.csv", "b.csv"]
    assert (into.read("a.csv"), into.read("b.csv")) == (LIST, b"b\n")
    with pytest.raises(InputError, match=f"^{s3}/store/lists/a.csv, line 3: wrong"), open_lists(lists, into) as folder:
        raise InputError(f"{folder}/a.csv, line 3: wrong")
    assert not folder.exists()


def test_an_object_store_that_is_not_there_is_told_before_the_download(server: Server, s3: str) -> None:
    with pytest.raises(InputError, match=r"can't keep http.* as s3://.*-other/lists/a\.csv \(.*no such bucket"):
        contents({"a.csv": f"{server.url}/a.csv"}, open_location(f"{s3}-other/lists"))
    assert server.asked == []


def test_a_list_that_fails_leaves_nothing_in_an_object_store(server: Server, s3: str) -> None:
    into = open_location(f"{s3}/lists")
    with pytest.raises(InputError, match="HTTP status 404"):
        contents({"none.csv": f"{server.url}/none.csv"}, into)
    assert into.files() == []


def test_the_users_copies_are_used_and_nothing_is_downloaded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    into = tmp_path / "lists"
    (tmp_path / "mine" / "a.csv").write_bytes(b"mine")
    assert contents({"a.csv": f"{server.url}/a.csv"}, into, tmp_path / "mine") == {"a.csv": b"mine"}
    assert server.asked == []
    assert not into.exists()
    with pytest.raises(InputError, match="none: no such folder"):
        contents({"a.csv": f"{server.url}/a.csv"}, into, tmp_path / "none")


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.failures_left = 2
    assert contents({"a.csv": f"{server.url}/a.csv"}, tmp_path) == {"a.csv": LIST}
    assert len(server.asked) == 3
    server.failures_left = 9
    assert "(tries: 3): HTTP status 503" in message(f"{server.url}/b.csv", tmp_path / "other")


def test_a_truncated_list(server: Server, tmp_path: Path) -> None:
    text = message(f"{server.url}/cut/a.csv", tmp_path)
    assert "(tries: 3): " in text
    assert str(len(LIST) // 2) in text


def test_not_found_is_final(server: Server, tmp_path: Path) -> None:
    assert "HTTP status 404 Not Found" in message(f"{server.url}/none.csv", tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><title>moved</title>", b"\xef\xbb\xbf\n  <html>", b""])
def test_a_web_page_in_place_of_a_list(server: Server, tmp_path: Path, page: bytes) -> None:
    server.answers["/a.csv"] = page
    what = "a web page" if page else "nothing"
    assert f"gave {what} in place of the list a.csv; download it by hand" in message(f"{server.url}/a.csv", tmp_path)


def test_nobody_listens(server: Server, tmp_path: Path) -> None:
    assert "(tries: 3): " in message("http://127.0.0.1:9/a.csv", tmp_path)


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"can't keep http.* as .*file.*; make room, or choose another folder"):
        contents({"a.csv": "http://127.0.0.1:9/a.csv"}, tmp_path / "file" / "lists")
