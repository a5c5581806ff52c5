"""An HTTP server on loopback that misbehaves as the first part of a path says: /truncated/name, /status/404/name."""

import itertools
import json
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

# How long a slow or silent answer takes at most, should nobody hang up.
PATIENCE_S = 60.0
TYPES = {"m4a": "audio/mp4", "webm": "audio/webm", "ogg": "audio/ogg", "mp3": "audio/mpeg", "mp4": "video/mp4"}
PAGE = b"<!doctype html><html><head><title>Hello</title></head><body><audio src='/good/tone.m4a'></body></html>"
PLAYLIST = b"#EXTM3U\n#EXTINF:10,\n/good/tone.ogg\n"


class BadServer(ThreadingHTTPServer):
    """Serves `files` by the last part of the path; `asked` is every path that was asked for, `headers` what came along.

    `failures_left` is how many more times /flaky/ fails; `retry_after` goes with /busy/; /mood/ behaves, for each file,
    as `moods` says: "status/500", "slow" or, where it says nothing, "good".
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files or {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.failures_left = 0
        self.retry_after: str | None = None
        self.moods: dict[str, str] = {}
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "BadServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    server: BadServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        behaviour, _, rest = self.path.partition("?")[0][1:].partition("/")
        self.name = unquote(rest.rpartition("/")[2])
        if behaviour == "mood":
            behaviour, _, rest = f"{self.server.moods.get(self.name, 'good')}/{rest}".partition("/")
        answer: Callable[[str], None] = getattr(self, f"answer_{behaviour}", self.answer_good)
        answer(rest)

    @property
    def content(self) -> bytes | None:
        return self.server.files.get(self.name)

    def reply(self, status: int, body: bytes = b"", **headers: object) -> None:
        """Headers with '_' for '-'; one that is None is left out."""
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def send(self, body: bytes, **headers: object) -> None:
        kind = TYPES.get(self.name.rpartition(".")[2], "application/octet-stream")
        self.reply(200, body, **{"Content_Type": kind, **headers})

    def answer_good(self, rest: str) -> None:
        if self.content is None:
            self.reply(404)
        else:
            self.send(self.content)

    def answer_untyped(self, rest: str) -> None:
        self.send(self.content or b"", Content_Type=None)

    def answer_mistyped(self, rest: str) -> None:
        self.send(self.content or b"", Content_Type="text/html")

    def answer_status(self, rest: str) -> None:
        self.reply(int(rest.partition("/")[0]), b"no")

    def answer_busy(self, rest: str) -> None:
        self.reply(429, b"slow down", Retry_After=self.server.retry_after)

    def answer_flaky(self, rest: str) -> None:
        if self.server.failures_left > 0:
            self.server.failures_left -= 1
            self.reply(503, b"not now")
        else:
            self.answer_good(rest)

    def answer_broken(self, rest: str) -> None:
        """An error only where the file itself is asked for, after a look at it went well."""
        if self.server.asked.count(self.path) > 1:
            self.reply(500)
        else:
            self.answer_good(rest)

    def answer_page(self, rest: str) -> None:
        self.reply(200, PAGE, Content_Type="text/html")

    def answer_json(self, rest: str) -> None:
        self.reply(200, json.dumps({"error": "no such clip"}).encode(), Content_Type="application/json")

    def answer_text(self, rest: str) -> None:
        self.reply(200, b"no such clip\n", Content_Type="audio/mpeg")

    def answer_playlist(self, rest: str) -> None:
        self.reply(200, PLAYLIST, Content_Type="audio/x-mpegurl")

    def answer_empty(self, rest: str) -> None:
        self.send(b"")

    def answer_redirect(self, rest: str) -> None:
        self.reply(302, Location=f"/good/{rest}")

    def answer_loop(self, rest: str) -> None:
        self.reply(302, Location=f"/loop/{rest}")

    def answer_wander(self, rest: str) -> None:
        """To another address each time, and each of them leads on, when it is asked for again."""
        number = int(self.path.partition("?")[2] or 0)
        if self.server.asked.count(self.path) > 1 or number == 0:
            self.reply(302, Location=f"/wander/{rest}?{number + 1}")
        else:
            self.send(b"\0" * 10)

    def answer_file(self, rest: str) -> None:
        self.reply(302, Location="file:///etc/passwd")

    def answer_ftp(self, rest: str) -> None:
        self.reply(302, Location=self.server.url.replace("http", "ftp") + "/good/tone.m4a")

    def answer_truncated(self, rest: str) -> None:
        body = self.content or b""
        self.send(body[: len(body) // 2], Content_Length=len(body))

    def answer_resumable(self, rest: str) -> None:
        """Breaks off in the middle, and serves the rest when asked for it."""
        body = self.content or b""
        if not (wanted := self.headers.get("Range")):
            self.send(body[: len(body) // 2], Content_Length=len(body))
        else:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            where = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.reply(206, body[start:], Content_Type="audio/mp4", Content_Range=where)

    def answer_chunked(self, rest: str) -> None:
        """A body in chunks whose last one never comes."""
        self.protocol_version = "HTTP/1.1"
        body = self.content or b""
        self.send(b"%x\r\n%s\r\n" % (len(body), body), Content_Length=None, Transfer_Encoding="chunked")
        self.close_connection = True

    def answer_reset(self, rest: str) -> None:
        body = self.content or b""
        self.send(body[: len(body) // 2], Content_Length=len(body))
        self.wfile.flush()
        self.closing_wait(0.2)
        # Without lingering, closing sends a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def answer_slow(self, rest: str) -> None:
        """A byte every tenth of a second: never silent for long, and never done."""
        body = self.content or b""
        self.send(b"", Content_Length=len(body))
        for byte in body:
            self.wfile.write(bytes([byte]))
            if self.closing_wait(0.1):
                return

    def answer_silent(self, rest: str) -> None:
        self.closing_wait(PATIENCE_S)

    def answer_endless(self, rest: str) -> None:
        self.send(b"", Content_Length=None)
        for _ in itertools.takewhile(lambda _: not self.server.closing.is_set(), itertools.count()):
            self.wfile.write(bytes(1 << 16))

    def answer_novel(self, rest: str) -> None:
        """A page without end."""
        self.reply(200, PAGE[:80], Content_Type="text/html", Content_Length=None)
        for _ in itertools.takewhile(lambda _: not self.server.closing.is_set(), itertools.count()):
            self.wfile.write(b"<p>and then</p>\n" * 4096)

    def closing_wait(self, duration_s: float) -> bool:
        return self.server.closing.wait(duration_s)
