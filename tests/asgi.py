"""Ask an ASGI application without a socket: one request, one answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from starlette.applications import Starlette
from starlette.types import Message

HOST = "status.example.org"


@dataclass(frozen=True)
class Answer:
    """What came back; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.body)


class Browser:
    """Asks an application; keeps cookies, and says where it comes from as browsers do."""

    def __init__(self, app: Starlette, host: str = HOST) -> None:
        self.app = app
        self.host = host
        self.cookies: dict[str, str] = {}

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        return self.ask(method, path, headers)

    def post_form(self, path: str, fields: Mapping[str, str], **headers: str) -> Answer:
        common = {
            "content-type": "application/x-www-form-urlencoded",
            "origin": f"http://{self.host}",
        }
        return self.ask("POST", path, common | headers, urlencode(fields).encode())

    def post_json(self, path: str, document: object, **headers: str) -> Answer:
        common = {"content-type": "application/json"}
        return self.ask("POST", path, common | headers, json.dumps(document).encode())

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """Send a request; `_` in names of headers stands for `-`."""
        return asyncio.run(self._ask(method, path, headers, body))

    async def _ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        given = {"host": self.host, "content-length": str(len(body))}
        if self.cookies:
            given["cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        given |= {name.replace("_", "-").lower(): value for name, value in headers.items()}
        parts = urlsplit(path)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(parts.path),
            "raw_path": parts.path.encode(),
            "query_string": parts.query.encode(),
            "root_path": "",
            "headers": [
                (name.encode(), value.encode("utf-8", "surrogateescape"))
                for name, value in given.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": (self.host, 80),
        }
        sent: list[Message] = []
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        start = sent[0]
        found = [(name.decode(), value.decode("latin-1")) for name, value in start["headers"]]
        for name, value in found:
            if name == "set-cookie":
                self._keep(value)
        data = b"".join(message.get("body", b"") for message in sent[1:])
        return Answer(start["status"], dict(found), data)

    def _keep(self, text: str) -> None:
        pair = text.partition(";")[0]
        name, _, value = pair.partition("=")
        if "max-age=0" in text.lower():
            self.cookies.pop(name, None)
        else:
            self.cookies[name] = value
