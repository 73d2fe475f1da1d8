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

Scalars are read as they are written: YAML 1.1 would make `no` a boolean, `010` eight and `1:30`
ninety, which nobody who writes a name or a version means.  So a `str` field gets the text itself
(unless it is null), an `int` field takes decimal digits only, a `bool` field true/false/yes/no.
"""

from __future__ import annotations

import collections.abc
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from cvmfs_publish.errors import InputError, PublishError

T = TypeVar("T")
Wanted: TypeAlias = Any  # a field's type; a value here, since the dataclass is the schema
Value: TypeAlias = Any  # what the field then holds

MAX_FILE_BYTES = 4 * 1024 * 1024  # a wishlist of 40,000 images; anything larger is not typed
MAX_DEPTH = 40  # levels of nesting; also ends an alias that contains itself
MAX_VALUES = 200_000  # values after alias expansion: ends a "billion laughs" in about a second

_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_LISTS = (tuple, list, frozenset, collections.abc.Sequence)
_DICTS = (dict, collections.abc.Mapping)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}
_YAML_TAG = "tag:yaml.org,2002:"


def load(cls: type[T], path: Path) -> T:
    """Return the settings in the file at `path`; `Path` fields are relative to the file's folder.

    Raises `InputError` when the file cannot be read or is not what `cls` describes.
    """
    return parse(cls, read_text(path), str(path), base=path.parent)


def parse(cls: type[T], text: str, source: str, *, base: Path | None = None) -> T:
    """Return the settings in `text`; `source` names it in errors.

    Relative `Path` fields are joined to `base`; without one they stay as written.
    """
    if not is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a dataclass")
    node = _compose(text, source)
    reader = _Reader(source, base)
    return typing.cast(T, reader.mapping_to_dataclass(node, cls, "", 1))


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
    hints = get_type_hints(cls)
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


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        context = f" ({exc.context})" if exc.context else ""
        raise InputError(f"{where}: not valid YAML: {exc.problem}{context}") from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        column = exc.position - (text.rfind("\n", 0, exc.position) + 1) + 1
        raise InputError(
            f"{source}:{line}:{column}: not valid YAML: the character "
            f"{chr(exc.character)!a} is not allowed"
        ) from exc


@dataclass(slots=True)
class _Reader:
    """Converts nodes to values by the types that want them; counts what it has seen."""

    source: str
    base: Path | None
    values: int = 0

    def convert(self, node: yaml.Node, wanted: Wanted, key: str, depth: int) -> Value:
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise self.error(node, key, "too many values or levels once aliases are expanded")
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
            try:
                return self.convert(node, member, key, depth)
            except InputError:
                continue
        raise self.wrong_type(node, wanted, key)

    def mapping_to_dataclass(
        self, node: yaml.Node | None, cls: type, key: str, depth: int
    ) -> Value:
        """An absent or empty node stands for a mapping without keys: all defaults."""
        hints = get_type_hints(cls)
        known = {_key_of(entry): entry for entry in _init_fields(cls)}
        given: dict[str, Any] = {}
        if node is not None and not _is_null(node):
            if not isinstance(node, yaml.MappingNode):
                raise self.wrong_type(node, cls, key)
            for name, name_node, value_node in self.pairs(node, key):
                if name not in known:
                    raise self.unknown(name_node, name, key, cls, known)
                entry = known[name]
                below = _join(key, name)
                self.check_available(value_node, entry, below)
                given[entry.name] = self.convert(value_node, hints[entry.name], below, depth + 1)
        missing = [n for n, entry in known.items() if entry.name not in given and _required(entry)]
        if missing:
            raise self.missing(node, key, missing, known)
        try:
            return cls(**(self.path_defaults(cls) | given))
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

    def check_available(self, node: yaml.Node, entry: Field[Any], key: str) -> None:
        later = entry.metadata.get("later")
        if later and isinstance(node, yaml.ScalarNode) and re.fullmatch(later, node.value):
            raise self.error(node, key, f"{_shown(node.value)} is not available in this version")

    def pairs(
        self, node: yaml.MappingNode, key: str
    ) -> Iterator[tuple[str, yaml.ScalarNode, yaml.Node]]:
        """Yield key text, key node and value node; the text is the key as written."""
        seen: dict[str, yaml.Node] = {}
        for name_node, value_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                raise self.error(name_node, key, "a key must be plain text")
            name = name_node.value
            if name in seen:
                raise self.error(
                    name_node,
                    _join(key, name),
                    f"is given twice; the first is at line {_line(seen[name])}",
                )
            seen[name] = name_node
            yield name, name_node, value_node

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
            self.convert(child, item, f"{key}[{number}]", depth + 1)
            for number, (child, item) in enumerate(zip(node.value, items, strict=True))
        ]
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
        for name, name_node, value_node in self.pairs(node, key):
            below = _join(key, name)
            name_value = self.to_scalar(name_node, key_type, below)
            if name_value in found:  # two spellings of one parsed key
                raise self.error(name_node, below, "is given twice")
            found[name_value] = self.convert(value_node, value_type, below, depth + 1)
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
        where = f"{self.source}:{_line(node)}" if node is not None else self.source
        return InputError(f"{where}: {key + ': ' if key else ''}{what}", hint=hint)

    def wrong_type(self, node: yaml.Node, wanted: Wanted, key: str) -> InputError:
        text = f"wants {_wanted(wanted)}, found {_found(node)}"
        return self.error(node, key, text, _remedy(node, wanted))

    def unknown(
        self, node: yaml.Node, name: str, key: str, cls: type, known: Iterable[str]
    ) -> InputError:
        if name in getattr(cls, "UNAVAILABLE", ()):
            return self.error(
                node,
                _join(key, name),
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
        hint = f"{_join(key, names[0])}: {doc}" if doc else ""
        return self.error(node, key, f"{what} {listed} missing", hint)


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


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
