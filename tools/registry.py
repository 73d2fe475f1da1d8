"""Serve one OCI image layout as a read-only registry on loopback, for machines that have none.

    python -m tools.registry LAYOUT NAME [PORT]

Prints `127.0.0.1:PORT/NAME` when it is ready and runs until it is ended.  The images of the layout
are the tags of NAME.

Source: OCI distribution-spec, "Pull".
"""

from __future__ import annotations

import http.server
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PIECE = 1024 * 1024  # bytes written at once


class Handler(http.server.BaseHTTPRequestHandler):
    """Answer one client; `layout` and `name` are set by `serve`."""

    protocol_version = "HTTP/1.1"
    layout: Path
    name: str

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401  # http.server's
        """Stay silent: the demo's output is for its reader."""

    def _answer(self, *, with_body: bool) -> None:
        if self.path.rstrip("/") == "/v2":
            self._send_small(200, b"{}", "application/json", with_body=with_body)
            return
        kind, _, reference = self.path.removeprefix(f"/v2/{self.name}/").partition("/")
        digest = self._digest_of(kind, reference)
        if digest is None:
            code = "BLOB_UNKNOWN" if kind == "blobs" else "MANIFEST_UNKNOWN"
            body = json.dumps({"errors": [{"code": code, "message": self.path}]}).encode()
            self._send_small(404, body, "application/json", with_body=with_body)
            return
        self._send_blob(digest, is_manifest=kind == "manifests", with_body=with_body)

    def _digest_of(self, kind: str, reference: str) -> str | None:
        if kind == "manifests" and not _DIGEST.fullmatch(reference):
            reference = dict(tags(self.layout)).get(reference, "")
        known = kind in ("manifests", "blobs") and _DIGEST.fullmatch(reference)
        return reference if known and self._path(reference).is_file() else None

    def _path(self, digest: str) -> Path:
        return self.layout / "blobs" / digest.replace(":", "/")

    def _send_blob(self, digest: str, *, is_manifest: bool, with_body: bool) -> None:
        path = self._path(digest)
        media_type = "application/octet-stream"
        if is_manifest:
            media_type = json.loads(path.read_bytes())["mediaType"]
        self.send_response(200)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if with_body:
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    self.wfile.write(piece)

    def _send_small(self, status: int, body: bytes, media_type: str, *, with_body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Docker-Distribution-API-Version", "registry/2.0")
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def tags(layout: Path) -> Iterator[tuple[str, str]]:
    """Yield the tags of `layout` and the digests they name."""
    for entry in json.loads((layout / "index.json").read_bytes())["manifests"]:
        name = entry.get("annotations", {}).get("org.opencontainers.image.ref.name")
        if name:
            yield name, entry["digest"]


def serve(layout: Path, name: str, port: int = 0) -> http.server.ThreadingHTTPServer:
    """Return a server for `layout` on 127.0.0.1; `port` 0 takes a free one."""
    bound = type("Bound", (Handler,), {"layout": layout, "name": name})
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), bound)


def main(words: list[str]) -> None:
    """Serve until ended."""
    if not 2 <= len(words) <= 3:
        sys.exit(__doc__)
    with serve(Path(words[0]), words[1], int(words[2]) if len(words) > 2 else 0) as server:
        sys.stdout.write(f"127.0.0.1:{server.server_address[1]}/{words[1]}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
