"""Turn `ghcr.io/a/*:1.*` into a pattern of image names, and say which of several fits best.  Pure.

    pattern  ::= "*" | place path [ ":" tag ]
    place    ::= REGISTRY "/" | SCHEME "://" | TRANSPORT ":"

`*` stands for any characters, slashes included, or none; nothing else is special.  A pattern that
ends with `/` fits everything below.  Without a tag it fits every tag and images named by digest.
What is not in a registry has a place and a path only: `library://me/*`, `sif:/data/*`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from cvmfs_publish.errors import InputError
from cvmfs_publish.origin import FILES, NAMED, TRANSPORTS, WEB, Origin, lower_host
from cvmfs_publish.reference import Reference, parse_registry

MAX_LENGTH = 1000  # characters; no name is longer

# what patterns of images that are in no registry begin with
ELSEWHERE = frozenset(f"{one}:" if one in FILES else f"{one}://" for one in TRANSPORTS)
_PATH = re.compile(r"[a-z0-9._/*-]+")
_TAG = re.compile(r"[A-Za-z0-9._*-]+")
_HTTPS = 443  # the port that is meant where none is written
_PLACE = re.compile(r"[A-Za-z0-9.:\[\]*-]+")


def _usual_port(registry: str) -> str:
    """Return one spelling of what is one registry: `ghcr.io` for `ghcr.io:443`, too."""
    host, _, port = registry.rpartition(":")
    if not host or not port.isdigit():
        return registry
    return parse_registry(host) if int(port) == _HTTPS else f"{host}:{int(port)}"


class ImageName(NamedTuple):
    """What patterns are compared with: `ghcr.io/`, `a/b`, `1`; `library://`, `me/x`, ""."""

    place: str
    path: str
    tag: str

    @classmethod
    def of(cls, reference: Reference) -> ImageName:
        """Return the name as in a registry, wherever the image comes from."""
        registry = _usual_port(reference.registry)
        return cls(f"{registry}/", reference.repository, reference.tag)

    @classmethod
    def of_origin(cls, origin: Origin) -> ImageName:
        """Return the place that an image comes from, if it is no registry."""
        tag = f":{origin.tag}" if origin.tag else ""
        colon = ":" if origin.transport in FILES else "://"
        return cls(f"{origin.transport}{colon}", f"{origin.place}{tag}", "")


class _Rank(NamedTuple):
    """How narrow one part of a pattern is; the greater the narrower."""

    exact: bool
    head: int  # characters before the first `*`
    literal: int  # characters that are no `*`
    stars: int  # how many, negative


@dataclass(frozen=True, slots=True)
class ImagePattern:
    """A pattern of image names.  Made by `parse`, which leaves one spelling of each."""

    text: str  # as it was written
    place: str
    path: str
    tag: str  # "*": every tag, and none

    WANTED = "a pattern of images such as ghcr.io/team/* or docker.io/library/debian:12"

    @classmethod
    def parse(cls, text: str) -> ImagePattern:
        """Raise `InputError`, with a hint, for what can fit no image."""
        if not text or len(text) > MAX_LENGTH or not text.isascii() or not text.isprintable():
            raise InputError(
                f"{text[:200]!r} is not a pattern of images", hint=f"write {cls.WANTED}"
            )
        if "@" in text or "?" in text or " " in text:
            raise InputError(
                f"{text!r}: `@`, `?` and blanks have no place in a pattern",
                hint="only `*` stands for other characters; `policy: digest` is what asks for"
                " images named by digest",
            )
        if text.strip("*") == "":
            return cls(text, "*", "*", "*")
        for place in ELSEWHERE:  # none begins with another
            if text.startswith(place):
                rest = text.removeprefix(place)
                if place.removesuffix("://") in WEB | NAMED:
                    rest = lower_host(place.removesuffix("://"), rest)  # as origins have it
                return cls(text, place, _shortest(_below(rest)), "*")
        return cls._in_registry(text, _below(text.removeprefix("docker://")))

    @classmethod
    def _in_registry(cls, text: str, rest: str) -> ImagePattern:
        registry, slash, rest = rest.partition("/")
        path, colon, tag = rest.partition(":")
        if (
            not slash
            or not _PLACE.fullmatch(registry)
            or not _PATH.fullmatch(path)
            or (colon and not _TAG.fullmatch(tag))
        ):
            raise InputError(
                f"{text!r} is not a pattern of images",
                hint="write REGISTRY/REPOSITORY or REGISTRY/REPOSITORY:TAG with `*` for any"
                " characters; repositories are lower case, those of Docker Hub begin with"
                " docker.io/ or docker.io/library/",
            )
        if "*" not in registry:
            registry = _usual_port(parse_registry(registry))
        return cls(text, f"{_shortest(registry)}/", _shortest(path), _shortest(tag or "*"))

    def fits(self, name: ImageName) -> bool:
        """Whether the image is one of those the pattern stands for."""
        if self.is_everything:
            return True
        if (name.place in ELSEWHERE) != (self.place in ELSEWHERE):
            return False
        return all(fits_text(part, text) for part, text in zip(self.key, name, strict=True))

    @property
    def is_everything(self) -> bool:
        """Whether this is `*`, the pattern of all images wherever they are."""
        return self.key == ("*", "*", "*")

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for two spellings of one pattern."""
        return self.place, self.path, self.tag

    @property
    def rank(self) -> tuple[_Rank, ...]:
        """What decides between patterns that fit: place first, then path, then tag.

        In each part, a text without `*` is narrower than one with it; of those with it the one
        that has more characters before its first `*`, then more characters that are no `*`, then
        fewer `*`.  A pattern that fits a part of what another one fits is always the narrower.
        """
        return tuple(map(_rank, self.key))

    def __str__(self) -> str:
        return self.text


class Ruled(Protocol):
    """Something that holds for the images a pattern fits."""

    @property
    def match(self) -> ImagePattern: ...


T = TypeVar("T", bound=Ruled)


def choose(rules: Iterable[T], name: ImageName) -> T | None:
    """Return the rule whose pattern fits `name` and is narrowest; of equal ones the first."""
    fitting = [rule for rule in rules if rule.match.fits(name)]
    return max(fitting, key=lambda rule: rule.match.rank) if fitting else None


def _below(text: str) -> str:
    return f"{text}*" if text.endswith("/") else text


def _shortest(glob: str) -> str:
    return re.sub(r"\*+", "*", glob)


def _rank(glob: str) -> _Rank:
    stars = glob.count("*")
    return _Rank(not stars, len(glob.partition("*")[0]), len(glob) - stars, -stars)


def fits_text(glob: str, text: str) -> bool:
    """Whether `text` is what `glob` stands for; in linear time, whatever both are."""
    first, *rest = glob.split("*")
    if not rest:
        return glob == text
    *middle, last = rest
    at, end = len(first), len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for piece in middle:
        found = text.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True
