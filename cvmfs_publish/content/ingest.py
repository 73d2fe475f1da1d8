"""Spread file contents over processes that compress, hash and store them.

Content passes through shared memory, so no byte is sent through a pipe, and small files travel
together: a slab holds as many as fit.  Compression needs most of the time of a publish and a
Python interpreter runs one thread at a time, hence processes.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, Self, cast

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import storage_errors
from cvmfs_publish.content.objects import Compression
from cvmfs_publish.content.store import ContentStore
from cvmfs_publish.content.worker import PIECE, REQUEST, RESULT, STATUS
from cvmfs_publish.errors import RepositoryError

CHUNK_SIZE = 4 * 1024 * 1024  # bytes; larger files are cut into chunks of this size (section 4)
SLAB_SIZE = CHUNK_SIZE  # bytes; a slab holds one chunk or many small files
MAX_WORKERS = 16


@dataclass(slots=True)
class Stored:
    """One piece of content, known by its hash once its slab is done."""

    size: int  # uncompressed bytes
    hash: ContentHash | None = None
    stored_size: int = 0


class ContentReader(Protocol):
    """Where content comes from."""

    def readinto(self, view: memoryview) -> None:
        """Fill `view` completely or raise."""


@dataclass(slots=True)
class _Job:
    slab: int
    done: _Batch
    pieces: list[tuple[Stored, int, bool]] = field(default_factory=list)
    used: int = 0


class _Batch:
    """The unfinished slabs of one layer."""

    def __init__(self) -> None:
        self._open = 0
        self._changed = threading.Condition()
        self.error: BaseException | None = None

    def begin(self) -> None:
        with self._changed:
            self._open += 1

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._open -= 1
            self.error = self.error or error
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0)
            if self.error is not None:
                raise self.error


class Ingestor:
    """Stores content with one process per core.  Several threads may `open` streams at once."""

    def __init__(
        self,
        store: ContentStore,
        algorithm: HashAlgorithm,
        readers: int,
        compression: Compression = Compression.ADAPTIVE,
    ) -> None:
        """Prepare for `readers` simultaneous streams; processes start with the first slab."""
        self._store = store
        self._algorithm = algorithm
        self.compression = compression
        self._workers = min(len(os.sched_getaffinity(0)), MAX_WORKERS)
        # A reader fills one slab while others are compressed or wait to be.
        count = 2 * self._workers + 2 * readers
        descriptor = os.memfd_create("cvmfs-publish-content", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, count * SLAB_SIZE)
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, count * SLAB_SIZE)
        self._view = memoryview(self._memory)
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slab in range(count):
            self._free.put(slab)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._write_back: threading.Thread | None = None
        self._sync_error: OSError | None = None
        # Objects that were not there before, and those of them that no finished stream has.
        self._new: list[tuple[ContentHash, Suffix]] = []
        self._loose: set[tuple[ContentHash, Suffix]] = set()
        # What finished streams have and a process that is still busy may yet report as new.
        self._kept: set[tuple[ContentHash, Suffix]] = set()
        self._busy = 0
        self._asks = store.description()["kind"] == "local"  # others confirm every object
        self._accounts = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _thread in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        # What layers that failed have brought is named by nothing, unless others have it as well.
        self._remove(self._loose - self._store.used)
        self._view.release()
        self._memory.close()
        os.close(self._descriptor)
        if self._write_back is not None:
            self._write_back.join()
        if self._sync_error is not None:  # the kernel tells it once, so the commit would not see it
            with storage_errors("writing file contents to disk"):
                raise self._sync_error

    def write_back(self) -> None:
        """Begin to bring what is stored so far to disk, in the background.

        The commit, which waits until everything is there, then has little left to wait for.
        """
        self._write_back = self._write_back or threading.Thread(target=self._sync)
        if self._write_back.ident is None:
            self._write_back.start()

    def _sync(self) -> None:
        try:
            self._store.sync()
        except OSError as error:
            self._sync_error = error

    def discard(self) -> None:
        """Remove every object that was not there before: nothing will ever name them.

        Only after the last stream is finished or abandoned, and while no other writer is active.
        """
        self._remove(self._new)
        self._new.clear()

    def _remove(self, objects: Iterable[tuple[ContentHash, Suffix]]) -> None:
        """Tidy up after a failure, which is what will be told; `gc` finds what stays."""
        with suppress(OSError, RepositoryError):
            self._store.remove([content_hash.path(kind) for content_hash, kind in objects])

    def open(self) -> ContentStream:
        """Return a stream for the contents of one layer."""
        return ContentStream(self)

    # for ContentStream

    def take(self, batch: _Batch) -> _Job:
        return _Job(self._free.get(), batch)

    def give_back(self, job: _Job) -> None:
        self._free.put(job.slab)

    def slab(self, job: _Job, offset: int, size: int) -> memoryview:
        start = job.slab * SLAB_SIZE + offset
        return self._view[start : start + size]

    def keep(self, pieces: Iterable[tuple[ContentHash, Suffix]]) -> None:
        """Note that something which will be published has these objects."""
        with self._accounts:
            kept = set(pieces)
            self._loose -= kept
            if self._busy:
                self._kept |= kept

    def check(self, pieces: Iterable[tuple[Stored, bool]]) -> None:
        """Raise `RepositoryError` unless pieces that were stored are there.

        The file that is missing here would be missing on every client, so it is asked for once
        more, where that costs next to nothing.
        """
        for piece, is_chunk in pieces if self._asks else ():
            if piece.hash is None:
                continue
            name = piece.hash.path(Suffix.CHUNK if is_chunk else Suffix.DATA)
            found = self._store.size(name)
            if found != piece.stored_size:
                size = "is gone" if found is None else f"has {found} bytes"
                raise RepositoryError(
                    f"{name} in {self._store.location} {size}; {piece.stored_size} bytes were "
                    "stored there a moment ago",
                    hint="find out who else writes to the storage; nothing was published",
                )

    def submit(self, job: _Job) -> None:
        with self._starting:
            if len(self._threads) < self._workers:
                thread = threading.Thread(target=self._drive, daemon=True)
                self._threads.append(thread)
                thread.start()
        job.done.begin()
        with self._accounts:
            self._busy += 1
        self._jobs.put(job)

    def _drive(self) -> None:
        """Feed one worker process until there are no more jobs."""
        command = [sys.executable, "-P", "-m", "cvmfs_publish.content.worker"]
        command += [str(self._descriptor), str(SLAB_SIZE)]
        settings = {
            "store": self._store.description(self._workers),
            "hash": self._algorithm.value,
            "compression": self.compression.value,
        }
        process: subprocess.Popen[bytes] | None = None
        while (job := self._jobs.get()) is not None:
            error: BaseException | None = None
            try:
                if job.done.error is None:
                    with storage_errors("storing file contents"):
                        if process is None:
                            process = subprocess.Popen(  # noqa: S603 - our own program
                                command,
                                stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE,
                                pass_fds=(self._descriptor,),
                            )
                            requests = cast(BinaryIO, process.stdin)
                            requests.write(json.dumps(settings).encode() + b"\n")
                        self._run(job, process)
            except RepositoryError as problem:
                error = problem
            finally:
                self.give_back(job)
                with self._accounts:
                    self._busy -= 1
                    if not self._busy:
                        self._kept.clear()
                job.done.end(error)
        if process is not None:
            # One that died has left a request nobody takes: reported with its job already.
            with suppress(BrokenPipeError), process:
                pass

    def _run(self, job: _Job, process: subprocess.Popen[bytes]) -> None:
        requests, replies = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
        message = bytearray(REQUEST.pack(job.slab, len(job.pieces)))
        for piece, offset, is_chunk in job.pieces:
            message += PIECE.pack(offset, piece.size, is_chunk)
        requests.write(message)
        requests.flush()
        (code,) = STATUS.unpack(_read(replies, STATUS.size))
        if code:
            (length,) = STATUS.unpack(_read(replies, STATUS.size))
            failure = json.loads(_read(replies, length))
            if "message" in failure:
                raise RepositoryError(failure["message"], hint=failure["hint"])
            raise OSError(code, os.strerror(code), failure["file"] or None)
        answer = _read(replies, RESULT.size * len(job.pieces))
        for (piece, _, is_chunk), values in zip(
            job.pieces, RESULT.iter_unpack(answer), strict=True
        ):
            digest, piece.stored_size, new = values
            piece.hash = ContentHash(digest, self._algorithm)
            if new:
                stored = piece.hash, Suffix.CHUNK if is_chunk else Suffix.DATA
                with self._accounts:
                    self._new.append(stored)
                    if stored not in self._kept:
                        self._loose.add(stored)


class ContentStream:
    """The contents of one layer on their way into the store.  For one thread."""

    def __init__(self, ingestor: Ingestor) -> None:
        self._ingestor = ingestor
        self.compressed = ingestor.compression is not Compression.NONE
        self._batch = _Batch()
        self._job: _Job | None = None
        self._pieces: list[tuple[Stored, bool]] = []

    def add(self, reader: ContentReader, size: int) -> list[Stored]:
        """Read `size` bytes; return the pieces they are stored as, complete after `finish`.

        One piece up to `CHUNK_SIZE` bytes, chunks of that size above.
        """
        if size <= CHUNK_SIZE:
            return [self._add(reader, size, is_chunk=False)]
        sizes = [CHUNK_SIZE] * (size // CHUNK_SIZE)
        if size % CHUNK_SIZE:
            sizes.append(size % CHUNK_SIZE)
        return [self._add(reader, part, is_chunk=True) for part in sizes]

    def _add(self, reader: ContentReader, size: int, *, is_chunk: bool) -> Stored:
        if self._job is not None and self._job.used + size > SLAB_SIZE:
            self._submit()
        if self._batch.error is not None:
            self._batch.wait()
        if self._job is None:
            self._job = self._ingestor.take(self._batch)
        piece, job = Stored(size), self._job
        with self._ingestor.slab(job, job.used, size) as view:
            reader.readinto(view)
        job.pieces.append((piece, job.used, is_chunk))
        self._pieces.append((piece, is_chunk))
        job.used += size
        return piece

    def _submit(self) -> None:
        if self._job is not None:
            self._ingestor.submit(self._job)
            self._job = None

    def finish(self) -> None:
        """Return when everything added is stored.

        Raises:
            RepositoryError: the store could not take it (full, read-only, ...).
        """
        self._submit()
        self._batch.wait()
        self._ingestor.check(self._pieces)
        self._ingestor.keep(
            (piece.hash, Suffix.CHUNK if is_chunk else Suffix.DATA)
            for piece, is_chunk in self._pieces
            if piece.hash is not None
        )

    def abandon(self) -> None:
        """Forget content that was added but not handed over; for use after an error."""
        if self._job is not None:
            self._ingestor.give_back(self._job)
            self._job = None


def _read(replies: BinaryIO, size: int) -> bytes:
    data = replies.read(size)
    if len(data) != size:
        raise OSError(errno.EPIPE, "a process storing file contents died")
    return data
