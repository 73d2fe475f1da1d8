"""A small repository that comes out the same each time: fixed keys, clock and tree.

It has one of each thing a repository can hold.
"""

from __future__ import annotations

import io
import os
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.content.ingest import CHUNK_SIZE, ContentStream, Stored
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.store import ContentStore
from cvmfs_publish.layers.tree import Chunk, Content, Directory, Node, Tree, decode_name
from cvmfs_publish.repository.native.repository import NativeRepository

NAME = "golden.example.org"
KEYS = Path(__file__).parent / "golden" / "keys"
CREATED_AT = 1795197600  # 2026-11-20 18:00 UTC
NOW = datetime.fromtimestamp(CREATED_AT + 600, UTC)

_LARGE = CHUNK_SIZE + 100_000  # bytes; two chunks
_NAMES = (b"with space", b"-rf", b"new\nline", b"latin-1 \xe9\xff", "wide \u65e5\u672c".encode())


def copy_keys(directory: Path) -> Path:
    """Copy the keys; git does not keep that private ones are private."""
    directory.mkdir(parents=True)
    for path in KEYS.glob(f"{NAME}.*"):
        shutil.copyfile(path, directory / path.name)
        (directory / path.name).chmod(0o400)
    return directory


def make_repository(
    store: ContentStore, keys: Path, algorithm: HashAlgorithm, *, large: int = _LARGE
) -> NativeRepository:
    """Publish four revisions, and a tag; `large` is the size of the largest file."""
    repository = NativeRepository(NAME, store, keys)
    repository.create(algorithm, datetime.fromtimestamp(CREATED_AT, UTC))
    with repository.transaction(CREATED_AT + 60) as transaction:
        with transaction.ingestor(1) as ingestor:
            stream = ingestor.open()
            trees = [(path, _finished(entries, stream)) for path, entries in _trees(stream, large)]
        transaction.make_directories("images", ["images"])
        for path, tree in trees:
            transaction.put_tree(path, tree)
        transaction.put_symlink("latest", "images/second")
        transaction.put_file("about.txt", b"Only for tests.\n")
    with repository.transaction(CREATED_AT + 120) as transaction:
        transaction.put_file("about.txt", b"Still only for tests.\n")
        transaction.make_directories("images/third/below")
        transaction.put_file("images/third/below/file", b"third\n")
    with repository.transaction(CREATED_AT + 180) as transaction:
        transaction.remove("images/second")
        transaction.put_symlink("latest", "images/first")
    with repository.maintenance(CREATED_AT + 240) as work:
        tag = work.history.tag("trunk-previous")
        assert tag is not None
        work.history.add_tag(
            "release/1", tag.hash, tag.revision, tag.timestamp, tag.size, "the first one"
        )
    return repository


def make_local(
    base: Path, algorithm: HashAlgorithm = HashAlgorithm.SHA1, *, large: int = _LARGE
) -> NativeRepository:
    """Make it in the folder `repo`, its keys in `keys`."""
    return make_repository(
        LocalStore(base / "repo"), copy_keys(base / "keys"), algorithm, large=large
    )


Entries = dict[bytes, tuple[Node, list[Stored]]]


def _trees(stream: ContentStream, large: int) -> list[tuple[str, Entries]]:
    return [("images/first", _first(stream, large)), ("images/second", _second(stream))]


def _first(stream: ContentStream, large: int) -> Entries:
    entries: Entries = {}

    def add(path: bytes, node: Node, data: bytes | None = None) -> None:
        pieces = stream.add(_Reader(data), len(data)) if data is not None else []
        entries[path] = node._replace(size=len(data or b"")), pieces

    def directory(path: bytes, mode: int = 0o755, **fields: object) -> None:
        add(path, Node(0o040000 | mode, **{"mtime": 1000, **fields}))  # type: ignore[arg-type]

    def file(path: bytes, data: bytes, mode: int = 0o644, **fields: object) -> None:
        add(path, Node(0o100000 | mode, **{"mtime": 2000, **fields}), data)  # type: ignore[arg-type]

    def other(path: bytes, mode: int, **fields: object) -> None:
        add(path, Node(mode, **{"mtime": 3000, **fields}))  # type: ignore[arg-type]

    directory(b"")
    directory(b"bin")
    file(b"bin/large", random.Random(1).randbytes(large), 0o755)
    file(b"bin/program", b"#!/bin/sh\n" * 200, 0o755)
    file(b"bin/setuid", b"x", 0o4755)
    directory(b"dev")
    other(b"dev/null", 0o020666, device=os.makedev(1, 3))
    other(b"dev/loop", 0o060660, device=os.makedev(7, 70_000), gid=6)
    other(b"dev/fifo", 0o010600)
    other(b"dev/socket", 0o140755)
    directory(b"empty", 0o1777)
    directory(b"names")
    for number, name in enumerate((*_NAMES, b"n" * 255)):
        file(b"names/" + name, b"%d\n" % number)
    directory(b"owned", 0o750, uid=1000, gid=4_294_967_294)
    file(b"owned/file", b"", 0o600, uid=1000, gid=1000, mtime=-86400, mtime_ns=999_999_999)
    directory(b"xattrs", xattrs=(("user.note", b"of a directory"),))
    file(b"xattrs/file", b"xattrs\n", xattrs=(("user.empty", b""), ("user.raw", bytes(range(255)))))
    other(b"link", 0o120777, target="bin/program")
    other(b"dangling", 0o120777, target="/nowhere/$(VAR:-else)")
    other(b"odd link", 0o120777, target=decode_name(b"new\nline \xff"))
    return entries


def _second(stream: ContentStream) -> Entries:
    data = b"#!/bin/sh\n" * 200
    return {
        b"": (Node(0o040755, mtime=1), []),
        b"same": (Node(0o100644, mtime=1, size=len(data)), stream.add(_Reader(data), len(data))),
    }


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readinto(self, view: memoryview) -> None:
        assert self._file.readinto(view) == len(view)


def _finished(entries: Entries, stream: ContentStream) -> Tree:
    """Put the tree together once its contents are stored."""
    stream.finish()
    tree = Tree(Directory(entries[b""][0]))
    for path, (node, pieces) in entries.items():
        if not path:
            continue
        parent, _, name = path.rpartition(b"/")
        above = tree.find(decode_name(parent))
        assert isinstance(above, Directory)
        if node.is_dir:
            above.children[decode_name(name)] = Directory(node)
        else:
            content = _content(pieces, stream) if node.is_file else None
            above.children[decode_name(name)] = node._replace(content=content)
    return tree


def _content(pieces: list[Stored], stream: ContentStream) -> Content:
    if len(pieces) == 1:
        return Content(pieces[0].hash, (), stream.compressed)
    chunks, offset = [], 0
    for piece in pieces:
        assert piece.hash is not None
        chunks.append(Chunk(offset, piece.size, piece.hash))
        offset += piece.size
    return Content(None, tuple(chunks), stream.compressed)
