"""Read one layer: store the contents of its files, keep what it does as a `LayerRecord`.

Every entry is judged here as far as the layer alone allows; how it meets the layers below is
decided in `merge`.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Protocol

from cvmfs_publish.content.ingest import ContentReader, Stored
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.findings import Finding
from cvmfs_publish.layers.record import LayerEntry, LayerRecord
from cvmfs_publish.layers.tree import Chunk, Content, Node, RepoPath, encode_name
from cvmfs_publish.layers.whiteouts import Change, parse_whiteout
from cvmfs_publish.streams import tar
from cvmfs_publish.streams.compression import ByteStream, DecompressionLimits, LayerStream
from cvmfs_publish.streams.tar import Member, TarReader

MAX_NAME_BYTES = 255  # NAME_MAX on Linux; a longer name could not be opened by any job
# Names, link targets and attributes of one layer, which are kept in memory: half a million entries
# of 500 characters each.
MAX_METADATA = 256 * 1024 * 1024
MAX_TARGET_BYTES = 4095  # a longer symbolic link cannot be read back (format section 9.1)
_TYPE_BITS = {
    tar.FILE: stat.S_IFREG,
    tar.SYMLINK: stat.S_IFLNK,
    tar.CHARACTER: stat.S_IFCHR,
    tar.BLOCK_DEVICE: stat.S_IFBLK,
    tar.DIRECTORY: stat.S_IFDIR,
    tar.FIFO: stat.S_IFIFO,
}


class ContentStream(Protocol):
    """Takes the contents of the files of one layer; see `content.ingest.ContentStream`."""

    compressed: bool

    def add(self, reader: ContentReader, size: int) -> list[Stored]: ...

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


class Contents(Protocol):
    """Where contents go: an `Ingestor`, or whatever else needs them."""

    def open(self) -> ContentStream:
        """Return a stream for the contents of one layer; any number of threads may."""


@dataclass(frozen=True, slots=True)
class LayerLimits(DecompressionLimits):
    """What a layer may contain; a layer beyond is refused while it streams."""

    entries: int = 500_000  # twice the largest image seen in the field
    path_bytes: int = 4095  # PATH_MAX without its zero byte
    path_depth: int = 256  # components; the deepest trees in the field have thirty


def clean_path(name: str, what: str) -> RepoPath:
    """Return a member name as a path below the root.

    Leading slashes and "." are dropped, as every tool does (E-25); ".." is resolved as text.

    Raises:
        IntegrityError: the name leads out of the root, or a component is too long.
    """
    parts: list[str] = []
    for part in name.split("/"):
        if part in ("", "."):
            continue
        if part == "..":
            if not parts:
                raise IntegrityError(f"{what} {name!r} leads out of the image")
            parts.pop()
            continue
        if len(part) > MAX_NAME_BYTES // 4 and len(encode_name(part)) > MAX_NAME_BYTES:
            raise IntegrityError(
                f"{what} {name[:80]!r}… has a component of {len(encode_name(part))} bytes; "
                f"file systems end at {MAX_NAME_BYTES}"
            )
        parts.append(part)
    return "/".join(parts)


def check_path(path: RepoPath, limits: LayerLimits, subject: str) -> None:
    """Raise `IntegrityError` for a path that is too long or too deep."""
    if len(path) > limits.path_bytes // 4:
        length = len(encode_name(path))
        if length > limits.path_bytes:
            raise IntegrityError(
                f"{subject} has a path of {length} bytes, {path[:80]!r}…; "
                f"the limit is {limits.path_bytes}",
                hint="raise `limits.path_bytes` if this image is trusted; Linux opens no path of"
                " more than 4095 bytes",
            )
    if len(path) > limits.path_depth:
        depth = path.count("/") + 1
        if depth > limits.path_depth:
            raise IntegrityError(
                f"{subject} has a path of {depth} components, {path[:80]!r}…; "
                f"the limit is {limits.path_depth}",
                hint="raise `limits.path_depth` if this image is trusted to be that deep",
            )


def read_layer(
    blob: ByteStream,
    digest: Digest,
    size: int,
    diff_id: Digest | None,
    ingestor: Contents,
    limits: LayerLimits,
) -> LayerRecord:
    """Read a layer to its end and store its files.

    Args:
        blob: the compressed bytes; verified against `digest` by whoever opened them.
        diff_id: digest of the uncompressed archive that the image's configuration promises.

    Raises:
        IntegrityError: corrupt compression or archive, an entry that escapes, limits exceeded,
            or a DiffID that differs.
        RemoteError: the blob could not be fetched to its end.
        RepositoryError: the store could not take the contents.
    """
    name = f"{digest.algorithm}:{digest.hex[:12]}"
    stream = LayerStream(blob, limits, name)
    contents = ingestor.open()
    try:
        reading = _Reading(name, limits, contents, stream)
        reading.run()
        actual = stream.drain()
        while blob.read(1):  # a decoder may stop before the last byte; the digest covers it too
            pass
        if diff_id is not None and actual != diff_id:
            raise IntegrityError(
                f"layer {digest} unpacks to {actual}, the image's configuration promises {diff_id}",
                hint="the image is damaged or was built by a broken tool; rebuild and push it",
            )
        contents.finish()
    finally:
        contents.abandon()
    return LayerRecord(
        digest=digest,
        diff_id=actual,
        size=size,
        stored_bytes=reading.stored_bytes(),
        entries=tuple(reading.finished()),
        findings=tuple(reading.findings),
    )


class _Reading:
    """The state of reading one layer."""

    def __init__(
        self, name: str, limits: LayerLimits, contents: ContentStream, stream: LayerStream
    ) -> None:
        self.findings: list[Finding] = []
        self._name = name
        self._limits = limits
        self._contents = contents
        self._stream = stream
        self._archive = TarReader(stream, f"layer {name}")
        self._size = 0  # bytes of all files so far, holes of sparse ones included
        self._metadata = 0  # characters and bytes of what is known of entries besides
        # What is complete, or a file's path, member and the pieces it is being stored as.
        self._entries: list[LayerEntry | tuple[RepoPath, Member, list[Stored]]] = []

    def run(self) -> None:
        for count, member in enumerate(self._archive, start=1):
            if count > self._limits.entries:
                raise IntegrityError(
                    f"layer {self._name} has more than {self._limits.entries} entries",
                    hint="raise `limits.entries` if this image is trusted to be that large",
                )
            self._add(member)

    def finished(self) -> list[LayerEntry]:
        """Return the entries with the hashes of their contents, after these are stored."""
        compressed = self._contents.compressed
        return [
            entry
            if isinstance(entry, LayerEntry)
            else LayerEntry(
                Change.PUT, entry[0], _node(entry[1], _content(entry[2], compressed=compressed))
            )
            for entry in self._entries
        ]

    def stored_bytes(self) -> int:
        """Return the size of the objects the files are stored as, after they are."""
        files = (entry for entry in self._entries if not isinstance(entry, LayerEntry))
        return sum(piece.stored_size for _, _, pieces in files for piece in pieces)

    def _add(self, member: Member) -> None:
        self._check_metadata(member)
        path = clean_path(member.name, f"layer {self._name}: member")
        check_path(path, self._limits, f"layer {self._name}")
        whiteout = parse_whiteout(path, self._name)
        if whiteout is not None:
            change, where = whiteout
            if change is Change.IGNORE:
                self.findings.append(Finding(path, "aufs bookkeeping file dropped"))
            else:
                self._entries.append(LayerEntry(change, where))
            return
        if member.kind == tar.LINK:
            target = clean_path(member.target, f"layer {self._name}: target of hard link {path!r}:")
            self._entries.append(LayerEntry(Change.LINK, path, None, target))
            return
        if member.kind == tar.SYMLINK:
            self._check_target(path, member.target)
        if member.kind == tar.FILE:
            self._size += member.size
            self._stream.check_growth(self._size)
            pieces = self._contents.add(self._archive, member.size)
            self._entries.append((path, member, pieces))
        else:
            self._entries.append(LayerEntry(Change.PUT, path, _node(member)))

    def _check_metadata(self, member: Member) -> None:
        self._metadata += len(member.name) + len(member.target)
        for name, value in member.xattrs:
            self._metadata += len(name) + len(value)
        if self._metadata > MAX_METADATA:
            raise IntegrityError(
                f"layer {self._name} has more than {MAX_METADATA} bytes of names, link targets and"
                " attributes",
                hint="no tool writes such a layer: it is made to exhaust memory",
            )

    def _check_target(self, path: RepoPath, target: str) -> None:
        if not 0 < len(encode_name(target)) <= MAX_TARGET_BYTES:
            raise IntegrityError(
                f"layer {self._name}: symbolic link {path!r} has a target of "
                f"{len(encode_name(target))} bytes; 1 to {MAX_TARGET_BYTES} are possible"
            )


def _node(member: Member, content: Content | None = None) -> Node:
    return Node(
        mode=_TYPE_BITS[member.kind] | (0o777 if member.kind == tar.SYMLINK else member.mode),
        uid=member.uid,
        gid=member.gid,
        mtime=member.mtime,
        mtime_ns=member.mtime_ns,
        size=member.size if member.kind == tar.FILE else 0,
        target=member.target if member.kind == tar.SYMLINK else "",
        device=member.device,
        xattrs=member.xattrs,
        content=content,
    )


def _content(pieces: list[Stored], *, compressed: bool) -> Content:
    if len(pieces) == 1:
        return Content(pieces[0].hash, (), compressed)
    chunks, offset = [], 0
    for piece in pieces:
        if piece.hash is not None:
            chunks.append(Chunk(offset, piece.size, piece.hash))
        offset += piece.size
    return Content(None, tuple(chunks), compressed)
