"""Remarks about an image made while it was read and prepared, for its record and its owner."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One remark about one path of an image; nothing that stops a publish."""

    path: str  # RepoPath of the entry
    what: str  # a short sentence fragment: "setuid bit dropped (was 4755)"
