"""Stack layers into one tree.  Pure: no file is touched here.

Source: image-spec `layer.md`, sections "Applying Changesets" and "Whiteouts".
"""

from __future__ import annotations

import stat

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.findings import Finding
from cvmfs_publish.layers.record import LayerEntry, LayerRecord
from cvmfs_publish.layers.tree import Directory, Node, RepoPath, Tree, empty_tree
from cvmfs_publish.layers.whiteouts import Change

# Components of links that are followed for one image: seconds.  Forty links of four thousand bytes
# on the way to each entry would take hours; /lib -> usr/lib costs two for each folder.
MAX_DETOURS = 20_000_000


def merge(records: list[LayerRecord], *, keep_dirlinks: bool = False) -> tuple[Tree, list[Finding]]:
    """Apply layers, lowest first, to an empty root.

    Args:
        keep_dirlinks: leave a symbolic link to a directory in place where a later layer has a
            directory entry of the same path (images built by tools that ignore usrmerge); other
            OCI tools replace it.

    Raises:
        IntegrityError: an entry cannot exist where the layers below put it: below a file or a
            link loop, a hard link to nothing, a root that is no directory.
    """
    tree = empty_tree()
    findings: list[Finding] = []
    for record in records:
        layer = _Layer(tree, str(record.digest), keep_dirlinks, findings)
        for entry in record.entries:
            layer.apply(entry)
        findings.extend(record.findings)
    findings += _futile(records)
    return tree, findings


def _futile(records: list[LayerRecord]) -> list[Finding]:
    """Tell of names that mean whiteouts and hide nothing: a SIF or a tar may have real files so."""
    return [
        Finding(entry.path, "whiteout dropped: there is no layer below")
        for record in records[:1]
        for entry in record.entries
        if entry.change in (Change.WHITEOUT, Change.OPAQUE)
    ]


class _Layer:
    """One layer being applied."""

    def __init__(self, tree: Tree, name: str, keep_dirlinks: bool, findings: list[Finding]) -> None:
        self._tree = tree
        self._name = name
        self._keep_dirlinks = keep_dirlinks
        self._findings = findings
        # What this layer wrote, with all its parents: "files that are present in the same layer
        # as a whiteout file can only be hidden by whiteout files in subsequent layers".
        self._upper: set[RepoPath] = set()
        # Directories below which this layer has hidden everything: all that is there now, or will
        # be until its end, is its own.  Without this, a layer that hides again and again what it
        # wrote itself would take days.
        self._cleared: set[RepoPath] = set()
        # Where the parent of the last entry really is; most entries come directory by directory.
        self._parent: tuple[RepoPath, RepoPath, Directory] | None = None

    def apply(self, entry: LayerEntry) -> None:
        if entry.change is Change.PUT and entry.node is not None:
            self._put(entry.path, entry.node)
        elif entry.change is Change.LINK:
            self._link(entry.path, entry.target)
        elif entry.change is Change.WHITEOUT:
            self._whiteout(entry.path)
        elif entry.change is Change.OPAQUE:
            self._opaque(entry.path)
        if self._tree.detours > MAX_DETOURS:
            raise IntegrityError(
                f"layer {self._name} leads through links of more than {MAX_DETOURS} components",
                hint="no tool writes such a layer: it is made to take long",
            )

    def _put(self, path: RepoPath, node: Node) -> None:
        if not path:
            if not node.is_dir:
                raise IntegrityError(f"layer {self._name} replaces the root by something else")
            self._tree.root.node = node
            return
        where, parent, name = self._place(path, node)
        existing = parent.children.get(name)
        if not node.is_dir:
            if isinstance(existing, Directory) or node.is_symlink or _is_symlink(existing):
                self._parent = None
            parent.children[name] = node
            return
        if isinstance(existing, Directory):
            existing.node = node
            return
        if _is_symlink(existing):
            self._parent = None
            if self._keep_dirlinks and self._leads_to_directory(where):
                self._findings.append(
                    Finding(where, "symbolic link to a directory kept over a directory entry")
                )
                return
        parent.children[name] = Directory(node)

    def _link(self, path: RepoPath, target: RepoPath) -> None:
        """A hard link: the entry is the same file as the one at `target`, in whatever layer."""
        directory, _, base = target.rpartition("/")
        resolved = self._tree.resolve(directory)
        at = f"{resolved}/{base}" if resolved else base
        node = self._tree.find(at) if resolved is not None and base else None
        if node is None or isinstance(node, Directory):
            found = "does not exist" if node is None else "is a directory"
            raise IntegrityError(
                f"layer {self._name}: {path!r} is a hard link to {target!r}, which {found}",
                hint="the image is incomplete; rebuild and push it",
            )
        if path:
            self._put(path, node)

    def _whiteout(self, path: RepoPath) -> None:
        found = self._existing_parent(path)
        if found is not None:
            where, parent, name = found
            self._hide(parent, name, f"{where}/{name}" if where else name)

    def _opaque(self, path: RepoPath) -> None:
        where = self._tree.resolve(path)
        directory = self._tree.find(where) if where is not None else None
        if where is None or not isinstance(directory, Directory) or where in self._cleared:
            return
        self._cleared.add(where)
        for name in list(directory.children):
            self._hide(directory, name, f"{where}/{name}" if where else name)

    def _hide(self, parent: Directory, name: str, path: RepoPath) -> None:
        """Remove what lower layers have at `path`, keep what this layer wrote there or below."""
        if name not in parent.children:
            return
        self._parent = None
        stack = [(parent, name, path)]  # no recursion: an image may be deeper than Python's stack
        while stack:
            parent, name, path = stack.pop()
            entry = parent.children[name]
            if path not in self._upper:
                del parent.children[name]
            elif isinstance(entry, Directory) and path not in self._cleared:
                self._cleared.add(path)
                stack.extend((entry, child, f"{path}/{child}") for child in entry.children)

    def _existing_parent(self, path: RepoPath) -> tuple[RepoPath, Directory, str] | None:
        directory, _, name = path.rpartition("/")
        where = self._tree.resolve(directory)
        parent = self._tree.find(where) if where is not None else None
        return (
            (where, parent, name) if where is not None and isinstance(parent, Directory) else None
        )

    def _place(self, path: RepoPath, node: Node) -> tuple[RepoPath, Directory, str]:
        """Return where an entry goes: resolved path, parent directory (made if missing), name."""
        directory, _, name = path.rpartition("/")
        if self._parent is None or self._parent[0] != directory:
            where = self._tree.resolve(directory)
            if where is None:
                raise IntegrityError(
                    f"layer {self._name}: {path!r} lies below a loop of symbolic links"
                )
            self._parent = directory, where, self._make_parents(path, where, node)
        _, where, parent = self._parent
        place = f"{where}/{name}" if where else name
        self._upper.add(place)
        return place, parent, name

    def _make_parents(self, path: RepoPath, where: RepoPath, node: Node) -> Directory:
        here, done = self._tree.root, ""
        for name in where.split("/") if where else ():
            done = f"{done}/{name}" if done else name
            self._upper.add(done)
            child = here.children.get(name)
            if child is None:
                # Nobody says what an implied parent looks like; its time is that of the entry
                # that implies it, so that the same image always gives the same tree.
                child = Directory(Node(stat.S_IFDIR | 0o755, mtime=node.mtime))
                here.children[name] = child
            if not isinstance(child, Directory):
                raise IntegrityError(
                    f"layer {self._name}: {path!r} lies below {done!r}, which is no directory"
                )
            here = child
        return here

    def _leads_to_directory(self, path: RepoPath) -> bool:
        where = self._tree.resolve(path)
        return where is not None and isinstance(self._tree.find(where), Directory)


def _is_symlink(entry: Directory | Node | None) -> bool:
    return isinstance(entry, Node) and entry.is_symlink
