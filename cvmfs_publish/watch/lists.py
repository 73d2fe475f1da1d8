"""Load all wishlists of a configuration; what cannot be read now counts as it was read last.

What was read last is kept in the state directory, one file for each place, so that a web server
that is down takes no wish away, also not across a restart.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cvmfs_publish.config import Config, WishlistConfig
from cvmfs_publish.errors import PublishError
from cvmfs_publish.watch.checkout import Checkout, GitAddress
from cvmfs_publish.watch.guard import judge
from cvmfs_publish.watch.origins import Document, Fetched, GitOrigin, Origin, PathOrigin, UrlOrigin
from cvmfs_publish.watch.outbound import Outbound, Validators
from cvmfs_publish.watch.wishlist import Format, Terms, Wishlist, parse_wishlist

FORMAT = 1  # of the kept files
PARALLEL = 4  # places read at the same time: one that hangs holds up few others

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """One item of `wishlists`: where lists are, and what goes with their wishes."""

    where: str | Path  # a URL, git+URL, or a path
    terms: Terms = field(default_factory=Terms)
    kind: Format | None = None  # None: found out

    @property
    def name(self) -> str:
        return str(self.where)


def configured_places(config: Config) -> list[Place]:
    """Return the places that the configuration names, in its order."""
    return [
        Place(
            each.source,
            Terms(owner=each.owner, keep_replaced=each.keep_replaced, priority=each.priority),
            each.format,
        )
        if isinstance(each, WishlistConfig)
        else Place(each)
        for each in config.wishlists
    ]


@dataclass(frozen=True, slots=True)
class Loaded:
    """One list as it is in force; a folder has several."""

    name: str  # file or URL
    wishlist: Wishlist | None  # None: it was never read
    read_at: datetime | None  # when what is in force was there
    error: PublishError | None = None  # why it is not, or not only, what is there now
    text: str = ""  # as it is in force, to show problems in their places


@dataclass(frozen=True, slots=True)
class Kept:
    """What was in force at a place when all was well."""

    documents: tuple[Document, ...]
    validators: Validators
    read_at: datetime
    held_since: datetime | None = None

    def encode(self, name: str) -> bytes:
        document = {
            "format": FORMAT,
            "name": name,
            "read_at": self.read_at.isoformat(),
            "held_since": self.held_since.isoformat() if self.held_since else None,
            "etag": self.validators.etag,
            "modified": self.validators.modified,
            "documents": [[each.source, each.text] for each in self.documents],
        }
        return json.dumps(document).encode("ascii")

    @classmethod
    def decode(cls, name: str, data: bytes) -> Kept | None:
        """Return what was kept for `name`; None if it is damaged or of another version."""
        try:
            found: dict[str, Any] = json.loads(data)
            if (found["format"], found["name"]) != (FORMAT, name):
                return None
            held = found["held_since"]
            return cls(
                tuple(Document(str(source), str(text)) for source, text in found["documents"]),
                Validators(str(found["etag"]), str(found["modified"])),
                datetime.fromisoformat(found["read_at"]),
                datetime.fromisoformat(held) if held else None,
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


class WishlistLoader:
    """Loads the lists of some places, again and again.  One thread at a time."""

    def __init__(
        self,
        places: Sequence[Place],
        folder: Path,
        outbound: Outbound,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            places: the configuration's.
            folder: where what was read last is kept; made if it is absent.
            outbound: sends requests to web servers.
            environ: what git may need to know of the network, see `checkout.PASSED`.
        """
        self.places = tuple(places)
        self._folder = folder
        self._outbound = outbound
        self._environ = environ or {}
        self._parsed: dict[tuple[Document, Place], Wishlist] = {}

    def load(self, now: datetime) -> list[Loaded]:
        """Return every list; raises nothing for what is wrong with a list or its place."""
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="wishlists") as pool:
            found = list(pool.map(lambda place: self._load_place(place, now), self.places))
        used = {(document, place) for documents, place, _ in found for document in documents}
        self._parsed = {key: value for key, value in self._parsed.items() if key in used}
        return [each for _, _, loaded in found for each in loaded]

    def _load_place(
        self, place: Place, now: datetime
    ) -> tuple[tuple[Document, ...], Place, list[Loaded]]:
        kept = self._read_kept(place)
        known = kept.validators if kept else Validators()
        documents = kept.documents if kept else ()
        try:
            fetched = self.origin(place).fetch(known) or Fetched(documents, known)
        except PublishError as exc:
            return documents, place, self._as_kept(place, kept, exc)
        loaded = self._settle(place, kept, fetched, now)
        return (*fetched.documents, *documents), place, loaded

    def _settle(
        self, place: Place, kept: Kept | None, fetched: Fetched, now: datetime
    ) -> list[Loaded]:
        old = [self._parse(each, place) for each in kept.documents] if kept else []
        new = [self._parse(each, place) for each in fetched.documents]
        verdict = judge(old, new, kept.held_since if kept else None, now)
        if verdict.is_taken:
            self._keep(place, Kept(fetched.documents, fetched.validators, now))
        elif kept is not None and kept.held_since != verdict.held_since:
            self._keep(place, replace(kept, held_since=verdict.held_since))
        texts = {each.source: each.text for each in (kept.documents if kept else ())}
        texts |= {each.source: each.text for each in fetched.documents}
        return [
            Loaded(
                wishlist.source,
                wishlist,
                now if error is None else kept.read_at if kept else None,
                error,
                texts.get(wishlist.source, ""),
            )
            for wishlist, error in zip(verdict.lists, verdict.errors, strict=True)
        ]

    def _as_kept(self, place: Place, kept: Kept | None, error: PublishError) -> list[Loaded]:
        if kept is None:
            return [Loaded(place.name, None, None, error)]
        return [
            Loaded(each.source, self._parse(each, place), kept.read_at, error, each.text)
            for each in kept.documents
        ]

    def _parse(self, document: Document, place: Place) -> Wishlist:
        """Ten thousand entries take seconds to read, and rarely change."""
        key = (document, place)
        if key not in self._parsed:
            self._parsed[key] = parse_wishlist(
                document.text, document.source, terms=place.terms, kind=place.kind
            )
        return self._parsed[key]

    def origin(self, place: Place) -> Origin:
        """Return what fetches the lists of a place."""
        if isinstance(place.where, Path):
            return PathOrigin(place.where)
        if place.where.startswith("git+"):
            address = GitAddress.parse(place.where)
            checkout = Checkout(address, self._path(place, ".git"), self._environ)
            return GitOrigin(place.name, checkout)
        return UrlOrigin(place.where, self._outbound)

    def _path(self, place: Place, suffix: str) -> Path:
        number = hashlib.sha256(place.name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self._folder / f"{number}{suffix}"

    def _read_kept(self, place: Place) -> Kept | None:
        try:
            data = self._path(place, ".json").read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            log.warning("what was read last of %s cannot be read: %s", place.name, exc)
            return None
        return Kept.decode(place.name, data)

    def _keep(self, place: Place, kept: Kept) -> None:
        """Write down what is in force, complete or not at all; only a restart suffers without."""
        path = self._path(place, ".json")
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(kept.encode(place.name))
            temporary.replace(path)
        except OSError as exc:
            log.warning("what was read of %s cannot be kept: %s", place.name, exc)
        finally:
            with suppress(OSError):
                temporary.unlink()
