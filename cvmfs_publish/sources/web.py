"""Images behind a plain URL: `https://…/image.sif`, `https://…/rootfs.tar.gz`."""

from __future__ import annotations

from collections.abc import Mapping

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.origin import Origin
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.downloads import Downloads, MakeRequest
from cvmfs_publish.sources.held import HeldFile
from cvmfs_publish.sources.registry.auth import Credential, Request


class WebFiles:
    """A `FileHolder` for URLs; the base of all that end in a request for one file."""

    def __init__(self, downloads: Downloads, credentials: Mapping[str, Credential]) -> None:
        """`credentials` are used for exactly the host[:port] they are listed under."""
        self._downloads = downloads
        self._credentials = credentials

    def name(self, origin: Origin) -> str:
        """A URL is no name."""
        return ""

    def state(self, origin: Origin, platform: Platform) -> str:
        """As promised by `PlacedSource.state`: one HEAD request."""
        return self._downloads.state(self.request(origin, platform), str(origin))

    def head(self, origin: Origin) -> Digest:
        """As promised by `FileHolder.head`: the file is fetched, unless it is pinned."""
        return origin.digest or self.hold(origin, Platform.default(), None).top

    def hold(self, origin: Origin, platform: Platform, top: Digest | None) -> HeldFile:
        """As promised by `FileHolder.hold`."""
        subject = str(origin)
        state = self.state(origin, platform)
        key = f"{origin} {origin.query} {platform}"
        held = self._downloads.hold(key, state, self.request(origin, platform), subject, top)
        check_pin(held, origin.digest, subject)
        return held

    def request(self, origin: Origin, platform: Platform) -> MakeRequest:
        """Return what makes requests for the file."""
        host = origin.place.partition("/")[0].lower()
        credential = self._credentials.get(host)
        headers = {"Authorization": credential.basic} if credential is not None else {}
        return lambda method: Request(method, origin.url, headers)


def check_pin(held: HeldFile, pinned: Digest | None, subject: str) -> None:
    """Raise `IntegrityError` if a file is not the one that was asked for."""
    if pinned is not None and held.digest != pinned:
        raise IntegrityError(
            f"{subject}: what came is {held.digest}, not {pinned} as was asked for",
            hint="it was changed, or another file is meant",
        )
