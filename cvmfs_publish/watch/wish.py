"""What the lines of a wishlist come to: wishes for images or tags, and problems."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Literal

from cvmfs_publish.config import MAX_PRIORITY, Owner
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError
from cvmfs_publish.reference import Reference
from cvmfs_publish.settings import about
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.watch.patterns import Pattern
from cvmfs_publish.watch.versions import VersionRange

MAX_NEWEST = 10_000
MAX_PROBLEMS = 1000  # of one list that are told one by one; nobody reads more
MAX_SHOWN = 200  # characters of a line that is shown as wrong

_NUMBER = re.compile(r"line [0-9]+")
_LOGIN = re.compile(r"://[^/@\s]{1,500}@")  # in a URL; it may hold a password


@dataclass(frozen=True, slots=True)
class TagRule:
    """Which tags of a repository are wished for."""

    match: tuple[Pattern, ...] = ()  # any of these; none: every tag
    exclude: tuple[Pattern, ...] = ()  # and none of these
    semver: VersionRange | None = None
    newest: int | None = None  # only so many of what is left
    order: Literal["semver", "name"] = "semver"  # what "newest" means

    def __str__(self) -> str:
        parts = [" or ".join(map(str, self.match)) or "*"]
        parts += [f"versions {self.semver}"] if self.semver else []
        parts += [f"not {pattern}" for pattern in self.exclude]
        parts += [f"the newest {self.newest} by {self.order}"] if self.newest else []
        return ", ".join(parts)


@dataclass(frozen=True)
class SandboxWish:
    """How the sandboxes of a wish differ from what the configuration says; None: not at all."""

    permissions: Literal["readable", "strict"] | None = field(
        default=None, metadata=about("as `sandbox.permissions` of the configuration")
    )
    keep_dirlinks: bool | None = field(
        default=None, metadata=about("as `sandbox.keep_dirlinks` of the configuration")
    )


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What goes with a wish; a list has some for all of its wishes.  None: not said."""

    owner: Owner | None = field(
        default=None, metadata=about("who is told of problems: an address of e-mail, or a name")
    )
    platforms: tuple[Platform, ...] | None = field(
        default=None, metadata=about("OS/ARCHITECTURE[/VARIANT] of the images; else linux/amd64")
    )
    keep_replaced: timedelta | None = field(
        default=None,
        metadata=about("how long an image stays that its tag no longer means, such as 30d"),
    )
    priority: int | None = field(
        default=None, metadata=about("from -9 to 9, else 0; the higher, the earlier")
    )
    sandbox: SandboxWish | None = field(
        default=None, metadata=about("how sandboxes differ from what the configuration says")
    )

    def __post_init__(self) -> None:
        if self.platforms is not None and len(set(self.platforms)) != len(self.platforms or (0,)):
            raise InputError("platforms: wants at least one, and each only once")
        if abs(self.priority or 0) > MAX_PRIORITY:
            raise InputError(
                f"priority: wants a number from -{MAX_PRIORITY} to {MAX_PRIORITY},"
                f" found {self.priority}"
            )

    def over(self, below: Terms) -> Terms:
        """Return these terms, with what they leave open taken from `below`."""
        own = {each.name: getattr(self, each.name) for each in fields(Terms)}
        return Terms(
            **{
                name: getattr(below, name) if value is None else value
                for name, value in own.items()
            }
        )


@dataclass(frozen=True, slots=True)
class Line:
    """Where something is said; `text` is as written, but printable and of bounded length."""

    source: str  # file or URL of the wishlist
    number: int  # from 1; 0: the whole wishlist
    text: str


@dataclass(frozen=True, slots=True)
class Wish:
    """One image, or the tags of one repository that a rule selects."""

    source: str  # file or URL of the wishlist
    line: int  # from 1
    text: str  # as it is written
    registry: str
    repository: str
    tag: str = ""  # "" if there is a rule, or a digest without a tag
    digest: Digest | None = None
    rule: TagRule | None = None
    platforms: tuple[Platform, ...] = (Platform.default(),)
    owner: str = ""
    keep_replaced: timedelta | None = None  # None: as the configuration says
    priority: int = 0  # -9 to 9; the higher, the earlier
    sandbox: SandboxWish = SandboxWish()

    @classmethod
    def at(cls, place: Line, image: Reference, rule: TagRule | None, terms: Terms) -> Wish:
        """Return the wish for an image or, with a rule, for tags of its repository."""
        return cls(
            source=place.source,
            line=place.number,
            text=place.text,
            registry=image.registry,
            repository=image.repository,
            tag="" if rule else image.tag,
            digest=None if rule else image.digest,
            rule=rule,
            platforms=terms.platforms or (Platform.default(),),
            owner=terms.owner or "",
            keep_replaced=terms.keep_replaced,
            priority=terms.priority or 0,
            sandbox=terms.sandbox or SandboxWish(),
        )

    @property
    def terms(self) -> Terms:
        """What goes with the wish, as it stands in the wish."""
        return Terms(
            owner=Owner(self.owner),
            platforms=self.platforms,
            keep_replaced=self.keep_replaced,
            priority=self.priority,
            sandbox=self.sandbox,
        )

    @property
    def reference(self) -> Reference | None:
        """The image; None if there is a rule."""
        if self.rule is not None:
            return None
        return Reference(self.registry, self.repository, self.tag, self.digest)

    @property
    def name(self) -> str:
        """What is wished for, however it is written."""
        reference = self.reference
        return str(reference) if reference else f"{self.registry}/{self.repository} ({self.rule})"

    @property
    def place(self) -> str:
        return f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A line, or a whole wishlist, that is not what it should be.

    An error stands in the place of a wish; a warning beside one.
    """

    source: str
    line: int  # 0: it is about the whole wishlist
    text: str  # the line as it is written, made printable and cut
    message: str
    hint: str = ""
    owner: str = ""  # as far as it can be read
    is_error: bool = True

    @property
    def place(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source

    @property
    def identity(self) -> tuple[str, ...]:
        """The same for the same problem in the next version, where lines have moved."""
        return self.source, self.text, _NUMBER.sub("line", self.message), self.owner


@dataclass(frozen=True, slots=True)
class Wishlist:
    """Everything one wishlist says, in its order."""

    source: str
    wishes: tuple[Wish, ...]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> Sequence[Problem]:
        return [problem for problem in self.problems if problem.is_error]


@dataclass(slots=True)
class Collector:
    """What has been read of a wishlist so far; a line that is wrong stops no other."""

    source: str
    wishes: list[Wish] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    _known: dict[str, Wish] = field(default_factory=dict)
    _told: int = 0

    def line(self, number: int, text: str) -> Line:
        return Line(self.source, number, shown(text))

    def refuse(self, line: Line, message: str, hint: str = "", owner: str = "") -> None:
        """Tell an error, which stands in the place of a wish."""
        self._tell(Problem(line.source, line.number, line.text, shown(message), shown(hint), owner))

    def warn(self, line: Line, message: str, hint: str = "", owner: str = "") -> None:
        """Tell what is beside a wish."""
        self._tell(
            Problem(line.source, line.number, line.text, shown(message), shown(hint), owner, False)
        )

    def _tell(self, problem: Problem) -> None:
        self._told += 1
        if self._told <= MAX_PROBLEMS:
            self.problems.append(problem)

    def add(self, wish: Wish) -> None:
        """Take a wish, unless it is there already: then the first one counts."""
        reference = wish.reference
        first = self._known.setdefault(reference.name if reference else wish.name, wish)
        if first is wish:
            self.wishes.append(wish)
            return
        line = Line(wish.source, wish.line, wish.text)
        differing = [
            each.name
            for each in fields(Terms)
            if getattr(first.terms, each.name) != getattr(wish.terms, each.name)
        ]
        if first.digest != wish.digest:
            differing.insert(0, "digest")
        if differing:
            self.refuse(
                line,
                f"{wish.name} stands in line {first.line} already, with another"
                f" {' and '.join(differing)}",
                "remove one of the two lines; the first one counts",
                wish.owner,
            )
        else:
            self.warn(
                line,
                f"{wish.name} stands in line {first.line} already",
                "remove one of the two lines",
                wish.owner,
            )

    def wishlist(self) -> Wishlist:
        if self._told > MAX_PROBLEMS:
            message = f"{self._told - MAX_PROBLEMS} more problems are not shown"
            self.problems.append(Problem(self.source, 0, "", message))
        return Wishlist(self.source, tuple(self.wishes), tuple(self.problems))


def line_at(lines: Sequence[str], number: int) -> str:
    """Return a line by its number, from 1; there is none for 0, the whole text."""
    return lines[number - 1].strip() if 0 < number <= len(lines) else ""


def shown(text: str) -> str:
    """Return a line of anybody's as it can be stored, printed and mailed."""
    text = _LOGIN.sub("://", text)
    cut = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
