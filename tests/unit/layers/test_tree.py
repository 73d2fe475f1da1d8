"""Trees in memory: finding, resolving as a chroot would, walking in order, and the tree digest."""

from __future__ import annotations

import stat

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.layers.tree import (
    MAX_LINKS,
    Chunk,
    Content,
    Directory,
    Node,
    Tree,
    decode_name,
    empty_tree,
    encode_name,
    node_of,
)
from cvmfs_publish.layers.treedigest import summarise_tree

DIRECTORY = Node(stat.S_IFDIR | 0o755)
HASH = ContentHash.of(b"x", HashAlgorithm.SHA1)
FILE = Node(stat.S_IFREG | 0o644, size=1, content=Content(HASH))


def tree_of(**entries: str) -> Tree:
    """A tree of directories with the given symbolic links; `__` stands for a slash."""
    tree = empty_tree()
    for key, target in entries.items():
        *above, name = key.split("__")
        here = tree.root
        for part in above:
            child = here.children.setdefault(part, Directory(DIRECTORY))
            assert isinstance(child, Directory)
            here = child
        here.children[name] = (
            Node(stat.S_IFLNK | 0o777, target=target) if target else Directory(DIRECTORY)
        )
    return tree


RESOLVED = {
    "": "",
    "/": "",
    "usr/./lib//x": "usr/lib/x",
    "lib/x": "usr/lib/x",
    "absolute/x": "usr/lib/x",
    "out/etc": "etc",
    "out/../..": "",
    "up/x": "x",
    "missing/../lib": "usr/lib",
    "twice/x": "usr/lib/x",
    "dangling/x": "no/where/x",
}


@pytest.mark.parametrize("path", RESOLVED)
def test_a_path_resolves_inside_the_tree(path: str) -> None:
    tree = tree_of(
        usr__lib="", lib="usr/lib", absolute="/usr/lib", out="../../../..", usr__up="..",
        up="usr/up", twice="absolute", dangling="no/where",
    )  # fmt: skip
    assert tree.resolve(path) == RESOLVED[path]


def test_the_last_link_is_kept_if_asked() -> None:
    tree = tree_of(usr__lib="", lib="usr/lib")
    assert tree.resolve("lib", follow_last=False) == "lib"
    assert tree.resolve("lib/lib", follow_last=False) == "usr/lib/lib"


def test_forty_links_are_followed_and_one_more_is_a_loop() -> None:
    def chain(length: int) -> Tree:
        links = {f"l{n}": f"l{n + 1}" for n in range(1, length)} | {f"l{length}": "end"}
        return tree_of(**links)

    assert chain(MAX_LINKS).resolve("l1") == "end"
    assert chain(MAX_LINKS + 1).resolve("l1") is None
    assert tree_of(a="b", b="a").resolve("a/x") is None


def test_finding_follows_nothing() -> None:
    tree = tree_of(usr__lib="", lib="usr/lib")
    found = tree.find("lib")
    assert found is not None
    assert node_of(found).is_symlink
    assert tree.find("lib/x") is None
    assert tree.find("usr/gone") is None
    assert tree.find("") is tree.root


def test_walking_is_parents_first_and_by_bytes() -> None:
    tree = empty_tree()
    for name in ("ä", "b", "a", "\udcff", "a.b"):
        tree.root.children[name] = FILE
    sub = Directory(DIRECTORY, {"z": FILE, "a": FILE})
    tree.root.children["a"] = sub
    assert [path for path, _ in tree.walk()] == ["a", "a.b", "b", "ä", "\udcff", "a/a", "a/z"]


def test_names_survive_as_bytes() -> None:
    every = bytes(range(1, 256)).replace(b"/", b"")
    assert encode_name(decode_name(every)) == every


def summary(root: Directory) -> tuple[str, int, int]:
    result = summarise_tree(Tree(root))
    return result.digest.hex, result.entries, result.bytes


def test_a_summary_counts_and_does_not_depend_on_the_order_of_making() -> None:
    one = Directory(DIRECTORY, {"a": FILE, "b": FILE})
    two = Directory(DIRECTORY, {"b": FILE, "a": FILE})
    assert summary(one) == summary(two)
    assert summary(one)[1:] == (2, 2)


CHANGES = {
    "mode": FILE._replace(mode=FILE.mode | 1),
    "uid": FILE._replace(uid=1),
    "gid": FILE._replace(gid=1),
    "mtime": FILE._replace(mtime=1),
    "mtime_ns": FILE._replace(mtime_ns=1),
    "size": FILE._replace(size=2),
    "target": FILE._replace(target="x"),
    "device": FILE._replace(device=1),
    "xattr name": FILE._replace(xattrs=(("user.a", b""),)),
    "xattr value": FILE._replace(xattrs=(("user.a", b"x"),)),
    "content": FILE._replace(content=Content(ContentHash.of(b"y", HashAlgorithm.SHA1))),
    "no content": FILE._replace(content=None),
    "chunks": FILE._replace(content=Content(None, (Chunk(0, 1, HASH), Chunk(1, 1, HASH)))),
}


def test_every_field_changes_the_digest() -> None:
    digests = {summary(Directory(DIRECTORY, {"f": node}))[0] for node in [FILE, *CHANGES.values()]}
    digests.add(summary(Directory(DIRECTORY, {"g": FILE}))[0])
    digests.add(summary(Directory(DIRECTORY._replace(mode=stat.S_IFDIR), {"f": FILE}))[0])
    digests.add(summary(Directory(DIRECTORY, {"f": Directory(FILE)}))[0])
    assert len(digests) >= len(CHANGES) + 3
