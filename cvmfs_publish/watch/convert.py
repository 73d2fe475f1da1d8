"""Turn a list of DUCC or OSG into the own format, so that nothing of it is lost unseen.

Remarks stay where they are.  A line that is no wish becomes a remark that says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import compose
from cvmfs_publish.watch.foreign import ducc_settings
from cvmfs_publish.watch.wish import Problem, TagRule, Wish
from cvmfs_publish.watch.wishlist import (
    Format,
    Wishlist,
    detect_format,
    parse_wishlist,
    split_lines,
)

_NAMES: dict[Format, str] = {"ducc": "a recipe of DUCC", "osg": "a list of OSG"}
# What needs no quotes in YAML: no blank, so neither `: ` nor ` #` can be in it
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_:@*+-]*")
# A tag of DUCC with `*` that means the same as a glob
_SAME_AS_GLOB = re.compile(r"[A-Za-z0-9_*-]+")


@dataclass(frozen=True, slots=True)
class Conversion:
    """A wishlist in the own format, and what of the other could not be taken over."""

    text: str
    problems: tuple[Problem, ...]


def convert(text: str, source: str) -> Conversion:
    """Return the same wishes in the own format.

    Raises `InputError` if `text` is in that format already, or in none.
    """
    kind = detect_format(text, source)
    if kind == "own":
        raise InputError(
            f"{source}: is in the own format already, or in none that can be converted",
            hint="`cvmfs-publish wishlist check` says what is wrong with it",
        )
    wishlist = parse_wishlist(text, source, kind=kind)
    lines = [f"# From {source}, {_NAMES[kind]}.", "version: 1", "images:"]
    lines += _settings(text, source) if kind == "ducc" else []
    lines += _body(text, wishlist, kind)
    return Conversion("\n".join(lines).rstrip() + "\n", wishlist.problems)


def _settings(text: str, source: str) -> Iterator[str]:
    """What a recipe says to DUCC, where the own format has nothing to say."""
    for number, key, value in ducc_settings(compose(text, source)):
        yield f"  # line {number}, for DUCC alone: {key}: {_quoted(value)}"


def _body(text: str, wishlist: Wishlist, kind: Format) -> Iterator[str]:
    """Go through the lines in their order."""
    wishes: dict[int, list[Wish]] = {}
    problems: dict[int, list[Problem]] = {}
    for wish in wishlist.wishes:
        wishes.setdefault(wish.line, []).append(wish)
    for problem in wishlist.problems:
        problems.setdefault(problem.line, []).append(problem)
    lines = text.removeprefix("\ufeff").split("\n") if kind == "osg" else split_lines(text)
    for number, line in enumerate(lines, 1):
        written = line.strip()
        if not written and kind == "osg":
            yield ""
        elif written.startswith("#"):
            yield f"  {_remark(written)}"
        for problem in problems.get(number, ()):
            left_out = " is left out" if problem.is_error or number not in wishes else ""
            yield f"  # line {number}{left_out}: {problem.message}"
            if left_out:
                yield f"  #   {problem.text}"
        for wish in wishes.get(number, ()):
            remark = re.search(r"\s(#.*)$", line) if kind == "ducc" else None
            if remark:
                yield f"  {_remark(remark[1])}"
            yield from _item(wish, kind)


def _item(wish: Wish, kind: Format) -> Iterator[str]:
    if wish.rule is None:
        yield f"  - {_quoted(str(wish.reference))}"
        return
    name = f"{wish.registry}/{wish.repository}"
    tag = _tag(wish.rule, kind)
    if tag.startswith("/"):
        yield f"  - name: {_quoted(name)}"
        yield f"    tags: {_quoted(tag)}"
    else:
        yield f"  - {_quoted(f'{name}:{tag}')}"


def _tag(rule: TagRule, kind: Format) -> str:
    """In DUCC's tags a dot is any character; only an expression says so here."""
    (pattern,) = rule.match
    if kind == "osg" or _SAME_AS_GLOB.fullmatch(pattern.text):
        return pattern.text
    return f"/{pattern.text.replace('*', '.*')}/"


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _remark(text: str) -> str:
    """A remark is one line of what YAML allows in one."""
    return "".join(c if c.isprintable() or c == "\t" else "?" for c in text)
