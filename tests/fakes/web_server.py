"""A small web server for wishlists and notifications: it serves, counts, lies and hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


@dataclass
class WebServer:
    """What is served from now on, and what was asked for so far."""

    url: str = ""
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    etag: str = ""  # answered with 304 when asked for
    piece: int = 0  # bytes sent at a time; 0: all at once
    pause: float = 0.0  # seconds before each piece
    claim: int = 0  # bytes more in Content-Length than are sent
    asked: list[Asked] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


def _handler(server: WebServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def answer(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", "0")))
            server.asked.append(Asked(self.command, self.path, headers, body))
            if server.etag and headers.get("if-none-match") == server.etag:
                self.send_response(304)
                self.end_headers()
                return
            self.send_response(server.status)
            if server.etag:
                self.send_header("ETag", server.etag)
            for name, value in server.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(server.body) + server.claim))
            self.end_headers()
            self.send_pieces()
            self.close_connection = bool(server.claim)

        def send_pieces(self) -> None:
            size = server.piece or len(server.body) or 1
            for at in range(0, len(server.body), size):
                if server.pause and server.released.wait(server.pause):
                    return
                try:
                    self.wfile.write(server.body[at : at + size])
                except OSError:
                    return

        def log_message(self, *_: Any) -> None:  # noqa: ANN401
            pass

    return Handler


@contextmanager
def web_server() -> Iterator[WebServer]:
    state = WebServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(state)) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            server.shutdown()
            thread.join()
