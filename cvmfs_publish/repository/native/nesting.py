"""Choose where an image's tree is divided into several catalogs.  Pure.

A client downloads a catalog as a whole, for a single name in it, and a gateway refuses one of more
than 200,000 entries (E-61).  What every job walks through at its start (`bin`, the libraries, the
Python modules) therefore stays together in a few catalogs, and what most jobs never look at
(manuals, headers, packages that are not imported) is cut away, but not into crumbs: a catalog is a
request of its own.  The choice follows from the tree alone, and only a directory's own size and
that of its parts decide where it is cut: a change moves cuts beside and above it and nowhere else.

`benchmarks/coldstart.py` measures what this brings; the numbers below are its outcome.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from cvmfs_publish.layers.tree import Directory, RepoPath, Tree
from cvmfs_publish.repository.native.catalog import join_path

DEFAULT_LIMIT = 10_000  # entries of a catalog
MARKER_ROWS = 1  # every catalog of a directory lists its own marker file
SMALLEST = 100  # entries; a catalog of fewer is made only where the limit would be exceeded
CRUMB = 2  # entries; cut only if that brings a catalog below its limit, not to make it smaller

# Directories that programs walk through on their way to whatever they need.
_TRUNK = frozenset(
    {"bin", "sbin", "etc", "lib", "lib32", "lib64", "libexec", "local", "opt", "share", "usr"}
    | {"python3", "conda", "miniconda3", "miniforge3", "mambaforge", "venv", ".venv", "env"}
)
# Directories of many packages, of which a job needs a few.  (Not `node_modules`: there it is most.)
_PACKAGES = frozenset({"dist-packages", "site-packages", "site-library"})
_WITH_PARENT = frozenset({"__pycache__"})  # read together with what is beside them


@dataclass(frozen=True, slots=True)
class _Sizes:
    """From how many entries on something is cut off, by what it is."""

    limit: int  # of every catalog
    whole: int  # a tree, or a branch of the trunk, is left whole up to this
    piece: int  # any other directory is divided above this
    part: int  # what is smaller stays with its parent
    package: int  # the same for a package beside others

    @classmethod
    def below(cls, limit: int) -> _Sizes:
        """Of a catalog of 10,000 entries, the default: 5,000, 3,000, 500 and 100."""
        parts = (limit // 2, limit * 3 // 10, limit // 20, limit // 100)
        whole, piece, part, package = (min(max(each, SMALLEST), limit) for each in parts)
        return cls(limit, whole, piece, part, package)


def choose_nested(tree: Tree, limit: int) -> set[RepoPath]:
    """Return directories below the root to make roots of nested catalogs.

    No catalog then has more than `limit` entries, except where a directory has more than that
    directly in it.  A tree of up to half as many is not divided at all.
    """
    sizes = _Sizes.below(limit)
    directories = _post_order(tree.root)
    nested: set[RepoPath] = set()
    if 1 + MARKER_ROWS + sum(len(each.children) for _, each in directories) <= sizes.whole:
        return nested
    weights: dict[int, int] = {}  # by id of the directory: entries left in its catalog
    for path, directory in directories:
        parts = {
            name: weights.pop(id(child))
            for name, child in directory.children.items()
            if isinstance(child, Directory)
        }
        cut = _choose_parts(path, parts, len(directory.children) - len(parts), sizes)
        nested.update(join_path(path, name) for name in cut)
        kept = sum(1 if name in cut else size for name, size in parts.items())
        weights[id(directory)] = 1 + len(directory.children) - len(parts) + kept
    return nested


def _choose_parts(path: RepoPath, parts: dict[str, int], files: int, sizes: _Sizes) -> set[str]:
    """Return which of the directories in a directory to cut off; `parts` has their weights."""
    here = path.rpartition("/")[2]
    trunk = not path or _is_trunk(here)
    smallest = sizes.package if here in _PACKAGES else sizes.part
    cut = set()
    if trunk:
        cut = {
            name
            for name, size in parts.items()
            if size >= (sizes.whole if _is_trunk(name) else smallest) and name not in _WITH_PARENT
        }
    weight = 1 + MARKER_ROWS + files + sum(1 if n in cut else size for n, size in parts.items())
    # Largest first; equal ones in the order of their names.
    rest = [(n in _WITH_PARENT, -size, n) for n, size in parts.items() if n not in cut]
    crumb = 1 if 1 + MARKER_ROWS + files + len(parts) <= sizes.limit else CRUMB
    heapq.heapify(rest)
    while rest and weight > (sizes.limit if trunk else sizes.piece):
        together, size, name = heapq.heappop(rest)
        if weight > sizes.limit:
            if -size <= crumb:
                continue
        elif -size < sizes.part or together:
            break
        cut.add(name)
        weight += size + 1  # the mountpoint stays
    return cut


def _is_trunk(name: str) -> bool:
    return (
        name in _TRUNK
        or name in _PACKAGES
        or name.startswith("python3.")
        or name.endswith(("-linux-gnu", "-linux-gnueabihf"))
    )


def _post_order(root: Directory) -> list[tuple[RepoPath, Directory]]:
    """Return every directory, each after all that are in it."""
    order: list[tuple[RepoPath, Directory]] = []
    stack: list[tuple[RepoPath, Directory]] = [("", root)]
    while stack:
        path, directory = stack.pop()
        order.append((path, directory))
        for name, child in directory.children.items():
            if isinstance(child, Directory):
                stack.append((join_path(path, name), child))
    order.reverse()
    return order
