"""Answer HTTP requests for the files of one local repository, as a stock web server does.

Source: facts/cvmfs-format.md sections 2.6, 6.4 and 6.5.  A path is served only if it is the name of
a repository file; every step to it is opened without following symbolic links, so nothing else on
the machine can be read, whatever lies in the folder.

There is neither Last-Modified nor ETag: objects never change, and of the others proxies shall ask
again after a minute instead of comparing times that differ between replicas.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from cvmfs_publish.errors import IntegrityError, RepositoryError
from cvmfs_publish.repository.native import manifest as manifests

# 61 seconds: "60 s and less is not cached by Squid" (section 6.5)
META_HEADERS = {"Content-Type": "application/x-cvmfs", "Cache-Control": "max-age=61"}
# 3 days, as stock; an object's name is the hash of its bytes, so they cannot change
OBJECT_HEADERS = {"Content-Type": "application/octet-stream", "Cache-Control": "max-age=259200"}
READ_BYTES = 256 * 1024  # read and sent at a time; most objects are smaller than one piece

_META = frozenset(
    {
        ".cvmfspublished",
        ".cvmfswhitelist",
        ".cvmfsreflog",
        ".cvmfs_master_replica",
        ".cvmfs_status.json",
    }
)
# section 1.2: data/<2 hex>/<38 hex>[-algorithm][suffix letter]
_OBJECT = re.compile(r"data/[0-9a-f]{2}/[0-9a-f]{38}(-rmd160|-shake128)?[CHPXLM]?")
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# a FIFO in place of a file must not block a thread; fstat then refuses it
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def file_routes(name: str, storage: Path) -> list[BaseRoute]:
    """Return the route that serves the repository `name` from the folder `storage`."""
    return [Route(f"/cvmfs/{name}/{{path:path}}", _RepositoryFiles(name, storage).send_file)]


def read_manifest(name: str, storage: Path) -> manifests.Manifest:
    """Return the manifest as it would be served, signature unverified.

    Raises `RepositoryError` if there is none, it is damaged, or it is another repository's.
    """
    path = storage / manifests.FILE_NAME
    try:
        with open_file(storage, manifests.FILE_NAME) as file:
            data = os.read(file.descriptor, manifests.MAX_BYTES + 1)
    except OSError as exc:
        raise RepositoryError(
            f"{path}: the manifest cannot be read: {exc.strerror}",
            hint="create the repository with `cvmfs-publish init`, or correct `storage`",
        ) from exc
    try:
        manifest, _, _ = manifests.parse_manifest(data)
    except IntegrityError as exc:
        raise RepositoryError(f"{path}: {exc}", hint="run `cvmfs-publish check`") from exc
    if manifest.name != name:
        raise RepositoryError(f"{path} belongs to {manifest.name!r}, expected {name!r}")
    return manifest


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file, open for reading until the `with` block ends."""

    descriptor: int
    size: int  # bytes

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.descriptor)


def open_file(storage: Path, path: str) -> OpenFile:
    """Open a file below `storage`, no symbolic link followed below it.

    Raises `OSError` for whatever is not a regular file there.
    """
    *folders, last = path.split("/")
    folder = os.open(storage, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in folders:
            below = os.open(name, _DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = below
        descriptor = os.open(last, _FILE, dir_fd=folder)
    finally:
        os.close(folder)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise IsADirectoryError(f"{path} is not a regular file")
    return OpenFile(descriptor, status.st_size)


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a file that is sent: bytes `start` to `stop`, the latter excluded."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def parse_range(header: str, size: int) -> Span | None:
    """Return what one range asks of a file of `size` bytes; None: send all of it.

    Other units, several ranges and nonsense are ignored, as RFC 9110 section 14.2 allows; an empty
    span means that the range lies outside the file.
    """
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":  # the last so many bytes
        return Span(max(0, size - int(match[2])), size)
    start = int(match[1])
    stop = min(size, int(match[2]) + 1) if match[2] else size
    if match[2] and int(match[2]) < start:
        return None
    return Span(start, max(start, stop))


@dataclass(frozen=True, slots=True)
class _RepositoryFiles:
    """The handler.  It is a plain function, so starlette runs it in threads."""

    name: str
    storage: Path

    def send_file(self, request: Request) -> Response:
        # not the path parameter: starlette's pattern drops a line feed at its end
        path = str(request.scope["path"]).removeprefix(f"/cvmfs/{self.name}/")
        if path in _META:
            headers = META_HEADERS
        elif _OBJECT.fullmatch(path):
            headers = OBJECT_HEADERS
        else:
            return _absent()
        try:
            file = open_file(self.storage, path)
        except OSError:  # absent, a link, a folder or not readable: all the same to a client
            return _absent()
        return _send(file, request, headers)


def _absent() -> Response:
    return PlainTextResponse("not found\n", 404)


def _send(file: OpenFile, request: Request, common: dict[str, str]) -> Response:
    """Answer with `file`, which is closed when the answer has been sent, or here."""
    headers = {**common, "Accept-Ranges": "bytes"}
    span, code = Span(0, file.size), 200
    asked = request.headers.get("range") if request.method == "GET" else None
    # If-Range compares validators; there are none, so it never matches: all is sent
    if asked and "if-range" not in request.headers:
        part = parse_range(asked, file.size)
        if part is not None and part.size == 0:
            os.close(file.descriptor)
            return Response(status_code=416, headers={"Content-Range": f"bytes */{file.size}"})
        if part is not None:
            span, code = part, 206
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{file.size}"
    headers["Content-Length"] = str(span.size)
    if request.method == "HEAD":
        os.close(file.descriptor)
        return Response(status_code=code, headers=headers)
    return _FileResponse(file, span, code, headers)


class _FileResponse(Response):
    """Sends a part of an open file piece by piece and closes it, however the sending ends."""

    def __init__(self, file: OpenFile, span: Span, code: int, headers: dict[str, str]) -> None:
        super().__init__(None, code, headers)
        self._file = file
        self._span = span

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = Request(scope, receive)
        with self._file:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            position, stop = self._span.start, self._span.stop
            while position < stop and not await client.is_disconnected():
                piece = await run_in_threadpool(
                    os.pread, self._file.descriptor, min(READ_BYTES, stop - position), position
                )
                if not piece:  # truncated meanwhile: the client sees the connection break
                    return
                position += len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
