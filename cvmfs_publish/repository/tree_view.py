"""Show a tree in memory as a view: a sandbox that is not written yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cvmfs_publish.layers.tree import Directory, Node, RepoPath, Tree, encode_name


class TreeView:
    """See `repository.base.View`."""

    def __init__(self, tree: Tree, contents: Callable[[RepoPath, Node], Iterator[bytes]]) -> None:
        """Show `tree`, whose contents are stored."""
        self._tree = tree
        self._contents = contents

    def read_file(self, path: RepoPath) -> bytes | None:
        found = self._tree.find(path)
        if not isinstance(found, Node) or not found.is_file:
            return None
        return b"".join(self._contents(path, found))

    def read_symlink(self, path: RepoPath) -> str | None:
        found = self._tree.find(path)
        return found.target if isinstance(found, Node) and found.is_symlink else None

    def is_directory(self, path: RepoPath) -> bool:
        return isinstance(self._tree.find(path), Directory)

    def list_names(self, path: RepoPath) -> list[tuple[str, bool]]:
        found = self._tree.find(path)
        if not isinstance(found, Directory):
            return []
        return [
            (name, isinstance(found.children[name], Directory))
            for name in sorted(found.children, key=encode_name)
        ]
