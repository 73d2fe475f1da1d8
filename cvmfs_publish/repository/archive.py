"""Turn a published tree into one tar stream, always the same bytes for the same tree.

POSIX.1-2001 (pax).  Owners are numbers; names and texts that are no ASCII, too long or no UTF-8
stand in pax headers, as do fractions of seconds and extended attributes.  Files with several names
are independent files, as they are in the repository.  Every directory is followed by what is in it,
as programs that unpack expect.  Contents are read ahead, a few megabytes at a time.
"""

from __future__ import annotations

import stat
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.tree import Node, RepoPath, decode_name

Entries = Iterable[tuple[RepoPath, Node]]  # relative paths, depth first; "" is the root
Contents = Callable[[RepoPath, Node], Iterator[bytes]]  # of a file, verified; called by threads

BLOCK = 512  # bytes; a tar consists of these
END = bytes(2 * BLOCK)
READERS = 4  # threads; decompressing and hashing run outside the interpreter lock
SMALL = 1024**2  # bytes; a file up to this size is read ahead
BATCH_FILES = 100  # handed to a thread at a time
BATCH_BYTES = 2 * 1024**2  # of contents, about
AHEAD = 2 * READERS  # batches read ahead

_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
_Batch = list[tuple[RepoPath, Node]]


def iter_tar(entries: Entries, contents: Contents) -> Iterator[bytes]:
    """Yield the tar stream of a tree.

    Raises:
        IntegrityError: a content is not what the entry promises, or an entry is a device or
            socket, which is never published.
    """
    pool = ThreadPoolExecutor(READERS, "archive")
    ahead: deque[tuple[_Batch, Future[list[bytes]]]] = deque()
    try:
        for batch in _batches(entries):
            ahead.append((batch, pool.submit(_read, batch, contents)))
            if len(ahead) > AHEAD:
                yield from _members(*ahead.popleft(), contents)
        while ahead:
            yield from _members(*ahead.popleft(), contents)
        yield END
    finally:
        for _, future in ahead:
            future.cancel()
        pool.shutdown()


def _batches(entries: Entries) -> Iterator[_Batch]:
    batch: _Batch = []
    size = 0
    for path, node in entries:
        batch.append((path, node))
        size += node.size if _is_small(node) else 0
        if len(batch) >= BATCH_FILES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


def _is_small(node: Node) -> bool:
    return node.is_file and node.size <= SMALL


def _read(batch: _Batch, contents: Contents) -> list[bytes]:
    """Return the contents of the small files of a batch, in their order."""
    return [b"".join(contents(path, node)) for path, node in batch if _is_small(node)]


def _members(batch: _Batch, read: Future[list[bytes]], contents: Contents) -> Iterator[bytes]:
    small = iter(read.result())
    gathered: list[bytes] = []
    for path, node in batch:
        gathered.append(header(path, node))
        if _is_small(node):
            gathered += (next(small), _padding(node.size))
        elif node.is_file:
            yield b"".join(gathered)
            yield from contents(path, node)
            gathered = [_padding(node.size)]
    yield b"".join(gathered)


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def header(path: RepoPath, node: Node) -> bytes:
    """Return the header blocks of an entry."""
    kind = _TYPES.get(stat.S_IFMT(node.mode))
    if kind is None:
        raise IntegrityError(f"/{path} is a device or socket, which is never published")
    member = tarfile.TarInfo(path or ".")
    member.type = kind
    member.mode = stat.S_IMODE(node.mode)
    member.uid, member.gid = node.uid, node.gid
    member.mtime = node.mtime
    member.size = node.size if node.is_file else 0
    member.linkname = node.target if node.is_symlink else ""
    pax = {f"SCHILY.xattr.{name}": decode_name(value) for name, value in node.xattrs}
    if node.mtime_ns:
        pax["mtime"] = _seconds(node.mtime, node.mtime_ns)
    member.pax_headers = pax
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _seconds(seconds: int, nanoseconds: int) -> str:
    """Return a time as a decimal fraction; before 1970 it counts downwards."""
    total = seconds * 1_000_000_000 + nanoseconds
    sign, total = ("-", -total) if total < 0 else ("", total)
    return f"{sign}{total // 1_000_000_000}.{total % 1_000_000_000:09}"
