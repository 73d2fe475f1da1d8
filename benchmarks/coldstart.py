"""Tell what a worker with an empty cache fetches before a job in a published image has started.

A trace of the job's system calls (strace) is replayed against a repository as a client would serve
it: every path component is looked up, symbolic links lead on inside the image, and

- a lookup, found or not, and a listing need the catalog of the longest mountpoint above the name
  (the name itself included), and all catalogs on the way to it;
- a file that is opened needs its object, or all of its chunks.

Source: facts/cvmfs-format.md section 3.9, "Client resolution".
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.layers.tree import MAX_LINKS, Node, RepoPath
from cvmfs_publish.repository.native.catalog import join_path

# What strace is told: `-y` writes the path behind every descriptor.
STRACE = ("strace", "-f", "-y", "-e", "trace=%file,getdents64")
_CALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)")
_LISTING = re.compile(r"\d+<(/[^>]*)>")
# Directory descriptor, if the call has one, and the path; both as the kernel sees them.
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)")
_NEW_ROOT = frozenset({"chroot", "pivot_root"})
_OPENING = frozenset({"open", "openat", "openat2", "execve", "execveat"})
_LOOKING = frozenset(
    {"access", "faccessat", "faccessat2", "stat", "lstat", "newfstatat", "statx", "statfs"}
    | {"readlink", "readlinkat", "chdir", "getxattr", "lgetxattr", "inotify_add_watch"}
)


class Want(Enum):
    """What a system call wants to know of a path."""

    LOOKUP = "lookup"  # whether it is there, its metadata
    READ = "read"  # its content
    LIST = "list"  # the names in it


class Access(NamedTuple):
    """One thing a job did; `path` is absolute inside the image."""

    want: Want
    path: str


def parse_strace(lines: Iterable[str], root: str) -> list[Access]:
    """Return what a program that runs in the directory `root` did, in order, without repetitions.

    What comes before the first `chroot` is not the program's doing.
    """
    done: dict[Access, None] = {}
    started = False
    for line in lines:
        match = _CALL.match(line)
        if match is None:
            continue
        call, rest = match[1], match[2]
        if call in _NEW_ROOT:
            started, done = True, {}
        elif started and (access := _parse_call(call, rest, root)) is not None:
            done[access] = None
    return list(done)


def _parse_call(call: str, rest: str, root: str) -> Access | None:
    if call == "getdents64":
        listing = _LISTING.match(rest)
        return Access(Want.LIST, _inside(listing[1], root)) if listing else None
    if call not in _OPENING and call not in _LOOKING:
        return None
    match = _PATH.match(rest)
    if match is None or not match[2]:
        return None
    path = _ESCAPE.sub(_unescape, match[2])
    if not path.startswith("/"):
        path = f"{_inside(match[1] or '', root)}/{path}"
    # Opened to be listed, or to be followed from: not to be read.
    reads = call in _OPENING and "O_DIRECTORY" not in rest and "O_PATH" not in rest
    return Access(Want.READ if reads else Want.LOOKUP, path)


def _inside(path: str, root: str) -> str:
    return path.removeprefix(root.rstrip("/")) or "/"


def _unescape(match: re.Match[str]) -> str:
    text = match[1]
    return chr(int(text, 8)) if text[0] in "01234567" else {"n": "\n", "t": "\t"}.get(text, text)


@dataclass(slots=True)
class Touched:
    """What of an image a job needs; paths relative to the image."""

    names: set[RepoPath] = field(default_factory=lambda: {""})  # looked up or listed
    files: dict[RepoPath, Node] = field(default_factory=dict)  # read


def replay(accesses: Iterable[Access], lookup: Callable[[RepoPath], Node | None]) -> Touched:
    """Return what the accesses touch in the image whose entries `lookup` returns."""
    touched = Touched()
    for want, path in accesses:
        found = _walk(path, lookup, touched.names)
        if found is not None and want is Want.READ and stat.S_ISREG(found[1].mode):
            touched.files[found[0]] = found[1]
    return touched


def _walk(
    path: str, lookup: Callable[[RepoPath], Node | None], names: set[RepoPath]
) -> tuple[RepoPath, Node] | None:
    """Follow a path as the kernel does; add every name that is looked up."""
    todo = [name for name in reversed(path.split("/")) if name not in ("", ".")]
    here, node, links = "", lookup(""), 0
    while todo:
        name = todo.pop()
        if name == "..":
            here = here.rpartition("/")[0]
            node = lookup(here)
            continue
        place = join_path(here, name)
        names.add(place)
        node = lookup(place)
        if node is None:
            return None
        if node.is_symlink:
            links += 1
            if links > MAX_LINKS:
                return None
            here = "" if node.target.startswith("/") else here
            todo += [part for part in reversed(node.target.split("/")) if part not in ("", ".")]
            node = lookup(here)
            continue
        here = place
    return (here, node) if node is not None else None


def needed_roots(names: Iterable[RepoPath], nested: Iterable[RepoPath]) -> set[RepoPath]:
    """Return those of the catalog roots `nested` that a client loads to look all `names` up."""
    roots = set(nested)
    needed = set()
    for name in names:
        while name and name not in needed:
            if name in roots:
                needed.add(name)
            name = name.rpartition("/")[0]
    return needed


def objects_of(nodes: Iterable[Node]) -> Iterator[tuple[ContentHash, Suffix]]:
    """Yield the objects of files that are read, each as often as it is named."""
    for node in nodes:
        content = node.content
        if content is None:
            continue
        if content.chunks:
            yield from ((chunk.hash, Suffix.CHUNK) for chunk in content.chunks)
        elif content.hash is not None:
            yield content.hash, Suffix.DATA
