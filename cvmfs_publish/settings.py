"""Turn a YAML file into a frozen dataclass, refusing everything the dataclass does not describe.

A configuration file is typed by people, so every refusal names the file, the line, the key, what
was found and what is wanted; a key that nobody reads is a mistake, not a comment.

The dataclass is the schema.  Understood field types: `str`, `int`, `float`, `bool`, `Path`,
`timedelta` (`45s`, `15m`, `2h`, `30d`, `4w`), `Enum`, `Literal`, `X | None` and other unions,
`tuple[X, ...]`, `list[X]`, `frozenset[X]`, `dict[K, X]` (or `Mapping`), other dataclasses, and any
class with a classmethod `parse(text)`.  A `PublishError` raised by `parse` or `__post_init__`
becomes an `InputError` with file and line.  Field metadata: `doc` (one sentence for people), `key`
(the name in the file where it differs from the field's), `later` (a pattern of values that are
promised but do not work yet).  A class attribute `UNAVAILABLE` names keys of that sort.  Both are
refused with those words: a setting that is accepted and does nothing misleads.

All mistakes of a document are found in one go: `read_node` returns them, or the value with the
file and line of each key; `parse` and `load` raise the first.  Nodes say which file they are from,
so a document can be put together from several, and a mistake is told where it was made.

Scalars are read as they are written: YAML 1.1 would make `no` a boolean, `010` eight and `1:30`
ninety, which nobody who writes a name or a version means.  So a `str` field gets the text itself
(unless it is null), an `int` field takes decimal digits only, a `bool` field true/false/yes/no.
"""

from __future__ import annotations

import collections.abc
import contextlib
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import (
    Any,
    Generic,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from cvmfs_publish.errors import InputError, PublishError

T = TypeVar("T")
Wanted: TypeAlias = Any  # a field's type; a value here, since the dataclass is the schema
Value: TypeAlias = Any  # what the field then holds

MAX_FILE_BYTES = 4 * 1024 * 1024  # a wishlist of 40,000 images; anything larger is not typed
MAX_DEPTH = 40  # levels of nesting; also ends an alias that contains itself
MAX_VALUES = 200_000  # values after alias expansion: ends a "billion laughs" in about a second
MAX_ERRORS = 50  # of one document; more are not read by anybody
DEFAULT = "default"  # the origin of what no file gives

_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_LISTS = (tuple, list, frozenset, collections.abc.Sequence)
_DICTS = (dict, collections.abc.Mapping)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_PASSWORD = re.compile(r"//[^/@\s]*@")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}
_YAML_TAG = "tag:yaml.org,2002:"
_FAILED = object()  # stands for a value whose error is written down


class RefusedKeyError(InputError):
    """One key of a section cannot be what it is; raised by a `__post_init__`.

    `path` leads from the section to it: names of keys, numbers of items.
    """

    def __init__(self, path: Sequence[str | int], message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = tuple(path)


class PlacedError(InputError):
    """A mistake at one place of a settings file; the message says place and mistake."""

    def __init__(self, place: str, line: int, what: str, *, hint: str = "") -> None:
        super().__init__(f"{place}: {what}", hint=hint)
        self.line = line  # 0: it is about the whole file
        self.what = what


class _WrittenDownError(Exception):
    """Something in here is wrong, and it is among the reader's errors."""


class _StopError(Exception):
    """Too much is wrong to go on."""


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What became of a document: its value, or all that is wrong with it."""

    value: T | None  # None if there are errors
    errors: tuple[InputError, ...]
    origins: Mapping[str, str]  # FILE:LINE of every key that is given, as "fallback.cache_mb"

    def get(self) -> T:
        """Return the value, or raise the first error."""
        if self.errors:
            raise self.errors[0]
        return typing.cast(T, self.value)


def load(cls: type[T], path: Path) -> T:
    """Return the settings in the file at `path`; `Path` fields are relative to the file's folder.

    Raises `InputError` when the file cannot be read or is not what `cls` describes.
    """
    return parse(cls, read_text(path), str(path), base=path.parent)


def parse(cls: type[T], text: str, source: str, *, base: Path | None = None) -> T:
    """Return the settings in `text`; `source` names it in errors.

    Relative `Path` fields are joined to `base`; without one they stay as written.
    """
    return read_node(cls, compose(text, source), source, base=base).get()


def read_node(
    cls: type[T], node: yaml.Node | None, source: str, *, base: Path | None = None
) -> Reading[T]:
    """Return the settings in a composed document, or all that is wrong with it.

    `source` names the document in errors about no node in particular.
    """
    if not is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a dataclass")
    reader = _Reader(source, base)
    value = None
    with contextlib.suppress(_StopError):
        value = reader.attempt(reader.mapping_to_dataclass, node, cls, "", 1)
    if reader.errors:
        return Reading(None, tuple(reader.errors), reader.origins)
    return Reading(typing.cast(T, value), (), reader.origins)


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file of at most `MAX_FILE_BYTES`; `InputError` otherwise."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{path}: larger than {MAX_FILE_BYTES} bytes; not a settings file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise InputError(f"{path}:{line}: byte 0x{data[exc.start]:02x} is not UTF-8 text") from exc


def about(doc: str, *, key: str = "", later: str = "") -> Mapping[str, str]:
    """Return the metadata of a field: `field(default=3, metadata=about("how many"))`."""
    extra = {"key": key, "later": later}
    return {"doc": doc} | {name: value for name, value in extra.items() if value}


@dataclass(frozen=True, slots=True)
class KeyDoc:
    """One key of a settings file as documentation shows it."""

    path: str  # "sandbox.roots"; "*" stands for a free key: "registries.*.username"
    wanted: str  # "a list of text"
    default: str  # as Python writes it; "" when the key is required
    doc: str


def iter_keys(cls: type, prefix: str = "") -> Iterator[KeyDoc]:
    """Yield every key of `cls`, sections before what is in them."""
    hints = _hints(cls)
    for entry in _init_fields(cls):
        path = prefix + _key_of(entry)
        yield KeyDoc(path, _wanted(hints[entry.name]), _default_text(entry), _doc_of(entry))
        for below, suffix in _sections_in(hints[entry.name]):
            yield from iter_keys(below, path + suffix + ".")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word a person who typed `word` most likely meant, or ""."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else ""


class _Loader(yaml.SafeLoader):
    """A SafeLoader whose recursion is bounded, so that `[[[[…` is an error and not a crash."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def compose(text: str, source: str) -> yaml.Node | None:
    """Return the YAML document in `text`, None for an empty one; its nodes name `source`.

    Raises `InputError` with line and column for what is not YAML.
    """
    try:
        loader = _Loader(text)
        loader.name = source
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line, where = (mark.line + 1, f":{mark.line + 1}:{mark.column + 1}") if mark else (0, "")
        context = f" ({exc.context})" if exc.context else ""
        what = f"not valid YAML: {exc.problem}{context}"
        raise PlacedError(f"{source}{where}", line, what) from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        column = exc.position - (text.rfind("\n", 0, exc.position) + 1) + 1
        what = f"not valid YAML: the character {chr(exc.character)!a} is not allowed"
        raise PlacedError(f"{source}:{line}:{column}", line, what) from exc


@dataclass(slots=True)
class _Reader:
    """Converts nodes to values by the types that want them; counts what it has seen."""

    source: str
    base: Path | None
    values: int = 0
    errors: list[InputError] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)

    def attempt(self, convert: Callable[..., Value], *arguments: Value) -> Value:
        """Return what `convert` returns, or `_FAILED` after writing down its error."""
        try:
            return convert(*arguments)
        except _WrittenDownError:
            return _FAILED
        except InputError as exc:
            self.write_down(exc)
            return _FAILED

    def write_down(self, error: InputError) -> None:
        self.errors.append(error)
        if self.values > MAX_VALUES or len(self.errors) >= MAX_ERRORS:
            raise _StopError

    def convert(self, node: yaml.Node, wanted: Wanted, key: str, depth: int) -> Value:
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise self.error(node, key, "too many values or levels once aliases are expanded")
        self.origins[key] = place_of(node)
        while hasattr(wanted, "__supertype__"):  # typing.NewType
            wanted = wanted.__supertype__
        origin = _origin(wanted)
        if origin is Union:
            return self.to_union(node, wanted, key, depth)
        if _is_section(wanted):
            return self.mapping_to_dataclass(node, wanted, key, depth)
        if origin in _LISTS:
            return self.to_sequence(node, wanted, key, depth)
        if origin in _DICTS:
            return self.to_dict(node, wanted, key, depth)
        return self.to_scalar(node, wanted, key)

    def to_union(self, node: yaml.Node, wanted: Wanted, key: str, depth: int) -> Value:
        members = [member for member in get_args(wanted) if member is not types.NoneType]
        if _is_null(node) and len(members) < len(get_args(wanted)):
            return None
        fitting = [member for member in members if len(members) == 1 or _fits(node, member)]
        if len(fitting) == 1:  # its own error says more than the union's
            return self.convert(node, fitting[0], key, depth)
        for member in fitting:
            known = len(self.errors)
            value = self.attempt(self.convert, node, member, key, depth)
            if value is not _FAILED:
                return value
            del self.errors[known:]
        raise self.wrong_type(node, wanted, key)

    def mapping_to_dataclass(
        self, node: yaml.Node | None, cls: type, key: str, depth: int
    ) -> Value:
        """An absent or empty node stands for a mapping without keys: all defaults."""
        hints = _hints(cls)
        known = {_key_of(entry): entry for entry in _init_fields(cls)}
        given: dict[str, Any] = {}
        before = len(self.errors)
        if node is not None and not _is_null(node):
            if not isinstance(node, yaml.MappingNode):
                raise self.wrong_type(node, cls, key)
            for name, name_node, value_node in pairs(node, key):
                if name not in known:
                    self.write_down(self.unknown(name_node, name, key, cls, known))
                    continue
                entry = known[name]
                below = join(key, name)
                if self.is_available(value_node, entry, below):
                    given[entry.name] = self.attempt(
                        self.convert, value_node, hints[entry.name], below, depth + 1
                    )
        missing = [n for n, entry in known.items() if entry.name not in given and _required(entry)]
        if missing:
            self.write_down(self.missing(node, key, missing, known))
        if len(self.errors) > before:
            raise _WrittenDownError
        try:
            return cls(**(self.path_defaults(cls) | given))
        except RefusedKeyError as exc:
            culprit, below = _walk(node, key, exc.path)
            raise self.error(culprit, below, str(exc), exc.hint) from exc
        except PublishError as exc:
            raise self.error(node, key, str(exc), exc.hint) from exc

    def path_defaults(self, cls: type) -> dict[str, Path]:
        """A relative default means what it would mean if it were written in the file."""
        if self.base is None:
            return {}
        return {
            entry.name: self.base / entry.default
            for entry in _init_fields(cls)
            if isinstance(entry.default, Path)
        }

    def is_available(self, node: yaml.Node, entry: Field[Any], key: str) -> bool:
        later = entry.metadata.get("later")
        if later and isinstance(node, yaml.ScalarNode) and re.fullmatch(later, node.value):
            what = f"{_shown(node.value)} is not available in this version"
            self.write_down(self.error(node, key, what))
            return False
        return True

    def to_sequence(self, node: yaml.Node, wanted: Wanted, key: str, depth: int) -> Value:
        if not isinstance(node, yaml.SequenceNode):
            raise self.wrong_type(node, wanted, key)
        origin, items = _origin(wanted), get_args(wanted)
        if origin is tuple and items[-1] is not Ellipsis:
            if len(items) != len(node.value):
                raise self.error(node, key, f"has {len(node.value)} items, wants {len(items)}")
        else:
            items = (items[0],) * len(node.value)
        values = [
            self.attempt(self.convert, child, item, f"{key}[{number}]", depth + 1)
            for number, (child, item) in enumerate(zip(node.value, items, strict=True))
        ]
        if any(value is _FAILED for value in values):
            raise _WrittenDownError
        if origin is list:
            return values
        return frozenset(values) if origin is frozenset else tuple(values)

    def to_dict(self, node: yaml.Node, wanted: Wanted, key: str, depth: int) -> dict[Any, Any]:
        if _is_null(node):  # a section whose lines are all remarks
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise self.wrong_type(node, wanted, key)
        key_type, value_type = get_args(wanted)
        found: dict[Any, Any] = {}
        before = len(self.errors)
        for name, name_node, value_node in pairs(node, key):
            below = join(key, name)
            name_value = self.attempt(self.to_scalar, name_node, key_type, below)
            if name_value is not _FAILED and name_value in found:  # two spellings of one parsed key
                self.write_down(self.error(name_node, below, "is given twice"))
            found[name_value] = self.attempt(self.convert, value_node, value_type, below, depth + 1)
        if len(self.errors) > before:
            raise _WrittenDownError
        return found

    def to_scalar(self, node: yaml.Node, wanted: Wanted, key: str) -> Value:
        if not isinstance(node, yaml.ScalarNode) or _is_null(node):
            raise self.wrong_type(node, wanted, key)
        if not node.tag.startswith(_YAML_TAG) or node.tag == f"{_YAML_TAG}binary":
            raise self.error(node, key, f"the tag {node.tag!r} is not understood here")
        if _origin(wanted) is Literal:
            return self.to_choice(node, {_choice_text(v): v for v in get_args(wanted)}, key)
        if wanted in _SCALARS:
            value = _SCALARS[wanted](node)
            if value is None:
                raise self.wrong_type(node, wanted, key)
            return self.to_path(node, value, key) if wanted is Path else value
        if hasattr(wanted, "parse"):
            try:
                return wanted.parse(node.value)
            except PublishError as exc:
                raise self.error(node, key, str(exc), exc.hint) from exc
        if isinstance(wanted, type) and issubclass(wanted, Enum):
            return self.to_choice(node, {_choice_text(m.value): m for m in wanted}, key)
        raise TypeError(f"settings do not know how to read a {wanted!r} ({key})")

    def to_choice(self, node: yaml.ScalarNode, choices: Mapping[str, Any], key: str) -> Value:
        if node.value in choices:
            return choices[node.value]
        meant = nearest(node.value, choices)
        guess = f"; did you mean {meant!r}?" if meant else ""
        raise self.error(
            node, key, f"wants one of {', '.join(choices)}, found {_shown(node.value)}{guess}"
        )

    def to_path(self, node: yaml.ScalarNode, path: Path, key: str) -> Path:
        if "\0" in node.value or node.value == "" or _URL.match(node.value):
            raise self.wrong_type(node, Path, key)
        if node.value.startswith("~"):
            raise self.error(
                node, key, f"{_shown(node.value)}: ~ is not expanded here", "write the folder out"
            )
        return path if self.base is None else self.base / path

    def error(self, node: yaml.Node | None, key: str, what: str, hint: str = "") -> InputError:
        known = node is not None and node.start_mark
        return error_at(node if node and known else self.source, key, what, hint)

    def wrong_type(self, node: yaml.Node, wanted: Wanted, key: str) -> InputError:
        text = f"wants {_wanted(wanted)}, found {_found(node)}"
        return self.error(node, key, text, _remedy(node, wanted))

    def unknown(
        self, node: yaml.Node, name: str, key: str, cls: type, known: Iterable[str]
    ) -> InputError:
        if name in getattr(cls, "UNAVAILABLE", ()):
            return self.error(
                node,
                join(key, name),
                "is not available in this version",
                "remove the key",
            )
        meant = nearest(name, known)
        guess = f"; did you mean {meant!r}?" if meant else ""
        section = f" in {key}" if key else ""
        return self.error(
            node, "", f"unknown key {_shown(name)}{section}{guess}", f"known: {', '.join(known)}"
        )

    def missing(
        self,
        node: yaml.Node | None,
        key: str,
        names: Sequence[str],
        known: Mapping[str, Field[Any]],
    ) -> InputError:
        what = "required key" if len(names) == 1 else "required keys"
        listed = ", ".join(repr(name) for name in names)
        doc = _doc_of(known[names[0]])
        hint = f"{join(key, names[0])}: {doc}" if doc else ""
        return self.error(node, key, f"{what} {listed} missing", hint)


def pairs(node: yaml.MappingNode, key: str) -> Iterator[tuple[str, yaml.ScalarNode, yaml.Node]]:
    """Yield key text, key node and value node of the section `key`; the text is as written.

    Raises `InputError` for a key that is given twice or is no plain text.
    """
    seen: dict[str, yaml.Node] = {}
    for name_node, value_node in node.value:
        if not isinstance(name_node, yaml.ScalarNode):
            raise error_at(name_node, key, "a key must be plain text")
        name = name_node.value
        if name in seen:
            first = _line(seen[name])
            what = f"is given twice; the first is at line {first}"
            raise error_at(name_node, join(key, name), what)
        seen[name] = name_node
        yield name, name_node, value_node


def error_at(where: yaml.Node | str, key: str, what: str, hint: str = "") -> PlacedError:
    """Return the error that names a node's file and line, the key, and what is wrong with it.

    A password that somebody wrote into an address is not repeated.
    """
    text = _PASSWORD.sub("//…@", f"{key + ': ' if key else ''}{what}")
    if isinstance(where, str):
        return PlacedError(where, 0, text, hint=hint)
    return PlacedError(place_of(where), _line(where), text, hint=hint)


def place_of(node: yaml.Node) -> str:
    """Return FILE:LINE of a node, or `default` for one that is in no file."""
    return f"{node.start_mark.name}:{_line(node)}" if node.start_mark else DEFAULT


def _walk(node: yaml.Node | None, key: str, path: Sequence[str | int]) -> tuple[Any, str]:
    """Return the node that `path` leads to, or the last one on the way, and its key."""
    for step in path:
        below: yaml.Node | None = None
        if isinstance(step, int):
            key = f"{key}[{step}]"
            if isinstance(node, yaml.SequenceNode) and step < len(node.value):
                below = node.value[step]
        else:
            key = join(key, step)
            if isinstance(node, yaml.MappingNode):
                below = next((v for n, v in node.value if n.value == step), None)
        node = below or node
    return node, key


def _to_int(node: yaml.ScalarNode) -> int | None:
    if node.style is not None or not _INTEGER.fullmatch(node.value) or len(node.value) > 30:
        return None
    return int(node.value)


def _to_float(node: yaml.ScalarNode) -> float | None:
    if node.style is not None or not _NUMBER.fullmatch(node.value):
        return None
    value = float(node.value)
    return value if math.isfinite(value) else None


def _to_bool(node: yaml.ScalarNode) -> bool | None:
    return _BOOLEANS.get(node.value.lower()) if node.style is None else None


def parse_duration(text: str) -> timedelta:
    """Return `45s`, `15m`, `2h`, `30d` or `4w`, as in a file; raise `InputError` for others."""
    match = _DURATION.fullmatch(text)
    try:
        if match is not None:
            return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        pass
    raise InputError(f"{_shown(text)} is not {_SCALAR_NAMES[timedelta]}")


def _to_duration(node: yaml.ScalarNode) -> timedelta | None:
    try:
        return parse_duration(node.value)
    except InputError:
        return None


def _to_str(node: yaml.ScalarNode) -> str:
    return str(node.value)


def _to_path(node: yaml.ScalarNode) -> Path:
    return Path(node.value)


_SCALARS: Mapping[Any, Callable[[yaml.ScalarNode], Any]] = {
    str: _to_str,
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
    Path: _to_path,
    timedelta: _to_duration,
}
_SCALAR_NAMES: Mapping[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    timedelta: "a duration such as 45s, 15m, 2h or 30d",
}


def _wanted(wanted: Wanted) -> str:
    """Say in words what a type accepts."""
    while hasattr(wanted, "__supertype__"):
        wanted = wanted.__supertype__
    origin, args = _origin(wanted), get_args(wanted)
    if wanted in _SCALAR_NAMES:
        return _SCALAR_NAMES[wanted]
    if origin is Union:
        return " or ".join(_wanted(arg) for arg in args if arg is not types.NoneType)
    if origin is Literal:
        return "one of " + ", ".join(map(_choice_text, args))
    if origin in _LISTS:
        return f"a list, each item {_wanted(args[0])}"
    if origin in _DICTS or _is_section(wanted):
        return "a section of `key: value` lines"
    if isinstance(wanted, type) and issubclass(wanted, Enum) and not hasattr(wanted, "parse"):
        return "one of " + ", ".join(_choice_text(member.value) for member in wanted)
    return str(getattr(wanted, "WANTED", wanted.__name__))


def _origin(wanted: Wanted) -> object:
    """Return `tuple` for `tuple[int, ...]` and so on; unions are always `Union`."""
    origin: object = get_origin(wanted)
    return Union if origin is types.UnionType else origin


def _found(node: yaml.Node) -> str:
    """Say in words what stands in the file."""
    if _is_null(node):
        return "nothing"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if isinstance(node, yaml.MappingNode):
        return "a section of `key: value` lines"
    quoted = isinstance(node, yaml.ScalarNode) and node.style
    return ("the text " if quoted else "") + _shown(node.value)


def _remedy(node: yaml.Node, wanted: Wanted) -> str:
    origin = _origin(wanted)
    if origin in _LISTS:
        if _is_null(node):
            return "write [] for an empty list"
        if isinstance(node, yaml.ScalarNode):
            return f"write [{node.value[:100]}]"
    if isinstance(node, yaml.ScalarNode) and node.style and wanted in (int, float, bool):
        unquoted = yaml.ScalarNode(node.tag, node.value)
        return "remove the quotes" if _SCALARS[wanted](unquoted) is not None else ""
    if wanted is str and not isinstance(node, yaml.ScalarNode):
        return "put quotes around the value if it is meant as text"
    return ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _choice_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _fits(node: yaml.Node, wanted: Wanted) -> bool:
    """Tell whether a union's member wants this kind of node at all."""
    if _origin(wanted) in _LISTS:
        return isinstance(node, yaml.SequenceNode)
    if _origin(wanted) in _DICTS or _is_section(wanted):
        return isinstance(node, yaml.MappingNode)
    return isinstance(node, yaml.ScalarNode)


def _is_section(wanted: Wanted) -> bool:
    """A dataclass is a section of the file, unless it reads itself from one word."""
    return isinstance(wanted, type) and is_dataclass(wanted) and not hasattr(wanted, "parse")


def _sections_in(wanted: Wanted) -> Iterator[tuple[type, str]]:
    """Yield the dataclasses a type leads to, and how their place is written in a key path."""
    if _is_section(wanted):
        yield wanted, ""
        return
    origin = _origin(wanted)
    own = "[]" if origin in _LISTS else ".*" if origin in _DICTS else ""
    for arg in get_args(wanted):
        for below, rest in _sections_in(arg):
            yield below, own + rest


@functools.cache
def _hints(cls: type) -> Mapping[str, Wanted]:
    """A wishlist has thousands of equal sections, and evaluating annotations takes long."""
    return get_type_hints(cls)


def _init_fields(cls: type) -> list[Field[Any]]:
    return [entry for entry in fields(cls) if entry.init]


def _key_of(entry: Field[Any]) -> str:
    return str(entry.metadata.get("key", entry.name))


def _doc_of(entry: Field[Any]) -> str:
    return str(entry.metadata.get("doc", ""))


def _required(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


def _default_text(entry: Field[Any]) -> str:
    if entry.default is not MISSING:
        value = entry.default
    elif entry.default_factory is not MISSING:
        value = entry.default_factory()
    else:
        return ""
    return str(value.value if isinstance(value, Enum) else value)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == f"{_YAML_TAG}null"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1 if node.start_mark else 1


def join(key: str, name: str) -> str:
    """Return the key `name` in the section `key`, as errors write it."""
    return f"{key}.{name}" if key else name
