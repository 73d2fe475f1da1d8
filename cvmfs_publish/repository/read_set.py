"""Remember what was read of a tree, to find out later whether it is still so.

Where several publishers work at once, what one has read may have changed before it writes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection
from typing import TypeVar

from cvmfs_publish.layers.tree import Node, RepoPath
from cvmfs_publish.repository.base import View
from cvmfs_publish.repository.changes import Base

T = TypeVar("T")


def _kind(view: View, path: RepoPath) -> str:
    """Return what there is at a path; "" for nothing, or for what no publisher makes."""
    if view.is_directory(path):
        return "directory"
    if view.read_symlink(path) is not None:
        return "link"
    return "file" if view.read_file(path) is not None else ""


_LOOKS: dict[str, Callable[[View, RepoPath], object]] = {
    "file": lambda view, path: view.read_file(path),
    "link": lambda view, path: view.read_symlink(path),
    "directory": lambda view, path: view.is_directory(path),
    "names": lambda view, path: view.list_names(path),
    "kind": _kind,
}


class ReadSet:
    """See `repository.changes.Base`: shows a tree, and remembers where somebody looked."""

    def __init__(self, view: Base) -> None:
        self._view = view
        self._seen: dict[tuple[str, RepoPath], None] = {}

    def read_file(self, path: RepoPath) -> bytes | None:
        return self._note("file", path, self._view.read_file(path))

    def read_symlink(self, path: RepoPath) -> str | None:
        return self._note("link", path, self._view.read_symlink(path))

    def is_directory(self, path: RepoPath) -> bool:
        return self._note("directory", path, self._view.is_directory(path))

    def list_names(self, path: RepoPath) -> list[tuple[str, bool]]:
        return self._note("names", path, self._view.list_names(path))

    def node(self, path: RepoPath) -> Node | None:
        return self._note("kind", path, self._view.node(path))

    def modified_at(self, path: RepoPath) -> int | None:
        """See `repository.base.Dated`; it is not remembered."""
        return self._view.modified_at(path)

    def _note(self, look: str, path: RepoPath, found: T) -> T:
        self._seen[look, path] = None
        return found

    def first_change(
        self, expected: View, found: View, arrived: Collection[RepoPath]
    ) -> RepoPath | None:
        """Return the first path at which two trees differ in what was looked at; None: nowhere.

        Directories in `arrived` may be there already: whoever looked was about to make them.
        """
        for look, path in self._seen:
            if path in arrived and found.is_directory(path):
                continue
            there = _LOOKS[look]
            if there(expected, path) != there(found, path):
                return path
        return None


def common_path(paths: Collection[RepoPath]) -> RepoPath:
    """Return the narrowest path that has all of these at or below it; "" is the root."""
    return posixpath.commonpath(paths) if paths else ""
