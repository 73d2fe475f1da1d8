"""Turn wishlists and the tags registries have into the images that are wanted now.

What cannot be read at the moment, a list or the tags of a repository, stays as it was read last: a
registry that is down takes no wish away.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from cvmfs_publish.errors import PublishError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import ImageNotFoundError, Platform, TagListing
from cvmfs_publish.state.model import (
    Event,
    Failure,
    ImageKey,
    ListProblem,
    ListState,
    StoredPush,
    TagList,
    Wish,
)
from cvmfs_publish.state.state import DROP_LIST, State
from cvmfs_publish.watch import wish as lines
from cvmfs_publish.watch.lists import Loaded
from cvmfs_publish.watch.plan import next_poll
from cvmfs_publish.watch.selection import expand

log = logging.getLogger(__name__)


class Lists(Protocol):
    """Where wishlists come from.  One thread asks."""

    def load(self, now: datetime) -> Sequence[Loaded]:
        """Return all lists; one that cannot be read now is given as it was read last.

        Raises nothing for what is wrong with a list.
        """


class Tagger(Protocol):
    """What can be asked for tags."""

    def list_tags(self, registry: str, repository: str, etag: str = "") -> TagListing | None:
        """As `TagLister.list_tags`."""


class Taggers(Protocol):
    """Where lists of tags come from."""

    def tagger(self, registry: str) -> Tagger:
        """Return what asks a registry for its tags."""


class Refusal(NamedTuple):
    """Why an image that somebody wishes may not get into the repository."""

    failure: Failure
    is_told: bool  # to whoever wishes it: it gets into no other repository either


def nothing_is_refused(reference: Reference, platform: Platform) -> Refusal | None:
    return None


class Wanted:
    """Keeps the wishes in the state up to date.

    One thread loads lists, another takes pushes; neither waits for the other's network.
    """

    def __init__(
        self,
        state: State,
        lists: Lists,
        taggers: Taggers,
        tags_interval: timedelta,
        refusal: Callable[[Reference, Platform], Refusal | None] = nothing_is_refused,
    ) -> None:
        """Put it together; `refusal` says of an image why it may not get in, if it may not."""
        self._refusal = refusal
        self.tags_interval = tags_interval
        self._state = state
        self._lists = lists
        self._taggers = taggers
        self._lock = threading.Lock()  # guards what follows, and writing wishes
        self._loaded: Sequence[Loaded] = ()
        self._learned: dict[tuple[str, str], dict[str, None]] = {}  # while tags are listed
        self.is_loaded = False

    def load(self, now: datetime) -> None:
        """Read all lists, list tags that are due, and write down what is wanted then."""
        loaded = self._lists.load(now)
        unknown = self._list_tags(_rules(loaded), now)
        with self._lock:
            self._loaded = loaded
            self._settle(now)
        self.is_loaded = True
        if all(each.error is None for each in self._loaded):
            absent = [
                image.key
                for image in self._state.unlisted()
                if repository_of(image.name) not in unknown
            ]
            self._state.confirm_unlisted(absent, now)

    def take_pushes(self, pushes: Sequence[StoredPush], now: datetime) -> tuple[ImageKey, ...]:
        """Understand what was pushed; return the images that are to be published for it.

        A tag that is new is known from then on, without asking for the list of tags.
        """
        with self._lock:
            if self._learn_tags(pushes, now):
                self._settle(now)
        digests: dict[ImageKey, str] = {}
        unclear: list[ImageKey] = []
        for stored in pushes:
            push = stored.push
            place = f"{push.registry}/{push.repository}"
            if push.tag:
                for image in self._state.platforms(f"{place}:{push.tag}"):
                    digests[image.key] = push.digest
            else:  # any of its tags, or of those below
                unclear += self._state.wished_below(place)
        self._state.poll_soon(unclear, now)
        return self._state.take_pushes(pushes, digests, now)

    def _learn_tags(self, pushes: Iterable[StoredPush], now: datetime) -> bool:
        """Remember tags that were pushed where all tags matter; whether there were new ones."""
        known = self._state.tag_lists()
        watched = {(wish.registry, wish.repository) for wish in _rules(self._loaded)}
        is_new = False
        for stored in pushes:
            push = stored.push
            place = push.registry, push.repository
            if not push.tag or place not in watched:
                continue
            self._learned.setdefault(place, {})[push.tag] = None
            found = known.get(place, TagList(*place, (), "", now, now))
            if push.tag not in found.tags:
                known[place] = TagList(
                    *place, (*found.tags, push.tag), "", found.fetched_at, found.next_at
                )
                self._state.set_tag_list(known[place])
                is_new = True
        return is_new

    def _list_tags(self, rules: Iterable[lines.Wish], now: datetime) -> set[tuple[str, str]]:
        """List the tags that are due; return of which repositories they could not be listed."""
        known = self._state.tag_lists()
        unknown: set[tuple[str, str]] = set()
        down: set[str] = set()
        for registry, repository in dict.fromkeys(
            (wish.registry, wish.repository) for wish in rules
        ):
            found = known.get((registry, repository))
            if found is not None and found.next_at > now:
                continue
            if registry in down:
                unknown.add((registry, repository))
                continue
            with self._lock:
                self._learned.pop((registry, repository), None)
            try:
                etag = found.etag if found is not None else ""
                listing = self._taggers.tagger(registry).list_tags(registry, repository, etag)
            except ImageNotFoundError as error:
                log.warning("%s", error)
                unknown.add((registry, repository))
            except PublishError as error:
                log.warning("%s", error)
                down.add(registry)
                unknown.add((registry, repository))
            else:
                self._keep_tags(registry, repository, listing, now)
        return unknown

    def _keep_tags(
        self, registry: str, repository: str, listing: TagListing | None, now: datetime
    ) -> None:
        """Write down what a registry answered; None: as before."""
        at = next_poll(f"{registry}/{repository}", now, self.tags_interval)
        with self._lock:  # what was pushed in the meantime may not be in the answer
            learned = self._learned.pop((registry, repository), {})
            if listing is None:
                before = self._state.tag_list(registry, repository)
                tags, etag = (before.tags, before.etag) if before is not None else ((), "")
            else:
                tags, etag = listing.tags, listing.etag
            tags = tuple(dict.fromkeys((*tags, *learned)))
            if learned:  # the next answer is to be read, whatever it is
                etag = ""
            self._state.set_tag_list(TagList(registry, repository, tags, etag, now, at))

    def _settle(self, now: datetime) -> None:
        known = self._state.tag_lists()
        wishes: list[Wish] = []
        states: list[ListState] = []
        refused: list[ListProblem] = []
        for each in self._loaded:
            found: list[Wish] = []
            for line, reference, platform in _meant(each, known):
                refusal = self._refusal(reference, platform)
                if refusal is None:
                    found.append(_wish(each, line, reference, platform))
                elif refusal.is_told:
                    refused.append(
                        ListProblem(each.name, line.line, "", refusal.failure, line.owner)
                    )
            wishes += found
            entries = len(each.wishlist.wishes) if each.wishlist is not None else 0
            states.append(
                ListState(
                    each.name,
                    entries,
                    len(found),
                    each.read_at,
                    now,
                    Failure.of(each.error) if each.error is not None else None,
                )
            )
        unread = {each.name for each in self._loaded if each.wishlist is None}
        self._state.replace_wishes(wishes, now, {DROP_LIST, *unread})
        problems = [*_problems(self._loaded), *refused]
        new = self._state.set_lists(states, problems, now)
        self._state.log([_event(problem, now) for problem in new])


def _rules(loaded: Iterable[Loaded]) -> list[lines.Wish]:
    return [
        wish
        for each in loaded
        if each.wishlist is not None
        for wish in each.wishlist.wishes
        if wish.rule is not None
    ]


def repository_of(name: str) -> tuple[str, str]:
    """Return registry and repository of a published name."""
    registry, _, path = name.partition("/")
    return registry, path.partition("@")[0].rpartition(":")[0] or path.partition("@")[0]


def _meant(
    loaded: Loaded, known: Mapping[tuple[str, str], TagList]
) -> Iterable[tuple[lines.Wish, Reference, Platform]]:
    """Yield what each line of a list means now."""
    if loaded.wishlist is None:
        return
    for wish in loaded.wishlist.wishes:
        tags = known.get((wish.registry, wish.repository))
        for reference in expand(wish, tags.tags if tags is not None else ()):
            for platform in wish.platforms:
                yield wish, reference, platform


def _wish(loaded: Loaded, wish: lines.Wish, reference: Reference, platform: Platform) -> Wish:
    return Wish(
        ImageKey(reference.name, str(platform)),
        str(reference),
        loaded.name,
        wish.line,
        wish.owner,
        wish.priority,
        wish.keep_replaced,
        _policy(wish),
    )


def _policy(wish: lines.Wish) -> str:
    """Return how the sandbox differs, as JSON that is the same for the same."""
    differences = {name: value for name, value in asdict(wish.sandbox).items() if value is not None}
    return json.dumps(differences, sort_keys=True) if differences else ""


def _event(problem: ListProblem, now: datetime) -> Event:
    place = f"{problem.list}:{problem.line}" if problem.line else problem.list
    message = f"{place}: {problem.failure.message.removeprefix(f'{place}: ')}"
    log.warning("%s", message)
    return Event(
        0,
        now,
        "wishlist-problem",
        message,
        list=place,
        owner=problem.owner,
        details={"line": problem.text, "hint": problem.failure.hint, "kind": problem.failure.kind},
    )


def _problems(loaded: Iterable[Loaded]) -> Iterable[ListProblem]:
    for each in loaded:
        if each.error is not None:
            yield ListProblem(each.name, 0, "", Failure.of(each.error))
        for problem in each.wishlist.problems if each.wishlist is not None else ():
            yield ListProblem(
                each.name,
                problem.line,
                problem.text,
                Failure("input" if problem.is_error else "warning", problem.message, problem.hint),
                problem.owner,
            )
