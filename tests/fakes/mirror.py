"""A mirror of fallback images on loopback that lies in every way a web server can.

The first folder of an address says how the request is answered, `http://127.0.0.1:PORT/wrong/FILE`:

good     the file, also parts of it
gate     the same, after `Mirror.gate` is set
half     one half at once, the other after `Mirror.gate` is set
cut      the connection ends in the middle of what was asked for
spoiled  the same, with other bytes
ignore   the whole file, whatever part is asked for
wrong    as many bytes, not the same
short    the first half, as if that were all
endless  more and more
gone     404
later    503
busy     503 the first time, then the file
hang     nothing, until `Mirror.gate` is set
"""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

BLOCK = 1 << 16


@dataclass
class Mirror:
    """A running mirror."""

    port: int
    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)  # `wrong`, or `cut 500-` for a part
    gate: threading.Event = field(default_factory=threading.Event)

    def url(self, manner: str) -> str:
        """Return the address of this mirror as a site writes it."""
        return f"http://127.0.0.1:{self.port}/{manner}"

    def reset(self) -> None:
        """Forget what was asked, and close the gate."""
        self.asked.clear()
        self.gate.clear()


@contextmanager
def running_mirror(files: Mapping[str, bytes]) -> Iterator[Mirror]:
    """Serve `files` on a free loopback port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.mirror = mirror = Mirror(server.server_port, dict(files))  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield mirror
    finally:
        mirror.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as the base has it
        """Keep quiet: `Mirror.asked` has it."""

    def do_GET(self) -> None:  # as http.server calls it
        mirror: Mirror = self.server.mirror  # type: ignore[attr-defined]
        self.close_connection = True
        _, manner, name = self.path.split("/", 2)
        part = self.headers.get("Range", "").removeprefix("bytes=")
        mirror.asked.append(f"{manner} {part}".strip())
        begin = int(part.rstrip("-") or 0)
        with suppress(BrokenPipeError, ConnectionResetError):  # they do hang up on such a server
            getattr(self, f"_{manner}")(mirror, mirror.files[name], begin)

    def _head(self, status: int, length: int | None, begin: int = 0) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{begin + (length or 0) - 1}/*")
        self.send_header("Connection", "close")
        self.end_headers()

    def _good(self, mirror: Mirror, data: bytes, begin: int) -> None:
        self._head(206 if begin else 200, len(data) - begin, begin)
        self.wfile.write(data[begin:])

    def _gate(self, mirror: Mirror, data: bytes, begin: int) -> None:
        mirror.gate.wait()
        self._good(mirror, data, begin)

    def _half(self, mirror: Mirror, data: bytes, begin: int) -> None:
        self._head(200, len(data))
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        mirror.gate.wait()
        self.wfile.write(data[len(data) // 2 :])

    def _cut(self, mirror: Mirror, data: bytes, begin: int) -> None:
        self._head(206 if begin else 200, len(data) - begin, begin)
        self.wfile.write(data[begin : (begin + len(data)) // 2])

    def _spoiled(self, mirror: Mirror, data: bytes, begin: int) -> None:
        self._cut(mirror, bytes(len(data)), begin)

    def _ignore(self, mirror: Mirror, data: bytes, begin: int) -> None:
        self._good(mirror, data, 0)

    def _wrong(self, mirror: Mirror, data: bytes, begin: int) -> None:
        self._good(mirror, bytes(len(data)), begin)

    def _short(self, mirror: Mirror, data: bytes, begin: int) -> None:
        self._good(mirror, data[: len(data) // 2], 0)

    def _endless(self, mirror: Mirror, data: bytes, begin: int) -> None:
        self._head(200, None)
        while not mirror.gate.is_set():
            self.wfile.write(bytes(BLOCK))

    def _gone(self, mirror: Mirror, data: bytes, begin: int) -> None:
        self._head(404, 0)

    def _later(self, mirror: Mirror, data: bytes, begin: int) -> None:
        self._head(503, 0)

    def _busy(self, mirror: Mirror, data: bytes, begin: int) -> None:
        (self._good if mirror.asked.count("busy") > 1 else self._later)(mirror, data, begin)

    def _hang(self, mirror: Mirror, data: bytes, begin: int) -> None:
        mirror.gate.wait()
