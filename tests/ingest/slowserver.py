"""An HTTP server on loopback that takes its time, and notes who asks for what, and when."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class SlowServer(ThreadingHTTPServer):
    """Serves the files of a folder after `delay_s`; while `is_stuck`, only half of one and then nothing."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path, delay_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.delay_s = folder, delay_s
        self.is_stuck = False
        self.num_stuck = 0
        self.first_asked: dict[str, float] = {}
        self.most_at_a_time = 0
        self.under_way: list[str] = []
        self.closing = threading.Event()
        self.template = f"http://127.0.0.1:{self.server_address[1]}/{{id}}.wav"

    def __enter__(self) -> "SlowServer":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients are killed here."""


class _Handler(BaseHTTPRequestHandler):
    server: SlowServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass

    def do_GET(self) -> None:
        server, name = self.server, Path(self.path).stem
        content = (server.folder / f"{name}.wav").read_bytes()
        server.first_asked.setdefault(name, time.time())
        server.under_way.append(name)
        server.most_at_a_time = max(server.most_at_a_time, len(set(server.under_way)))
        try:
            server.closing.wait(server.delay_s)
            self.send_response(200)
            self.send_header("Content-Type", "audio/wav")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if server.is_stuck:
                self.wfile.write(content[: len(content) // 2])
                server.num_stuck += 1
                self.connection.recv(1)  # until the client is gone
            else:
                self.wfile.write(content)
        finally:
            server.under_way.remove(name)
