"""What one layer contains, kept so that it is never fetched or read again.

A record names every change the layer makes and the objects its files are stored as.  On disk it is
one zstd-compressed JSON document below the state directory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.digest import Digest
from cvmfs_publish.findings import Finding
from cvmfs_publish.layers.tree import Chunk, Content, Node, RepoPath
from cvmfs_publish.layers.whiteouts import Change

# Raise when the meaning of a record changes: older ones are then read anew from the registry.
FORMAT = 1
_RAW = "raw"  # follows the entry of a file that is stored uncompressed


class LayerEntry(NamedTuple):
    """One change of a layer, at a path that is clean but not yet resolved against lower layers."""

    change: Change
    path: RepoPath
    node: Node | None = None  # of PUT
    target: RepoPath = ""  # of LINK: the path of the same file


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer that was read completely and verified; `entries` are in the order of the archive."""

    digest: Digest  # of the compressed blob
    diff_id: Digest  # of the uncompressed archive
    size: int  # compressed bytes
    stored_bytes: int  # of the objects its files are stored as
    entries: tuple[LayerEntry, ...]
    findings: tuple[Finding, ...] = ()

    def objects(self) -> Iterator[tuple[ContentHash, Suffix]]:
        """Yield the objects this layer's files are stored as."""
        for entry in self.entries:
            content = entry.node.content if entry.node is not None else None
            if content is None:
                continue
            if content.hash is not None:
                yield content.hash, Suffix.DATA
            for chunk in content.chunks:
                yield chunk.hash, Suffix.CHUNK


class RecordStore:
    """The records of the layers already read into one repository, below one directory."""

    def __init__(self, directory: Path, algorithm: HashAlgorithm) -> None:
        self._directory = directory
        self._algorithm = algorithm

    def _path(self, digest: Digest) -> Path:
        return self._directory / digest.hex[:2] / f"{digest.hex}.json.zst"

    def load(self, digest: Digest) -> LayerRecord | None:
        """Return the record of a layer; None if there is none that can be used."""
        try:
            packed = self._path(digest).read_bytes()
            document = json.loads(zstandard.ZstdDecompressor().decompress(packed))
            if document["format"] != FORMAT or document["hash"] != self._algorithm.value:
                return None
            return self._decode(digest, document)
        except (OSError, ValueError, KeyError, TypeError, IndexError, zstandard.ZstdError):
            return None  # a lost or damaged record costs another read of the layer, nothing else

    def save(self, record: LayerRecord) -> None:
        """Keep a record, complete or not at all.  Raises OSError."""
        path = self._path(record.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        document = json.dumps(self._encode(record), separators=(",", ":"))
        packed = zstandard.ZstdCompressor(level=1).compress(document.encode("ascii"))
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(packed)
            temporary.replace(path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()

    def _encode(self, record: LayerRecord) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "hash": self._algorithm.value,
            "diff_id": str(record.diff_id),
            "size": record.size,
            "stored_bytes": record.stored_bytes,
            "findings": record.findings,
            "entries": [_encode_entry(entry) for entry in record.entries],
        }

    def _decode(self, digest: Digest, document: dict[str, Any]) -> LayerRecord:
        return LayerRecord(
            digest=digest,
            diff_id=Digest.parse(document["diff_id"]),
            size=document["size"],
            stored_bytes=document["stored_bytes"],
            entries=tuple(self._decode_entry(values) for values in document["entries"]),
            findings=tuple(Finding(*values) for values in document["findings"]),
        )

    def _decode_entry(self, values: list[Any]) -> LayerEntry:
        if len(values) == 3:
            return LayerEntry(Change(values[0]), values[1], None, values[2])
        path, mode, uid, gid, mtime, mtime_ns, size, target, device, xattrs, digest, chunks = (
            values[:12]
        )
        compressed = values[12:] != [_RAW]
        content = None
        if digest:
            content = Content(self._hash(digest), (), compressed)
        elif chunks:
            pieces = [Chunk(start, length, self._hash(text)) for start, length, text in chunks]
            content = Content(None, tuple(pieces), compressed)
        pairs = tuple([(name, bytes.fromhex(value)) for name, value in xattrs]) if xattrs else ()
        node = Node(mode, uid, gid, mtime, mtime_ns, size, target, device, pairs, content)
        return LayerEntry(Change.PUT, path, node)

    def _hash(self, text: str) -> ContentHash:
        return ContentHash(bytes.fromhex(text), self._algorithm)


def _encode_entry(entry: LayerEntry) -> list[Any]:
    node = entry.node
    if node is None:
        return [entry.change.value, entry.path, entry.target]
    content = node.content
    chunks = content.chunks if content is not None else ()
    raw = [_RAW] if content is not None and not content.compressed else []
    return [
        entry.path, node.mode, node.uid, node.gid, node.mtime, node.mtime_ns,
        node.size, node.target, node.device, [(k, v.hex()) for k, v in node.xattrs],
        content.hash.digest.hex() if content is not None and content.hash is not None else None,
        [(c.offset, c.size, c.hash.digest.hex()) for c in chunks],
        *raw,
    ]  # fmt: skip
