"""Write a published tree as one file, for nodes that CernVM-FS cannot serve.

`tar.gz` is unpacked by the node; `sif` is what Apptainer and Singularity run as it is.  Equal trees
give equal files, as long as the same versions of compressors make them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from isal import isal_zlib

from cvmfs_publish.content.artefacts import ArtefactError, ArtefactStore, artefact_errors
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.layers.tree import Directory, Node, RepoPath, Tree, encode_name
from cvmfs_publish.repository.archive import Contents, Entries, iter_tar
from cvmfs_publish.repository.records import Artefact
from cvmfs_publish.repository.sif import DATA_OFFSET, check_platform, make_frame
from cvmfs_publish.repository.squashfs import MAX_TIME, write_squashfs
from cvmfs_publish.sources.base import Platform

Format = Literal["sif", "tar.gz"]

GZIP_LEVEL = 2  # of 3; isal's best ratio for the time
GZIP = 31  # window bits, with a gzip header without name and time
PIECE = 1024**2  # bytes read at a time


@dataclass(frozen=True, slots=True)
class Source:
    """A tree whose contents are stored."""

    entries: Callable[[], Entries]  # may be asked for several times; without the root
    contents: Contents
    root: Node
    platform: Platform
    identity: str  # tells it from other trees


def walk_tree(tree: Tree) -> Iterator[tuple[RepoPath, Node]]:
    """Yield every entry but the root, each directory followed by what is in it."""
    stack: list[tuple[str, Directory | Node]] = _children("", tree.root)
    while stack:
        path, entry = stack.pop()
        if isinstance(entry, Directory):
            yield path, entry.node
            stack += _children(path + "/", entry)
        else:
            yield path, entry


def _children(prefix: str, directory: Directory) -> list[tuple[str, Directory | Node]]:
    names = sorted(directory.children, key=encode_name, reverse=True)
    return [(prefix + name, directory.children[name]) for name in names]


class Packer:
    """Makes artefacts and puts them in their store."""

    def __init__(
        self,
        store: ArtefactStore,
        form: Format,
        *,
        sqfstar: Path | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """Choose a format.

        Args:
            store: where artefacts go.
            form: of new ones.
            sqfstar: the program, which `sif` needs.
            max_bytes: of one artefact.

        Raises:
            InputError: the program is missing.
        """
        if form == "sif" and sqfstar is None:
            raise InputError(
                "SIF files cannot be made here: the program sqfstar is not installed",
                hint="install squashfs-tools 4.5 or later, or set `fallback.format: tar.gz`",
            )
        self.store = store
        self._form = form
        self._sqfstar = sqfstar
        self._max_bytes = max_bytes

    def has(self, artefact: Artefact) -> bool:
        """Whether an artefact is in the store and of the format that is wanted now."""
        return artefact.format == self._form and self.store.size(artefact.file) == artefact.size

    def pack(self, source: Source, name: str) -> Artefact:
        """Write the artefact of a tree to the store; `name` is that of the image.

        Raises:
            ArtefactError: it cannot be made, or the store refuses it; there is nothing half done.
        """
        try:
            with self.store.partial() as file, artefact_errors(f"{name}: writing its fallback"):
                write = self._write_sif if self._form == "sif" else self._write_tar
                unpacked = write(source, file, name)
                size = os.fstat(file.fileno()).st_size
                self._check(size, name)
                artefact = Artefact(self._form, _digest(file), size, unpacked)
                self.store.keep(file, artefact.file)
        except (InputError, IntegrityError) as error:
            raise ArtefactError(
                f"{name}: its fallback cannot be written: {error}",
                hint=error.hint or "`cvmfs-publish check --scrub` finds all that is damaged",
            ) from error
        return artefact

    def _write_tar(self, source: Source, file: BinaryIO, name: str) -> int:
        unpacked = _Survey.of(source.entries()).bytes
        gzip = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, GZIP)
        written = 0
        for piece in iter_tar(_rooted(source), source.contents):
            packed = gzip.compress(piece)
            written += len(packed)
            file.write(packed)
            self._check(written, name)
        file.write(gzip.flush())
        file.flush()
        return unpacked

    def _write_sif(self, source: Source, file: BinaryIO, name: str) -> int:
        if self._sqfstar is None:
            raise TypeError("a packer of SIF files was made without the program")
        check_platform(source.platform)
        survey = _Survey.of(source.entries())
        write_squashfs(
            self._sqfstar,
            iter_tar(_clamped(source.entries()), source.contents),
            Path(file.name),
            name=name,
            offset=DATA_OFFSET,
            root=source.root,
            newest=survey.newest,
            check=lambda: self._check(os.fstat(file.fileno()).st_size, name),
        )
        size = os.fstat(file.fileno()).st_size - DATA_OFFSET
        file.seek(0)
        file.write(make_frame(size, source.platform, source.identity, survey.newest))
        file.flush()
        return survey.bytes

    def _check(self, size: int, name: str) -> None:
        if self._max_bytes is not None and size > self._max_bytes:
            raise ArtefactError(
                f"{name}: its fallback has more than {self._max_bytes} bytes",
                hint="raise `fallback.max_bytes`, or publish it with --no-fallback",
            )


@dataclass(frozen=True, slots=True)
class _Survey:
    """What is to be known of a tree before it is written."""

    newest: int  # time, Unix seconds
    bytes: int  # of all files

    @classmethod
    def of(cls, entries: Entries) -> _Survey:
        newest = size = 0
        for _, node in entries:
            newest = max(newest, node.mtime)
            size += node.size if node.is_file else 0
        return cls(min(newest, MAX_TIME), size)


def _rooted(source: Source) -> Iterator[tuple[RepoPath, Node]]:
    yield "", source.root
    yield from source.entries()


def _clamped(entries: Entries) -> Iterator[tuple[RepoPath, Node]]:
    """Yield entries with times that a squashfs can hold."""
    for path, node in entries:
        if 0 <= node.mtime <= MAX_TIME:
            yield path, node
        else:
            yield path, node._replace(mtime=min(max(node.mtime, 0), MAX_TIME), mtime_ns=0)


def _digest(file: BinaryIO) -> str:
    """Read a file back from its beginning; return its digest in hexadecimal."""
    digest = hashlib.sha256()
    file.seek(0)
    while piece := file.read(PIECE):
        digest.update(piece)
    return digest.hexdigest()
