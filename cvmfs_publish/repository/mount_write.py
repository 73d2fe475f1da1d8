"""Write what a transaction of `cvmfs_server` changes into the mount, while it is open.

Paths are walked name by name without following links (`folder`).  A sandbox is read back and
compared as soon as it is written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from cvmfs_publish.content.local import DIRECTORY_MODE
from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.layers.tree import RepoPath, Tree, encode_name
from cvmfs_publish.layers.treedigest import digest_lines, first_difference, sort_lines
from cvmfs_publish.repository.changes import New, NewDirectory, NewFile, NewLink
from cvmfs_publish.repository.folder import Folder, FolderView
from cvmfs_publish.repository.folder_listing import Files, Listing, Traits, read_back
from cvmfs_publish.repository.folder_write import (
    Contents,
    TreeWriter,
    finish_directory,
    write_new,
)
from cvmfs_publish.repository.layouts import CATALOG_MARKER


@dataclass(frozen=True, slots=True)
class Pending:
    """A sandbox that is to be put in its place."""

    tree: Tree  # with the marks of its catalogs
    listing: tuple[str, ...]  # without


class MountWriter:
    """Writes what one transaction changes."""

    def __init__(self, folder: Folder, traits: Traits, contents: Contents, now: int) -> None:
        """Write into `folder`, which keeps what `traits` say; `now` is the time of small files."""
        self._folder = folder
        self._traits = traits
        self._contents = contents
        self._now = now

    def remove(self, paths: Iterable[RepoPath]) -> None:
        """Remove entries and everything below them, where there are any."""
        for path in sorted(paths, reverse=True):
            remove_entry(self._folder, path)

    def put(
        self,
        entries: Mapping[RepoPath, New],
        trees: Mapping[int, Pending],
        *,
        there: Collection[RepoPath] = (),
    ) -> dict[RepoPath, Listing]:
        """Make entries, those that links lead to first; return what each sandbox should be.

        `trees` are the sandboxes by their numbers; those in `there` are in their place already.
        """
        listings = {}
        for path in sorted(entries, key=lambda p: (isinstance(entries[p], NewLink), p)):
            entry = entries[path]
            if isinstance(entry, NewDirectory):
                self._make_directory(path, nested=entry.is_nested)
            elif isinstance(entry, NewFile):
                self.put_file(path, entry.data, self._now)
            elif isinstance(entry, NewLink):
                self._put_link(path, entry.target)
            else:
                pending = trees[entry.number]
                listings[path] = self._put_tree(path, pending, is_there=path in there)
        return listings

    def put_file(self, path: RepoPath, data: bytes, at: int | None = None) -> None:
        """Write a small file in place of whatever is there."""
        remove_entry(self._folder, path)
        write_new(self._folder, path, data, at)

    def keep(self, place: RepoPath, listing: Listing) -> None:
        """Write down what a sandbox should be."""
        parts = place.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            with (
                self._folder.parent("/".join(parts[:count])) as (above, name),
                suppress(FileExistsError),
            ):
                os.mkdir(name, DIRECTORY_MODE, dir_fd=above)
        self.put_file(place, listing.pack())

    def _make_directory(self, path: RepoPath, *, nested: bool) -> None:
        with self._folder.parent(path) as (above, name):
            os.mkdir(name, DIRECTORY_MODE, dir_fd=above)
            os.chmod(name, DIRECTORY_MODE, dir_fd=above)
        if nested:
            self.put_file(f"{path}/{CATALOG_MARKER}", b"")

    def _put_link(self, path: RepoPath, target: str) -> None:
        remove_entry(self._folder, path)
        with self._folder.parent(path) as (above, name):
            os.symlink(encode_name(target), name, dir_fd=above)

    def _put_tree(self, path: RepoPath, pending: Pending, *, is_there: bool) -> Listing:
        kept = self._traits
        if is_there:  # `ingest` keeps owners, whoever runs it, and no attributes
            kept = replace(kept, owners=True, xattrs=False)
        finished = replace(kept, owners=self._traits.owners)
        if not is_there:
            TreeWriter(self._folder, self._contents, finished).write(path, pending.tree)
        finish_directory(self._folder, path, pending.tree.root.node, finished)
        difference = differs(FolderView(self._folder), path, Listing(kept, pending.listing))
        if difference:
            raise RepositoryError(
                f"/{path}: what was written of it is not what its layers say: {difference}",
                hint="nothing of it was named; look at the disk of the spool, then try again",
            )
        return Listing(finished, pending.listing)


def differs(view: Files, path: RepoPath, listing: Listing) -> str:
    """Return in words how what is at `path` differs from a listing; "" if it is the same."""
    found = read_back(view, path, listing)
    if digest_lines(found) == digest_lines(listing.lines):
        return ""
    return first_difference(sort_lines(listing.lines), sort_lines(found)) or "its digest differs"


def remove_entry(folder: Folder, path: RepoPath) -> None:
    """Remove an entry and everything below it; no error if there is none."""
    found = folder.stat(path)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        with folder.parent(path) as (above, name), suppress(FileNotFoundError):
            os.unlink(name, dir_fd=above)
        return
    directories = [path]
    for directory in directories:  # grows while it is walked: parents first
        with folder.parent(directory) as (above, name):
            os.chmod(name, 0o700, dir_fd=above)
        for name_, is_directory in folder.names(directory):
            if is_directory:
                directories.append(f"{directory}/{name_}")
            else:
                with folder.parent(f"{directory}/{name_}") as (above, name):
                    os.unlink(name, dir_fd=above)
    for directory in reversed(directories):
        with folder.parent(directory) as (above, name):
            os.rmdir(name, dir_fd=above)
