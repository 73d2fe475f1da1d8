"""Check objects: that they exist, hold what their name says, and nothing else lies beside them.

Source: facts/cvmfs-format.md sections 1.2, 1.6 and 3.5 (swissknife_scrub.cc).
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import deflate

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.errors import IntegrityError, PublishError
from cvmfs_publish.repository.native.check_catalog import Claim
from cvmfs_publish.repository.native.origin import MissingError, Origin, read
from cvmfs_publish.repository.native.problems import Problem, Report, Severity
from cvmfs_publish.repository.native.reader import Hasher, iter_object

_BATCH = 64  # objects per task: hands work to threads rarely enough to cost nothing
_PENDING = 64  # tasks waiting; bounds memory
_AT_ONCE = 16 * 1024 * 1024  # bytes; larger contents are checked piece by piece
_COST_OF_A_FILE = 16 * 1024  # bytes that could be read in the time it takes to open a file
# RFC 1951: a back-reference of 258 bytes takes at least 2 bits, so 1032:1 is never exceeded
_MAX_RATIO = 1032
_HEX = re.compile(r"[0-9a-f]{2}")
_OBJECT = re.compile(r"([0-9a-f]{38}(?:-(?:rmd160|shake128))?)([CHPXLM]?)")

Progress = Callable[[str, int], None]


class ObjectChecker:
    """Checks claims about objects in threads, each object once.

    Contents are read and decompressed until `budget` is used up; from then on objects are only
    looked for.  Owned by one thread; only that thread touches the report.
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
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="check")
        self._futures: deque[Future[list[Problem]]] = deque()
        self._seen: set[Claim] = set()
        self.verified: set[str] = set()  # names of objects whose content was read

    def __enter__(self) -> ObjectChecker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, claims: Iterable[tuple[Claim, str]]) -> None:
        """Check claims; the text with each is the place to blame."""
        fresh = [(claim, place) for claim, place in claims if claim not in self._seen]
        self._seen.update(claim for claim, _ in fresh)
        self._report.counts["objects"] += len(fresh)
        read, looked_for = [], []
        for claim, place in fresh:
            if self._afford(claim):
                read.append((claim, place))
                self.verified.add(claim.hash.path(claim.kind))
            else:
                looked_for.append((claim, place))
        self._report.counts["contents read"] += len(read)
        for check, some in ((check_content, read), (check_presence, looked_for)):
            for start in range(0, len(some), _BATCH):
                self._submit(self._check_batch, check, some[start : start + _BATCH])

    def _afford(self, claim: Claim) -> bool:
        if self._budget is None:
            return True
        cost = claim.size + _COST_OF_A_FILE
        if cost > self._budget:
            return False
        self._budget -= cost
        return True

    def _check_batch(
        self, check: Callable[[Origin, Claim], str], batch: list[tuple[Claim, str]]
    ) -> list[Problem]:
        problems = []
        for claim, place in batch:
            try:
                text = check(self._origin, claim)
            except PublishError as error:
                text = str(error)
            if text:
                problems.append(Problem(place, Severity.ERROR, text))
        return problems

    def scrub(self, root: Path) -> None:
        """Hash every object below `data` whose content was not read yet, and report strays."""
        names = self._object_names(root)
        while batch := list(islice(names, _BATCH)):
            self._report.counts["objects hashed"] += len(batch)
            self._submit(self._hash_batch, root, batch)

    def _object_names(self, root: Path) -> Iterator[str]:
        for name, problem in iter_store(root):
            if problem is not None:
                self._report.add(problem)
            elif name not in self.verified:
                yield name

    def _hash_batch(self, root: Path, batch: list[str]) -> list[Problem]:
        problems = []
        for name in batch:
            text = check_hash(self._origin, name)
            if text:
                problems.append(Problem(name, Severity.ERROR, text))
        return problems

    def _submit(self, work: Callable[..., list[Problem]], *arguments: object) -> None:
        self._futures.append(self._pool.submit(work, *arguments))
        while len(self._futures) > _PENDING:
            self._collect()

    def _collect(self) -> None:
        for problem in self._futures.popleft().result():
            self._report.add(problem)
        if self._progress is not None:
            counts = self._report.counts
            self._progress("objects", counts["objects"] + counts["objects hashed"])

    def finish(self) -> None:
        """Wait for everything that was added."""
        while self._futures:
            self._collect()


def check_presence(origin: Origin, claim: Claim) -> str:
    """Return what is wrong as far as the stored size tells, "" if nothing."""
    name = claim.hash.path(claim.kind)
    stored = origin.size(name)
    if stored is None:
        return f"object {name} is missing"
    if stored < 0:
        return ""
    if not claim.compressed and stored != claim.size:
        return f"object {name} has {stored} bytes, the entry says {claim.size}"
    if claim.compressed and claim.size > stored * _MAX_RATIO:
        return f"object {name} of {stored} bytes cannot hold the {claim.size} the entry says"
    return ""


def check_content(origin: Origin, claim: Claim) -> str:
    """Return what is wrong with an object whose content is read, "" if nothing."""
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
        return f"object {name} is missing"
    if claim.hash.algorithm.digest(stored) != claim.hash.digest:
        return f"object {name} is damaged: its hash differs"
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
    return _compare(name, size, claim.size)


def _check_pieces(origin: Origin, claim: Claim) -> str:
    name = claim.hash.path(claim.kind)
    size = 0
    try:
        for piece in iter_object(origin, claim.hash, claim.kind, compressed=claim.compressed):
            size += len(piece)
            if size > claim.size:
                return f"content of object {name} is longer than the {claim.size} the entry says"
    except MissingError:
        raise
    except IntegrityError as error:
        return str(error)
    return _compare(name, size, claim.size)


def _compare(name: str, size: int, wanted: int) -> str:
    if size == wanted:
        return ""
    return f"content of object {name} has {size} bytes, the entry says {wanted}"


def check_hash(origin: Origin, name: str) -> str:
    """Return what is wrong with the object of this file name, "" if its hash is right."""
    text = name.removeprefix("data/").replace("/", "", 1)
    kind = text[-1] if text[-1].isupper() else ""
    wanted = ContentHash.parse(text.removesuffix(kind))
    digest = Hasher(wanted.algorithm)
    try:
        for piece in origin.pieces(name):
            digest.update(piece)
    except PublishError as error:
        return str(error)
    found = digest.digest()
    return "" if found == wanted.digest else f"object is damaged: its hash is {found.hex()}"


def iter_store(root: Path) -> Iterator[tuple[str, Problem | None]]:
    """Yield the name of everything below `data`: objects, and with a problem what is no object."""
    data = os.fspath(root / "data")
    for directory in _scan(data):
        if directory.name == "txn" and directory.is_dir(follow_symlinks=False):
            for leftover in _scan(directory.path):
                name = f"data/txn/{leftover.name}"
                text = "left over from an interrupted write; a writer removes it"
                yield name, Problem(name, Severity.WARNING, text)
        elif not _HEX.fullmatch(directory.name) or not directory.is_dir(follow_symlinks=False):
            name = f"data/{directory.name}"
            yield name, Problem(name, Severity.ERROR, "does not belong below data")
        else:
            for entry in _scan(directory.path):
                name = f"data/{directory.name}/{entry.name}"
                yield name, _stray(entry, name)


def _scan(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _stray(entry: os.DirEntry[str], name: str) -> Problem | None:
    if not entry.is_file(follow_symlinks=False):
        kind = stat.filemode(entry.stat(follow_symlinks=False).st_mode)
        return Problem(name, Severity.ERROR, f"is no regular file ({kind})")
    if not _OBJECT.fullmatch(entry.name):
        return Problem(name, Severity.ERROR, "is not the name of an object")
    return None


def object_exists(origin: Origin, content_hash: ContentHash, kind: Suffix) -> bool:
    """Whether an object is there; its content is not looked at."""
    return origin.size(content_hash.path(kind)) is not None
