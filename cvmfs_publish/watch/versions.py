"""Turn tags into versions that can be ordered, and `>=1.2 <2` into a test of them.

Source: Semantic Versioning 2.0.0, section 11 (precedence); the ranges are npm's (`~`, `^`, partial
versions, `||`, and that a pre-release is in a range only if the range names one of that version).

Tags are freer than Semantic Versioning: a `v` may stand in front, one to six numbers are read with
missing ones as zero, numbers may have leading zeros (`22.04`), and `rc1` may follow without a
hyphen.  Whatever follows a hyphen is a pre-release, `1.2.3-alpine` included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from cvmfs_publish.errors import InputError

NUMBERS = 6  # most of a version: 21.2.100.1.0.3
MAX_RANGE = 200  # characters

_NUMBERS = r"[0-9]{1,18}(?:\.[0-9]{1,18}){0,5}"
_PRE = r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
_SHORT = r"(?:alpha|beta|rc|a|b|pre|dev)"  # what follows a version without a hyphen
_VERSION = re.compile(rf"v?({_NUMBERS})(?:[-_]([0-9A-Za-z._-]+)|({_SHORT})\.?([0-9]{{0,18}}))?")
_COMPARATOR = re.compile(rf"(>=|<=|>|<|=|~|\^)?\s*v?({_NUMBERS})((?:\.[xX*])*)(?:-({_PRE}))?|[xX*]")

# numbers with zeros up to NUMBERS, then what orders pre-releases: before all of them (-1,), one of
# them (0, …), the release itself (1,)
Key: TypeAlias = tuple[tuple[int, ...], tuple[int | tuple[int, int, str], ...]]


@dataclass(frozen=True, slots=True)
class Version:
    """What a tag says, and its place among others."""

    key: Key
    is_prerelease: bool

    @classmethod
    def find(cls, tag: str) -> Version | None:
        """Return the version that a tag names; None if it names none."""
        match = _VERSION.fullmatch(tag)
        if match is None:
            return None
        identifiers = re.split(r"[._]", match[2]) if match[2] else []
        if match[3]:
            identifiers = [match[3], match[4]]
        return cls(_key(_numbers(match[1]), identifiers), bool(identifiers))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def _key(numbers: tuple[int, ...], identifiers: list[str]) -> Key:
    padded = numbers + (0,) * (NUMBERS - len(numbers))
    return padded, (0, *map(_rank, identifiers)) if identifiers else (1,)


def _rank(identifier: str) -> tuple[int, int, str]:
    """Numbers come before words; numbers are compared as such (section 11.4)."""
    if identifier.isascii() and identifier.isdecimal():
        return 0, int(identifier), ""
    return 1, 0, identifier


def _below_all(numbers: tuple[int, ...]) -> Key:
    """The place before every pre-release of a version: `<2` leaves out 2.0.0-rc1."""
    return numbers + (0,) * (NUMBERS - len(numbers)), (-1,)


@dataclass(frozen=True, slots=True)
class _Interval:
    """Versions from `low` to below `high`; a bound that is None is open.

    `above` and `upto` say where the bound itself is out or in, against the rule.
    """

    low: Key | None = None
    high: Key | None = None
    above: bool = False
    upto: bool = False
    names: tuple[int, ...] | None = None  # the version whose pre-releases are meant

    def holds(self, key: Key) -> bool:
        if self.low is not None and (key < self.low or (self.above and key == self.low)):
            return False
        return self.high is None or key < self.high or (self.upto and key == self.high)


@dataclass(frozen=True, slots=True)
class VersionRange:
    """A set of versions.  `text` is as written."""

    WANTED = "a range of versions such as >=1.2 <2"

    text: str
    alternatives: tuple[tuple[_Interval, ...], ...]

    @classmethod
    def parse(cls, text: str) -> VersionRange:
        """Raise `InputError` for what is no range."""
        if len(text) > MAX_RANGE:
            raise InputError(f"{text[:60]!r}… is too long for a range of versions")
        parts = text.split("||")
        return cls(text, tuple(tuple(_intervals(text, part)) for part in parts))

    def holds(self, version: Version) -> bool:
        return any(_all_hold(intervals, version) for intervals in self.alternatives)

    def __str__(self) -> str:
        return self.text


def _all_hold(intervals: tuple[_Interval, ...], version: Version) -> bool:
    if not all(interval.holds(version.key) for interval in intervals):
        return False
    named = {interval.names for interval in intervals}
    return not version.is_prerelease or version.key[0] in named


def _intervals(whole: str, text: str) -> Iterator[_Interval]:
    text = text.strip()
    at = 0
    while at < len(text):
        match = _COMPARATOR.match(text, at)
        if match is None or text[match.end() : match.end() + 1] not in ("", " ", ","):
            raise InputError(
                f"{whole!r} is not a range of versions: {text[at:]!r} is not understood",
                hint="for example >=1.2 <2, ~1.2.3, ^1, 1.2.x, or several with || between them",
            )
        if match[2]:
            yield _interval(match[1] or "", match[2], bool(match[3]), match[4] or "")
        else:
            yield _Interval()
        at = match.end()
        while text[at : at + 1] in (" ", ","):
            at += 1
    if not text:
        raise InputError(f"{whole!r} is not a range of versions: it is empty")


def _interval(operator: str, given: str, has_x: bool, pre: str) -> _Interval:
    """`given`: the numbers; `has_x`: an `x` stands in the place of the rest."""
    numbers = _numbers(given)
    is_partial = has_x or (len(numbers) < 3 and not pre)
    low = _key(numbers, pre.split(".") if pre else [])
    names = low[0] if pre else None
    following = _below_all(_raised(numbers, len(numbers) - 1))
    if operator == ">=":
        return _Interval(low=low, names=names)
    if operator == "<":
        return _Interval(high=low if pre else _below_all(numbers), names=names)
    if operator == ">":
        return _Interval(following) if is_partial else _Interval(low, above=True, names=names)
    if operator == "<=":
        if is_partial:
            return _Interval(high=following)
        return _Interval(high=low, upto=True, names=names)
    if operator == "~":
        return _Interval(low, _below_all(_raised(numbers, min(1, len(numbers) - 1))), names=names)
    if operator == "^":
        return _Interval(
            low, _below_all(_raised(numbers, _first_that_counts(numbers))), names=names
        )
    if is_partial:
        return _Interval(low, following)
    return _Interval(low, low, upto=True, names=names)


def _raised(numbers: tuple[int, ...], place: int) -> tuple[int, ...]:
    return (*numbers[:place], numbers[place] + 1)


def _first_that_counts(numbers: tuple[int, ...]) -> int:
    """The first number that is not zero: what `^` keeps; the last if all are."""
    return next((place for place, number in enumerate(numbers) if number), len(numbers) - 1)
