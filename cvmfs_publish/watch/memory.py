"""Let several watchers ask registries as one: what was answered a moment ago is not asked again.

Watchers of one service look at the same images at the same moments; the first that asks about one
asks for all, and the others wait for its answer or are given it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import PublishError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import TagListing

KEPT_SECONDS = 60.0  # an answer; all watchers have asked by then
FAILED_SECONDS = 5.0  # a failure; then each watcher waits as it thinks best
MANY = 20_000  # answers; then those that are too old are thrown away


@dataclass(slots=True)
class _Entry:
    answer: Future[Any]
    until: float = float("inf")  # when it is to be asked again; set when it is answered


class AnswerMemory:
    """Answers by question.  Any number of threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[Hashable, _Entry] = {}

    def once(self, key: Hashable, ask: Callable[[], Any]) -> Any:  # noqa: ANN401 - what `ask` gives
        """Return or raise what `ask` does, or did a moment ago."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and self._clock() < entry.until:
                is_first = False
            else:
                is_first = True
                entry = self._entries[key] = _Entry(Future())
                self._forget_old()
        if is_first:
            self._answer(entry, ask)
        return entry.answer.result()

    def forget(self) -> None:
        """Something is known to have changed: ask anew about everything."""
        with self._lock:
            self._entries.clear()

    def _answer(self, entry: _Entry, ask: Callable[[], Any]) -> None:
        try:
            found = ask()
        except BaseException as error:  # noqa: BLE001 - whoever waits is to meet it as well
            kept = FAILED_SECONDS if isinstance(error, PublishError) else 0
            entry.until = self._clock() + kept
            entry.answer.set_exception(error)
        else:
            entry.until = self._clock() + KEPT_SECONDS
            entry.answer.set_result(found)

    def _forget_old(self) -> None:
        if len(self._entries) > MANY:
            now = self._clock()
            self._entries = {key: each for key, each in self._entries.items() if each.until > now}


class Asked(Protocol):
    """What watchers ask of a registry."""

    def head(self, reference: Reference) -> Digest:
        """As `ImageSource.head`."""

    def list_tags(self, registry: str, repository: str, etag: str = "") -> TagListing | None:
        """As `TagLister.list_tags`."""


class RememberedSource:
    """What the watcher asks a registry, and others have not asked just now."""

    def __init__(self, source: Asked, memory: AnswerMemory) -> None:
        self._source = source
        self._memory = memory

    def head(self, reference: Reference) -> Digest:
        """As promised by `ImageSource.head`; the answer may be a minute old."""
        found: Digest = self._memory.once(("head", reference), lambda: self._source.head(reference))
        return found

    def list_tags(self, registry: str, repository: str, etag: str = "") -> TagListing | None:
        """As promised by `TagLister.list_tags`; the answer may be a minute old."""
        found: TagListing | None = self._memory.once(
            ("tags", registry, repository, etag),
            lambda: self._source.list_tags(registry, repository, etag),
        )
        return found
