"""A repository that is a plain tree of files: on GPFS, NFS, Lustre or a local disk.

The layout is that of every backend; jobs run straight from the folder.  What the publisher keeps
for itself is below `.cvmfs-publish`:

    repository.json  revision and time of what is published
    lock             who writes (`folder_lock`)
    journal.json     a transaction that is done and being carried out (`directory_journal`)
    txn/             sandboxes that are being written, gone with their transaction
    trash/           what was replaced or removed; the time before the dash is when
    files/           what sandboxes share: a hard link to each file (`folder_write`)
    trees/           what each sandbox should be (`folder_listing`)

Each name is switched by one rename, so a job sees the old image or the new one; several names of
one transaction follow each other within moments, and a crash in between is made good by whoever
writes next.  A sandbox never changes: it is replaced by another, and what it was stays in the trash
until `collect` finds that no job can be running in it any more.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.content.local import DIRECTORY_MODE, storage_errors, sync_file_system
from cvmfs_publish.content.store import ContentStore, Lock, has_whole
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, LockedError, PublishError, RepositoryError
from cvmfs_publish.layers.tree import Node, RepoPath, Tree, encode_name
from cvmfs_publish.layers.treedigest import digest_lines, first_difference, list_tree, sort_lines
from cvmfs_publish.repository.base import Revision
from cvmfs_publish.repository.changes import Changes, NewDirectory, NewFile, NewLink, NewTree
from cvmfs_publish.repository.directory_journal import Arrival, Entry, Journal, State
from cvmfs_publish.repository.export import remove_tree
from cvmfs_publish.repository.folder import WORK, Folder, FolderView
from cvmfs_publish.repository.folder_listing import Listing, Traits, read_back
from cvmfs_publish.repository.folder_lock import LEASE, hold_folder
from cvmfs_publish.repository.folder_write import (
    FilePool,
    Share,
    TreeWriter,
    finish_directory,
    write_new,
)
from cvmfs_publish.repository.layouts import FLAT
from cvmfs_publish.repository.native.commit import ignore_step
from cvmfs_publish.repository.reflink import clone
from cvmfs_publish.repository.removal import (
    NO_GRACES,
    Collection,
    Removal,
    apply_removals,
    plan_removals,
)
from cvmfs_publish.repository.spooled import (
    ALGORITHM,
    Spooled,
    SpooledTransaction,
    old_objects,
)

_STATE, _JOURNAL = f"{WORK}/repository.json", f"{WORK}/journal.json"
_TXN, _TRASH, _FILES, _TREES = (f"{WORK}/{name}" for name in ("txn", "trash", "files", "trees"))
_SECOND = 1_000_000_000  # nanoseconds
_PROBE_NS = 123_456_789  # a part of a second that no file system rounds to itself
_CLOCK_TOLERANCE = 60  # seconds a published time may lie ahead of this host's clock
_FORGOTTEN = 3600  # seconds; who was taking the lock so long ago has died over it
_TXN_MODE = 0o711  # other accounts may look whether a sandbox has arrived
_AT_ONCE = 0  # stands for the time of what no job can have been running in


@dataclass(frozen=True, slots=True)
class DirectoryOptions:
    """How a plain tree is written."""

    share: Share | None = "auto"  # how equal files are one, see `FilePool`; None: not at all
    lock_wait: timedelta = timedelta()  # for another publisher to end
    lease: timedelta = timedelta(seconds=LEASE)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the file system of a plain tree can do, found out by trying."""

    traits: Traits
    hard_links: bool
    reflinks: bool
    clock: float  # Unix seconds that it gives a new file


class DirectoryRepository:
    """See `repository.base.Repository`: the plain tree at `root`."""

    def __init__(
        self, name: str, root: Path, spool: ContentStore, options: DirectoryOptions | None = None
    ) -> None:
        """Name a repository; `spool` holds contents on their way.  Nothing is read yet."""
        self.name = name
        self.root = root
        self.location = str(root)
        self._folder = Folder(root)
        self._spool = spool
        self._options = options or DirectoryOptions()
        self._reflinks: bool | None = None  # None: not tried yet

    # creating

    def exists(self) -> bool:
        """Whether a publisher has been here before, of whatever name."""
        return self._view().read_file(_STATE) is not None

    def create(self, now: datetime) -> Revision:
        """Begin in a folder, empty or not; what is there stays as it is.

        Raises:
            RepositoryError: there is a repository already, or files cannot be written.
        """
        if self.exists():
            raise RepositoryError(
                f"{self.location} already holds a repository",
                hint="choose another --storage, or use the repository as it is",
            )
        timestamp = int(now.timestamp())
        first = State(self.name, 1, hashlib.sha256(self.name.encode()).hexdigest(), timestamp)
        with storage_errors("creating the repository"):
            if not self.root.is_dir():
                self.root.mkdir(parents=True)
                self.root.chmod(0o755)
            with suppress(FileExistsError):
                (self.root / WORK).mkdir(0o755)
            self._make_folders()
            with self._lock():
                self._put_file(_STATE, first.to_json())
        return first.published

    def _make_folders(self) -> None:
        with self._folder.directory(WORK) as work:
            for path in (_TXN, _TRASH, _FILES, _TREES):
                name = posixpath.basename(path)
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=work)
                    if path == _TXN:
                        os.chmod(name, _TXN_MODE, dir_fd=work)

    # reading

    def _view(self) -> FolderView:
        return FolderView(self._folder)

    def _state(self) -> State:
        """Return what is published; `RepositoryError` if there is no repository of this name."""
        data = self._view().read_file(_STATE)
        if data is None:
            raise RepositoryError(
                f"{self.location} holds no repository: {_STATE} does not exist",
                hint="`cvmfs-publish init NAME --backend directory` begins one",
            )
        try:
            state = State.from_json(data)
        except IntegrityError as error:
            raise self._damaged(_STATE, error) from error
        if state.name != self.name:
            raise RepositoryError(
                f"{self.location} holds repository {state.name!r}, not {self.name!r}",
                hint="correct `repository.name` or `repository.storage`",
            )
        return state

    def _journal(self, state: State) -> Journal | None:
        """Return the transaction that is done and not yet carried out; None if there is none.

        One that does not begin from `state` is that of a writer that was taken for dead, or it was
        carried out already.
        """
        data = self._view().read_file(_JOURNAL)
        try:
            journal = Journal.from_json(data) if data is not None else None
        except IntegrityError as error:
            raise self._damaged(_JOURNAL, error) from error
        return journal if journal is not None and journal.before == state else None

    def _damaged(self, path: RepoPath, error: IntegrityError) -> RepositoryError:
        return RepositoryError(
            f"{self.location}/{path}: {error}",
            hint=error.hint or "restore the file from a backup of the file system",
        )

    def revision(self) -> Revision:
        state = self._state()
        journal = self._journal(state)
        return (journal.state if journal is not None else state).published

    def algorithm(self) -> HashAlgorithm:
        return ALGORITHM

    @contextmanager
    def open(self) -> Iterator[FolderView | Changes]:
        journal = self._journal(self._state())
        yield self._view() if journal is None else self._show(journal)

    def _show(self, journal: Journal) -> Changes:
        """Return the tree as it will be when a transaction that is done is carried out."""
        arriving = {}
        for path, entry in journal.entries.items():
            if isinstance(entry, Arrival):
                staged = f"{_TXN}/{journal.place(entry.number)}"
                is_there = self._folder.stat(staged) is not None
                arriving[entry.number] = FolderView(self._folder, staged if is_there else path)
        return journal.show(self._view(), arriving)

    def has_objects(self, names: Iterable[str], stored_bytes: int | None = None) -> bool:
        return has_whole(self._spool, names, stored_bytes)

    def _listing(self, path: RepoPath) -> Listing | None:
        packed = self._view().read_file(path)
        try:
            return Listing.unpack(packed) if packed is not None else None
        except IntegrityError as error:
            raise RepositoryError(
                f"{self.location}/{path}: {error}",
                hint="`cvmfs-publish publish --force` makes the sandbox anew",
            ) from error

    # writing

    @contextmanager
    def transaction(
        self, now: int, step: Callable[[str], None] = ignore_step
    ) -> Iterator[DirectoryTransaction]:
        """See `repository.base.Repository`.

        Raises:
            LockedError: another writer is active, and did not end while we were told to wait.
            RepositoryError: the repository is missing, damaged or cannot be written.
        """
        with self._writing(step) as lock:
            state = self._state()
            _check_clock(state, now)
            transaction = DirectoryTransaction(self, state, max(now, state.timestamp))
            try:
                yield transaction
                if transaction.changed:
                    self._commit(transaction, lock, step)
            except (OSError, RepositoryError):
                if self._is_published(state):
                    transaction.discard()  # a full disk must not stay full of it
                raise
            finally:
                with suppress(OSError):  # what stays is swept by the next writer
                    self._sweep(transaction.name)

    def _is_published(self, state: State) -> bool:
        try:
            return self.revision() == state.published
        except PublishError:
            return False

    @contextmanager
    def _writing(self, step: Callable[[str], None]) -> Iterator[Lock]:
        """Hold the locks; what a killed writer left is made good or swept first."""
        self._state()  # a clear error before anything else if there is none
        with storage_errors("writing the repository"):
            self._spool.create()
            with self._lock() as lock, self._spool.lock():
                self._make_folders()
                self._recover(step)
                self._spool.sweep()
                yield lock

    @contextmanager
    def _lock(self) -> Iterator[Lock]:
        with hold_folder(
            self.root / WORK,
            f"the repository in {self.location}",
            lease=self._options.lease.total_seconds(),
            wait=self._options.lock_wait.total_seconds(),
        ) as lock:
            yield lock

    def _recover(self, step: Callable[[str], None]) -> None:
        journal = self._journal(self._state())
        if journal is not None:
            step("recovery")
            self._carry_out(journal, step)
        self._unlink(_JOURNAL)
        self._sweep()
        for name, _ in self._folder.names(WORK):
            found = self._folder.stat(f"{WORK}/{name}") if name.startswith("lock.") else None
            if found is not None and found.st_mtime < time.time() - _FORGOTTEN:
                self._unlink(f"{WORK}/{name}")

    def _sweep(self, transaction: str = "") -> None:
        """Remove what is staged, of one transaction or, with the lock held, of all."""
        for name, _ in self._folder.names(_TXN):
            if name.startswith(transaction):
                _dispose(self.root / _TXN / name)

    def _commit(
        self, transaction: DirectoryTransaction, lock: Lock, step: Callable[[str], None]
    ) -> None:
        journal = transaction.journal()
        step("sync")
        self._sync()
        step("prepare")
        prepared = f"{_TXN}/{journal.transaction}.json"
        self._write(prepared, journal.to_json())
        lock.check()
        step("switch")
        try:
            self._link(prepared, _JOURNAL)
        except FileExistsError:
            raise self._overtaken() from None
        if self._state().published != transaction.before.published:  # we were taken for dead
            self._unlink(_JOURNAL)
            raise self._overtaken()
        self._sync_directory(WORK)
        self._carry_out(journal, step)
        step("done")

    def _overtaken(self) -> LockedError:
        return LockedError(
            f"the repository in {self.location} was changed by somebody else meanwhile",
            hint="nothing was published; find out who else writes here, then try again",
        )

    # carrying out a journal: every step may have been done already

    def _carry_out(self, journal: Journal, step: Callable[[str], None]) -> None:
        step("names")
        kept = journal.state.timestamp
        for number, path in enumerate(journal.cleared):
            if path in journal.entries and not isinstance(journal.entries[path], Arrival):
                self._clear(path, f"{_TRASH}/{kept}-{journal.transaction}.{number}")
        entries = journal.entries
        for path in sorted(entries, key=lambda p: (isinstance(entries[p], NewLink), p)):
            self._carry_out_entry(journal, path, entries[path])
        left = [each for each in enumerate(journal.cleared) if each[1] not in entries]
        for number, path in sorted(left, key=lambda each: each[1].startswith(FLAT)):
            self._clear(path, f"{_TRASH}/{_AT_ONCE}-{journal.transaction}.{number}")
        self._put_file(_STATE, journal.state.to_json())
        self._sync()
        self._unlink(_JOURNAL)
        self._purge(_AT_ONCE)

    def _carry_out_entry(self, journal: Journal, path: RepoPath, entry: Entry) -> None:
        if isinstance(entry, NewDirectory):
            with self._folder.parent(path) as (above, name):
                with suppress(FileExistsError):
                    os.mkdir(name, DIRECTORY_MODE, dir_fd=above)
                os.chmod(name, DIRECTORY_MODE, dir_fd=above)  # whatever umask the publisher has
        elif isinstance(entry, NewFile):
            if self._view().read_file(path) != entry.data:
                self._put_file(path, entry.data, journal.state.timestamp)
        elif isinstance(entry, NewLink):
            self._put_link(path, entry.target)
        else:
            self._arrive(journal, path, entry)

    def _arrive(self, journal: Journal, path: RepoPath, entry: Arrival) -> None:
        staged = f"{_TXN}/{journal.place(entry.number)}"
        listing = f"{_TREES}/{path}.zst"
        if self._folder.stat(staged) is not None:
            trash = f"{_TRASH}/{journal.state.timestamp}-{journal.transaction}-{entry.number}"
            self._clear(path, trash)
            self._rename(staged, path)
        if self._folder.stat(f"{staged}.zst") is not None:
            self._make_parents(listing)
            self._rename(f"{staged}.zst", listing)
        finish_directory(self._folder, path, entry.root, journal.traits)

    def _clear(self, path: RepoPath, trash: RepoPath) -> None:
        """Move what is at `path` away, once."""
        found = self._folder.stat(path)
        if found is None or self._folder.stat(trash) is not None:
            return
        if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o700 != 0o700:
            with self._folder.parent(path) as (above, name):  # it is moved by who may write to it
                os.chmod(name, stat.S_IMODE(found.st_mode) | 0o700, dir_fd=above)
        self._rename(path, trash)

    # files

    def _put_file(self, path: RepoPath, data: bytes, time: int | None = None) -> None:
        temporary = f"{_TXN}/{secrets.token_hex(8)}"
        self._write(temporary, data, time)
        self._rename(temporary, path)

    def _write(self, path: RepoPath, data: bytes, time: int | None = None) -> None:
        try:
            write_new(self._folder, path, data, time, lasting=True)
        except OSError as error:
            error.filename = error.filename or f"{self.location}/{path}"
            raise

    def _put_link(self, path: RepoPath, target: str) -> None:
        if self._folder.readlink(path) == target:
            return
        temporary = f"{_TXN}/{secrets.token_hex(8)}"
        with self._folder.parent(temporary) as (above, name):
            os.symlink(encode_name(target), name, dir_fd=above)
        self._rename(temporary, path)

    def _rename(self, source: RepoPath, target: RepoPath) -> None:
        with (
            self._folder.parent(source) as (old, old_name),
            self._folder.parent(target) as (new, new_name),
        ):
            os.rename(old_name, new_name, src_dir_fd=old, dst_dir_fd=new)

    def _link(self, source: RepoPath, target: RepoPath) -> None:
        with (
            self._folder.parent(source) as (old, old_name),
            self._folder.parent(target) as (new, new_name),
        ):
            try:
                os.link(old_name, new_name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
            except OSError:
                # An answer of NFS may be lost: what counts is how many names the file has.
                if os.stat(old_name, dir_fd=old, follow_symlinks=False).st_nlink != 2:
                    raise

    def _unlink(self, path: RepoPath) -> None:
        with self._folder.parent(path) as (above, name), suppress(FileNotFoundError):
            os.unlink(name, dir_fd=above)

    def _make_parents(self, path: RepoPath) -> None:
        parts = path.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            with (
                self._folder.parent("/".join(parts[:count])) as (above, name),
                suppress(FileExistsError),
            ):
                os.mkdir(name, 0o700, dir_fd=above)

    def _sync(self) -> None:
        sync_file_system(self.root / WORK)

    def _sync_directory(self, path: RepoPath) -> None:
        with self._folder.directory(path, to_list=True) as descriptor:
            os.fsync(descriptor)

    # collecting

    def plan(
        self,
        now: datetime,
        grace: timedelta,
        graces: Mapping[RepoPath, timedelta] = NO_GRACES,
    ) -> Collection:
        """Return what `collect` would remove; nothing is changed."""
        with self.open() as view:
            removals = plan_removals(view, now, grace, graces)
        gone = [removal.path for removal in removals]
        trash = self._old_trash(int((now - grace).timestamp()))
        return self._collection(removals, trash, self._links_in([*gone, *trash]), now, grace)

    def collect(
        self,
        now: datetime,
        grace: timedelta,
        graces: Mapping[RepoPath, timedelta] = NO_GRACES,
        step: Callable[[str], None] = ignore_step,
    ) -> Collection:
        """Remove sandboxes that no name has led to for `grace`, and all that is of no use any more.

        Raises: as `transaction` and `plan_removals`.
        """
        with self.transaction(int(now.timestamp()), step) as transaction:
            removals = plan_removals(transaction, now, grace, graces)
            apply_removals(transaction, removals)
        with self._writing(step):
            step("sweep")
            limit = int((now - grace).timestamp())
            trash = self._old_trash(limit)
            self._purge(limit)
            for removal in removals:
                self._unlink(f"{_TREES}/{removal.path}.zst")
            done = self._collection(removals, trash, {}, now, grace)
            for path, _ in self._unused_files({}):
                self._unlink(path)
            self._spool.remove(name for name, _ in old_objects(self._spool, now, grace))
        return done

    def _collection(
        self,
        removals: tuple[Removal, ...],
        trash: list[RepoPath],
        links: dict[int, int],
        now: datetime,
        grace: timedelta,
    ) -> Collection:
        files = list(self._unused_files(links))
        objects = list(old_objects(self._spool, now, grace))
        return Collection(
            removals,
            len(trash),
            len(files),
            sum(size for _, size in files),
            len(objects),
            sum(size for _, size in objects),
        )

    def _old_trash(self, limit: int) -> list[RepoPath]:
        """Return what was thrown away at that time (Unix seconds) or before."""
        found = []
        for name, _ in self._folder.names(_TRASH):
            time = name.partition("-")[0]
            if time.isdecimal() and int(time) <= limit:
                found.append(f"{_TRASH}/{name}")
        return found

    def _purge(self, limit: int) -> None:
        for path in self._old_trash(limit):
            _dispose(self.root / path)

    def _unused_files(self, links: dict[int, int]) -> Iterator[tuple[RepoPath, int]]:
        """Yield path and size of what no sandbox has, but for `links` by number of the inode."""
        for shard, _ in self._folder.names(_FILES):
            for name, _ in self._folder.names(f"{_FILES}/{shard}"):
                path = f"{_FILES}/{shard}/{name}"
                found = self._folder.stat(path)
                if found is not None and found.st_nlink - links.get(found.st_ino, 0) == 1:
                    yield path, found.st_size

    def _links_in(self, directories: Iterable[RepoPath]) -> dict[int, int]:
        """Return how many names files have in these directories, by number of the inode."""
        links: dict[int, int] = {}
        stack = [path for path in directories if self._view().is_directory(path)]
        while stack:
            path = stack.pop()
            for name, is_directory in self._folder.names(path):
                if is_directory:
                    stack.append(f"{path}/{name}")
                elif (found := self._folder.stat(f"{path}/{name}")) is not None:
                    links[found.st_ino] = links.get(found.st_ino, 0) + 1
        return links

    # for the transaction

    def stage(self, place: str, tree: Tree, contents: Spooled) -> Listing:
        """Write a sandbox where nobody looks."""
        share = self._share()
        pool = FilePool(self._folder, _FILES, share) if share is not None else None
        writer = TreeWriter(self._folder, contents.iter_content, self._traits(), pool)
        listing = writer.write(f"{_TXN}/{place}", tree)
        self._write(f"{_TXN}/{place}.zst", listing.pack())
        return listing

    def _traits(self) -> Traits:
        """Find out what this file system keeps, by trying."""
        path = f"{_TXN}/{secrets.token_hex(8)}"
        self._write(path, b"")
        with self._folder.parent(path) as (above, name):
            os.utime(name, ns=(_PROBE_NS, _PROBE_NS), dir_fd=above, follow_symlinks=False)
            try:
                os.chown(name, 1, 1, dir_fd=above, follow_symlinks=False)
            except OSError:
                owners = False
            else:
                owners = True
            found = os.stat(name, dir_fd=above, follow_symlinks=False)
            os.unlink(name, dir_fd=above)
        return Traits(owners and found.st_uid == 1, found.st_mtime_ns == _PROBE_NS)

    def abilities(self) -> Abilities:
        """Find out what this file system can do, with the lock held.

        Raises:
            LockedError: somebody is writing.
            RepositoryError: files cannot be written, or locked.
        """
        with storage_errors("trying what the file system can do"), self._lock():
            self._make_folders()
            path = f"{_TXN}/{secrets.token_hex(8)}"
            self._write(path, b"probe")
            try:
                found = self._folder.stat(path)
                clock = found.st_mtime if found is not None else time.time()
                with self._folder.parent(path) as (above, name):
                    has_xattrs = _keeps_xattrs(above, name)
            finally:
                self._unlink(path)
            # the lock itself has appeared by a hard link
            traits = replace(self._traits(), xattrs=has_xattrs)
            return Abilities(traits, True, self._has_reflinks(), clock)

    def _share(self) -> Share | None:
        """Return how files are shared here: without reflinks nobody looks for equal contents."""
        share = self._options.share
        if share not in ("auto", "reflink"):
            return share
        if self._reflinks is None:
            self._reflinks = self._has_reflinks()
        if share == "reflink" and not self._reflinks:
            raise RepositoryError(
                f"the file system of {self.location} has no reflinks",
                hint="write `repository.directory.share: auto`, which takes hard links there",
            )
        return share if self._reflinks else "hardlink"

    def _has_reflinks(self) -> bool:
        """Try to share the blocks of a file, within the directory of transactions."""
        places = [f"{_TXN}/{secrets.token_hex(8)}" for _ in range(2)]
        try:
            self._write(places[0], b"probe")
            self._write(places[1], b"")
            with (
                self._folder.open(places[0]) as source,
                self._folder.parent(places[1]) as (above, name),
            ):
                target = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
                try:
                    return clone(source, target)
                finally:
                    os.close(target)
        finally:
            for place in places:
                self._unlink(place)

    def staged(self, place: str) -> FolderView:
        """Show a sandbox that is staged."""
        return FolderView(self._folder, f"{_TXN}/{place}")

    def staged_listing(self, place: str) -> Listing | None:
        return self._listing(f"{_TXN}/{place}.zst")

    def listing(self, path: RepoPath) -> Listing | None:
        return self._listing(f"{_TREES}/{path}.zst")

    def contents(self) -> Spooled:
        return Spooled(self._spool)

    def view(self) -> FolderView:
        return self._view()


class DirectoryTransaction(SpooledTransaction):
    """See `repository.base.Transaction`."""

    def __init__(self, repository: DirectoryRepository, before: State, now: int) -> None:
        super().__init__(repository.view(), now, repository.contents())
        self.before = before
        self.revision = before.revision + 1
        self._repository = repository
        self.name = secrets.token_hex(8)
        self._roots: list[Node] = []  # of sandboxes, by number
        self._traits = Traits()

    def put_tree(self, path: RepoPath, tree: Tree) -> None:
        number = len(self._roots)
        self._roots.append(tree.root.node)
        with storage_errors("writing a sandbox"):
            place = self._place(number)
            self._traits = self._repository.stage(place, tree, self.contents).traits
        self.place_tree(path, NewTree(number, self._repository.staged(place)))

    def _place(self, number: int) -> str:
        return f"{self.name}-{number}"

    def tree_digest(self, path: RepoPath) -> Digest | None:
        lines = self._read_back(path)
        return digest_lines(lines) if lines else None

    def tree_difference(self, path: RepoPath, tree: Tree, digest: Digest) -> str:
        lines = self._read_back(path)
        if digest_lines(lines) == digest:
            return ""
        return first_difference(list_tree(tree), sort_lines(lines)) or "its digest differs"

    def _read_back(self, path: RepoPath) -> list[str]:
        entry = self.entries.get(path)
        with storage_errors("reading a sandbox"):
            if isinstance(entry, NewTree):
                place = self._place(entry.number)
                listing = self._repository.staged_listing(place)
                top, root = f"{_TXN}/{place}", self._roots[entry.number]
            else:
                listing = self._repository.listing(path)
                top, root = path, None
            if listing is None or not self.is_directory(path):
                return []
            return read_back(self._repository.view(), top, listing, root)

    def journal(self) -> Journal:
        """Return what is to be done."""
        entries: dict[RepoPath, Entry] = {
            path: Arrival.of(entry.number, self._roots[entry.number])
            if isinstance(entry, NewTree)
            else entry
            for path, entry in self.entries.items()
        }
        cleared = tuple(sorted(self.cleared))
        before = self.before
        text = repr((before.root_hash, self.name, cleared, sorted(entries)))
        state = State(
            before.name,
            self.revision,
            hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest(),
            self._now,
        )
        return Journal(self.name, before, state, self._traits, cleared, entries)


def _dispose(path: Path) -> None:
    """Remove what is at a path, whatever it is; what cannot be removed stays for the next time."""
    with suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            remove_tree(path)
        else:
            path.unlink()


def _keeps_xattrs(above: int, name: bytes) -> bool:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        os.setxattr(descriptor, "user.cvmfs-publish", b"1")
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _check_clock(state: State, now: int) -> None:
    if state.timestamp > now + _CLOCK_TOLERANCE:
        raise RepositoryError(
            f"revision {state.revision} was published {state.timestamp - now} seconds after what "
            "the clock of this host says",
            hint="set the clock of this host (NTP); if it is right, the one that published was "
            "ahead: wait until then",
        )
