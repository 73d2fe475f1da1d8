"""A file tree in memory: what an image consists of, before anything is written anywhere.

Paths are `RepoPath`: relative, normalised, "/"-separated text; "" is the root; bytes that are not
UTF-8 are kept as surrogates, so every name survives unchanged, whatever the host's locale.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from cvmfs_publish.content.hashes import ContentHash
from cvmfs_publish.streams.names import decode_name as decode_name  # for all stages from here on
from cvmfs_publish.streams.names import encode_name as encode_name

RepoPath = str
MAX_LINKS = 40  # Linux gives up with ELOOP after as many symbolic links


# Tuples, because a large image has a hundred thousand of each and a dataclass takes five times as
# long to make.


class Chunk(NamedTuple):
    """A piece of a large file, stored as an object of its own."""

    offset: int  # bytes into the uncompressed file
    size: int  # uncompressed bytes
    hash: ContentHash


class Content(NamedTuple):
    """Where the bytes of a regular file are stored: one object, or chunks without gaps."""

    hash: ContentHash | None  # None: the file is chunked
    chunks: tuple[Chunk, ...] = ()
    compressed: bool = True  # False: the objects are the bytes of the file themselves

    def hashes(self) -> Iterator[ContentHash]:
        if self.hash is not None:
            yield self.hash
        for chunk in self.chunks:
            yield chunk.hash


class Node(NamedTuple):
    """The metadata of one file-system entry, and where its content is."""

    mode: int  # full st_mode: type bits and permission bits
    uid: int = 0
    gid: int = 0
    mtime: int = 0  # Unix seconds
    mtime_ns: int = 0  # nanosecond part, 0…999 999 999
    size: int = 0  # bytes of a regular file's content; 0 for every other kind
    target: str = ""  # of a symbolic link
    device: int = 0  # os.makedev number of a device node
    xattrs: tuple[tuple[str, bytes], ...] = ()  # sorted by name
    content: Content | None = None  # of a regular file

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


@dataclass(slots=True)
class Directory:
    """A directory and what is in it.  `children` has no "", ".", ".." and no name with a slash."""

    node: Node
    children: dict[str, Directory | Node] = field(default_factory=dict)


def node_of(entry: Directory | Node) -> Node:
    return entry.node if isinstance(entry, Directory) else entry


@dataclass(slots=True)
class Tree:
    """A whole tree; mutable while it is put together."""

    root: Directory
    detours: int = field(default=0, compare=False)  # components of links that `resolve` followed

    def find(self, path: RepoPath) -> Directory | Node | None:
        """Return the entry at exactly `path`, no symbolic link followed; None if there is none."""
        entry: Directory | Node = self.root
        for name in path.split("/") if path else ():
            if not isinstance(entry, Directory) or name not in entry.children:
                return None
            entry = entry.children[name]
        return entry

    def resolve(self, path: str, *, follow_last: bool = True) -> RepoPath | None:
        """Return where `path` leads when this tree is the whole file system.

        Symbolic links are followed as a process chrooted into the tree would: absolute targets
        start at its root and ".." stops there, so the answer is always inside.  Components that
        do not exist are kept as they are.  None: more than `MAX_LINKS` links.
        """
        done: list[str] = []
        trail: list[Directory | Node | None] = [self.root]
        todo = [name for name in reversed(path.split("/")) if name not in ("", ".")]
        links = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if done:
                    done.pop()
                    trail.pop()
                continue
            here = trail[-1]
            child = here.children.get(name) if isinstance(here, Directory) else None
            if isinstance(child, Node) and child.is_symlink and (todo or follow_last):
                links += 1
                if links > MAX_LINKS:
                    return None
                if child.target.startswith("/"):
                    done, trail = [], [self.root]
                names = child.target.split("/")
                self.detours += len(names)
                todo.extend(reversed(names))
                continue
            done.append(name)
            trail.append(child)
        return "/".join(done)

    def walk(self) -> Iterator[tuple[RepoPath, Directory | Node]]:
        """Yield every entry but the root: parents first, siblings in the byte order of names."""
        stack: list[tuple[str, Directory]] = [("", self.root)]
        while stack:
            prefix, directory = stack.pop()
            below: list[tuple[str, Directory]] = []
            for name in sorted(directory.children, key=encode_name):
                child = directory.children[name]
                path = f"{prefix}{name}"
                yield path, child
                if isinstance(child, Directory):
                    below.append((path + "/", child))
            stack.extend(reversed(below))


def empty_tree(mode: int = 0o755) -> Tree:
    return Tree(Directory(Node(stat.S_IFDIR | mode)))
