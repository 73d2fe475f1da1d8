"""Fetch files of a published repository, from a directory or over HTTP.

Nothing is verified here; names are relative to the repository root, as in `data/ab/cdef…C`.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import requests
import urllib3

from cvmfs_publish.errors import InputError, IntegrityError, RemoteError, RepositoryError

PIECE = 1024 * 1024  # bytes handed over at a time
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_MISSING = (403, 404, 410)  # S3 answers 403 for a missing key where listing is not allowed


class Origin(Protocol):
    """Where a repository is read from.  All methods may be called by several threads at once."""

    def size(self, name: str) -> int | None:
        """Return the stored bytes of a file, -1 if it exists but they are unknown; None: missing.

        Raises `RemoteError` or `RepositoryError` if that cannot be found out.
        """

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes.

        Raises `MissingError` if there is no such file, `RemoteError` or `RepositoryError` if it
        cannot be read.
        """

    def close(self) -> None:
        """Release connections.  May be called again."""


class MissingError(IntegrityError):
    """A file that the repository refers to does not exist."""

    kind = "missing"


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
    return LocalOrigin(Path(location))


def read(origin: Origin, name: str, limit: int) -> bytes:
    """Return a file of at most `limit` bytes; raise `IntegrityError` if it is larger."""
    found: list[bytes] = []
    size = 0
    for piece in origin.pieces(name):
        found.append(piece)
        size += len(piece)
        if size > limit:
            raise IntegrityError(f"{name} has more than {limit} bytes")
    return b"".join(found)


class LocalOrigin:
    """A repository's directory on this host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = os.fspath(root) + "/"  # pathlib would take longer than the system calls

    def size(self, name: str) -> int | None:
        path = self._prefix + name
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RepositoryError(f"{path}: {error.strerror}") from error
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def pieces(self, name: str) -> Iterator[bytes]:
        path = self._prefix + name
        try:
            # not blocking: nobody may be writing to what turns out to be a fifo
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise MissingError(f"{path} is no regular file")
                # One byte more than there should be, so that the end is seen at once.
                while piece := os.read(descriptor, min(found.st_size + 1, PIECE)):
                    yield piece
                    if len(piece) == found.st_size:
                        break
            finally:
                os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingError(f"{path} is missing") from None
        except OSError as error:
            raise RepositoryError(f"{path} cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Nothing is held open."""


class HttpOrigin:
    """A repository served over HTTP.  Each thread has its own connection."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
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
                timeout=(_CONNECT_SECONDS, _READ_SECONDS),
                allow_redirects=False,  # clients do not follow them either (section 6.5)
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise RemoteError(f"{url}: {error}", hint="try again later") from error
        if response.status_code != requests.codes.ok and response.status_code not in _MISSING:
            response.close()
            raise RemoteError(f"{url}: server answered {response.status_code}")
        return response
