"""Fetch files of a published repository over HTTP.

Apart from `origin`, because the library takes longer to import than a list of images takes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3

from cvmfs_publish.content.local import PIECE, LocalStore
from cvmfs_publish.content.store import MissingError, ObjectId
from cvmfs_publish.errors import InputError, IntegrityError, RemoteError
from cvmfs_publish.repository.native.origin import Origin, read

_CONNECTIONS = 16  # at the same time, for many small objects
_SMALL = 64 * 1024**2  # bytes; more is not read into memory for them
_MISSING = (403, 404, 410)  # S3 answers 403 for a missing key where listing is not allowed


@dataclass(frozen=True, slots=True)
class Route:
    """How a server is reached."""

    proxy: str | None = None  # this one and no other; None: as the environment says
    fresh: bool = False  # caches in between have to ask the server again
    connect_seconds: float = 10
    read_seconds: float = 60  # without a single byte

    def prepare(self, session: requests.Session) -> None:
        if self.proxy is not None:
            session.trust_env = False
            session.proxies = {"http": self.proxy, "https": self.proxy}
        if self.fresh:  # the second for caches that know HTTP/1.0 only
            session.headers.update({"Cache-Control": "no-cache", "Pragma": "no-cache"})


def open_origin(location: str | Path) -> Origin:
    """Return the origin at a directory or an http(s) URL; nothing is read yet.

    Raises:
        InputError: a URL of another kind.
    """
    text = str(location)
    if isinstance(location, str) and "://" in text:
        if text.partition("://")[0] not in ("http", "https"):
            raise InputError(f"{text}: repositories are read from directories and http(s) URLs")
        return HttpOrigin(text)
    return LocalStore(Path(location))


class HttpOrigin:
    """A repository served over HTTP.  Each thread has its own connection."""

    def __init__(self, url: str, route: Route | None = None) -> None:
        self.url = url.rstrip("/")
        self._route = route or Route()
        self._local = threading.local()
        self._lock = threading.Lock()
        self._sessions: list[requests.Session] = []

    def size(self, name: str) -> int | None:
        with self._request("HEAD", name) as response:
            if response.status_code in _MISSING:
                return None
            length = response.headers.get("Content-Length", "")
            return int(length) if length.isdecimal() else -1

    def pieces(self, name: str) -> Iterator[bytes]:
        with self._request("GET", name) as response:
            if response.status_code in _MISSING:
                raise MissingError(f"{self.url}/{name} is missing ({response.status_code})")
            try:
                yield from response.iter_content(PIECE)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                raise RemoteError(f"{self.url}/{name}: {error}") from error

    def read_many(self, objects: Iterable[ObjectId]) -> Iterator[bytes]:
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="fetch") as pool:
            try:
                yield from pool.map(self._read_small, objects)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _read_small(self, wanted: ObjectId) -> bytes:
        content_hash, kind = wanted
        name = content_hash.path(kind)
        stored = read(self, name, _SMALL)
        if content_hash.algorithm.digest(stored) != content_hash.digest:
            raise IntegrityError(f"object {name} of {self.url} is damaged: its hash differs")
        return stored

    def close(self) -> None:
        with self._lock:
            sessions, self._sessions = self._sessions, []
        for session in sessions:
            session.close()

    def _session(self) -> requests.Session:
        session = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            # Objects are compressed and hashed as they are; nobody may encode them again.
            session.headers["Accept-Encoding"] = "identity"
            self._route.prepare(session)
            self._local.session = session
            with self._lock:
                self._sessions.append(session)
        return session

    def _request(self, method: str, name: str) -> requests.Response:
        url = f"{self.url}/{name}"
        try:
            response = self._session().request(
                method,
                url,
                stream=True,
                timeout=(self._route.connect_seconds, self._route.read_seconds),
                allow_redirects=False,  # clients do not follow them either (section 6.5)
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise RemoteError(f"{url}: {error}", hint="try again later") from error
        if response.status_code != requests.codes.ok and response.status_code not in _MISSING:
            response.close()
            raise RemoteError(f"{url}: server answered {response.status_code}")
        return response
