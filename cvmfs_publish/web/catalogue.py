"""Put together what is published and what is on its way, and choose a page of it.  Pure.

The repository knows what is published, whoever did it; the watcher knows what was wished and what
became of it.  Neither knows all images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, get_args

from cvmfs_publish.repository.records import Publication
from cvmfs_publish.state.model import ImageKey, Outline
from cvmfs_publish.web.library import Shelf

# As the watcher has it, with two differences: `published` is what the repository has, and
# `removed` what the watcher published and the repository has no more.
Condition: TypeAlias = Literal[
    "published",
    "waiting",
    "queued",
    "publishing",
    "staged",
    "failed",
    "quarantined",
    "gone",
    "removed",
]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
Order: TypeAlias = Literal["name", "changed", "requested", "size"]
ORDERS: tuple[Order, ...] = get_args(Order)
MAX_WORDS = 8  # of a search; more say nothing more


@dataclass(frozen=True, slots=True)
class Item:
    """One image, wherever it is known from."""

    key: ImageKey
    condition: Condition
    record: Publication | None  # None: nothing of that name is published
    outline: Outline | None  # None: the watcher does not know it
    changed_at: float  # seconds since 1970

    @property
    def owner(self) -> str:
        return self.outline.owner if self.outline is not None else ""

    @property
    def registry(self) -> str:
        return self.key.name.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which images to show.  Empty fields do not matter."""

    text: str = ""  # words that all occur in name, owner, list or a digest
    condition: str = ""
    registry: str = ""
    platform: str = ""
    owner: str = ""
    order: Order = "name"


@dataclass(frozen=True, slots=True)
class Facets:
    """What can be chosen from, and how many images each choice has, all others left open."""

    conditions: Mapping[str, int]
    registries: Mapping[str, int]
    platforms: Mapping[str, int]
    owners: Mapping[str, int]


class Catalogue:
    """All images of one moment, in the order of their names."""

    def __init__(self, shelf: Shelf, outlines: Iterable[Outline]) -> None:
        self._shelf = shelf
        self.items = _merge(shelf, outlines)

    def choose(self, choice: Choice) -> list[Item]:
        """Return the images that fit, in the order asked for."""
        words = choice.text.lower().split()[:MAX_WORDS]
        found = [
            item
            for item, text in zip(self.items, self._texts, strict=True)
            if (not choice.condition or item.condition == choice.condition)
            and (not choice.platform or item.key.platform == choice.platform)
            and (not choice.registry or item.registry == choice.registry)
            and (not choice.owner or item.owner == choice.owner)
            and all(word in text for word in words)
        ]
        return _sorted(found, choice.order)

    @cached_property
    def _texts(self) -> list[str]:
        """What each image is searched by, in lower case."""
        known = self._shelf.texts
        return [known.get(item.key, item.key.name) + _own_text(item.outline) for item in self.items]

    @cached_property
    def facets(self) -> Facets:
        return Facets(
            _counted(item.condition for item in self.items),
            _counted(item.registry for item in self.items),
            _counted(item.key.platform for item in self.items),
            _counted(item.owner for item in self.items if item.owner),
        )


def _merge(shelf: Shelf, outlines: Iterable[Outline]) -> list[Item]:
    known = {ImageKey(outline.name, outline.platform): outline for outline in outlines}
    items = [
        Item(
            key,
            _condition(record, outline),
            record,
            outline,
            outline.changed_at if outline is not None else shelf.times[key],
        )
        for key, record in shelf.images.items()
        for outline in (known.pop(key, None),)
    ]
    items += [
        Item(key, _condition(None, outline), None, outline, outline.changed_at)
        for key, outline in known.items()
    ]
    items.sort(key=lambda item: (item.key.name, item.key.platform))
    return items


def _condition(record: Publication | None, outline: Outline | None) -> Condition:
    if outline is None or outline.status == "published" or outline.status == "unchanged":
        return "published" if record is not None else "removed"
    if outline.status == "waiting" and record is not None:
        return "published"  # the watcher has not looked yet whether it still is what the tag names
    return outline.status


def _own_text(outline: Outline | None) -> str:
    return f" {outline.owner} {outline.list}".lower() if outline is not None else ""


def _sorted(items: list[Item], order: Order) -> list[Item]:
    if order == "changed":
        return sorted(items, key=lambda item: -item.changed_at)
    if order == "requested":
        return sorted(items, key=lambda item: -item.outline.requested_at if item.outline else 0)
    if order == "size":
        return sorted(items, key=lambda item: -item.record.content_bytes if item.record else 0)
    return items


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
