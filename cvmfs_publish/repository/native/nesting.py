"""Choose where an image's tree is divided into several catalogs.  Pure.

A client downloads a catalog as a whole, and a gateway refuses one of more than 200,000 entries
(E-61), so large trees are cut.  The choice follows from the tree alone: the same image is always
divided in the same way, and a small change moves few cuts.
"""

from __future__ import annotations

import heapq

from cvmfs_publish.layers.tree import Directory, RepoPath, Tree

MARKER_ROWS = 1  # every catalog of a directory lists its own marker file


def choose_nested(tree: Tree, limit: int) -> set[RepoPath]:
    """Return directories below the root to make roots of nested catalogs.

    Whenever a subtree has more than `limit` entries left, its largest parts are cut off, largest
    first, until the rest fits.  A directory with more direct entries than that stays one catalog.
    """
    nested: set[RepoPath] = set()
    weights: dict[int, int] = {}  # by id of the directory: entries left in its catalog
    for path, directory in _post_order(tree.root):
        parts = [
            (-weights.pop(id(child)), f"{path}/{name}" if path else name)
            for name, child in directory.children.items()
            if isinstance(child, Directory)
        ]
        weight = 1 + len(directory.children) - len(parts) - sum(size for size, _ in parts)
        heapq.heapify(parts)
        while weight + MARKER_ROWS > limit and parts:
            size, heaviest = heapq.heappop(parts)
            # Cutting leaves the mountpoint here; less than a handful of entries gains nothing.
            if -size <= 2:
                break
            nested.add(heaviest)
            weight += size + 1
        weights[id(directory)] = weight
    return nested


def _post_order(root: Directory) -> list[tuple[RepoPath, Directory]]:
    order: list[tuple[RepoPath, Directory]] = []
    stack: list[tuple[RepoPath, Directory]] = [("", root)]
    while stack:
        path, directory = stack.pop()
        order.append((path, directory))
        for name in sorted(directory.children):
            child = directory.children[name]
            if isinstance(child, Directory):
                stack.append((f"{path}/{name}" if path else name, child))
    order.reverse()
    return order
