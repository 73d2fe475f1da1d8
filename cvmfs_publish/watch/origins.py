"""Fetch the texts of wishlists from where they are: a file, a folder, a web server, git."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cvmfs_publish.errors import InputError, RemoteError
from cvmfs_publish.settings import MAX_FILE_BYTES
from cvmfs_publish.watch.checkout import Checkout
from cvmfs_publish.watch.outbound import Outbound, Validators
from cvmfs_publish.watch.wishlist import decode

MAX_DOCUMENTS = 1000  # lists in one folder
MAX_TOTAL_BYTES = 32 * 1024 * 1024  # of all of them
SUFFIXES = (".yaml", ".yml", ".txt")
_WEB_PAGES = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True, slots=True)
class Document:
    """The text of one list; `source` is what people call it."""

    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """All lists of one place, as they were at one moment."""

    documents: tuple[Document, ...]
    validators: Validators = field(default_factory=Validators)


class Origin(Protocol):
    """A place where lists are."""

    def fetch(self, known: Validators) -> Fetched | None:
        """Return what is there now; None if nothing has changed since `known`.

        Bounded in time and size.  Raises `InputError` or `RemoteError` if it cannot be read, or
        not completely.
        """


@dataclass(frozen=True, slots=True)
class PathOrigin:
    """A file; or a folder, of which the files with the endings of lists are read."""

    path: Path

    def fetch(self, known: Validators) -> Fetched | None:
        try:
            names = sorted(self._names()) if self.path.is_dir() else None
        except OSError as exc:
            raise InputError(f"{self.path}: cannot be read: {exc.strerror or exc}") from exc
        if names is None:
            return Fetched((Document(str(self.path), decode(_read_file(self.path))),))
        paths = [self.path / name for name in _checked(str(self.path), names)]
        documents = [Document(str(path), decode(_read_file(path))) for path in paths]
        _check_total(str(self.path), sum(len(document.text) for document in documents))
        return Fetched(tuple(documents))

    def _names(self) -> Iterable[str]:
        return [entry.name for entry in self.path.iterdir() if entry.is_file()]


@dataclass(frozen=True, slots=True)
class UrlOrigin:
    """A file on a web server, asked for only if it has changed."""

    url: str
    outbound: Outbound

    def fetch(self, known: Validators) -> Fetched | None:
        page = self.outbound.fetch(self.url, known, MAX_FILE_BYTES)
        if page is None:
            return None
        if page.kind in _WEB_PAGES:
            raise InputError(
                f"{self.url}: is a web page ({page.kind}), not a wishlist",
                hint="name the address of the file itself, such as that behind `Raw`",
            )
        return Fetched((Document(self.url, decode(page.body)),), page.validators)


@dataclass(frozen=True, slots=True)
class GitOrigin:
    """A file, or the lists in a folder, of a branch of a git repository."""

    name: str
    checkout: Checkout

    def fetch(self, known: Validators) -> Fetched | None:
        commit = self.checkout.fetch()
        if commit == known.etag:
            return None
        file = self.checkout.find_file(commit)
        if file is not None:
            named = [(self.name, file)]
        else:
            found = {blob.name: blob for blob in self.checkout.files(commit)}
            address = self.checkout.address
            named = [(address.of_file(n), found[n]) for n in _checked(self.name, sorted(found))]
        _check_total(self.name, sum(blob.size for _, blob in named))
        for name, blob in named:
            _check_size(name, blob.size)
        documents = [Document(name, decode(self.checkout.read(blob))) for name, blob in named]
        return Fetched(tuple(documents), Validators(etag=commit))


def _checked(place: str, names: Iterable[str]) -> list[str]:
    """Return the names of lists; other files of a folder are somebody else's."""
    lists = [name for name in names if name.endswith(SUFFIXES) and name[0] not in ".~#"]
    if not lists:
        raise InputError(
            f"{place}: there is no wishlist in this folder",
            hint=f"the name of a wishlist ends with {', '.join(SUFFIXES)}",
        )
    if len(lists) > MAX_DOCUMENTS:
        raise InputError(f"{place}: more than {MAX_DOCUMENTS} wishlists in one folder")
    return lists


def _check_size(name: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise InputError(f"{name}: larger than {MAX_FILE_BYTES} bytes; not a wishlist")


def _check_total(place: str, size: int) -> None:
    if size > MAX_TOTAL_BYTES:
        raise RemoteError(f"{place}: the wishlists have more than {MAX_TOTAL_BYTES} bytes")


def _read_file(path: Path) -> bytes:
    """Return the bytes of a plain file; a pipe would be waited for without end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(f"{path}: is no plain file")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    _check_size(str(path), len(data))
    return data
