"""Check objects: that they exist, hold what their name says, and nothing else lies beside them.

Source: facts/cvmfs-format.md sections 1.2, 1.6 and 3.5 (swissknife_scrub.cc).
"""

from __future__ import annotations

import os
import re
import stat
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import deflate

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.store import SHARDS, StoredObject
from cvmfs_publish.errors import IntegrityError, PublishError
from cvmfs_publish.repository.native.check_catalog import Claim
from cvmfs_publish.repository.native.check_process import CheckProcess, Result
from cvmfs_publish.repository.native.origin import MissingError, Origin, read
from cvmfs_publish.repository.native.problems import Problem, Report, Severity
from cvmfs_publish.repository.native.reader import Hasher, iter_object

_BATCH = 64  # objects per task: hands work to threads rarely enough to cost nothing
_PENDING = 8  # tasks per thread that wait; bounds memory
_AT_ONCE = 16 * 1024 * 1024  # bytes; larger contents are checked piece by piece
_COST_OF_A_FILE = 16 * 1024  # bytes that could be read in the time it takes to open a file
COST_OF_PROCESSES = 256 * 1024 * 1024  # bytes that could be read while they are started
# RFC 1951: a back-reference of 258 bytes takes at least 2 bits, so 1032:1 is never exceeded
_MAX_RATIO = 1032
_HEX = re.compile(r"[0-9a-f]{2}")
_OBJECT = re.compile(r"([0-9a-f]{38}(?:-(?:rmd160|shake128))?)([CHPXLM]?)")

T = TypeVar("T")


class Advance(NamedTuple):
    """How far a check is.  Totals are 0 where nobody knows them."""

    what: str  # "entries" of catalogs, or "objects"
    done: int
    total: int = 0
    done_bytes: int = 0  # as they are stored
    total_bytes: int = 0


Progress = Callable[[Advance], None]


@runtime_checkable
class Listing(Protocol):
    """What can tell which objects it holds: a content store."""

    def objects(self, shard: str) -> Iterator[StoredObject]:
        """Yield everything below `data/<shard>`, in no particular order."""


class ObjectChecker:
    """Checks claims about objects, each object once, on all cores.

    Contents are read and decompressed until `budget` is used up; from then on objects are only
    looked for.  Owned by one thread; only that thread touches the report.

    Python runs one thread at a time, and small objects need more of Python than of hash functions:
    two threads take longer for them than one.  Hence each thread hands its work to a process of
    its own once there is enough of it, if the repository is in a directory; those who wait for a
    server need no processes.
    """

    def __init__(
        self,
        origin: Origin,
        report: Report,
        *,
        threads: int,
        budget: int | None,
        progress: Progress | None = None,
    ) -> None:
        self._origin = origin
        self._report = report
        self._budget = budget
        self._progress = progress
        self._limit = _PENDING * threads
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="check")
        self._futures: deque[Future[list[tuple[str, Result]]]] = deque()
        self._known: dict[bytes, int] = {}  # what was claimed of each object
        self._done = Advance("objects", 0)
        self._store = origin if isinstance(origin, LocalStore) and threads > 1 else None
        self._cost = 0  # of what was handed out so far
        self._of_thread = threading.local()
        self._processes: list[CheckProcess] = []

    def __enter__(self) -> ObjectChecker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()

    def measure(self) -> None:
        """List all objects, so that progress can be told as a share of them.

        What cannot be listed is told by `scrub`.
        """
        if self._progress is None or not isinstance(self._origin, Listing):
            return
        count = size = 0
        with suppress(OSError, PublishError):
            for shard in SHARDS:
                for found in self._origin.objects(shard):
                    count += 1
                    size += found.size
        self._done = self._done._replace(total=count, total_bytes=size)

    def note(self, content_hash: ContentHash, kind: Suffix) -> None:
        """Take note of an object that somebody else has read and verified."""
        self._known[_key(content_hash, kind.value)] = -1
        if self._done.total:
            self._advance(1, self._origin.size(content_hash.path(kind)) or 0)

    def add(self, claims: Iterable[tuple[Claim, str]]) -> None:
        """Check claims; the text with each is the place to blame."""
        read: list[tuple[Claim, str]] = []
        looked_for: list[tuple[Claim, str]] = []
        for claim, place in claims:
            key, value = _key(claim.hash, claim.kind.value), claim.size << 1 | claim.compressed
            if self._known.get(key) != value:
                self._known[key] = value
                (read if self._afford(claim) else looked_for).append((claim, place))
        self._report.counts["objects"] += len(read) + len(looked_for)
        self._report.counts["contents read"] += len(read)
        for what, some in (("content", read), ("presence", looked_for)):
            for start in range(0, len(some), _BATCH):
                batch = some[start : start + _BATCH]
                self._cost += sum(claim.size for claim, _ in batch) if some is read else 0
                self._submit(self._check_claims, len(batch), what, batch)

    def _afford(self, claim: Claim) -> bool:
        if self._budget is None:
            return True
        cost = claim.size + _COST_OF_A_FILE
        if cost > self._budget:
            return False
        self._budget -= cost
        return True

    def scrub(self) -> None:
        """Hash every object whose content was not read yet, and report what is no object.

        Nothing happens where objects cannot be listed.
        """
        if not isinstance(self._origin, Listing):
            return
        names = self._unread(self._origin)
        while batch := list(islice(names, _BATCH)):
            self._report.counts["objects hashed"] += len(batch)
            self._submit(self._check_hashes, len(batch), batch)

    def _unread(self, origin: Listing) -> Iterator[str]:
        for name, problem in iter_names(origin):
            if problem is not None:
                self._report.add(problem)
            elif _key_of_name(name) not in self._known:
                yield name

    def _check_claims(self, what: str, batch: list[tuple[Claim, str]]) -> list[tuple[str, Result]]:
        claims = [claim for claim, _ in batch]
        process = self._process()
        if process is None:
            results = check_all(self._origin, CHECKS[what], claims)
        else:
            arguments = [
                (str(claim.hash), claim.kind.value, claim.size, claim.compressed)
                for claim in claims
            ]
            results = process.ask(what, arguments)
        return [(place, result) for (_, place), result in zip(batch, results, strict=True)]

    def _check_hashes(self, names: list[str]) -> list[tuple[str, Result]]:
        process = self._process()
        if process is None:
            results = check_all(self._origin, check_hash, names)
        else:
            results = process.ask(HASH, [(name,) for name in names])
        return list(zip(names, results, strict=True))

    def _process(self) -> CheckProcess | None:
        """Return the process of this thread, if it is worth one."""
        if self._store is None or self._cost < COST_OF_PROCESSES:
            return None
        process: CheckProcess | None = getattr(self._of_thread, "process", None)
        if process is None:
            process = CheckProcess(self._store.description())
            self._of_thread.process = process
            self._processes.append(process)
        return process

    def _submit(
        self, work: Callable[..., list[tuple[str, Result]]], count: int, *arguments: object
    ) -> None:
        self._cost += count * _COST_OF_A_FILE
        self._futures.append(self._pool.submit(work, *arguments))
        while len(self._futures) > self._limit:
            self._collect()

    def _collect(self) -> None:
        results = self._futures.popleft().result()
        for place, (text, _) in results:
            if text:
                self._report.error(place, text)
        self._advance(len(results), sum(result.stored for _, result in results))

    def _advance(self, count: int, size: int) -> None:
        before = self._done
        self._done = before._replace(done=before.done + count, done_bytes=before.done_bytes + size)
        if self._progress is not None:
            self._progress(self._done)

    def finish(self) -> None:
        """Wait for everything that was added."""
        while self._futures:
            self._collect()


def _key(content_hash: ContentHash, letter: str) -> bytes:
    """Return what tells an object from others, in few bytes: there may be many millions."""
    return content_hash.digest + (content_hash.algorithm.suffix + letter).encode()


def _key_of_name(name: str) -> bytes:
    """Return the same for the name of a file, `data/ab/cdef…C`; called for every object."""
    return bytes.fromhex(name[5:7] + name[8:46]) + name[46:].encode()


def check_presence(origin: Origin, claim: Claim) -> Result:
    """Say what is wrong as far as the stored size tells."""
    name = claim.hash.path(claim.kind)
    stored = origin.size(name)
    if stored is None:
        return Result(f"object {name} is missing")
    if stored < 0:
        return Result("")
    if not claim.compressed and stored != claim.size:
        return Result(f"object {name} has {stored} bytes, the entry says {claim.size}")
    if claim.compressed and claim.size > stored * _MAX_RATIO:
        return Result(
            f"object {name} of {stored} bytes cannot hold the {claim.size} the entry says"
        )
    return Result("")


def check_content(origin: Origin, claim: Claim) -> Result:
    """Say what is wrong with an object whose content is read."""
    name = claim.hash.path(claim.kind)
    try:
        if claim.size > _AT_ONCE:
            return _check_pieces(origin, claim)
        try:
            stored = read(origin, name, 2 * _AT_ONCE)
        except MissingError:
            raise
        except IntegrityError:
            return _check_pieces(origin, claim)
    except MissingError:
        return Result(f"object {name} is missing")
    if claim.hash.algorithm.digest(stored) != claim.hash.digest:
        return Result(f"object {name} is damaged: its hash differs", len(stored))
    if not claim.compressed:
        size = len(stored)
    else:
        try:
            # One byte more than expected, so that a longer content is noticed.
            content = deflate.zlib_decompress(stored, claim.size + 1)
        except deflate.DeflateError:
            return _check_pieces(origin, claim)
        # libdeflate ignores what follows a stream: then the checksum, its end, comes before ours
        if stored.find(zlib.adler32(content).to_bytes(4)) != len(stored) - 4:
            return _check_pieces(origin, claim)
        size = len(content)
    return Result(_compare(name, size, claim.size), len(stored))


def _check_pieces(origin: Origin, claim: Claim) -> Result:
    name = claim.hash.path(claim.kind)
    size = 0
    stored = origin.size(name) or 0
    try:
        for piece in iter_object(origin, claim.hash, claim.kind, compressed=claim.compressed):
            size += len(piece)
            if size > claim.size:
                return Result(
                    f"content of object {name} is longer than the {claim.size} the entry says",
                    stored,
                )
    except MissingError:
        raise
    except IntegrityError as error:
        return Result(str(error), stored)
    return Result(_compare(name, size, claim.size), stored)


def _compare(name: str, size: int, wanted: int) -> str:
    if size == wanted:
        return ""
    return f"content of object {name} has {size} bytes, the entry says {wanted}"


def check_hash(origin: Origin, name: str) -> Result:
    """Say whether the hash of the object of this file name is right."""
    wanted = ContentHash.parse((name[5:7] + name[8:]).rstrip("CHPXLM"))
    digest = Hasher(wanted.algorithm)
    stored = 0
    for piece in origin.pieces(name):
        digest.update(piece)
        stored += len(piece)
    found = digest.digest()
    if found == wanted.digest:
        return Result("", stored)
    return Result(f"object is damaged: its hash is {found.hex()}", stored)


def check_all(
    origin: Origin, check: Callable[[Origin, T], Result], subjects: Iterable[T]
) -> list[Result]:
    """Check one after the other; what cannot be read is wrong, and no reason to stop."""
    results = []
    for subject in subjects:
        try:
            results.append(check(origin, subject))
        except PublishError as error:
            results.append(Result(str(error)))
    return results


CHECKS: dict[str, Callable[[Origin, Claim], Result]] = {
    "content": check_content,
    "presence": check_presence,
}
HASH = "hash"


def iter_names(origin: Listing) -> Iterator[tuple[str, Problem | None]]:
    """Yield the name of everything below `data`: objects, and with a problem what is no object."""
    if isinstance(origin, LocalStore):
        yield from iter_store(origin.root)
        return
    for shard in SHARDS:
        for found in origin.objects(shard):
            file_name = found.name.removeprefix(f"data/{shard}/")
            yield found.name, None if _OBJECT.fullmatch(file_name) else _no_object(found.name)


def iter_store(root: Path) -> Iterator[tuple[str, Problem | None]]:
    """Yield the name of everything below `data`: objects, and with a problem what is no object."""
    directories, problem = _scan(root, "data")
    if problem is not None:
        yield "data", problem
    for directory in directories:
        name = f"data/{directory.name}"
        is_directory = directory.is_dir(follow_symlinks=False)
        if not is_directory or not (_HEX.fullmatch(directory.name) or directory.name == "txn"):
            yield name, Problem(name, Severity.ERROR, "does not belong below data")
            continue
        entries, problem = _scan(root, name)
        if problem is not None:
            yield name, problem
        for entry in entries:
            below = f"{name}/{entry.name}"
            if directory.name == "txn":
                text = "left over from an interrupted write; a writer removes it"
                yield below, Problem(below, Severity.WARNING, text)
            else:
                yield below, _stray(entry, below)


def _scan(root: Path, name: str) -> tuple[list[os.DirEntry[str]], Problem | None]:
    try:
        with os.scandir(root / name) as entries:
            return sorted(entries, key=lambda entry: entry.name), None
    except FileNotFoundError:
        return [], None
    except OSError as error:
        return [], Problem(name, Severity.ERROR, f"cannot be listed: {error.strerror}")


def _stray(entry: os.DirEntry[str], name: str) -> Problem | None:
    if not entry.is_file(follow_symlinks=False):
        kind = stat.filemode(entry.stat(follow_symlinks=False).st_mode)
        return Problem(name, Severity.ERROR, f"is no regular file ({kind})")
    if not _OBJECT.fullmatch(entry.name):
        return _no_object(name)
    return None


def _no_object(name: str) -> Problem:
    return Problem(name, Severity.ERROR, "is not the name of an object")


def object_exists(origin: Origin, content_hash: ContentHash, kind: Suffix) -> bool:
    """Whether an object is there; its content is not looked at."""
    return origin.size(content_hash.path(kind)) is not None
