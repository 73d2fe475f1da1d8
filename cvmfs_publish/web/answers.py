"""Turn documents and pages into answers: conditional, with headers that keep browsers careful.

Problems are told as RFC 9457 says, `application/problem+json`, to whoever asks the API.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cvmfs_publish.errors import InputError

# Nothing from elsewhere and nothing inline: what an image's author wrote cannot become a program.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
REVALIDATE = "no-cache"  # kept, and asked for again each time: a 304 costs no bytes
PROBLEM_TYPE = "application/problem+json"


class HttpError(InputError):
    """A request over HTTP that cannot be answered as it was asked."""

    kind = "http"

    def __init__(
        self,
        status: int,
        message: str,
        *,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.headers = dict(headers or {})


def absent(what: str, hint: str = "") -> HttpError:
    return HttpError(HTTPStatus.NOT_FOUND, what, hint=hint)


def problem(status: int, message: str, hint: str = "", kind: str = "http") -> Response:
    """Return what is wrong, for programs."""
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": message,
        "kind": kind,
        "hint": hint,
    }
    return Response(
        json.dumps(document), status, {"Cache-Control": "no-store"}, media_type=PROBLEM_TYPE
    )


def conditional(
    request: Request, body: str | bytes, media_type: str, *, varies: str = ""
) -> Response:
    """Return a body that the client may have already; then only that it is still the same."""
    data = body.encode("utf-8", "backslashreplace") if isinstance(body, str) else body
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": REVALIDATE}
    if varies:
        headers["Vary"] = varies
    if _has(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(data, headers=headers, media_type=media_type)


def _has(header: str, tag: str) -> bool:
    """RFC 9110 section 13.1.2: a list of tags, compared weakly, or a star."""
    return any(each.strip().removeprefix("W/") in (tag, "*") for each in header.split(","))


def as_json(request: Request, document: object) -> Response:
    return conditional(request, json.dumps(document, indent=1) + "\n", "application/json")


class SecurityHeaders:
    """Adds `SECURITY_HEADERS` to every answer but repository files, which no browser shows."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or str(scope["path"]).startswith("/cvmfs/"):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
