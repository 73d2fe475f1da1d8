"""Turn a tree into one digest that changes with anything a job could see.  Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cvmfs_publish.digest import Digest
from cvmfs_publish.layers.tree import Node, Tree, encode_name, node_of


@dataclass(frozen=True, slots=True)
class TreeSummary:
    """What a tree amounts to."""

    digest: Digest
    entries: int  # without the root
    bytes: int  # of all files


def summarise_tree(tree: Tree) -> TreeSummary:
    """Return size and digest of a tree.

    The digest is the sha256 of the canonical listing: one line per entry, parents first, siblings
    in byte order, with path, mode (octal), uid, gid, size, mtime with nanoseconds, device, link
    target, extended attributes and content hashes; NUL between fields and at the end of a line,
    since no name holds one.
    """
    digest = hashlib.sha256()
    entries = size = 0
    lines: list[str] = [_line("", tree.root.node)]
    for path, entry in tree.walk():
        node = node_of(entry)
        entries += 1
        size += node.size
        lines.append(_line(path, node))
        if len(lines) >= 1000:
            digest.update(encode_name("".join(lines)))
            lines.clear()
    digest.update(encode_name("".join(lines)))
    return TreeSummary(Digest("sha256", digest.hexdigest()), entries, size)


def _line(path: str, node: Node) -> str:
    xattrs = content = ""
    if node.xattrs:
        xattrs = ",".join(f"{name}={value.hex()}" for name, value in node.xattrs)
    if node.content is not None:
        content = ",".join([h.digest.hex() for h in node.content.hashes()])
    return (
        f"{path}\0{node.mode:o}\0{node.uid}\0{node.gid}\0{node.size}\0{node.mtime}."
        f"{node.mtime_ns:09}\0{node.device}\0{node.target}\0{xattrs}\0{content}\0\n"
    )
