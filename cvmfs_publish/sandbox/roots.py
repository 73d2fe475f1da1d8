"""Add the directories and files that sites bind host paths onto: a job can then start anywhere.

A bind onto a path that does not exist needs overlay or underlay, which ch-run never and Apptainer
not everywhere has; an empty directory in the image always works.  Evidence for every root:
facts/launchers.md section (d).  What the image has at such a place is never replaced.
"""

from __future__ import annotations

import stat

from cvmfs_publish.findings import Finding
from cvmfs_publish.layers.tree import Content, Directory, Node, RepoPath, Tree

# Needed by every runtime, whatever the site.
RUNTIME_DIRECTORIES = {
    "dev": 0o755,
    "proc": 0o755,
    "sys": 0o755,
    "root": 0o755,
    "home": 0o755,
    "tmp": 0o1777,
    "var/tmp": 0o1777,
    "run": 0o755,
    "etc": 0o755,
}
# Bound from the host by runtimes and sites; a missing target is skipped or fatal.
RUNTIME_FILES = (
    "etc/hosts",
    "etc/resolv.conf",
    "etc/localtime",
    "etc/passwd",
    "etc/group",
    "etc/hostname",
    "etc/krb5.conf",
    "etc/tnsnames.ora",
)
STANDARD_ROOTS = (
    "/nfs",
    "/gpfs",
    "/afs",
    "/cvmfs",
    "/srv",
    "/u",
    "/sps",
    "/lustre",
    "/scratch",
    "/eos",
    "/pnfs",
    "/hadoop",
    "/home",
    "/project",
    "/work",
    "/data",
    "/software",
    "/pbs",
    "/sdf",
    "/fs",
    "/lscratch",
    "/exp",
    "/nashome",
    "/grid",
    "/global",
    "/pscratch",
    "/projects",
    "/storage",
    "/hdfs",
    "/ceph",
    "/lizard",
    "/mnt/hadoop",
    "/mnt/hdfs",
    "/oasis",
    "/run/user",
)


class RootAdder:
    """Adds what is missing to one tree; every refusal becomes a finding."""

    def __init__(self, tree: Tree, mtime: int) -> None:
        """Work on `tree`; `mtime` (Unix seconds) is the time of everything that is added."""
        self._tree = tree
        self._mtime = mtime
        self.findings: list[Finding] = []
        self.added: list[str] = []  # absolute paths of directories that were not there

    def directory(self, path: RepoPath, mode: int = 0o755) -> Directory | None:
        """Return the directory at `path`, made with its parents if missing.

        None, and a finding, if a file or a symbolic link is in its place: links in parents are
        followed inside the tree, the last component is not.
        """
        if not path:
            return self._tree.root
        parent_path, _, name = path.rpartition("/")
        parent = self._parent(parent_path, path)
        if parent is None:
            return None
        existing = parent.children.get(name)
        if existing is None:
            existing = Directory(Node(stat.S_IFDIR | mode, mtime=self._mtime))
            parent.children[name] = existing
            self.added.append("/" + path)
        if isinstance(existing, Directory):
            return existing
        what = f"symbolic link to {existing.target!r}" if existing.is_symlink else "file"
        self.findings.append(Finding(path, f"bind root not added: the image has a {what} there"))
        return None

    def _parent(self, path: RepoPath, wanted: RepoPath) -> Directory | None:
        where = self._tree.resolve(path)
        if where is None:
            self.findings.append(Finding(wanted, "not added: its parent is a loop of links"))
            return None
        here = self._tree.root
        for name in where.split("/") if where else ():
            child = here.children.get(name)
            if child is None:
                child = Directory(Node(stat.S_IFDIR | 0o755, mtime=self._mtime))
                here.children[name] = child
            if not isinstance(child, Directory):
                self.findings.append(Finding(wanted, "not added: its parent is no directory"))
                return None
            here = child
        return here

    def file(
        self,
        path: RepoPath,
        content: Content,
        size: int,
        mode: int = 0o644,
        *,
        replace_: bool = False,
    ) -> None:
        """Put a file at `path`, unless something is there; `replace_`: only directories stay."""
        self._put(
            path, Node(stat.S_IFREG | mode, mtime=self._mtime, size=size, content=content), replace_
        )

    def symlink(self, path: RepoPath, target: str, *, replace_: bool = False) -> None:
        """Put a symbolic link at `path`, unless something is there."""
        self._put(path, Node(stat.S_IFLNK | 0o777, mtime=self._mtime, target=target), replace_)

    def _put(self, path: RepoPath, node: Node, replace_: bool) -> None:
        parent_path, _, name = path.rpartition("/")
        parent = self._parent(parent_path, path)
        if parent is None:
            return
        existing = parent.children.get(name)
        if existing is None or (replace_ and not isinstance(existing, Directory)):
            if existing is not None and existing != node:
                self.findings.append(Finding(path, "replaced by the publisher's own"))
            parent.children[name] = node
        elif replace_:
            self.findings.append(Finding(path, "not written: the image has a directory there"))


def clear_directory(tree: Tree, path: RepoPath, findings: list[Finding]) -> None:
    """Leave nothing below a directory that runtimes mount over (E-29)."""
    entry = tree.find(path)
    if isinstance(entry, Directory):
        for name in sorted(entry.children):
            findings.append(
                Finding(f"{path}/{name}", f"dropped: /{path} is provided by the runtime")
            )
        entry.children.clear()
    elif isinstance(entry, Node):
        parent = tree.find(path.rpartition("/")[0])
        if isinstance(parent, Directory):
            del parent.children[path.rpartition("/")[2]]
            findings.append(Finding(path, "replaced by an empty directory: runtimes mount there"))
