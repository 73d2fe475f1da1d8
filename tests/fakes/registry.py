"""A registry on loopback that serves images made in memory, records every request, and can lie.

    with FakeRegistry() as registry:
        registry.add_image("a/b", [tar_of({"hello": b"1"})])
        registry.fault("GET", "/blobs/", cut(100), times=2)
        ...  # use registry.name("a/b")
        assert registry.count("HEAD") == 1

A fault is a function from the honest `Reply` to the one that is sent; the ready-made ones are at
the end.  A fault applies to its first `times` matching requests, for ever with `times=None`.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import socket
import struct
import tarfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import zstandard

from cvmfs_publish.digest import Digest

TYPES = {
    "oci": {
        "manifest": "application/vnd.oci.image.manifest.v1+json",
        "index": "application/vnd.oci.image.index.v1+json",
        "config": "application/vnd.oci.image.config.v1+json",
        "none": "application/vnd.oci.image.layer.v1.tar",
        "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
        "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    },
    "docker": {
        "manifest": "application/vnd.docker.distribution.manifest.v2+json",
        "index": "application/vnd.docker.distribution.manifest.list.v2+json",
        "config": "application/vnd.docker.container.image.v1+json",
        "none": "application/vnd.docker.image.rootfs.diff.tar",
        "gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "zstd": "application/vnd.docker.image.rootfs.diff.tar.zstd",
    },
}
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
_ROUTE = re.compile(r"/v2/(.+)/(manifests|blobs|tags|referrers)/([^/]+)")
_RANGE = re.compile(r"bytes=([0-9]+)-")


@dataclass(frozen=True)
class Recorded:
    """A request as it arrived; header names in lower case."""

    method: str
    path: str  # with the query
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    """What is sent back.  `headers` always end up with a Content-Length, `body`'s if not given."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay: float = 0.0  # seconds before anything is sent
    cut_at: int | None = None  # bytes of the body after which the connection ends
    reset: bool = False  # whether it ends with a TCP reset
    stall: float = 0.0  # seconds before it ends so
    chunked: bool = False  # without Content-Length


Change = Callable[[Reply], Reply]


@dataclass
class _Fault:
    method: str
    path: re.Pattern[str]
    change: Change
    times: int | None


class FakeRegistry:
    """Use with `with`.  `host` is what image references start with."""

    def __init__(self) -> None:
        self.requests: list[Recorded] = []
        self.blobs: dict[str, bytes] = {}  # digest → bytes, for all repositories
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}  # repository, digest → type…
        self.tags: dict[str, dict[str, str]] = {}  # repository → tag → digest
        self.files: dict[str, bytes] = {}  # other paths, as of a content server beside it
        self.honours_ranges = True
        self.page_size = 100  # tags in one answer
        self.tells_etags = False  # of lists of tags
        self.lists_referrers = True  # whether there is a referrers API
        self.tokens: set[str] = set()  # the valid ones
        self.token_field = "token"
        self._issued = 0
        self._bearer: tuple[str, str, str, str] | None = None
        self._basic: tuple[str, str] | None = None
        self._faults: list[_Fault] = []
        self._hooks: list[tuple[str, re.Pattern[str], Callable[[], object]]] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.close()

    # ------------------------------------------------------------------ what it serves

    def name(self, repository: str, tag: str = "latest") -> str:
        """Return the reference of an image in here, as a user would type it."""
        return f"{self.host}/{repository}:{tag}"

    def add_image(
        self,
        repository: str,
        layers: Sequence[bytes] = (),
        config: Mapping[str, Any] | None = None,
        *,
        tag: str = "latest",
        compress: str = "gzip",
        platform: str = "linux/amd64",
        flavour: str = "oci",
    ) -> Digest:
        """Store tar archives as an image and let `tag` ("": none) name it; return its digest.

        `config` entries replace those of a minimal config.  `compress`: gzip, zstd or none.
        """
        types = TYPES[flavour]
        packed = [pack(layer, compress) for layer in layers]
        os_name, architecture, variant = (*platform.split("/"), "")[:3]
        whole: dict[str, Any] = {
            "architecture": architecture,
            "os": os_name,
            **({"variant": variant} if variant else {}),
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(tar)) for tar in layers]},
            **(config or {}),
        }
        config_bytes = json.dumps(whole).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": types["manifest"],
            "config": self.add_blob(config_bytes, types["config"]),
            "layers": [self.add_blob(layer, types[compress]) for layer in packed],
        }
        return self.add_manifest(repository, manifest, types["manifest"], tag=tag)

    def add_index(
        self,
        repository: str,
        images: Mapping[str, Digest],
        *,
        tag: str = "latest",
        flavour: str = "oci",
        extra: Iterable[Mapping[str, Any]] = (),
    ) -> Digest:
        """Store an index of images of this repository, by platform; `extra` entries come first."""
        entries = [*extra]
        for platform, digest in images.items():
            os_name, architecture, variant = (*platform.split("/"), "")[:3]
            described = {"os": os_name, "architecture": architecture}
            if variant:
                described["variant"] = variant
            entries.append({**self.describe(repository, digest), "platform": described})
        media_type = TYPES[flavour]["index"]
        index = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
        return self.add_manifest(repository, index, media_type, tag=tag)

    def add_old_image(
        self,
        repository: str,
        layers: Sequence[bytes],
        *,
        tag: str = "latest",
        empty_on_top: bool = False,
        media_type: str = SCHEMA_1,
    ) -> Digest:
        """Store tar archives as a Docker schema 1 image with a signature nobody can check."""
        history: list[dict[str, Any]] = []
        blobs: list[dict[str, str]] = []
        for number, packed in enumerate([pack(layer, "gzip") for layer in layers]):
            entry: dict[str, Any] = {"id": f"{number:064x}", "created": "2015-01-01T00:00:00Z"}
            if history:
                entry["parent"] = history[0]["id"]
            history.insert(0, entry)
            blobs.insert(0, {"blobSum": self.add_blob(packed)["digest"]})
        if empty_on_top:
            nothing = self.add_blob(pack(tar_of({}), "gzip"))["digest"]
            parent = history[0]["id"]
            history.insert(0, {"id": "f" * 64, "parent": parent, "throwaway": True, "Size": 0})
            blobs.insert(0, {"blobSum": nothing})
        history[0] |= {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]}}
        document = {
            "schemaVersion": 1,
            "name": repository,
            "tag": tag,
            "architecture": "amd64",
            "fsLayers": blobs,
            "history": [{"v1Compatibility": json.dumps(entry)} for entry in history],
        }
        payload = json.dumps(document, indent=3).encode()
        body = sign_old_manifest(payload) if media_type == SCHEMA_1 else payload
        digest = Digest.of(payload)
        self.manifests[repository, str(digest)] = (media_type, body)
        self.tags.setdefault(repository, {})[tag] = str(digest)
        return digest

    def add_manifest(
        self, repository: str, document: Mapping[str, Any] | bytes, media_type: str, tag: str = ""
    ) -> Digest:
        """Store any manifest as it is, true or not, to be sent with this Content-Type."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = Digest.of(body)
        self.manifests[repository, str(digest)] = (media_type, body)
        tags = self.tags.setdefault(repository, {})
        if tag:
            tags[tag] = str(digest)
        return digest

    def add_blob(self, data: bytes, media_type: str = "application/octet-stream") -> dict[str, Any]:
        """Store a blob; return its descriptor."""
        digest = str(Digest.of(data))
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def describe(self, repository: str, digest: Digest) -> dict[str, Any]:
        """Return the descriptor of a stored manifest."""
        media_type, body = self.manifests[repository, str(digest)]
        return {"mediaType": media_type, "digest": str(digest), "size": len(body)}

    # ------------------------------------------------------------------ how it misbehaves

    def fault(self, method: str, path: str, change: Change, times: int | None = 1) -> None:
        """Apply `change` to replies to `method` whose path matches the expression `path`."""
        self._faults.append(_Fault(method, re.compile(path), change, times))

    def be_honest(self) -> None:
        """Forget all faults."""
        self._faults.clear()

    def before(self, method: str, path: str, action: Callable[[], object]) -> None:
        """Call `action` before every matching request is answered: a tag may move, say."""
        self._hooks.append((method, re.compile(path), action))

    def require_bearer(
        self,
        username: str = "",
        password: str = "",
        *,
        service: str = "Docker registry, main",
        realm: str = "",
    ) -> None:
        """Ask for a token from /token; that asks for the password unless `username` is empty."""
        self._bearer = (username, password, service, realm or f"{self.url}/token")

    def require_basic(self, username: str, password: str) -> None:
        self._basic = (username, password)

    # ------------------------------------------------------------------ what was asked

    def count(self, method: str, path: str = "") -> int:
        """Return how many requests there were with this method and a path that matches."""
        return len(self.find(method, path))

    def find(self, method: str, path: str = "") -> list[Recorded]:
        return [r for r in self.requests if r.method == method and re.search(path, r.path)]

    # ------------------------------------------------------------------ answering

    def answer(self, request: Recorded) -> Reply:
        """Return what is sent back, faults included.  Called by the server's threads."""
        with self._lock:
            self.requests.append(request)
            for method, path, action in self._hooks:
                if method == request.method and path.search(request.path):
                    action()
            reply = self._answer_honestly(request)
            for fault in self._faults:
                matches = fault.method == request.method and fault.path.search(request.path)
                if matches and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    reply = fault.change(reply)
        return reply

    def _answer_honestly(self, request: Recorded) -> Reply:
        path = urlsplit(request.path).path
        if path == "/token":
            return self._answer_token(request)
        if path in self.files:
            return self._ranged(request, Reply(body=self.files[path]))
        route = _ROUTE.fullmatch(path)
        challenge = self._challenge(request, route[1] if route else "")
        if challenge:
            return _error(401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})
        if path == "/v2/":
            return Reply(body=b"{}")
        if route is None:
            return _error(404, "NAME_UNKNOWN")
        repository, kind, name = route.groups()
        if kind == "blobs":
            if name not in self.blobs:
                return _error(404, "BLOB_UNKNOWN")
            return self._ranged(request, Reply(body=self.blobs[name]))
        if repository not in self.tags:
            return _error(404, "NAME_UNKNOWN")
        if kind == "tags":
            return self._answer_tags(repository, request)
        if kind == "referrers":
            return self._answer_referrers(repository, name, request)
        digest = self.tags[repository].get(name, name)
        if (repository, digest) not in self.manifests:
            return _error(404, "MANIFEST_UNKNOWN")
        media_type, body = self.manifests[repository, digest]
        return Reply(200, {"Content-Type": media_type, "Docker-Content-Digest": digest}, body)

    def _ranged(self, request: Recorded, reply: Reply) -> Reply:
        headers = {"Content-Type": "application/octet-stream"}
        asked = _RANGE.fullmatch(request.headers.get("range", ""))
        if asked is None or not self.honours_ranges:
            return replace(reply, headers=headers)
        first, size = int(asked[1]), len(reply.body)
        if first >= size:
            return Reply(416, {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
        return Reply(206, headers, reply.body[first:])

    def _answer_tags(self, repository: str, request: Recorded) -> Reply:
        query = parse_qs(urlsplit(request.path).query)
        last = query.get("last", [""])[0]
        left = [tag for tag in sorted(self.tags[repository]) if tag > last]
        size = min(int(query.get("n", ["100"])[0]), self.page_size)
        headers = {"Content-Type": "application/json"}
        if len(left) > size:
            more = f"/v2/{repository}/tags/list?n={size}&last={left[size - 1]}"
            headers["Link"] = f'<{more}>; rel="next"'
        body = json.dumps({"name": repository, "tags": left[:size]}).encode()
        if self.tells_etags:
            headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
            if request.headers.get("if-none-match") == headers["ETag"]:
                return Reply(304, {"ETag": headers["ETag"]})
        return Reply(200, headers, body)

    def _answer_referrers(self, repository: str, digest: str, request: Recorded) -> Reply:
        if not self.lists_referrers:
            return _error(404, "NOT_FOUND")
        entries = []
        for (owner, name), (_, body) in self.manifests.items():
            document = json.loads(body) if owner == repository and b'"subject"' in body else {}
            if document.get("subject", {}).get("digest") == digest:
                kind = document.get("artifactType") or document["config"]["mediaType"]
                described = self.describe(repository, Digest.parse(name))
                entries.append({**described, "artifactType": kind})
        media_type = TYPES["oci"]["index"]
        headers = {"Content-Type": media_type}
        first = int(parse_qs(urlsplit(request.path).query).get("from", ["0"])[0])
        page = entries[first : first + self.page_size]
        if entries[first + self.page_size :]:
            more = f"/v2/{repository}/referrers/{digest}?from={first + self.page_size}"
            headers["Link"] = f'<{more}>; rel="next"'
        index = {"schemaVersion": 2, "mediaType": media_type, "manifests": page}
        return Reply(200, headers, json.dumps(index).encode())

    def _challenge(self, request: Recorded, repository: str) -> str:
        given = request.headers.get("authorization", "")
        if self._basic is not None and given != _basic(*self._basic):
            return 'Basic realm="Our registry, main"'
        if self._bearer is not None and given.removeprefix("Bearer ") not in self.tokens:
            _, _, service, realm = self._bearer
            return (
                f'Bearer realm="{realm}",service="{service}",'
                f'scope="repository:{repository}:pull,push"'
            )
        return ""

    def _answer_token(self, request: Recorded) -> Reply:
        if self._bearer is None:
            return _error(404, "UNSUPPORTED")
        username, password, _, _ = self._bearer
        if username and request.headers.get("authorization") != _basic(username, password):
            return _error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="tokens"'})
        self._issued += 1
        token = f"token-{self._issued}"
        self.tokens.add(token)
        return Reply(200, {}, json.dumps({self.token_field: token, "expires_in": 300}).encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, registry: FakeRegistry) -> None:
        self.registry = registry
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what some tests are about."""

    def close(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without it, a small body waits 40 ms for the acknowledgement of its headers
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Requests are recorded, not printed."""

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Recorded(self.command, self.path, headers, self.rfile.read(length))
        registry = self.server.registry
        reply = registry.answer(request)
        if reply.delay:
            registry._stopping.wait(reply.delay)
        self.send_response(reply.status)
        sent = {"Content-Length": str(len(reply.body)), **reply.headers}
        if reply.chunked:
            del sent["Content-Length"]
            sent["Transfer-Encoding"] = "chunked"
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        body = reply.body[: reply.cut_at]
        if reply.chunked:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) if body else b"")
            self.wfile.write(b"0\r\n\r\n" if reply.cut_at is None else b"")
        else:
            self.wfile.write(body)
        if reply.cut_at is not None or len(reply.body) != int(sent.get("Content-Length", 0)):
            registry._stopping.wait(reply.stall)
            self.close_connection = True
        if reply.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    do_HEAD = do_GET  # noqa: N815
    do_POST = do_GET  # noqa: N815


def _error(status: int, code: str, headers: Mapping[str, str] | None = None) -> Reply:
    body = json.dumps({"errors": [{"code": code, "message": f"fake {code}"}]}).encode()
    return Reply(status, {"Content-Type": "application/json", **(headers or {})}, body)


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


# ---------------------------------------------------------------------- material


def sign_old_manifest(payload: bytes) -> bytes:
    """Return a schema 1 manifest as registries send it: signed as libtrust signs, with any key."""

    def encode(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    length = payload.rstrip().rindex(b"\n")  # before the line of the last brace
    protected = {
        "formatLength": length,
        "formatTail": encode(payload[length:]),
        "time": "2015-01-01T00:00:00Z",
    }
    signature = {
        "header": {"alg": "ES256"},
        "signature": encode(bytes(64)),
        "protected": encode(json.dumps(protected).encode()),
    }
    signatures = json.dumps([signature], indent=3).encode()
    return payload[:length] + b',\n   "signatures": ' + signatures + payload[length:]


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """Return a tar archive of regular files, equal for equal input."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def pack(data: bytes, compress: str) -> bytes:
    """Compress like a builder: gzip, zstd or none."""
    if compress == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if compress == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    return data


# ---------------------------------------------------------------------- faults


def status(code: int, **headers: str) -> Change:
    """Answer only this; `retry_after="1"` becomes the header Retry-After."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return lambda _: replace(_error(code, "UNKNOWN"), headers=named)


def with_header(name: str, value: str) -> Change:
    return lambda reply: replace(reply, headers={**reply.headers, name: value})


def without_header(name: str) -> Change:
    return lambda reply: replace(
        reply, headers={key: value for key, value in reply.headers.items() if key != name}
    )


def wrong_bytes() -> Change:
    """Flip one bit in the middle."""

    def change(reply: Reply) -> Reply:
        body = bytearray(reply.body)
        body[len(body) // 2] ^= 1
        return replace(reply, body=bytes(body))

    return change


def body(data: bytes) -> Change:
    """Send these bytes instead, everything else being equal."""
    return lambda reply: replace(reply, body=data)


def chunked() -> Change:
    """Say nothing about the length beforehand."""
    return lambda reply: replace(reply, chunked=True)


def cut(at: int) -> Change:
    """Promise the whole body, send `at` bytes, close the connection in good order."""
    return lambda reply: replace(reply, cut_at=at)


def reset(at: int) -> Change:
    """Promise the whole body, send `at` bytes, tear the connection down."""
    return lambda reply: replace(reply, cut_at=at, reset=True)


def stall(at: int, seconds: float) -> Change:
    """Send `at` bytes and then nothing for so long."""
    return lambda reply: replace(reply, cut_at=at, stall=seconds)


def delay(seconds: float) -> Change:
    return lambda reply: replace(reply, delay=seconds)


def html() -> Change:
    """What a login page or a proxy in front of the registry sends, with status 200."""
    page = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    return lambda _: Reply(200, {"Content-Type": "text/html; charset=utf-8"}, page)


def redirect(location: str, code: int = 307) -> Change:
    return lambda _: Reply(code, {"Location": location})
