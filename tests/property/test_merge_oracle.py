"""Merging layers against a second, naive reading of the specification.

Source: image-spec `layer.md`: a layer's whiteouts act on the layers below and on nothing else; they
should come first, but readers must not depend on it.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.merge import merge
from cvmfs_publish.layers.record import LayerEntry, LayerRecord
from cvmfs_publish.layers.tree import MAX_LINKS, Node, node_of
from cvmfs_publish.layers.whiteouts import Change

DIRECTORY = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777
# "a" is a prefix of "ab": hunts bugs of `startswith`
NAMES = st.sampled_from(["a", "ab", "b"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.one_of(
    PATHS, PATHS.map("/{}".format), PATHS.map("../{}".format), st.sampled_from(["..", "/", "."])
)
HIDING = (Change.WHITEOUT, Change.OPAQUE)


@dataclass
class Oracle:
    """A file system as a table from path to node; "" is the root.  Slow and obvious."""

    nodes: dict[str, Node] = field(default_factory=lambda: {"": Node(DIRECTORY)})

    def resolve(self, path: str) -> str | None:
        """Where a path leads inside the root, all links followed."""
        done, todo, links = "", [p for p in path.split("/") if p], 0
        while todo:
            name = todo.pop(0)
            if name in ("", "."):
                continue
            if name == "..":
                done = done.rpartition("/")[0]
                continue
            step = f"{done}/{name}".lstrip("/")
            node = self.nodes.get(step)
            if node is not None and node.is_symlink:
                links += 1
                if links > MAX_LINKS:
                    return None
                done = "" if node.target.startswith("/") else done
                todo = node.target.split("/") + todo
            else:
                done = step
        return done

    def below(self, path: str) -> list[str]:
        return [p for p in self.nodes if p and (not path or p.startswith(path + "/"))]

    def drop(self, path: str) -> None:
        for gone in [*self.below(path), path]:
            self.nodes.pop(gone, None)

    def parent(self, path: str) -> str | None:
        return self.resolve(path.rpartition("/")[0])

    def hide(self, entry: LayerEntry) -> None:
        if entry.change is Change.OPAQUE:
            where = self.resolve(entry.path)
            if where is not None:
                for gone in self.below(where):
                    del self.nodes[gone]
            return
        parent = self.parent(entry.path)
        if parent is not None:
            self.drop(f"{parent}/{entry.path.rpartition('/')[2]}".lstrip("/"))

    def put(self, path: str, node: Node) -> None:
        if not path:
            self.nodes[""] = node
            return
        parent = self.parent(path)
        if parent is None:
            raise IntegrityError("below a loop")
        steps = parent.split("/") if parent else []
        for count in range(1, len(steps) + 1):
            above = "/".join(steps[:count])
            if not self.nodes.setdefault(above, Node(DIRECTORY, mtime=node.mtime)).is_dir:
                raise IntegrityError("below a file")
        place = f"{parent}/{path.rpartition('/')[2]}".lstrip("/")
        if not node.is_dir:
            self.drop(place)
        self.nodes[place] = node

    def link(self, path: str, target: str) -> None:
        parent = self.parent(target)
        node = None
        if parent is not None and target:
            node = self.nodes.get(f"{parent}/{target.rpartition('/')[2]}".lstrip("/"))
        if node is None or node.is_dir:
            raise IntegrityError("a hard link to nothing")
        self.put(path, node)

    def apply(self, layer: list[LayerEntry]) -> None:
        for entry in layer:
            if entry.change in HIDING:
                self.hide(entry)
        for entry in layer:
            if entry.change is Change.LINK:
                self.link(entry.path, entry.target)
            elif entry.node is not None:
                self.put(entry.path, entry.node)


@st.composite
def nodes(draw: st.DrawFn, *, links: bool) -> Node:
    kind = draw(st.sampled_from([DIRECTORY, DIRECTORY, FILE] + [LINK] * links))
    # a distinct time and owner tell whose metadata an entry has
    number = draw(st.integers(1, 99))
    target = draw(TARGETS) if kind == LINK else ""
    return Node(kind, uid=number, mtime=1000 + number, target=target)


@st.composite
def whiteouts(draw: st.DrawFn) -> LayerEntry:
    if draw(st.booleans()):
        return LayerEntry(Change.WHITEOUT, draw(PATHS))
    return LayerEntry(Change.OPAQUE, draw(st.one_of(st.just(""), PATHS)))


@st.composite
def ordered_layers(draw: st.DrawFn) -> list[LayerEntry]:
    """Whiteouts first, as they should be; then everything a layer can hold, parents implied."""
    layer = draw(st.lists(whiteouts(), max_size=3))
    for _ in range(draw(st.integers(0, 7))):
        path = draw(PATHS)
        choice = draw(st.integers(0, 9))
        if choice == 0:
            layer.append(LayerEntry(Change.PUT, "", Node(DIRECTORY, uid=draw(st.integers(1, 9)))))
        elif choice < 8:
            layer.append(LayerEntry(Change.PUT, path, draw(nodes(links=True))))
        else:
            layer.append(LayerEntry(Change.LINK, path, None, draw(PATHS)))
    return layer


@st.composite
def shuffled_layers(draw: st.DrawFn) -> list[LayerEntry]:
    """Whiteouts anywhere; directories and files, every parent named before what it holds."""
    layer: list[LayerEntry] = []
    for _ in range(draw(st.integers(0, 6))):
        if draw(st.integers(0, 2)):
            parts = draw(PATHS).split("/")
            for count in range(1, len(parts)):
                node = Node(DIRECTORY, uid=draw(st.integers(1, 99)))
                layer.append(LayerEntry(Change.PUT, "/".join(parts[:count]), node))
            layer.append(LayerEntry(Change.PUT, "/".join(parts), draw(nodes(links=False))))
        else:
            layer.append(draw(whiteouts()))
    return layer


def record(number: int, entries: list[LayerEntry]) -> LayerRecord:
    digest = Digest.of(str(number).encode())
    return LayerRecord(digest, digest, 0, 0, tuple(entries))


def merged(layers: list[list[LayerEntry]]) -> dict[str, Node] | None:
    """What `merge` makes of the layers, None if it refuses them."""
    try:
        tree, _ = merge([record(number, layer) for number, layer in enumerate(layers)])
    except IntegrityError:
        return None
    return {"": tree.root.node} | {path: node_of(entry) for path, entry in tree.walk()}


def expected(layers: list[list[LayerEntry]]) -> dict[str, Node] | None:
    oracle = Oracle()
    try:
        for layer in layers:
            oracle.apply(layer)
    except IntegrityError:
        return None
    return oracle.nodes


@settings(max_examples=200, deadline=None)
@given(st.lists(ordered_layers(), max_size=4))
def test_merge_agrees_with_a_naive_reading_of_the_spec(layers: list[list[LayerEntry]]) -> None:
    assert merged(layers) == expected(layers)


@settings(max_examples=200, deadline=None)
@given(st.lists(shuffled_layers(), max_size=4))
def test_the_place_of_a_whiteout_in_its_layer_makes_no_difference(
    layers: list[list[LayerEntry]],
) -> None:
    assert merged(layers) == expected(layers)


@st.composite
def crowded_layers(draw: st.DrawFn) -> list[LayerEntry]:
    """Few paths and many links: what an entry resolved to is often something else at the next."""
    names = st.sampled_from(["a", "ab"])
    paths = st.one_of(names, st.builds("{}/{}".format, names, names))
    hidings = st.tuples(st.sampled_from(HIDING), paths).map(lambda pair: LayerEntry(*pair))
    layer = draw(st.lists(hidings, max_size=1))
    for path in draw(st.lists(paths, max_size=8)):
        kind = draw(st.sampled_from([DIRECTORY, LINK, FILE] if "/" in path else [DIRECTORY, LINK]))
        target = draw(st.sampled_from(["a", "ab", "/", "."])) if kind == LINK else ""
        layer.append(LayerEntry(Change.PUT, path, Node(kind, uid=len(layer), target=target)))
    return layer


@settings(max_examples=300, deadline=None)
@given(st.lists(crowded_layers(), min_size=1, max_size=3))
def test_links_that_change_under_way_lead_where_they_lead_now(
    layers: list[list[LayerEntry]],
) -> None:
    assert merged(layers) == expected(layers)


@st.composite
def implying_layers(draw: st.DrawFn) -> list[LayerEntry]:
    """Files whose parents nobody names, whiteouts anywhere; no path is both file and directory."""
    files = st.builds("{}/f".format, PATHS)
    puts = st.builds(
        lambda path, uid: LayerEntry(Change.PUT, path, Node(FILE, uid=uid)),
        files,
        st.integers(1, 9),
    )
    return draw(st.lists(st.one_of(puts, puts, whiteouts()), max_size=6))


@settings(max_examples=100, deadline=None)
@given(st.lists(implying_layers(), max_size=4))
def test_a_file_keeps_its_implied_parents_whatever_its_layer_hides(
    layers: list[list[LayerEntry]],
) -> None:
    result, wanted = merged(layers), expected(layers)
    assert result is not None
    assert wanted is not None
    assert result.keys() == wanted.keys()
    assert {p: node for p, node in result.items() if node.is_file} == {
        p: node for p, node in wanted.items() if node.is_file
    }


@settings(max_examples=50, deadline=None)
@given(ordered_layers())
def test_a_layer_applied_twice_changes_nothing_more(layer: list[LayerEntry]) -> None:
    quiet = [entry for entry in layer if entry.change not in (*HIDING, Change.LINK)]
    quiet = [e for e in quiet if e.node is None or not e.node.is_symlink]
    once = merged([quiet])
    if once is not None:
        rows = [LayerEntry(Change.PUT, path, node) for path, node in once.items() if path]
        assert merged([quiet, rows]) == once
