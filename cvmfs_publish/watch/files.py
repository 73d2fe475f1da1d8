"""Notice files: wishlists and site configurations that change, archives and SIFs that are dropped.

Events of the kernel make it quick; looking again now and then makes it sure, also where there are
no events, as on network file systems.  A dropped file counts when it is complete: nothing about it
has changed from one look to the next.  What is no image is told once, and then left alone.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol, Self

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, PublishError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.state.model import Dropped, Event, Failure, ImageKey, Wish
from cvmfs_publish.state.state import DROP_LIST, State

SETTLE = timedelta(seconds=1)  # between two looks at a file that is to be complete
SCAN_EVERY = timedelta(seconds=30)  # where the kernel tells nothing
MAX_FILES = 100_000  # in the drop directory; more are not looked at
_SIF = ".sif"
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
# The thread of watchdog that reads warns so where the kernel tells of a directory that it has found
# in a new one already.  Nothing is lost; but where warnings are errors, that thread ends.
_TWICE = "Callback with id "
_CHANGES = ("closed", "moved", "deleted", "created")

log = logging.getLogger(__name__)


class Opener(Protocol):
    """What finds out whether there is an image in a file, and what it is called."""

    def locate(self, text: str, name: str = "") -> Reference:
        """As `Locator.locate`."""

    def head(self, reference: Reference) -> Digest:
        """As `ImageSource.head`."""


@dataclass(frozen=True, slots=True)
class _Look:
    """How a file was found."""

    mark: str
    at: datetime


class DropFolder:
    """Takes in what is put into a directory.  One thread calls `step`, any thread `note`."""

    def __init__(self, folder: Path, state: State, opener: Opener) -> None:
        self.folder = folder
        self._state = state
        self._opener = opener
        self._lock = threading.Lock()  # guards what was noted
        self._noted: set[Path] = set()
        self._looks: dict[Path, _Look] = {}  # files that may still be written
        self._scanned_at: datetime | None = None

    def note(self, path: Path) -> None:
        """Something happened to a file."""
        with self._lock:
            self._noted.add(path)

    def step(self, now: datetime) -> bool:
        """Take in the files that are complete; return whether some may be so in a moment."""
        with self._lock:
            noted, self._noted = self._noted, set()
        paths = noted | set(self._looks)
        scanned = self._scanned_at
        if scanned is None or not timedelta() <= now - scanned < SCAN_EVERY:
            found = set(_iter_files(self.folder))
            paths |= found
            self._scanned_at = now
            self._forget_missing(found)
        if paths:
            known = self._state.dropped()
            for path in sorted(paths):
                self._look_at(path, known.get(str(path)), now)
        return bool(self._looks)

    def _forget_missing(self, found: Collection[Path]) -> None:
        missing = [path for path in self._state.dropped() if Path(path) not in found]
        if missing:
            self._state.forget_dropped(missing)

    def _look_at(self, path: Path, known: Dropped | None, now: datetime) -> None:
        mark = _mark_of(path)
        before = self._looks.pop(path, None)
        if not mark or (known is not None and known.mark == mark):
            return
        if before is None or before.mark != mark or now - before.at < SETTLE:
            is_same = before is not None and before.mark == mark
            self._looks[path] = before if is_same and before is not None else _Look(mark, now)
            return
        self._take(path, mark, now)

    def _take(self, path: Path, mark: str, now: datetime) -> None:
        try:
            wish = self._identify(path)
        except PublishError as error:
            failure = Failure.of(error)
            log.warning("%s is left alone: %s", path, error)
            self._state.drop(Dropped(str(path), mark, None, failure, now), None, now)
            self._state.log(
                [Event(0, now, "drop-ignored", f"{path}: {error}", details={"hint": error.hint})]
            )
            return
        log.info("%s is taken as %s", path, wish.key)
        self._state.drop(Dropped(str(path), mark, wish.key, None, now), wish, now)

    def _identify(self, path: Path) -> Wish:
        """Return what a file is to be published as; `PublishError` if it is no image."""
        name = name_below(self.folder, path)
        text, reference = self._open(path, name)
        key = ImageKey(reference.name, str(Platform.default()))
        image = self._state.image(key)
        if image is not None and image.is_wished and image.list != DROP_LIST:
            raise InputError(
                f"{key.name} comes from its registry, as {image.list} wishes",
                hint="give the file another place, DROP/REGISTRY/REPOSITORY/TAG.tar",
            )
        return Wish(key, text, DROP_LIST)

    def _open(self, path: Path, name: str) -> tuple[str, Reference]:
        transports = ["sif"] if path.name.endswith(_SIF) else ["oci-archive", "docker-archive"]
        problems = []
        for transport in transports:
            text = f"{transport}:{path}"
            try:
                reference = self._opener.locate(text, name)
                self._opener.head(reference)
            except PublishError as error:
                problems.append(error)
            else:
                return text, reference
        raise problems[0]


def name_below(folder: Path, path: Path) -> str:
    """Return the name a file is given by where it lies; "" right in the directory.

    `DROP/ghcr.io/a/b/1.tar.gz` is `ghcr.io/a/b:1`.  There are no colons in the names of files,
    since what follows one would be the tag of an image inside.
    """
    repository = path.relative_to(folder).parent.as_posix()
    if repository == ".":
        return ""
    suffix = next((each for each in (_SIF, *_TARS) if path.name.endswith(each)), "")
    return f"{repository}:{path.name.removesuffix(suffix)}"


def is_candidate(path: Path) -> bool:
    """Whether a file may be an image, by its name; those with a dot first are being written."""
    return (
        path.name.endswith((_SIF, *_TARS))
        and not path.name.startswith(".")
        and ":" not in str(path)
        and str(path).isprintable()
    )


def _iter_files(folder: Path) -> Iterator[Path]:
    """Yield the candidates below a directory, no link followed."""
    count = 0
    for top, directories, names in os.walk(folder):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        for name in sorted(names):
            path = Path(top, name)
            if is_candidate(path):
                count += 1
                if count > MAX_FILES:
                    log.warning("%s holds more than %d files", folder, MAX_FILES)
                    return
                yield path


def _mark_of(path: Path) -> str:
    """Return what changes with a file; "" if there is none, or none that can be read."""
    try:
        found = path.lstat()
    except OSError:
        return ""
    if not stat.S_ISREG(found.st_mode) or not found.st_size or not os.access(path, os.R_OK):
        return ""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"


class FileEvents:
    """Calls back when files change.  Use it with `with`."""

    def __init__(
        self,
        files: Iterable[Path],
        changed: Callable[[Path], None],
        drop: DropFolder | None,
        wake: Callable[[], None],
    ) -> None:
        """Watch nothing yet.

        Args:
            files: files, or directories, of which `changed` is told; by a thread of its own.
            changed: must be quick.
            drop: told of what happens in its directory, after which `wake` is called.
            wake: must be quick.
        """
        self._files = {path.absolute() for path in files}
        self._changed = changed
        self._drop = drop
        self._wake = wake
        self._observer = Observer()

    def __enter__(self) -> Self:
        handler = _Handler(self._see)
        warnings.filterwarnings("ignore", _TWICE, RuntimeWarning)
        self._observer.start()
        # an editor puts a new file in the place of the old one: the directory tells of it
        folders = {path if path.is_dir() else path.parent for path in self._files}
        for folder in sorted(folders):
            self._watch(handler, folder, recursive=folder in self._files)
        if self._drop is not None:
            self._watch(handler, self._drop.folder, recursive=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._observer.stop()
        self._observer.join()

    def _watch(self, handler: _Handler, folder: Path, *, recursive: bool) -> None:
        try:
            self._observer.schedule(handler, str(folder), recursive=recursive)
        except OSError as error:
            log.warning(
                "%s: the kernel tells of no changes (%s); it is looked at now and then",
                folder,
                error.strerror or error,
            )

    def _see(self, path: Path) -> None:
        if self._drop is not None and path.is_relative_to(self._drop.folder):
            if is_candidate(path):
                self._drop.note(path)
                self._wake()
            return
        for file in self._files:
            if path == file or path.is_relative_to(file):
                self._changed(file)


class _Handler(FileSystemEventHandler):
    def __init__(self, see: Callable[[Path], None]) -> None:
        self._see = see

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in _CHANGES:
            return
        for name in (event.src_path, event.dest_path):
            if name:
                self._see(Path(os.fsdecode(name)))
