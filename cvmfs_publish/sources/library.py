"""SIF files in a library of Sylabs' kind: `library://ENTITY/COLLECTION/CONTAINER:TAG`.

Source: the library API as Apptainer and Singularity use it: `/v1/images/…` tells of an image,
`/v1/imagefile/…` gives it, both with `?arch=`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.origin import Origin
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.downloads import Downloads, MakeRequest, check_status
from cvmfs_publish.sources.held import HeldFile
from cvmfs_publish.sources.objectstore import parse_answer
from cvmfs_publish.sources.registry.auth import Credential, Request
from cvmfs_publish.sources.web import WebFiles, check_pin

DEFAULT_LIBRARY = "library.sylabs.io"
ANSWER_LIMIT = 4 << 20  # bytes of what is told of an image
MAX_STATE = 200  # characters, which records keep; a digest has seventy
DEFAULT_TAG = "latest"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HASH = re.compile(r"sha256\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class LibraryName:
    """An image in a library."""

    host: str
    path: str  # entity/collection/container
    tag: str


def parse_library(place: str, default: str = DEFAULT_LIBRARY) -> LibraryName:
    """Read `[HOST/]ENTITY/COLLECTION/CONTAINER[:TAG]` as Apptainer does.

    One part alone is a container of library/default; one or three parts name no host.
    """
    path, colon, tag = place.lstrip("/").rpartition(":")
    if not colon or "/" in tag:
        path, tag = place.lstrip("/"), DEFAULT_TAG
    parts = path.split("/")
    host = default
    if len(parts) not in {1, 3}:
        host, *parts = parts
    if len(parts) == 1:
        parts = ["library", "default", *parts]
    valid = len(parts) in {2, 3} and all(re.fullmatch(_PART, part) for part in (*parts, tag))
    if not valid or not re.fullmatch(rf"{_PART}(:[0-9]{{1,5}})?", host):
        raise InputError(
            f"library://{place[:200]} names no image in a library",
            hint="write library://[HOST/]ENTITY/COLLECTION/CONTAINER[:TAG]",
        )
    return LibraryName(host.lower(), "/".join(parts), tag)


class LibraryFiles(WebFiles):
    """A `FileHolder` for libraries; a login's password is the access token of its host."""

    def __init__(
        self,
        downloads: Downloads,
        credentials: Mapping[str, Credential],
        default: str = DEFAULT_LIBRARY,
    ) -> None:
        super().__init__(downloads, credentials)
        self._client = downloads.client
        self._default = default

    def name(self, origin: Origin) -> str:
        """As promised by `PlacedSource.name`: host, path and tag, as in a registry."""
        found = parse_library(origin.place, self._default)
        return f"{found.host}/{found.path.lower()}:{found.tag}"

    def state(self, origin: Origin, platform: Platform) -> str:
        """As promised by `PlacedSource.state`: what the library says of the image."""
        return str(self._describe(origin, platform).get("hash") or "")[:MAX_STATE]

    def head(self, origin: Origin) -> Digest:
        """As promised by `FileHolder.head`; not fetched if the library promises a digest."""
        platform = Platform.default()
        promised = self._promised(self.state(origin, platform))
        return origin.digest or promised or self.hold(origin, platform, None).top

    def hold(self, origin: Origin, platform: Platform, top: Digest | None) -> HeldFile:
        """As promised by `FileHolder.hold`."""
        subject = str(origin)
        state = self.state(origin, platform)
        key = f"{origin} {platform}"
        held = self._downloads.hold(key, state, self.request(origin, platform), subject, top)
        promised = self._promised(state)
        if promised is not None and held.digest != promised:
            raise IntegrityError(
                f"{subject}: the library promises {promised}, what came is {held.digest}",
                hint="the library is damaged; fetching again will not help",
            )
        check_pin(held, origin.digest, subject)
        return held

    def request(self, origin: Origin, platform: Platform) -> MakeRequest:
        """Return what makes requests for the image."""
        return lambda method: self._ask(origin, platform, "imagefile", method)

    def _describe(self, origin: Origin, platform: Platform) -> dict[str, Any]:
        subject = str(origin)
        with self._client.request(self._ask(origin, platform, "images", "GET"), subject) as reply:
            check_status(reply, subject)
            document = parse_answer(reply.read_all(ANSWER_LIMIT), subject)
        data = document.get("data", document)
        return data if isinstance(data, dict) else {}

    def _ask(self, origin: Origin, platform: Platform, what: str, method: str) -> Request:
        found = parse_library(origin.place, self._default)
        path = f"v1/{what}/{found.path}:{found.tag}?arch={platform.architecture}"
        credential = self._credentials.get(found.host)
        headers = {}
        if credential is not None:
            headers["Authorization"] = f"Bearer {credential.password}"
        return Request(
            method, f"{self._client.scheme_of(found.host)}://{found.host}/{path}", headers
        )

    @staticmethod
    def _promised(state: str) -> Digest | None:
        match = _HASH.fullmatch(state)
        return Digest("sha256", match[1]) if match else None
