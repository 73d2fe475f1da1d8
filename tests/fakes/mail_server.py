"""A mail server that keeps what it gets: as much of SMTP (RFC 5321) as a sender of mail uses."""

from __future__ import annotations

import base64
import io
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message


@dataclass
class Letter:
    """What was given to the server."""

    sender: str
    recipients: list[str]
    data: bytes
    is_encrypted: bool
    login: str

    @property
    def message(self) -> Message:
        return message_from_bytes(self.data)


@dataclass
class MailServer:
    """How the server behaves from now on, and what it got so far."""

    port: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # recipient → code
    greeting: str = "220 test"
    tls: ssl.SSLContext | None = None
    silent: bool = False
    letters: list[Letter] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def recipients(self) -> list[str]:
        return [recipient for letter in self.letters for recipient in letter.recipients]


class _Handler(socketserver.StreamRequestHandler):
    mail: MailServer

    def handle(self) -> None:
        self.sender, self.to, self.is_encrypted, self.login = "", list[str](), False, ""
        if self.mail.silent:
            self.mail.released.wait(10)
            return
        self.say(self.mail.greeting)
        while line := self.rfile.readline():
            verb, _, rest = line.decode().strip().partition(" ")
            if verb.upper() == "QUIT":
                self.say("221 bye")
                return
            getattr(self, f"do_{verb.lower()}", self.do_rset)(rest)

    def finish(self) -> None:
        super().finish()
        self.connection.close()  # the encrypted one; the server closes its own

    def say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")

    def do_ehlo(self, _: str) -> None:
        if self.is_encrypted:
            self.say("250-test\r\n250 AUTH PLAIN")
        else:
            self.say("250-test\r\n250 STARTTLS" if self.mail.tls else "250 test")

    def do_starttls(self, _: str) -> None:
        self.say("220 go ahead")
        assert self.mail.tls is not None
        try:
            self.connection = self.mail.tls.wrap_socket(self.connection, server_side=True)
        except OSError:  # the sender does not like the certificate
            self.rfile = io.BytesIO()
            return
        self.rfile = self.connection.makefile("rb")
        self.wfile = socketserver._SocketWriter(self.connection)  # type: ignore[attr-defined]
        self.is_encrypted = True

    def do_auth(self, rest: str) -> None:
        self.login = base64.b64decode(rest.partition(" ")[2]).decode().replace("\0", " ").strip()
        self.say("235 welcome")

    def do_mail(self, rest: str) -> None:
        self.sender, self.to = rest.partition("<")[2].partition(">")[0], []
        self.say("250 ok")

    def do_rcpt(self, rest: str) -> None:
        recipient = rest.partition("<")[2].partition(">")[0]
        code = self.mail.refused.get(recipient, 250)
        if code == 250:
            self.to.append(recipient)
        self.say(f"{code} {recipient}")

    def do_data(self, _: str) -> None:
        self.say("354 go on")
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
        self.mail.letters.append(
            Letter(self.sender, self.to, b"".join(lines), self.is_encrypted, self.login)
        )
        self.say("250 taken")

    def do_rset(self, _: str) -> None:
        self.say("250 ok")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@contextmanager
def mail_server() -> Iterator[MailServer]:
    state = MailServer()
    handler = type("Handler", (_Handler,), {"mail": state})
    with _Server(("127.0.0.1", 0), handler) as server:
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            server.shutdown()
            thread.join()
