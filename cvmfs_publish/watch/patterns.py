"""Turn a glob or a regular expression into a test of tags that cannot be made to hang.

Wishlists come from many people, and Python's own expressions try every way to match: `(a*)*b` on
thirty letters takes an hour.  These are compiled to an automaton that reads each character once,
so a test costs at most (characters of the tag) x (states of the automaton); both are bounded.

Understood are literals, `.`, classes `[a-z]` and `[^…]`, `\\d \\w \\s` and their capitals, groups,
`|`, and the repeats `* + ? {n} {n,} {n,m}`.  An expression must match the whole tag, so `^` at its
start and `$` at its end say nothing new.  What needs memory of the text (back-references,
look-around) is refused.  A tag is ASCII; no other character is matched by anything.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn, TypeAlias

from cvmfs_publish.errors import InputError

MAX_PATTERN = 200  # characters; the longest in the lists in use has 15
MAX_STATES = 2000  # of an automaton: `(.{99}){99}` would have ten thousand
MAX_REPEAT = 100
MAX_DEPTH = 20  # groups within groups
MAX_KNOWN = 1000  # sets of states that are remembered; forgetting them costs time only

Characters: TypeAlias = frozenset[str]
ALL: Characters = frozenset(map(chr, range(128)))
_LINE = ALL - {"\n"}
_CLASSES: dict[str, Characters] = {
    "d": frozenset(string.digits),
    "w": frozenset(string.ascii_letters + string.digits + "_"),
    "s": frozenset(" \t\n\r\f\v"),
}
_CLASSES |= {letter.upper(): ALL - found for letter, found in _CLASSES.items()}


class _Sequence(NamedTuple):
    parts: tuple[_Node, ...]


class _Choice(NamedTuple):
    parts: tuple[_Node, ...]


class _Repeat(NamedTuple):
    part: _Node
    least: int
    most: int | None


_Node: TypeAlias = Characters | _Sequence | _Choice | _Repeat
_ANYTHING = _Repeat(ALL, 0, None)


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a tag must look like, as a whole.  Equal if written alike; any thread may use it."""

    WANTED = "a pattern such as 24.2.* or /v[0-9]+/"

    text: str  # as it is written: a glob, or a regular expression between slashes
    _automaton: _Automaton = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read a glob, or a regular expression between slashes, which no tag contains.

        Raises `InputError` for what is neither.
        """
        if len(text) > 1 and text.startswith("/") and text.endswith("/"):
            return cls.expression(text, text[1:-1])
        return cls.glob(text)

    @classmethod
    def glob(cls, text: str) -> Pattern:
        """`*`, `?`, `[abc]`, `[a-z]` and `[!abc]`, as shells and Python's `fnmatch` do."""
        _check_length(text)
        return cls(text, _Automaton.of(text, _parse_glob(text)))

    @classmethod
    def expression(cls, text: str, expression: str) -> Pattern:
        """A regular expression, whose pattern is shown as `text`."""
        _check_length(expression)
        return cls(text, _Automaton.of(text, _Parser(expression).parse()))

    def matches(self, tag: str) -> bool:
        return self._automaton.accepts(tag)

    def __str__(self) -> str:
        return self.text


def _check_length(text: str) -> None:
    if not text:
        raise InputError("the pattern is empty", hint="write * for every tag")
    if len(text) > MAX_PATTERN:
        raise InputError(
            f"{text[:60]!r}… is too long for a pattern: {len(text)} characters,"
            f" {MAX_PATTERN} are possible"
        )
    if not text.isascii() or not text.isprintable():
        raise InputError(f"{text!r}: a pattern consists of printable ASCII characters")


# ---------------------------------------------------------------- globs


def _parse_glob(text: str) -> _Node:
    parts: list[_Node] = []
    at = 0
    while at < len(text):
        character = text[at]
        end = _end_of_class(text, at) if character == "[" else -1
        if end > 0:
            parts.append(_glob_class(text[at + 1 : end]))
            at = end
        elif character == "*":
            if parts[-1:] != [_ANYTHING]:
                parts.append(_ANYTHING)
        else:
            parts.append(ALL if character == "?" else frozenset(character))
        at += 1
    return _Sequence(tuple(parts))


def _end_of_class(text: str, start: int) -> int:
    """Return where the `]` stands that ends a class; -1 if none does: then `[` is itself."""
    first = start + 1 + (text[start + 1 : start + 2] == "!")
    return text.find("]", first + 1)  # a `]` in the first place is a member


def _glob_class(inside: str) -> Characters:
    negated = inside.startswith("!")
    members = _members(inside[negated:])
    return ALL - members if negated else members


def _members(inside: str) -> Characters:
    """The characters of `abc` or `a-z`; a range the wrong way round is empty, as in `fnmatch`."""
    members: set[str] = set()
    at = 0
    while at < len(inside):
        if inside[at + 1 : at + 2] == "-" and at + 2 < len(inside):
            members.update(map(chr, range(ord(inside[at]), ord(inside[at + 2]) + 1)))
            at += 3
        else:
            members.add(inside[at])
            at += 1
    return frozenset(members)


# ---------------------------------------------------------------- regular expressions


class _Parser:
    """Reads an expression from left to right; each method leaves off behind what it read.

    choice   ::= sequence ("|" sequence)*
    sequence ::= (atom repeat?)*
    atom     ::= "(" "?:"? choice ")" | "[" class "]" | "." | "\\" character | character
    repeat   ::= ("*" | "+" | "?" | "{" n ("," m?)? "}") "?"?
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.end = len(text)
        if text.startswith("^"):
            self.at = 1
        if text.endswith("$") and not text.endswith("\\$"):
            self.end -= 1

    def parse(self) -> _Node:
        node = self.choice()
        if self.at < self.end:
            self.refuse("the `)` belongs to no `(`")
        return node

    def refuse(self, why: str) -> NoReturn:
        raise InputError(
            f"{self.text!r} is not a regular expression that is understood here: {why}"
            f" (character {self.at + 1})",
            hint="possible are literals, . [a-z] [^a-z] \\d \\w ( ) | * + ? {n,m}",
        )

    def peek(self, length: int = 1) -> str:
        return self.text[self.at : min(self.at + length, self.end)]

    def take(self, length: int = 1) -> str:
        taken = self.peek(length)
        self.at += length
        return taken

    def choice(self) -> _Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.refuse(f"groups are nested deeper than {MAX_DEPTH}")
        parts = [self.sequence()]
        while self.peek() == "|":
            self.take()
            parts.append(self.sequence())
        self.depth -= 1
        return parts[0] if len(parts) == 1 else _Choice(tuple(parts))

    def sequence(self) -> _Node:
        parts: list[_Node] = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.repeated(self.atom()))
        return _Sequence(tuple(parts))

    def atom(self) -> _Node:
        character = self.take()
        if character == "(":
            return self.group()
        if character == "[":
            return self.bracket()
        if character == "\\":
            return self.escape()
        if character == ".":
            return _LINE
        if character in "*+?{^$":
            self.at -= 1
            self.refuse(
                "anchors stand at the very start and end only"
                if character in "^$"
                else f"there is nothing that {character} could repeat"
            )
        return frozenset(character)

    def group(self) -> _Node:
        if self.peek() == "?":
            if self.peek(2) != "?:":
                self.refuse("of the groups with (? only (?: is possible")
            self.take(2)
        node = self.choice()
        if self.take() != ")":
            self.refuse("a `)` is missing")
        return node

    def escape(self) -> Characters:
        character = self.take()
        if character in _CLASSES:
            return _CLASSES[character]
        if not character or character.isalnum():
            self.refuse(f"\\{character} is not known")
        return frozenset(character)

    def bracket(self) -> Characters:
        negated = self.peek() == "^"
        self.at += negated
        members: set[str] = set()
        first = True
        while first or self.peek() != "]":
            first = False
            low = self.member()
            if self.peek() == "-" and self.peek(2) not in ("-", "-]"):
                self.take()
                high = self.member()
                if len(low) != 1 or len(high) != 1 or min(low) > min(high):
                    self.refuse("a range of characters is the wrong way round")
                members.update(map(chr, range(ord(min(low)), ord(min(high)) + 1)))
            else:
                members |= low
        self.take()
        return ALL - members if negated else frozenset(members)

    def member(self) -> Characters:
        character = self.take()
        if not character:
            self.refuse("a `]` is missing")
        if character == "[" and self.peek() in (":", "=", "."):
            self.refuse("classes with names are not known")
        return self.escape() if character == "\\" else frozenset(character)

    def repeated(self, node: _Node) -> _Node:
        bounds = self.bounds()
        if bounds is None:
            return node
        if self.peek() == "?":  # "as little as possible": the same for a whole tag
            self.take()
        if self.peek() in ("*", "+", "?", "{"):
            self.refuse("a repeat is repeated; put a group around the first")
        return _Repeat(node, *bounds)

    def bounds(self) -> tuple[int, int | None] | None:
        character = self.peek()
        simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if character in simple:
            self.take()
            return simple[character]
        if character != "{":
            return None
        end = self.text.find("}", self.at, self.end)
        least, comma, most = self.text[self.at + 1 : end].partition(",")
        if end < 0 or not _is_count(least) or not (most == "" or _is_count(most)):
            self.refuse(f"{{n}}, {{n,}} or {{n,m}} is expected, with numbers up to {MAX_REPEAT}")
        self.at = end + 1
        if not comma:
            return int(least), int(least)
        if most and int(most) < int(least):
            self.refuse("a repeat has its bounds the wrong way round")
        return int(least), int(most) if most else None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 4 and int(text) <= MAX_REPEAT


# ---------------------------------------------------------------- the automaton

_ACCEPT = 0


@dataclass(slots=True, eq=False)
class _Automaton:
    """States, and which sets of them follow one another; the latter is found out when needed.

    A state either reads one of some characters and goes on, or goes on to several states at once.
    """

    text: str
    reads: list[Characters | None] = field(default_factory=lambda: [None])
    nexts: list[tuple[int, ...]] = field(default_factory=lambda: [()])
    start: frozenset[int] = frozenset()
    steps: dict[tuple[frozenset[int], str], frozenset[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str, node: _Node) -> _Automaton:
        automaton = cls(text)
        automaton.start = automaton.closure((automaton.emit(node, _ACCEPT),))
        return automaton

    def accepts(self, tag: str) -> bool:
        states = self.start
        for character in tag:
            if not states:
                return False
            key = (states, character)
            found = self.steps.get(key)
            states = self.step(key) if found is None else found
        return _ACCEPT in states

    def step(self, key: tuple[frozenset[int], str]) -> frozenset[int]:
        states, character = key
        after = [
            self.nexts[state][0]
            for state in states
            if (reads := self.reads[state]) is not None and character in reads
        ]
        if len(self.steps) >= MAX_KNOWN:
            self.steps.clear()
        self.steps[key] = self.closure(after)
        return self.steps[key]

    def closure(self, states: list[int] | tuple[int, ...]) -> frozenset[int]:
        """Return the states reached without reading: those that read, and the accepting one."""
        found: set[int] = set()
        todo = list(states)
        while todo:
            state = todo.pop()
            if state not in found:
                found.add(state)
                if self.reads[state] is None:
                    todo += self.nexts[state]
        return frozenset(
            state for state in found if state == _ACCEPT or self.reads[state] is not None
        )

    def emit(self, node: _Node, after: int) -> int:
        """Add states for a node that go on to `after`; return the first of them."""
        if isinstance(node, frozenset):
            return self.add(node, (after,))
        if isinstance(node, _Sequence):
            for part in reversed(node.parts):
                after = self.emit(part, after)
            return after
        if isinstance(node, _Choice):
            return self.add(None, tuple(self.emit(part, after) for part in node.parts))
        return self.emit_repeat(node, after)

    def emit_repeat(self, node: _Repeat, after: int) -> int:
        entry = after
        if node.most is None:
            entry = self.add(None, ())
            self.nexts[entry] = (self.emit(node.part, entry), after)
        else:
            for _ in range(node.most - node.least):
                entry = self.add(None, (self.emit(node.part, entry), after))
        for _ in range(node.least):
            entry = self.emit(node.part, entry)
        return entry

    def add(self, reads: Characters | None, nexts: tuple[int, ...]) -> int:
        if len(self.reads) >= MAX_STATES:
            raise InputError(
                f"{self.text!r} is too large: written out it has more than {MAX_STATES} parts",
                hint="use smaller repeats",
            )
        self.reads.append(reads)
        self.nexts.append(nexts)
        return len(self.reads) - 1
