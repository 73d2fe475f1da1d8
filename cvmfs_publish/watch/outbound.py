"""Fetch a small text from a web server if it has changed, and post one: the watcher's own HTTP.

Registries have a client of their own; this is for wishlists on web servers and for notifications.
No login is ever sent, neither from a URL nor from ~/.netrc.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from http.cookiejar import DefaultCookiePolicy
from typing import Self

import requests

from cvmfs_publish import __version__
from cvmfs_publish.errors import RemoteError
from cvmfs_publish.sources.registry.answers import host_of, parse_redirect
from cvmfs_publish.sources.registry.client import FOREIGN, REDIRECTS, translate

CONNECT_TIMEOUT = timedelta(seconds=10)
READ_TIMEOUT = timedelta(seconds=20)  # without a single byte
TOTAL_TIMEOUT = timedelta(seconds=60)  # for all of an answer: a server may send byte by byte
MAX_REDIRECTS = 5
MAX_ANSWER = 64 * 1024  # bytes of an answer to a post
PIECE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Validators:
    """What a server said that a text can be asked for by, next time."""

    etag: str = ""
    modified: str = ""

    def headers(self) -> dict[str, str]:
        found = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True, slots=True)
class Page:
    """A text as it was fetched."""

    body: bytes
    kind: str  # the media type, in lower case and without parameters
    validators: Validators


class Outbound:
    """Sends requests to web servers.  Any number of threads; close it, or use `with`."""

    def __init__(
        self,
        *,
        read_timeout: timedelta = READ_TIMEOUT,
        total_timeout: timedelta = TOTAL_TIMEOUT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout = (CONNECT_TIMEOUT.total_seconds(), read_timeout.total_seconds())
        self._total = total_timeout.total_seconds()
        self._monotonic = monotonic
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"cvmfs-publish/{__version__}"
        self._session.headers["Accept-Encoding"] = "identity"
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def fetch(self, url: str, known: Validators, limit: int) -> Page | None:
        """Return what is at `url`; None if it is what `known` is of.

        Raises `RemoteError` for anything else than a whole answer of at most `limit` bytes.
        """
        end = self._monotonic() + self._total
        target = url
        for _ in range(MAX_REDIRECTS + 1):
            with self._send("GET", target, known.headers()) as response:
                if response.status_code in REDIRECTS:
                    location = response.headers.get("Location", "")
                    target = parse_redirect(target, location, url)
                    continue
                if response.status_code == requests.codes.not_modified and known.headers():
                    return None
                if response.status_code != requests.codes.ok:
                    raise RemoteError(
                        f"{url}: {host_of(target)} answered {response.status_code}",
                        hint="is the address right?",
                    )
                return self._read_page(response, url, limit, end)
        raise RemoteError(f"{url}: more than {MAX_REDIRECTS} redirects from one URL to the next")

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Post `body`; return if the answer is 2xx, raise `RemoteError` otherwise."""
        end = self._monotonic() + self._total
        with self._send("POST", url, headers, body) as response:
            self._read(response, url, MAX_ANSWER, end)
            if not 200 <= response.status_code < 300:
                raise RemoteError(f"{url}: {host_of(url)} answered {response.status_code}")

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> requests.Response:
        try:
            return self._session.request(
                method,
                url,
                headers=dict(headers),
                data=body,
                auth=_keep_headers,
                allow_redirects=False,
                stream=True,
                timeout=self._timeout,
            )
        except FOREIGN as exc:
            error = translate(exc, url.partition("?")[0])
            raise RemoteError(str(error), hint=error.hint or "is the address right?") from exc

    def _read_page(self, response: requests.Response, url: str, limit: int, end: float) -> Page:
        coding = response.headers.get("Content-Encoding", "identity").lower()
        if coding != "identity":
            raise RemoteError(f"{url}: is sent as {coding[:100]!r}, which was not asked for")
        body = self._read(response, url, limit + 1, end)
        if len(body) > limit:
            raise RemoteError(f"{url}: has more than {limit} bytes")
        validators = Validators(
            response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
        )
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return Page(body, kind, validators)

    def _read(self, response: requests.Response, url: str, size: int, end: float) -> bytes:
        pieces: list[bytes] = []
        try:
            while size > 0 and (piece := response.raw.read1(min(size, PIECE))):
                pieces.append(piece)
                size -= len(piece)
                if self._monotonic() > end:
                    raise RemoteError(f"{url}: is not read within {self._total:.0f} seconds")
        except FOREIGN as exc:
            raise RemoteError(str(translate(exc, url.partition("?")[0]))) from exc
        return b"".join(pieces)


def _keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Authentication that adds nothing: without one, `requests` would look into ~/.netrc."""
    return request
