"""Keep beside a sandbox in a plain tree what it should be, and read back what it is.

A plain tree has no place for the hash of what is in a file, and it may be unable to keep what an
image says: owners, if the publisher is not root, or parts of a second.  The listing
(`layers.treedigest`) has all of it, and says what this tree cannot keep.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

import zstandard

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.tree import Node, RepoPath, decode_name, encode_name
from cvmfs_publish.layers.treedigest import entry_line, xattrs_text
from cvmfs_publish.repository.base import Walkable

_FIELDS = 10  # of a line, see `entry_line`
_MODE, _UID, _GID, _SIZE, _MTIME, _DEVICE, _TARGET, _XATTRS, _CONTENT = range(1, _FIELDS)


class Files(Walkable, Protocol):
    """A view of a tree of files."""

    def read_xattrs(self, path: RepoPath, names: Collection[str]) -> tuple[tuple[str, bytes], ...]:
        """Return those of these extended attributes that an entry has, by name."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a tree of files keeps of an image."""

    owners: bool = True
    nanoseconds: bool = True
    xattrs: bool = True


@dataclass(frozen=True, slots=True)
class Listing:
    """What a sandbox should be, line by line, and what of that the tree keeps."""

    traits: Traits
    lines: tuple[str, ...]

    def pack(self) -> bytes:
        head = json.dumps(asdict(self.traits)) + "\n"
        return zstandard.ZstdCompressor(level=1).compress(encode_name(head + "".join(self.lines)))

    @classmethod
    def unpack(cls, packed: bytes) -> Listing:
        """Raise `IntegrityError` unless these are the bytes of a listing."""
        try:
            data = zstandard.ZstdDecompressor().decompress(packed)
            head, _, text = decode_name(data).partition("\n")
            return cls(Traits(**json.loads(head)), tuple(_split(text)))
        except (zstandard.ZstdError, ValueError, TypeError, RecursionError) as error:
            raise IntegrityError(f"malformed listing of a sandbox: {error}") from error


def _split(text: str) -> Iterator[str]:
    """Yield the lines of a listing; names and targets may hold line feeds, but no NUL."""
    fields = text.split("\0")
    for start in range(0, len(fields) - 1, _FIELDS):
        chosen = fields[start : start + _FIELDS]
        if len(chosen) != _FIELDS or (start and not chosen[0].startswith("\n")):
            raise ValueError("a line has not its fields")
        chosen[0] = chosen[0].removeprefix("\n") if start else chosen[0]
        yield "\0".join(chosen) + "\0\n"


def read_back(view: Files, path: RepoPath, listing: Listing, root: Node | None = None) -> list[str]:
    """Return the listing of what is there, in no order.

    What the tree does not keep, and what is in a file whose size and time are right, is taken from
    `listing`.  `root`: what the top of the sandbox will be, if it is not finished yet.
    """
    wanted = {line.partition("\0")[0]: line.split("\0") for line in listing.lines}
    found = root or view.node(path)
    if found is None or not found.is_dir:
        return []
    lines = [_line(view, path, "", found, wanted.get(""), listing.traits)]
    for below, node in view.walk(path):
        lines.append(_line(view, f"{path}/{below}", below, node, wanted.get(below), listing.traits))
    return lines


def _line(
    view: Files,
    place: RepoPath,
    path: RepoPath,
    node: Node,
    wanted: list[str] | None,
    traits: Traits,
) -> str:
    uid, gid, mtime, mtime_ns = node.uid, node.gid, node.mtime, node.mtime_ns
    xattrs = content = ""
    if wanted is not None:
        if not traits.owners:
            uid, gid = int(wanted[_UID]), int(wanted[_GID])
        seconds, _, nanoseconds = wanted[_MTIME].partition(".")
        if not traits.nanoseconds and mtime == int(seconds):
            mtime_ns = int(nanoseconds)
        if not traits.xattrs:
            xattrs = wanted[_XATTRS]
        elif wanted[_XATTRS]:  # attributes nobody asked for are the file system's own
            names = [each.partition("=")[0] for each in wanted[_XATTRS].split(",")]
            xattrs = xattrs_text(view.read_xattrs(place, names))
        is_same = wanted[_SIZE] == str(node.size) and wanted[_MTIME] == f"{mtime}.{mtime_ns:09}"
        if node.is_file:
            content = wanted[_CONTENT] if is_same else "changed"
    mode = (node.mode & ~0o7777) | 0o777 if node.is_symlink else node.mode
    return entry_line(
        path,
        mode,
        uid,
        gid,
        node.size,
        mtime,
        mtime_ns,
        node.device,
        node.target,
        xattrs,
        content,
    )
