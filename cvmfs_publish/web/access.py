"""Decide who may change something: whoever has the token, from a program or from our own pages.

Programs send `Authorization: Bearer TOKEN`.  A person gives the token once, in a form; the cookie
that stands for it from then on is useless to other sites three times over: `SameSite=Strict`, the
browser's `Origin` must be ours, and each form carries a text made for this session.  Everything is
compared in constant time.  Sessions are not stored: restarting the service ends them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from cvmfs_publish.errors import InputError
from cvmfs_publish.web.answers import HttpError

COOKIE = "cvmfs_publish_session"
SESSION_SPAN = timedelta(hours=8)  # a working day
MIN_TOKEN = 20  # characters: 100 random bits in base 32; guessing is then no concern
_ENABLE = "`web.token_file` in the configuration names the file of the token that permits changes"


def check_token(token: str) -> str:
    """Return a token from a file; raise `InputError` if it could be guessed."""
    if len(token) < MIN_TOKEN:
        raise InputError(
            f"the token of `web.token_file` has {len(token)} characters, at least {MIN_TOKEN} are"
            " wanted",
            hint="`openssl rand -hex 32` makes a good one",
        )
    return token


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who gave the token in a browser."""

    text: str  # what the cookie says
    form_token: str  # what each form must say beside it


class Access:
    """Judges requests.  May be used by several threads."""

    def __init__(
        self, token: str | None, clock: Callable[[], datetime], *, url: str | None = None
    ) -> None:
        """`token` None: nobody may change anything.  `url`: where browsers find these pages."""
        self._token = token.encode() if token is not None else None
        self._clock = clock
        self._url = url
        self._key = secrets.token_bytes(32)

    @property
    def is_possible(self) -> bool:
        """Whether anybody may change anything."""
        return self._token is not None

    # programs

    def check_bearer(self, request: Request) -> None:
        """Raise `HttpError` unless the request carries the token in its header."""
        self._check_possible()
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not self._is_token(given.strip()):
            raise HttpError(
                HTTPStatus.UNAUTHORIZED,
                "this needs the token",
                hint="send the header Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )

    # browsers

    def open_session(self, request: Request, token: str, response: Response) -> None:
        """Give the browser a session, if its form said the token; raise `HttpError` otherwise."""
        self._check_possible()
        self._check_origin(request)
        if not self._is_token(token):
            raise HttpError(HTTPStatus.FORBIDDEN, "that is not the token")
        expires = int((self._clock() + SESSION_SPAN).timestamp())
        text = f"{secrets.token_hex(16)}.{expires}"
        response.set_cookie(
            COOKIE,
            f"{text}.{self._sign('session', text)}",
            max_age=int(SESSION_SPAN.total_seconds()),
            secure=self.origin(request).startswith("https:"),
            httponly=True,
            samesite="strict",
        )

    def close_session(self, response: Response) -> None:
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")

    def session(self, request: Request) -> Session | None:
        """Return whose browser this is; None: anybody's."""
        text, _, signature = request.cookies.get(COOKIE, "").rpartition(".")
        expires = text.rpartition(".")[2]
        if self._token is None or not _equal(signature, self._sign("session", text)):
            return None
        if int(expires) <= self._clock().timestamp():
            return None
        return Session(text, self._sign("form", text))

    def check_form(self, request: Request, form_token: str) -> None:
        """Raise `HttpError` unless a form comes from a page of ours, in a session."""
        self._check_possible()
        self._check_origin(request)
        session = self.session(request)
        if session is None:
            raise HttpError(HTTPStatus.UNAUTHORIZED, "this needs the token: log in first")
        if not _equal(form_token, session.form_token):
            raise HttpError(
                HTTPStatus.FORBIDDEN,
                "this form is of another session",
                hint="load the page again, then send the form",
            )

    def origin(self, request: Request) -> str:
        """Return scheme and host of these pages, as browsers name them in `Origin`."""
        parts = urlsplit(self._url or str(request.base_url))
        return f"{parts.scheme}://{parts.netloc}"

    def _check_origin(self, request: Request) -> None:
        """Every browser says with a POST where it comes from; who does not is none."""
        given = request.headers.get("origin", "")
        if given != self.origin(request):
            raise HttpError(
                HTTPStatus.FORBIDDEN,
                f"this comes from {given[:100] or 'nowhere'!r}, not from a page of"
                f" {self.origin(request)}",
                hint="behind a proxy, `web.url` says what browsers call this place",
            )

    def _check_possible(self) -> None:
        if self._token is None:
            raise HttpError(
                HTTPStatus.FORBIDDEN, "nothing can be changed here: read-only", hint=_ENABLE
            )

    def _is_token(self, given: str) -> bool:
        return self._token is not None and _equal(given, self._token.decode())

    def _sign(self, what: str, text: str) -> str:
        data = f"{what}\n{text}".encode()
        token = self._token or b""
        return hmac.new(self._key + token, data, hashlib.sha256).hexdigest()


def _equal(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())
