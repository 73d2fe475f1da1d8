"""Stand between a publisher and an S3 server, and be a worse server than the real one."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import ClassVar, Self
from urllib.parse import unquote, urlsplit

from tests.s3 import S3Server

CONDITIONS = ("if-match", "if-none-match")


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    name: str  # the last parts of the path: `.cvmfspublished`, `data/ab/cd…`
    headers: dict[str, str]  # names in lower case
    body: bytes
    number: int  # how many with this method and name came before

    @property
    def is_conditional(self) -> bool:
        return any(name in self.headers for name in CONDITIONS)


@dataclass(frozen=True)
class Lie:
    """What is done instead of passing a request on."""

    status: int = 0  # answered; 0: what the real server answers
    code: str = ""
    message: str = ""
    data: bytes | None = None  # the answer's body, in place of the real one
    arrives: bool = False  # whether the real server gets the request all the same
    drops: bool = False  # no answer: the connection is closed
    seconds: float = 0.0  # waits before it answers
    forgets: tuple[str, ...] = ()  # headers that are not passed on


REFUSED = Lie(403, "AccessDenied", "Access Denied")
DROPPED = Lie(drops=True)
DROPPED_AFTER = Lie(drops=True, arrives=True)
BUSY = Lie(503, "SlowDown", "Please reduce your request rate.")
BUSY_AFTER = Lie(503, "ServiceUnavailable", "Try again", arrives=True)
UNCONDITIONAL = Lie(forgets=CONDITIONS)

Rule = Callable[[Asked], Lie | None]


@dataclass
class LyingS3:
    """A proxy on loopback.  `rule` says what becomes of a request; None: it is passed on."""

    target: S3Server
    rule: Rule = lambda _: None
    asked: list[Asked] = field(default_factory=list)

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"lying": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, method: str, name: str = "") -> int:
        return sum(asked.method == method and name in asked.name for asked in self.asked)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave together
    lying: ClassVar[LyingS3]

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        name = unquote(urlsplit(self.path).path).rpartition("/test.example.org/")[2]
        lying = self.lying
        asked = Asked(
            self.command,
            name,
            {key.lower(): value for key, value in self.headers.items()},
            body,
            sum(a.method == self.command and a.name == name for a in lying.asked),
        )
        lying.asked.append(asked)
        lie = lying.rule(asked) or Lie()
        status, headers, data = 0, dict[str, str](), b""
        if lie.arrives or not (lie.status or lie.drops):
            status, headers, data = self.pass_on(asked, lie)
        time.sleep(lie.seconds)
        if lie.drops:
            self.close_connection = True
            return
        if lie.status:
            status = lie.status
            headers = {"Content-Type": "application/xml"}
            data = (
                f"<Error><Code>{lie.code}</Code><Message>{lie.message}</Message></Error>".encode()
            )
        if lie.data is not None:
            data = lie.data
            headers["ETag"] = '"of-other-days"'
        self.send_response(status)
        for key, value in headers.items():
            if key.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(key, value)
        is_head = self.command == "HEAD" and not lie.status
        self.send_header("Content-Length", headers["Content-Length"] if is_head else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    def pass_on(self, asked: Asked, lie: Lie) -> tuple[int, dict[str, str], bytes]:
        headers = {
            key: value
            for key, value in self.headers.items()
            if key.lower() not in ("host", "connection", *lie.forgets)
        }
        port = self.lying.target.port
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client:
            client.request(self.command, self.path, asked.body, headers)
            answer = client.getresponse()
            data = answer.read()
        return answer.status, {"Content-Length": "0"} | dict(answer.getheaders()), data

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - as it is called
