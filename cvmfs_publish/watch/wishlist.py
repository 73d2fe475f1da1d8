"""Turn the text of a wishlist into wishes and problems, whichever of three formats it is in.

The own format and DUCC's recipe are YAML, told apart by their keys; OSG's list has one name in each
line.  Nothing here raises for what a text holds: a line that is wrong becomes a problem, and so
does a text that cannot be read at all.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

import yaml

from cvmfs_publish.config import Owner
from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import MAX_FILE_BYTES, PlacedError, compose
from cvmfs_publish.watch.foreign import DUCC_KEYS, parse_ducc, parse_osg
from cvmfs_publish.watch.own_format import IMAGES, parse_own
from cvmfs_publish.watch.wish import (
    Collector,
    Line,
    Problem,
    SandboxWish,
    TagRule,
    Terms,
    Wish,
    Wishlist,
    line_at,
)

__all__ = [
    "Format",
    "Line",
    "Owner",
    "Problem",
    "SandboxWish",
    "TagRule",
    "Terms",
    "Wish",
    "Wishlist",
    "decode",
    "detect_format",
    "parse_wishlist",
    "split_lines",
]

# What separates entries; the longest list in use has 746 lines, and so many are read in 10 seconds
MAX_PARTS = 100_000

Format: TypeAlias = Literal["own", "ducc", "osg"]

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # as YAML counts lines
_KEY = re.compile(r"""["']?[A-Za-z_][A-Za-z0-9_-]*["']?\s*:(?:\s|$)""")


def decode(data: bytes) -> str:
    """Return the text of a wishlist; bytes that are not UTF-8 make only their own line wrong."""
    return data.decode("utf-8-sig", "surrogateescape")


def parse_wishlist(
    text: str, source: str, *, terms: Terms | None = None, kind: Format | None = None
) -> Wishlist:
    """Return everything a wishlist says.

    Args:
        text: of the list.
        source: the file or URL it is from, as problems name it.
        terms: of its wishes, where it says nothing else.
        kind: its format; None: found out.
    """
    terms = terms or Terms()
    collector = Collector(source)
    text = text.removeprefix("\ufeff")
    try:
        _read(text, collector, terms, kind)
    except InputError as exc:
        number, what = (exc.line, exc.what) if isinstance(exc, PlacedError) else (0, str(exc))
        place = collector.line(number, line_at(split_lines(text), number))
        collector.refuse(place, what, exc.hint, terms.owner or "")
    if not collector.wishes and not collector.problems:
        collector.warn(collector.line(0, ""), "no image is named", "", terms.owner or "")
    return collector.wishlist()


def _read(text: str, collector: Collector, terms: Terms, kind: Format | None) -> None:
    if len(text) > MAX_FILE_BYTES:
        raise InputError(f"longer than {MAX_FILE_BYTES} characters; not a wishlist")
    if sum(map(text.count, "\n\r,")) > MAX_PARTS:
        raise InputError(
            f"more than {MAX_PARTS} lines and commas; not a wishlist", hint="divide it into several"
        )
    kind, document = _recognise(text, collector.source, kind)
    if kind == "osg":
        parse_osg(text, collector, terms)
    elif kind == "ducc" and isinstance(document, yaml.MappingNode):
        parse_ducc(document, collector, terms)
    else:
        parse_own(document, split_lines(text), collector, terms)


def detect_format(text: str, source: str) -> Format:
    """Return the format of a wishlist.

    Raises `InputError` for a web page, and for YAML with a mistake in its syntax.
    """
    return _recognise(text.removeprefix("\ufeff"), source, None)[0]


def _recognise(text: str, source: str, kind: Format | None) -> tuple[Format, yaml.Node | None]:
    """Return the format, and the document if it is YAML."""
    kind = kind or _kind_of_text(text)
    if kind == "osg":
        return kind, None
    document = compose(text, source)
    if kind is None:
        kind = _kind_of_keys(document) if isinstance(document, yaml.MappingNode) else "own"
    return kind, document


def split_lines(text: str) -> list[str]:
    """Return the lines as YAML counts them."""
    return _LINE_BREAK.split(text)


def _kind_of_text(text: str) -> Format | None:
    """Tell OSG's list by its first line that says something; None: it is YAML."""
    first = next((line for line in map(str.strip, split_lines(text)) if _says(line)), "")
    if first.startswith("<"):
        raise InputError(
            "this is a web page, not a wishlist",
            hint="name the address of the file itself, such as that behind `Raw`",
        )
    return None if _KEY.match(first) or first.startswith(("{", "- ", "[")) else "osg"


def _kind_of_keys(document: yaml.MappingNode) -> Format:
    keys = {getattr(key, "value", "") for key, _ in document.value}
    return "own" if IMAGES in keys or keys.isdisjoint(DUCC_KEYS[1:]) else "ducc"


def _says(line: str) -> bool:
    return bool(line) and not line.startswith(("#", "---", "%YAML"))
