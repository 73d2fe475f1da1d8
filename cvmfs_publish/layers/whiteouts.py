"""Tell from a member's name what it does to the layers below.  Pure.

Source: image-spec `layer.md`, section "Whiteouts".
"""

from __future__ import annotations

from enum import Enum

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.tree import RepoPath

PREFIX = ".wh."
OPAQUE = ".wh..wh..opq"
_AUFS_PREFIX = ".wh..wh."  # bookkeeping of aufs, e.g. `.wh..wh.plnk`; means nothing to others


class Change(Enum):
    """What a member of a layer does at its path."""

    PUT = "put"  # the entry is there now, replacing what was
    LINK = "link"  # the same file as another path
    WHITEOUT = "whiteout"  # what lower layers have there is gone
    OPAQUE = "opaque"  # everything lower layers have below is gone
    IGNORE = "ignore"


def parse_whiteout(path: RepoPath, name: str) -> tuple[Change, RepoPath] | None:
    """Return what a whiteout file does and where; None if `path` is no whiteout.

    Raises:
        IntegrityError: `.wh.` without a name or hiding "." or ".." (E-12), or an entry below a
            whiteout: that name could never be stored (E-10).
    """
    parent, _, base = path.rpartition("/")
    if PREFIX in parent and any(part.startswith(PREFIX) for part in parent.split("/")):
        raise IntegrityError(f"layer {name} has {path!r}, an entry below a whiteout")
    if not base.startswith(PREFIX):
        return None
    if base == OPAQUE:
        return Change.OPAQUE, parent
    if base.startswith(_AUFS_PREFIX):
        return Change.IGNORE, path
    hidden = base.removeprefix(PREFIX)
    if hidden in ("", ".", ".."):
        raise IntegrityError(f"layer {name} has {path!r}, a whiteout that names nothing")
    return Change.WHITEOUT, f"{parent}/{hidden}" if parent else hidden
