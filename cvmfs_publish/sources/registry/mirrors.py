"""Turn a reference into the other places that may have the image, and remember which failed.

Nothing is asked from here.  As containers-registries.conf(5) and dockerd have it, mirrors are asked
first and in order, and whatever a mirror fails with, the next place is asked.  What a mirror
answers counts as the registry's word for tags, which `serve_tags` can forbid; bytes are proven by
their digests wherever they come from.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import PublishError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import AccessDeniedError, ImageNotFoundError

ATTEMPTS = 2  # of a mirror for one request, since there is another place to ask
REST = timedelta(minutes=5)  # how long a mirror that failed is not asked


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """The mirrors of one registry: (host, path) each; the path is put before the repository's."""

    places: tuple[tuple[str, str], ...]
    serve_tags: bool = True


class Mirrors:
    """The mirrors of all registries.  Any number of threads."""

    def __init__(
        self, settings: Mapping[str, MirrorSettings], clock: Callable[[], datetime]
    ) -> None:
        self._settings = dict(settings)
        self._clock = clock
        self._lock = threading.Lock()
        self._resting: dict[str, datetime] = {}  # host → until when
        self._lied: set[tuple[str, Digest]] = set()  # host, blob

    def find(self, reference: Reference, name: Digest | str) -> list[Reference]:
        """Return where to ask for a digest or tag of an image before its registry."""
        settings = self._settings.get(reference.registry)
        if settings is None or (isinstance(name, str) and not settings.serve_tags):
            return []
        now = self._clock()
        return [
            replace(
                reference,
                registry=host,
                repository=f"{path}/{reference.repository}" if path else reference.repository,
            )
            for host, path in settings.places
            if self._is_fit(host, name, now)
        ]

    def tell_failure(self, place: Reference, error: PublishError) -> None:
        """Let a mirror rest, unless it only does not have this image."""
        if not isinstance(error, ImageNotFoundError | AccessDeniedError):
            with self._lock:
                self._resting[place.registry] = self._clock() + REST

    def tell_lie(self, place: Reference, digest: Digest) -> None:
        """Never ask this mirror for this blob again."""
        with self._lock:
            self._lied.add((place.registry, digest))

    def _is_fit(self, host: str, name: Digest | str, now: datetime) -> bool:
        with self._lock:
            is_liar = isinstance(name, Digest) and (host, name) in self._lied
            return not is_liar and self._resting.get(host, now) <= now
