"""Turn a wishlist in this project's own format into wishes, entry by entry.

Every entry is read as a document of its own, so that a wrong one costs nothing but itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import yaml

from cvmfs_publish import settings
from cvmfs_publish.config import Owner
from cvmfs_publish.errors import InputError
from cvmfs_publish.reference import Reference
from cvmfs_publish.settings import PlacedError, about
from cvmfs_publish.watch.patterns import Pattern
from cvmfs_publish.watch.versions import VersionRange
from cvmfs_publish.watch.wish import (
    MAX_NEWEST,
    Collector,
    Line,
    TagRule,
    Terms,
    Wish,
    line_at,
)

VERSION = 1
IMAGES = "images"


@dataclass(frozen=True, kw_only=True)
class Head(Terms):
    """What a list says besides its images; terms of its wishes where they say nothing else."""

    version: Literal[1] = field(metadata=about("of the format: 1"))


@dataclass(frozen=True)
class Tags:
    """Which tags of a repository are wished for."""

    match: Pattern | tuple[Pattern, ...] = field(
        default=(), metadata=about("globs, or /regular expressions/; a tag matches one of them")
    )
    exclude: Pattern | tuple[Pattern, ...] = field(
        default=(), metadata=about("likewise; a tag matches none of them")
    )
    semver: VersionRange | None = field(
        default=None, metadata=about("a range of versions such as >=1.2 <2, ~1.2 or ^1")
    )
    newest: int | None = field(default=None, metadata=about("only so many of them"))
    order: Literal["semver", "name"] | None = field(
        default=None, metadata=about("what newest means: the version (default) or the name")
    )

    def __post_init__(self) -> None:
        if self.newest is not None and not 1 <= self.newest <= MAX_NEWEST:
            raise InputError(f"newest: wants 1 to {MAX_NEWEST}, found {self.newest}")
        if self.order is not None and self.newest is None:
            raise InputError(
                "order says what `newest` means, and there is no `newest`", hint="remove one"
            )

    def rule(self) -> TagRule:
        return TagRule(
            match=_several(self.match),
            exclude=_several(self.exclude),
            semver=self.semver,
            newest=self.newest,
            order=self.order or "semver",
        )


@dataclass(frozen=True, kw_only=True)
class Entry(Terms):
    """One item of `images` in full; an item that is only a text is its `name`."""

    name: str = field(metadata=about("[REGISTRY/]REPOSITORY[:TAG][@DIGEST]; the tag may be a glob"))
    tags: Tags | Pattern | tuple[Pattern, ...] | None = field(
        default=None, metadata=about("which tags: a pattern, a list of them, or a section")
    )

    def rule(self) -> TagRule | None:
        if self.tags is None or isinstance(self.tags, Tags):
            return self.tags.rule() if self.tags else None
        return TagRule(match=_several(self.tags))


def _several(patterns: Pattern | tuple[Pattern, ...]) -> tuple[Pattern, ...]:
    return (patterns,) if isinstance(patterns, Pattern) else patterns


def parse_own(
    document: yaml.Node | None, lines: list[str], collector: Collector, terms: Terms
) -> None:
    """Add what a document in the own format says to `collector`."""
    _Reader(lines, collector, terms).read(document)


def parse_name(text: str) -> tuple[Reference, TagRule | None]:
    """Read a name whose tag may be a glob: `ghcr.io/a/b:1.*`."""
    head, colon, tag = text.rpartition(":")
    if colon and "/" not in tag and any(character in tag for character in "*?["):
        return Reference.parse(head), TagRule(match=(Pattern.glob(tag),))
    return Reference.parse(text), None


@dataclass(slots=True)
class _Reader:
    """Reads one document.  `terms` are those of the list once its head has been read."""

    lines: list[str]
    collector: Collector
    terms: Terms
    seen: set[int] = field(default_factory=set)  # collections; an alias leads to one again

    def read(self, document: yaml.Node | None) -> None:
        if not isinstance(document, yaml.MappingNode):
            hint = f"write `version: 1` and `{IMAGES}:` with a list below"
            place = self.collector.line(0, "")
            self.collector.refuse(place, "this is not a wishlist", hint, self.terms.owner or "")
            return
        head, images = self.divide(document)
        if self.is_repeated(head):
            return
        reading = settings.read_node(Head, head, self.collector.source)
        for error in reading.errors:
            self.tell(error)
        if reading.value is not None:
            self.terms = reading.value.over(self.terms)
        elif not _has_version(head):  # what the entries mean is not known then
            return
        if images is not None:
            self.read_images(images)

    def divide(self, document: yaml.MappingNode) -> tuple[yaml.MappingNode, yaml.Node | None]:
        """Return the document without its images, and these."""
        rest: list[tuple[yaml.Node, yaml.Node]] = []
        found: dict[str, yaml.Node] = {}
        for key, value in document.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in found:
                first = found[name].start_mark.line + 1
                self.tell(
                    settings.error_at(key, name, f"is given twice; the first is at line {first}")
                )
                continue
            if name is not None:
                found[name] = value
            if name != IMAGES:
                rest.append((key, value))
        if IMAGES not in found:
            self.tell(settings.error_at(document, "", f"the key {IMAGES!r} is missing"))
        head = yaml.MappingNode(document.tag, rest, document.start_mark, document.end_mark)
        return head, found.get(IMAGES)

    def read_images(self, node: yaml.Node) -> None:
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return  # all of its lines are remarks
        if not isinstance(node, yaml.SequenceNode):
            self.tell(settings.error_at(node, IMAGES, "wants a list", "write `- IMAGE` lines"))
            return
        for item in node.value:
            if not self.is_repeated(item):
                self.read_item(item)

    def read_item(self, node: yaml.Node) -> None:
        place = self.place_of(node)
        if isinstance(node, yaml.ScalarNode):
            self.add(place, node.value, None, self.terms)
            return
        owner = _find_owner(node) or self.terms.owner or ""
        if meant := _split_name(node):
            message = f"{meant[0]!r} and {meant[1]!r} are apart: a blank stands behind the colon"
            hint = f"write {meant[0]}:{meant[1]}"
            self.collector.refuse(place, message, hint, owner)
            return
        reading = settings.read_node(Entry, node, self.collector.source)
        for error in reading.errors:
            self.tell(error, owner, place.text)
        if reading.value is not None:
            entry = reading.value
            self.add(place, entry.name, entry.rule(), entry.over(self.terms), entry)

    def add(
        self,
        place: Line,
        name: str,
        rule: TagRule | None,
        terms: Terms,
        entry: Entry | None = None,
    ) -> None:
        try:
            image, named = parse_name(name)
            if entry is not None and rule is not None:
                _check_bare(name, image, named)
        except InputError as exc:
            self.collector.refuse(place, str(exc), exc.hint, terms.owner or "")
            return
        self.collector.add(Wish.at(place, image, rule or named, terms))

    def is_repeated(self, node: yaml.Node) -> bool:
        """Refuse what an alias leads to a second time: written out it could be without end."""
        todo = [node]
        while todo:
            each = todo.pop()
            if not isinstance(each, yaml.CollectionNode):
                continue
            if id(each) in self.seen:
                place = self.place_of(node)
                hint = "write it out, or make it a term of the whole list"
                what = "`&` and `*` of YAML are not understood in a wishlist"
                self.collector.refuse(place, what, hint, self.terms.owner or "")
                return True
            self.seen.add(id(each))
            for below in each.value:
                todo += below if isinstance(below, tuple) else [below]
        return False

    def tell(self, error: InputError, owner: str = "", text: str = "") -> None:
        number = error.line if isinstance(error, PlacedError) else 0
        what = error.what if isinstance(error, PlacedError) else str(error)
        place = self.collector.line(number, text or self.text_at(number))
        self.collector.refuse(place, what, error.hint, owner or self.terms.owner or "")

    def place_of(self, node: yaml.Node) -> Line:
        number = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode):
            return self.collector.line(number, node.value)
        return self.collector.line(number, self.text_at(number))

    def text_at(self, number: int) -> str:
        return line_at(self.lines, number)


def _check_bare(name: str, image: Reference, named: TagRule | None) -> None:
    """Refuse a tag or digest beside `tags`: one of the two would be ignored."""
    bare = f"{image.registry}/{image.repository}"
    if named is not None or image.digest is not None or ":" in name.rpartition("/")[2]:
        raise InputError(
            f"{name!r} names a tag or digest, and `tags` says which tags are meant",
            hint=f"write `name: {bare}`, or remove `tags`",
        )


def _has_version(head: yaml.MappingNode) -> bool:
    return any(getattr(k, "value", "") == "version" and v.value == "1" for k, v in head.value)


def _find_owner(node: yaml.Node) -> str:
    """Return the owner of an entry in which something else is wrong."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if getattr(key, "value", "") == "owner" and isinstance(value, yaml.ScalarNode):
                try:
                    return Owner.parse(value.value)
                except InputError:
                    return ""
    return ""


def _split_name(node: yaml.Node) -> tuple[str, str] | None:
    """Return the halves of `- ghcr.io/a/b: 1.0`, which YAML reads as key and value."""
    if not isinstance(node, yaml.MappingNode) or len(node.value) != 1:
        return None
    key, value = node.value[0]
    if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
        return None
    known = {each.path.partition(".")[0] for each in settings.iter_keys(Entry)}
    return None if key.value in known else (key.value, value.value)
