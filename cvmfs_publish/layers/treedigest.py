"""Turn a tree into one digest that changes with anything a job could see.  Pure.

The canonical listing has one line per entry, the root included, sorted by the bytes of the paths:
path, mode (octal), uid, gid, size, mtime with nanoseconds, device, link target, extended attributes
and content; NUL after each field, since no name holds one, and a line feed.  Content is the hash of
the object a file is stored as, or offset, size and hash of its chunks; `=` before it says that
objects are the bytes themselves.  The digest is the sha256 of all lines.

Whoever knows an entry in another form than a `Node`, as a row of a catalog, makes the same line of
it with `entry_line`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.digest import Digest
from cvmfs_publish.layers.tree import Content, Directory, Node, Tree, encode_name

SUFFIXES = {algorithm: algorithm.suffix for algorithm in HashAlgorithm}  # looked up for every file


@dataclass(frozen=True, slots=True)
class TreeSummary:
    """What a tree amounts to."""

    digest: Digest
    entries: int  # without the root
    bytes: int  # of all files


def summarise_tree(tree: Tree) -> TreeSummary:
    """Return size and digest of a tree."""
    lines, size = _lines(tree)
    return TreeSummary(digest_lines(lines), len(lines) - 1, size)


def list_tree(tree: Tree) -> list[str]:
    """Return the canonical listing of a tree."""
    return sort_lines(_lines(tree)[0])


def digest_lines(lines: Iterable[str]) -> Digest:
    """Return the digest of a listing whose lines may have any order."""
    text = "".join(sort_lines(lines))
    return Digest("sha256", hashlib.sha256(encode_name(text)).hexdigest())


def sort_lines(lines: Iterable[str]) -> list[str]:
    """Return the lines of a listing in their order: that of the bytes of paths."""
    found = list(lines)
    # The order of characters is that of their bytes, but for bytes that are no characters.
    found.sort(key=None if all(map(str.isascii, found)) else encode_name)
    return found


def first_difference(expected: Sequence[str], found: Sequence[str]) -> str:
    """Return in words where two canonical listings differ first; "" if they are equal."""
    for want, have in zip_longest(expected, found):
        if want == have:
            continue
        path_wanted = encode_name(want.partition("\0")[0]) if want is not None else None
        path_found = encode_name(have.partition("\0")[0]) if have is not None else None
        if path_wanted == path_found:
            named = zip(_FIELDS, want.split("\0"), have.split("\0"), strict=False)
            field, old, new = next(each for each in named if each[1] != each[2])
            return f"/{_path(want)}: {field} is {new or 'nothing'}, not {old or 'nothing'}"
        if path_found is None or (path_wanted is not None and path_wanted < path_found):
            return f"/{_path(want)} is missing"
        return f"/{_path(have)} is not expected"
    return ""


_FIELDS = (
    "path", "mode", "uid", "gid", "size", "mtime", "device", "link target", "extended attributes",
    "content", "end",
)  # fmt: skip


def _path(line: str) -> str:
    return line.partition("\0")[0]


def entry_line(
    path: str,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    mtime_ns: int,
    device: int,
    target: str,
    xattrs: str,
    content: str,
) -> str:
    """Return the line of one entry; fields as in `Node`, texts as the next two functions do."""
    return (
        f"{path}\0{mode:o}\0{uid}\0{gid}\0{size}\0{mtime}.{mtime_ns:09}\0{device}\0{target}\0"
        f"{xattrs}\0{content}\0\n"
    )


def xattrs_text(xattrs: Iterable[tuple[str, bytes]]) -> str:
    """Return extended attributes, sorted by name, as one field."""
    return ",".join(f"{name}={value.hex()}" for name, value in xattrs)


def chunks_text(chunks: Iterable[tuple[int, int, bytes]], suffix: str) -> str:
    """Return chunks (offset, size, digest), sorted by offset, as one field.

    `suffix` is that of the hash algorithm.
    """
    return ",".join(f"{start}+{size}:{digest.hex()}{suffix}" for start, size, digest in chunks)


def _content_text(content: Content) -> str:
    raw = "" if content.compressed else "="
    if content.chunks:
        suffix = SUFFIXES[content.chunks[0].hash.algorithm]
        pieces = ((chunk.offset, chunk.size, chunk.hash.digest) for chunk in content.chunks)
        return raw + chunks_text(pieces, suffix)
    if content.hash is None:
        return raw
    return f"{raw}{content.hash.digest.hex()}{SUFFIXES[content.hash.algorithm]}"


def _lines(tree: Tree) -> tuple[list[str], int]:
    """Return a line for every entry, in no order, and the bytes of all files."""
    lines = [_node_line("", tree.root.node)]
    size = 0
    stack = [("", tree.root)]
    while stack:
        prefix, directory = stack.pop()
        for name, child in directory.children.items():
            path = prefix + name
            if isinstance(child, Directory):
                stack.append((path + "/", child))
                child = child.node
            size += child.size
            lines.append(_node_line(path, child))
    return lines, size


def _node_line(path: str, node: Node) -> str:
    mode, uid, gid, mtime, mtime_ns, size, target, device, xattrs, content = node
    return entry_line(
        path,
        mode,
        uid,
        gid,
        size,
        mtime,
        mtime_ns,
        device,
        target,
        xattrs_text(xattrs) if xattrs else "",
        _content_text(content) if content is not None else "",
    )
