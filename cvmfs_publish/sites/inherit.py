"""Put a site file and the files it inherits from together into one document.

The files are laid over one another and over the defaults, parents before the file that names them
in their order there, each file once.  Sections are merged key by key; a list or a scalar replaces
what is below it as a whole, except that a list item `inherited` stands for the items it would
replace.  An explicit `null` takes an inherited value back; a section without lines says nothing.
Every node keeps the file and line it was written in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path

import yaml

from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import MAX_DEPTH, compose, error_at, join, pairs

INHERITED = "inherited"
OWN_KEYS = ("name", "description", "inherits")  # of each file; never taken from another
MAX_FILES = 16  # that make up one site
MAX_SITE_VALUES = 20_000  # of one file, aliases expanded; the largest real one has hundreds

_MAP = "tag:yaml.org,2002:map"
_SEQUENCE = "tag:yaml.org,2002:seq"
_TEXT = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True, slots=True)
class SiteFile:
    """One site file: its text, and how errors and origins name it."""

    path: Path
    shown: str
    text: str

    @property
    def identity(self) -> Path:
        """Equal for the same file, however it was named."""
        return self.path.resolve()


# Finds the file that `inherits` names: the name as written, and the file it stands in.
Finder = Callable[[str, SiteFile], SiteFile]


def compose_site(file: SiteFile, find: Finder, schema: type) -> yaml.Node | None:
    """Return the document of `file` with all it inherits; None if it says nothing.

    `schema` is the dataclass of a site; its default lists and mappings of words lie below all.
    Raises `InputError` naming file and line for what cannot be put together.
    """
    layers = _Layers(find)
    layers.add(file, ())
    *below, own = layers.documents
    if own is None or not isinstance(own, yaml.MappingNode):
        return own
    merged: yaml.Node = _defaults(schema)
    for number, document in enumerate(below):
        if isinstance(document, yaml.MappingNode):
            merged = _lay_over(merged, _without_own_keys(document), alone=number == 0)
    return _lay_over(merged, own, alone=not below)


@dataclass(slots=True)
class _Layers:
    """The documents that make up a site, the farthest first."""

    find: Finder
    documents: list[yaml.Node | None] = field(default_factory=list)
    seen: set[Path] = field(default_factory=set)

    def add(self, file: SiteFile, heirs: tuple[SiteFile, ...]) -> None:
        """Add what `file` inherits, then the file; `heirs` inherit from it."""
        self.seen.add(file.identity)
        document = compose(file.text, file.shown)
        if document is not None:
            _check_size(document)
            if heirs and not isinstance(document, yaml.MappingNode) and not _is_null(document):
                raise error_at(document, "", "wants a section of `key: value` lines")
        for entry in _inherits(document):
            self.add_parent(entry, (*heirs, file))
        self.documents.append(document)

    def add_parent(self, entry: yaml.ScalarNode, heirs: tuple[SiteFile, ...]) -> None:
        try:
            parent = self.find(entry.value, heirs[-1])
        except InputError as exc:
            raise error_at(entry, "inherits", str(exc), exc.hint) from exc
        if parent.identity in [each.identity for each in heirs]:
            names = " -> ".join([*(each.shown for each in heirs), parent.shown])
            what = f"a file inherits from itself: {names}"
            raise error_at(entry, "inherits", what, "remove one of them from its `inherits`")
        if len(self.seen) >= MAX_FILES:
            what = f"more than {MAX_FILES} files make up the site"
            raise error_at(entry, "inherits", what, "write what they say into fewer files")
        if parent.identity not in self.seen:
            self.add(parent, heirs)


def _check_size(document: yaml.Node) -> None:
    """Refuse a document that grows without end, or nearly so, where its aliases are expanded."""
    todo: list[tuple[yaml.Node, int]] = [(document, 1)]
    count = 0
    while todo:
        node, depth = todo.pop()
        count += 1
        if count > MAX_SITE_VALUES or depth > MAX_DEPTH:
            raise error_at(node, "", "too many values or levels once aliases are expanded")
        if isinstance(node, yaml.MappingNode):
            todo += [(value, depth + 1) for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            todo += [(item, depth + 1) for item in node.value]


def _lay_over(far: yaml.Node, near: yaml.MappingNode, *, alone: bool) -> yaml.Node:
    """Lay a document over another; `alone`: no file lies below it."""
    return _merge(far, _splice(near, far, "", alone=alone), "")


def _inherits(document: yaml.Node | None) -> list[yaml.ScalarNode]:
    """Return the names a file inherits from."""
    if not isinstance(document, yaml.MappingNode):
        return []
    for name, _, value in pairs(document, ""):
        if name != "inherits":
            continue
        if not isinstance(value, yaml.SequenceNode):
            hint = f"write [{value.value}]" if isinstance(value, yaml.ScalarNode) else ""
            raise error_at(value, name, "wants a list of sites", hint)
        for item in value.value:
            if not isinstance(item, yaml.ScalarNode) or not item.value:
                raise error_at(item, name, "wants the name of a site, or the path of a file")
        return list(value.value)
    return []


def _without_own_keys(document: yaml.MappingNode) -> yaml.MappingNode:
    kept = [pair for pair in document.value if pair[0].value not in OWN_KEYS]
    return _mapping(kept, document)


def _merge(far: yaml.Node, near: yaml.Node, key: str) -> yaml.Node:
    """Return what holds where `far` and `near` both say something, and `near` is nearer."""
    if not isinstance(far, yaml.MappingNode) or not isinstance(near, yaml.MappingNode):
        return near
    below = {name: (name_node, value) for name, name_node, value in pairs(far, key)}
    merged: list[tuple[yaml.Node, yaml.Node]] = []  # the nearer keys first, as they are written
    for name, name_node, value in pairs(near, key):
        other_name, other = below.pop(name, (None, None))
        if other_name is None or other is None:
            merged.append((name_node, value))
        elif _is_null(value) and isinstance(other, yaml.MappingNode) and not value.value:
            merged.append((other_name, other))
        elif not (_is_null(value) and value.value):  # `null` or `~`, spelled out, takes it back
            merged.append((name_node, _merge(other, value, join(key, name))))
    return _mapping([*merged, *below.values()], near)


def _splice(node: yaml.Node, far: yaml.Node | None, key: str, *, alone: bool) -> yaml.Node:
    """Return `node` with the items of `far` in the place of `inherited`."""
    if isinstance(node, yaml.MappingNode):
        below = []
        for name, name_node, value in pairs(node, key):
            spliced = _splice(value, _child(far, name), join(key, name), alone=alone)
            below.append((name_node, spliced))
        return _mapping(below, node)
    if not isinstance(node, yaml.SequenceNode):
        return node
    items: list[yaml.Node] = []
    for item in node.value:
        if not _is_marker(item):
            _refuse_markers(item, key)
            items.append(item)
        elif isinstance(far, yaml.SequenceNode):
            items += far.value
        elif alone:
            hint = "name the sites to inherit from under `inherits`, or put the word in quotes"
            raise error_at(item, key, "nothing is inherited here", hint)
    return yaml.SequenceNode(node.tag, items, node.start_mark, node.end_mark)


def _refuse_markers(node: yaml.Node, key: str) -> None:
    """Refuse `inherited` in lists inside the item of a list: it has no place in a parent."""
    if isinstance(node, yaml.MappingNode):
        for _, _, value in pairs(node, key):
            _refuse_markers(value, key)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if _is_marker(item):
                what = "`inherited` means nothing inside an item of a list"
                raise error_at(item, key, what, "repeat what is meant, or put the word in quotes")
            _refuse_markers(item, key)


def _is_marker(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value == INHERITED


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == name), None)


def _mapping(
    values: Sequence[tuple[yaml.Node, yaml.Node]], like: yaml.Node | None = None
) -> yaml.MappingNode:
    if like is None:
        return yaml.MappingNode(_MAP, list(values))
    return yaml.MappingNode(_MAP, list(values), like.start_mark, like.end_mark)


def _defaults(schema: type) -> yaml.MappingNode:
    """Return the lists and mappings of words that hold by default, as a document of no file."""
    found: list[tuple[yaml.Node, yaml.Node]] = []
    for entry in fields(schema):
        made = entry.default_factory
        value = entry.default if made is MISSING else made()
        node: yaml.Node | None = None
        if is_dataclass(value) and not isinstance(value, type):
            node = _defaults(type(value))
        elif isinstance(value, tuple) and all(isinstance(item, str) for item in value):
            node = yaml.SequenceNode(_SEQUENCE, [_scalar(item) for item in value])
        elif isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values()):
            node = _mapping([(_scalar(key), _scalar(item)) for key, item in value.items()])
        if node is not None and node.value:
            found.append((_scalar(entry.name), node))
    return _mapping(found)


def _scalar(text: str) -> yaml.ScalarNode:
    return yaml.ScalarNode(_TEXT, text)
