"""Turn a tree into one digest that changes whenever anything a job could see changes.  Pure."""

from __future__ import annotations

import hashlib
import os

from cvmfs_publish.digest import Digest
from cvmfs_publish.layers.tree import Node, Tree, node_of


def tree_digest(tree: Tree) -> Digest:
    """Return the sha256 of the canonical listing.

    One line per entry, parents first, siblings in byte order: path, mode (octal), uid, gid, size,
    mtime with nanoseconds, device, link target, extended attributes, content hashes; NUL between
    fields and at the end of a line, since no name holds one.
    """
    digest = hashlib.sha256()
    lines: list[bytes] = [_line("", tree.root.node)]
    for path, entry in tree.walk():
        lines.append(_line(path, node_of(entry)))
        if len(lines) >= 1000:
            digest.update(b"".join(lines))
            lines.clear()
    digest.update(b"".join(lines))
    return Digest("sha256", digest.hexdigest())


def _line(path: str, node: Node) -> bytes:
    fields = (
        f"{path}\0{node.mode:o}\0{node.uid}\0{node.gid}\0{node.size}\0"
        f"{node.mtime}.{node.mtime_ns:09}\0{node.device}\0{node.target}\0"
    )
    line = os.fsencode(fields)
    if node.xattrs:
        pairs = (os.fsencode(name) + b"=" + value.hex().encode() for name, value in node.xattrs)
        line += b",".join(pairs)
    line += b"\0"
    if node.content is not None:
        line += b",".join(h.digest.hex().encode() for h in node.content.hashes())
    return line + b"\0\n"
