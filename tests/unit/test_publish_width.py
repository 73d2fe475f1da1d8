"""A directory that no catalog may hold is refused before anything is written."""

from __future__ import annotations

import stat

import pytest

from cvmfs_publish.config import MAX_CATALOG_ENTRIES
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.tree import Directory, Node, Tree, empty_tree
from cvmfs_publish.layers.treedigest import summarise_tree
from cvmfs_publish.publish import _check_width
from cvmfs_publish.repository.native.nesting import MARKER_ROWS, choose_nested

FILE = Node(stat.S_IFREG | 0o644)


def tree_with(count: int) -> Tree:
    tree = empty_tree()
    children: dict[str, Directory | Node] = {f"f{number}": FILE for number in range(count)}
    tree.root.children["wide"] = Directory(Node(stat.S_IFDIR | 0o755), children)
    return tree


def test_the_widest_directory_that_is_published_fills_one_catalog() -> None:
    most = MAX_CATALOG_ENTRIES - 1 - MARKER_ROWS
    tree = tree_with(most)
    _check_width(tree, summarise_tree(tree), "a")
    assert choose_nested(tree, 10_000) == {"wide"}


def test_a_wider_one_is_refused_by_name() -> None:
    tree = tree_with(MAX_CATALOG_ENTRIES - MARKER_ROWS)
    with pytest.raises(IntegrityError, match=r"a: /wide has 199999 entries .* at most 199998"):
        _check_width(tree, summarise_tree(tree), "a")
