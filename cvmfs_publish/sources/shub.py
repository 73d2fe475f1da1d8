"""Images in a Singularity Hub or a Singularity Registry Server: `shub://USER/COLLECTION:TAG`.

Source: the API as Apptainer uses it: `/api/container/USER/CONTAINER:TAG[@VERSION]` gives a JSON
object that names the URL of the image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cvmfs_publish.errors import InputError, RemoteError
from cvmfs_publish.origin import Origin
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.downloads import Downloads, MakeRequest, check_status
from cvmfs_publish.sources.objectstore import parse_answer
from cvmfs_publish.sources.registry.auth import Credential, Request, is_web_address
from cvmfs_publish.sources.web import WebFiles

DEFAULT_HUB = "singularity-hub.org"
ANSWER_LIMIT = 4 << 20  # bytes of what is told of an image
MAX_STATE = 200  # characters, which records keep; a digest and a commit have a hundred
# [HOST[:PORT]/]USER/CONTAINER[:TAG][@VERSION]; a version is an MD5 or a Git commit
_PLACE = re.compile(
    r"(?:([A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?)/)?([A-Za-z0-9-]{1,39})/([\w.-]{1,64})"
    r"(?::([\w.-]{1,64}))?(?:@([0-9a-f]{32}|[0-9a-f]{40}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class HubName:
    """An image in a hub."""

    host: str
    path: str  # user/container
    tag: str
    version: str


def parse_hub(place: str, default: str = DEFAULT_HUB) -> HubName:
    """Raise `InputError` unless `place` names an image in a hub."""
    match = _PLACE.fullmatch(place)
    if match is None:
        raise InputError(
            f"shub://{place[:200]} names no image in a hub",
            hint="write shub://[HOST/]USER/CONTAINER[:TAG][@VERSION]",
        )
    host, user, container, tag, version = match.groups()
    tag = tag or ("" if version else "latest")
    return HubName((host or default).lower(), f"{user}/{container}", tag, version or "")


class HubFiles(WebFiles):
    """A `FileHolder` for hubs."""

    def __init__(
        self,
        downloads: Downloads,
        credentials: Mapping[str, Credential],
        default: str = DEFAULT_HUB,
    ) -> None:
        super().__init__(downloads, credentials)
        self._client = downloads.client
        self._default = default

    def name(self, origin: Origin) -> str:
        """As promised by `PlacedSource.name`: host, path and tag, as in a registry."""
        found = parse_hub(origin.place, self._default)
        return f"{found.host}/{found.path.lower()}:{found.tag or found.version}"

    def state(self, origin: Origin, platform: Platform) -> str:
        """As promised by `PlacedSource.state`: what the hub says of the image."""
        return _state(self._describe(origin))

    def request(self, origin: Origin, platform: Platform) -> MakeRequest:
        """Return what makes requests for the image; its URL is asked for anew each time."""

        def make(method: str) -> Request:
            url = self._describe(origin).get("image")
            if not isinstance(url, str) or not is_web_address(url):
                raise RemoteError(f"{origin}: the hub names no image: {str(url)[:200]!a}")
            return Request(method, url)

        return make

    def _describe(self, origin: Origin) -> dict[str, Any]:
        found, subject = parse_hub(origin.place, self._default), str(origin)
        tag = f":{found.tag}" if found.tag else ""
        version = f"@{found.version}" if found.version else ""
        url = (
            f"{self._client.scheme_of(found.host)}://{found.host}/api/container/"
            f"{found.path}{tag}{version}"
        )
        credential = self._credentials.get(found.host)
        headers = {}
        if credential is not None:
            headers["Authorization"] = f"Bearer {credential.password}"
        with self._client.request(Request("GET", url, headers), subject) as reply:
            check_status(reply, subject)
            return parse_answer(reply.read_all(ANSWER_LIMIT), subject)


def _state(document: dict[str, Any]) -> str:
    """Return version and commit; without a version, nothing is known."""
    version, commit = document.get("version"), document.get("commit")
    return f"{version} {commit or ''}".strip()[:MAX_STATE] if version else ""
