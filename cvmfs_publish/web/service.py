"""Everything the pages, the API and the metrics draw from, handed to them by the command line.

What changes something is optional: without it the service shows, and refuses the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from cvmfs_publish.errors import PublishError
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import Pages
from cvmfs_publish.state.model import Image, ImageKey, Outline
from cvmfs_publish.state.reading import Reader
from cvmfs_publish.state.schema import FILE_NAME
from cvmfs_publish.web.access import Access
from cvmfs_publish.web.catalogue import Catalogue, Item
from cvmfs_publish.web.library import Library, Shelf
from cvmfs_publish.web.pages import HtmlPages


class Control(Protocol):
    """What a person may have done; both only put it into the queue and return at once."""

    def publish(self, key: ImageKey) -> bool:
        """Let a wished image be published now; a failed or quarantined one is tried again.

        Returns False if nobody wishes it.
        """

    def look(self, key: ImageKey) -> bool:
        """Let the registry be asked now what the name means; False if nobody wishes it."""


class Watch:
    """The watcher's state, opened when there is one; a watcher may start after this service."""

    def __init__(self, folder: Path) -> None:
        """Name the `state` directory; nothing is read yet."""
        self._folder = folder
        self._lock = threading.Lock()
        self._reader: Reader | None = None

    def reader(self) -> Reader | None:
        """Return what reads the state; None if no watcher has run here yet.

        Raises:
            StateError: there is one that cannot be used.
        """
        with self._lock:
            if self._reader is None and (self._folder / FILE_NAME).exists():
                self._reader = Reader.open(self._folder)
            return self._reader

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Return what is another after every change of the state, without opening it.

        Times of files have a few milliseconds: what changes within the same ones is seen with the
        next change, which is a sign of life of the watcher and comes within seconds.
        """
        found = []
        for name in (FILE_NAME, f"{FILE_NAME}-wal"):
            with suppress(OSError):
                status = (self._folder / name).stat()
                found.append((status.st_mtime_ns, status.st_size))
        return tuple(found)

    def close(self) -> None:
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None


class _Kept:
    """The images of the last moment somebody asked about; who asks at the same time waits for it.

    To put ten thousand together takes longer than to render a page of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shelf: Shelf | None = None
        self._stamp: object = None
        self._catalogue: Catalogue | None = None

    def catalogue(self, shelf: Shelf, watch: Watch) -> Catalogue:
        with self._lock:
            stamp = watch.stamp()  # before reading: a change in between is seen next time
            if self._catalogue is None or self._shelf is not shelf or self._stamp != stamp:
                reader = watch.reader()
                outlines = reader.outlines() if reader is not None else []
                self._catalogue = Catalogue(shelf, outlines)
                self._shelf, self._stamp = shelf, stamp
            return self._catalogue


@dataclass(frozen=True, kw_only=True)
class Watching:
    """The watcher of a repository, of whatever backend."""

    watch: Watch
    clock: Callable[[], datetime]
    probe: Callable[[], None] | None = None  # writes to the state; None: it is only read here
    expects_watcher: bool = False  # one that does not work is a fault of this service
    alive_within: timedelta = timedelta(minutes=1)  # a watcher shows every 10 s that it lives

    def last_alive(self) -> datetime | None:
        reader = self.watch.reader()
        return reader.moment("alive") if reader is not None else None


@dataclass(frozen=True, kw_only=True)
class Service(Watching):
    """What is shown, and what may be done."""

    library: Library
    html: HtmlPages
    access: Access
    sites: tuple[Site, ...] = ()
    site_pages: Pages | None = None  # templates of sites; with `sites`
    control: Control | None = None  # None: nothing can be changed here
    replicas: tuple[str, ...] = ()  # as configured
    url: str | None = None  # where browsers find these pages, if not where they ask
    _kept: _Kept = field(default_factory=_Kept, init=False)

    def warm(self) -> None:
        """Read what is published now, so that nobody waits for it later; its faults are for pages.

        Ten thousand records take a second, once.
        """
        with suppress(PublishError):
            self.library.shelf()

    def catalogue(self) -> Catalogue:
        """Return all images of this moment.

        Raises:
            RepositoryError: repository or state cannot be read.
        """
        return self._kept.catalogue(self.library.shelf(), self.watch)

    def find(self, key: ImageKey) -> tuple[Shelf, Item | None, Image | None]:
        """Return one image as both know it."""
        shelf, reader = self.library.shelf(), self.watch.reader()
        image = reader.image(key) if reader is not None else None
        outlines = [outline_of(image)] if image is not None else []
        alone = Shelf(shelf.manifest, {key: shelf.images[key]} if key in shelf.images else {})
        items = Catalogue(alone, outlines).items
        return shelf, items[0] if items else None, image

    def images_of(self, items: list[Item]) -> Mapping[ImageKey, Image]:
        """Return what the watcher knows of these."""
        reader = self.watch.reader()
        keys = [item.key for item in items if item.outline is not None]
        return reader.images(keys) if reader is not None and keys else {}


def outline_of(image: Image) -> Outline:
    return Outline(
        image.name,
        image.platform,
        image.status,
        image.is_wished,
        image.list,
        image.owner,
        image.requested_at.timestamp(),
        image.changed_at.timestamp(),
    )
