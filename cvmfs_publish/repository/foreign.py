"""Find the names that other programs have published: DUCC and cvmfs-singularity-sync.

They stay as they are: nothing here or elsewhere removes what this program did not make.

Source: facts/cvmfs-format.md sections 10.1 and 10.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cvmfs_publish.layers.tree import RepoPath
from cvmfs_publish.repository.base import View
from cvmfs_publish.repository.layouts import FLAT, METADATA, resolve_link

DUCC, SYNC = "DUCC", "cvmfs-singularity-sync"
SYNC_IMAGES = ".images"
_MOUNTED = re.compile(r"/cvmfs/[^/]+/")  # begins an absolute link into a repository
_DEPTH = 8  # of directories in which names are looked for


@dataclass(frozen=True, slots=True)
class ForeignName:
    """A name that leads to an image and has no record of ours."""

    path: RepoPath
    target: RepoPath  # where it leads in the repository; "" if it leads out of it
    program: str  # that made it, as far as can be told; "" if not
    is_there: bool  # its target

    def to_document(self) -> dict[str, object]:
        return {
            "path": f"/{self.path}",
            "target": f"/{self.target}" if self.target else "",
            "program": self.program,
            "is_there": self.is_there,
        }

    def __str__(self) -> str:
        state = "" if self.is_there else ", which is not there"
        return f"/{self.path} leads to /{self.target}{state} ({self.program or 'unknown program'})"


def find_foreign(view: View) -> Iterator[ForeignName]:
    """Yield the names without a record, ordered by path.

    A public name is a link outside of directories that begin with a dot.
    """
    stack: list[tuple[RepoPath, int]] = [("", 0)]
    while stack:
        directory, depth = stack.pop()
        below = []
        for name, is_directory in view.list_names(directory):
            path = f"{directory}/{name}".lstrip("/")
            if is_directory and depth < _DEPTH and not (depth == 0 and name.startswith(".")):
                below.append((path, depth + 1))
            elif (
                not is_directory
                and (text := view.read_symlink(path)) is not None
                and not _is_ours(view, path, text)
            ):
                yield _describe(view, path, text)
        stack += reversed(below)


def _is_ours(view: View, path: RepoPath, text: str) -> bool:
    """Whether there is a record of ours that a name may be of."""
    if view.is_directory(f"{METADATA}/{path}"):
        names = {name for name, _ in view.list_names(f"{METADATA}/{path}")}
        if names & {"publication.json", "unpublished.json"}:
            return True
    if "$(" in text:
        return True  # by way of the platform, which only we write
    target = resolve_link(path, text)
    if view.read_file(f"{METADATA}/{target}/publication.json") is not None:
        return True  # a second name, which leads to the first
    parts = target.split("/")
    record = f"{METADATA}/.images/{parts[1]}/{parts[2]}.json" if len(parts) == 3 else ""
    return "@sha" in path and target.startswith(FLAT) and view.read_file(record) is not None


def _describe(view: View, path: RepoPath, text: str) -> ForeignName:
    mounted = _MOUNTED.match(text)
    target = text[mounted.end() :] if mounted is not None else resolve_link(path, text)
    if target.startswith("../") or (text.startswith("/") and mounted is None):
        return ForeignName(path, "", "", is_there=False)
    program = ""
    if target.startswith(f"{FLAT}/"):
        program = DUCC
    elif target.startswith(f"{SYNC_IMAGES}/"):
        program = SYNC
    return ForeignName(path, target, program, view.is_directory(target))
