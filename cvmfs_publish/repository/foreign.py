"""Find the names that other programs have published: DUCC and cvmfs-singularity-sync.

They stay as they are: nothing here or elsewhere removes what this program did not make.

Source: facts/cvmfs-format.md sections 10.1 and 10.2.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from cvmfs_publish.layers.tree import RepoPath
from cvmfs_publish.repository.base import View
from cvmfs_publish.repository.layouts import (
    FLAT,
    MANIFEST_FILE,
    METADATA,
    PUBLICATION_FILE,
    UNPUBLISHED_FILE,
    resolve_link,
)

DUCC, SYNC = "DUCC", "cvmfs-singularity-sync"
_IMAGES = {DUCC: FLAT, SYNC: ".images"}  # where each has its sandboxes
_MOUNTED = re.compile(r"/cvmfs/[^/]+/")  # begins an absolute link into a repository
_DEPTH = 3  # of directories in which names of cvmfs-singularity-sync are: namespace, repository
_OUR_RECORDS = {PUBLICATION_FILE, UNPUBLISHED_FILE}


@dataclass(frozen=True, slots=True)
class ForeignName:
    """A name that leads to an image and has no record of ours."""

    path: RepoPath
    target: RepoPath  # where it leads in the repository
    program: str  # that made it
    is_there: bool  # its target

    def to_document(self) -> dict[str, object]:
        return {
            "path": f"/{self.path}",
            "target": f"/{self.target}",
            "program": self.program,
            "is_there": self.is_there,
        }

    def __str__(self) -> str:
        state = "" if self.is_there else ", which is not there"
        return f"/{self.path} leads to /{self.target}{state} ({self.program})"


def find_foreign(view: View, known: Collection[RepoPath] = ()) -> Iterator[ForeignName]:
    """Yield the names that others have published, ordered by path within each program.

    What else is in the repository, software for example, is not looked through.

    Args:
        view: of the published tree.
        known: names of ours, which need not be looked at.
    """
    yield from _find_ducc(view, known)
    if view.is_directory(_IMAGES[SYNC]):
        yield from _find_sync(view)


def _find_ducc(view: View, known: Collection[RepoPath]) -> Iterator[ForeignName]:
    """DUCC keeps the manifest of each name in `.metadata`, as we do, who keep more there."""
    stack = [""]
    while stack:
        name = stack.pop()
        if name in known:
            continue
        below = dict(view.list_names(f"{METADATA}/{name}".rstrip("/")))
        if below.get(MANIFEST_FILE) is False and not below.keys() & _OUR_RECORDS:
            found = _describe(view, name, DUCC)
            if found is not None:
                yield found
        stack += sorted(
            (
                f"{name}/{each}".lstrip("/")
                for each, is_directory in below.items()
                if is_directory and not each.startswith(".")
            ),
            reverse=True,
        )


def _find_sync(view: View) -> Iterator[ForeignName]:
    """cvmfs-singularity-sync keeps nothing: its names are links near the root."""
    stack = [("", 0)]
    while stack:
        directory, depth = stack.pop()
        below = []
        for name, is_directory in sorted(view.list_names(directory)):
            path = f"{directory}/{name}".lstrip("/")
            if is_directory and depth < _DEPTH and not name.startswith("."):
                below.append((path, depth + 1))
            elif not is_directory and ":" in name:
                found = _describe(view, path, SYNC)
                if found is not None:
                    yield found
        stack += reversed(below)


def _describe(view: View, path: RepoPath, program: str) -> ForeignName | None:
    """Return the name at this path; None if it leads to no image of this program."""
    text = view.read_symlink(path)
    if text is None:
        return None
    mounted = _MOUNTED.match(text)
    target = text[mounted.end() :] if mounted is not None else resolve_link(path, text)
    if not target.startswith(f"{_IMAGES[program]}/"):
        return None
    return ForeignName(path, target, program, view.is_directory(target))
