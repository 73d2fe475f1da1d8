"""A repository behind a gateway: `cvmfs_server` writes it under leases, several publishers at once.

A lease is the right to change what is below one path.  A transaction of ours becomes several of
`cvmfs_server`, each under a lease on the narrowest path that has what it changes:

    1. every sandbox by itself, with the listing of what is in it (`.flat/ab`)
    2. names, registry by registry (`ghcr.io/a`), those of platforms first, those without last
    3. records (`.metadata`)

so a name never leads to what is not there, and a record never tells of a name that is not.  Killed
in between, names and records differ, and the next publish of the image makes good which.

Others go on meanwhile.  Whenever a lease is held, what the transaction has read is compared with
what is published at that moment; if somebody has changed it, nothing more is written and the whole
begins again (`OvertakenError`).  The mount must be based on the newest state of what is below the
lease, too: `cvmfs_server transaction` reads the manifest before it has the lease, and whoever
published in between would be undone (E-65).

What is published is read from the catalogs of the Stratum 0, since the mount of a publisher may
show something older until its next transaction, and looked at again after each publish.

Source: facts/cvmfs-format.md section 11.4; cvmfs/publish/repository_transaction.cc,
repository_session.cc, receiver/catalog_merge_tool_impl.h, gateway/internal/gateway/backend.
"""

from __future__ import annotations

import logging
import posixpath
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from secrets import SystemRandom
from typing import NamedTuple, TypeVar

from cvmfs_publish.content.hashes import ContentHash
from cvmfs_publish.content.local import storage_errors
from cvmfs_publish.content.store import ContentStore
from cvmfs_publish.errors import InputError, LockedError, RepositoryError
from cvmfs_publish.layers.tree import RepoPath, Tree, node_of
from cvmfs_publish.repository.base import OvertakenError, View
from cvmfs_publish.repository.changes import Changes, NewDirectory, NewFile, NewLink, NewTree
from cvmfs_publish.repository.cvmfs_server import (
    ServerOptions,
    ServerRepository,
    ServerTransaction,
    check_clock,
)
from cvmfs_publish.repository.folder_listing import Listing
from cvmfs_publish.repository.layouts import (
    FLAT,
    METADATA,
    MULTIARCH,
    listing_of,
    record_beside,
)
from cvmfs_publish.repository.mount_write import differs
from cvmfs_publish.repository.native.catalog import CatalogRef
from cvmfs_publish.repository.native.commit import ignore_step
from cvmfs_publish.repository.native.http_origin import HttpOrigin, Route
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.origin import Remembered
from cvmfs_publish.repository.native.reader import Snapshot, open_snapshot
from cvmfs_publish.repository.native.repository import SnapshotView
from cvmfs_publish.repository.native.server_conf import ServerConf
from cvmfs_publish.repository.read_set import ReadSet, common_path
from cvmfs_publish.repository.removal import (
    NO_GRACES,
    Collection,
    Removal,
    apply_removals,
    plan_removals,
)
from cvmfs_publish.repository.server_program import LeaseBusyError, ServerError
from cvmfs_publish.repository.spooled import Spooled, old_objects

T = TypeVar("T")

_ALL = ""  # the lease on the whole repository
_ATTEMPTS = 5  # at what fails though no other publisher holds a lease
_SHORTEST, _LONGEST = 0.5, 15.0  # seconds between two looks whether a lease has ended
_PLAIN = re.compile(r"[A-Za-z0-9._:@+-]+")  # names a shell and the gateway take as they are
_NO_ENTRY = (2, 20)  # exit codes of `transaction`: the directory of the lease is gone
# What is said where a gateway does not know a lease any more.
_LOST = re.compile(r"invalid[ _](lease|token|session token)", re.IGNORECASE)
_log = logging.getLogger(__name__)


class LeaseLostError(LockedError):
    """A lease ended before what it was for was published; nothing of that is published."""


class _StaleError(LockedError):
    """The mount is older than what somebody published below the path of a lease."""


class GatewayRepository(ServerRepository):
    """See `repository.base.Repository`."""

    def __init__(
        self, conf: ServerConf, state: Path, spool: ContentStore, options: ServerOptions
    ) -> None:
        super().__init__(conf, state, spool, options)
        self._stratum0 = Remembered(HttpOrigin(conf.url, Route(fresh=True)))
        self._shown: PublishedView | None = None

    # reading

    def snapshot(self) -> Snapshot:
        """Open the published revision, verified as clients verify it; close it after use.

        Raises:
            IntegrityError: something is not what was promised.
            RemoteError: the Stratum 0 is unreachable.
        """
        keys = [self.conf.keys / f"{self.name}.pub"]
        return open_snapshot(self._stratum0, keys, now=None, name=self.name)

    def manifest(self) -> Manifest:
        with self.damage(), self.snapshot() as snapshot:
            return snapshot.manifest

    @contextmanager
    def published(self) -> Iterator[PublishedView]:
        """Show what is published at this moment."""
        with self.damage():
            snapshot = self.snapshot()
        with snapshot:
            yield PublishedView(snapshot, self)

    @contextmanager
    def open(self) -> Iterator[PublishedView]:
        with self.published() as view:
            before, self._shown = self._shown, view
            try:
                yield view
            finally:
                self._shown = before

    def view(self) -> PublishedView:
        """Return what the innermost block of `open` shows."""
        if self._shown is None:
            raise TypeError("what is behind a gateway is seen while it is open")
        return self._shown

    # writing

    @contextmanager
    def _begin(self, now: int) -> Iterator[GatewayTransaction]:
        with self.published() as view:
            check_clock(view.manifest, now)
            yield GatewayTransaction(self, view, Spooled(self._spool), view.manifest, now)

    def _check_mount(self) -> None:
        if not self.folder.root.is_dir():
            raise RepositoryError(
                f"{self.location} is no directory: the repository is not mounted",
                hint=f"`cvmfs_server mount {self.name}`, or correct"
                " `repository.cvmfs_server.mount`",
            )

    def _commit(self, transaction: ServerTransaction, step: Callable[[str], None]) -> None:
        if not isinstance(transaction, GatewayTransaction):
            raise TypeError("a transaction of another repository")
        for part in transaction.parts():
            self._persist(partial(self._publish_part, transaction, part, step))
            transaction.done.update(part)
        step("done")

    def _publish_part(
        self, transaction: GatewayTransaction, part: list[RepoPath], step: Callable[[str], None]
    ) -> None:
        """Publish what belongs to one lease, unless it is published already."""
        with self.published() as view:
            left = transaction.left(part, view)
            if not left:
                return
            lease = lease_path(left, view)
        step(f"lease on /{lease}")
        try:
            with self._leased(lease, step) as view:
                transaction.check(view)
                if any(path.startswith(f"{METADATA}/") for path in part):
                    # Names were published just before, in that revision or an earlier one.
                    transaction.renumber(view.manifest.revision + (not transaction.done))
                left = transaction.left(part, view)
                transaction.note_try(left, view)
                step("writing")
                self._write_paths(transaction, left)
        except (ServerError, LeaseLostError):
            with self.published() as view:
                if transaction.left(left, view):
                    raise
            _log.warning("it failed, but what it was for is published: /%s", lease)
        with self.published() as view:
            transaction.check_published(left, view)

    def _write_paths(self, transaction: GatewayTransaction, paths: Iterable[RepoPath]) -> None:
        chosen = set(paths)
        writer = self.writer(transaction)
        writer.remove(chosen & transaction.cleared)
        entries = {path: transaction.entries[path] for path in chosen & transaction.entries.keys()}
        writer.remove(path for path, entry in entries.items() if isinstance(entry, NewTree))
        writer.put(entries, dict(enumerate(transaction.pending)))

    @contextmanager
    def _leased(self, lease: RepoPath, step: Callable[[str], None]) -> Iterator[PublishedView]:
        """Hold a lease and a transaction; publish it if the block succeeds, else end it.

        Shows what is published below the lease, which nobody else changes now.

        Raises:
            LeaseBusyError: another publisher has a lease that overlaps.
            LeaseLostError: it ended too early; nothing was published.
            _StaleError: the transaction does not begin from the newest state.
        """
        step("transaction")
        try:
            self._server.transaction(lease)
        except ServerError as error:
            if error.code in _NO_ENTRY:
                raise _StaleError(f"the directory of /{lease} is gone", hint=error.hint) from error
            raise
        is_publishing = False
        try:
            with self.published() as view:
                self._check_base(view, lease)
                yield view
            step("switch")
            is_publishing = True
            self._server.publish()
        except BaseException as error:
            self._server.abort()
            if is_publishing and isinstance(error, ServerError):
                self._tell_lost(error, lease)
            raise

    def _tell_lost(self, error: ServerError, lease: RepoPath) -> None:
        """Raise `LeaseLostError` if a publish failed for want of its lease."""
        if _LOST.search(error.said):
            raise LeaseLostError(
                f"the lease on /{lease} of {self.name} ended before what it was for was published:"
                f" {error}",
                hint="if it takes longer than leases of the gateway live, raise `max_lease_time`"
                " there",
            ) from error

    def _check_base(self, newest: PublishedView, lease: RepoPath) -> None:
        base = self._server.base()
        root = newest.manifest.root_hash
        if base == str(root):
            return
        with self.damage():
            shown = CatalogRef(ContentHash.parse(base), 0)
            with Snapshot(newest.snapshot.origin, newest.manifest, shown) as old:
                is_same = old.identity(lease) == newest.snapshot.identity(lease)
        if not is_same:
            raise _StaleError(
                f"the mount of {self.name} shows root catalog {base} still, but {root} is published"
                f" and differs in /{lease}",
                hint="`cvmfs_server transaction` remounts it if `CVMFS_AUTO_REPAIR_MOUNTPOINT` is"
                " set in server.conf",
            )

    def _persist(self, attempt: Callable[[], T]) -> T:
        """Return what an attempt comes to, after waiting for others and making good failures."""
        end = time.monotonic() + self.options.lease_wait.total_seconds()
        pause, failures = _SHORTEST, 0
        while True:
            try:
                return attempt()
            except LeaseBusyError as error:
                if time.monotonic() >= end:
                    raise
                _log.info("waiting for a lease: %s", error)
            except (LeaseLostError, _StaleError) as error:
                failures += 1
                if failures == _ATTEMPTS:
                    raise
                _log.warning("trying again: %s", error)
            time.sleep(SystemRandom().uniform(pause / 2, pause))
            pause = min(pause * 1.5, _LONGEST)

    # collecting

    def collect(
        self,
        now: datetime,
        grace: timedelta,
        graces: Mapping[RepoPath, timedelta] = NO_GRACES,
        step: Callable[[str], None] = ignore_step,
    ) -> Collection:
        """Remove sandboxes that no name has led to for `grace`, under a lease on everything.

        No other publisher is at work then, so none is about to name what is removed.

        Raises: as `transaction` and `plan_removals`.
        """
        self._check_place()
        with storage_errors("writing the repository"):
            self._spool.create()
            with self._locked(step):
                removals = self._persist(lambda: self._collect(now, grace, graces, step))
                done = self._collection(removals, now, grace)
                self._spool.remove(name for name, _ in old_objects(self._spool, now, grace))
        return done

    def _collect(
        self,
        now: datetime,
        grace: timedelta,
        graces: Mapping[RepoPath, timedelta],
        step: Callable[[str], None],
    ) -> tuple[Removal, ...]:
        with self.published() as view:
            if not plan_removals(view, now, grace, graces):
                return ()
        with self._leased(_ALL, step) as view:
            timestamp = int(now.timestamp())
            check_clock(view.manifest, timestamp)
            spooled = Spooled(self._spool)
            transaction = GatewayTransaction(self, view, spooled, view.manifest, timestamp)
            removals = plan_removals(transaction, now, grace, graces)
            for removal in removals:
                transaction.remove(listing_of(removal.path))
            apply_removals(transaction, removals)
            step("writing")
            self._write_paths(transaction, {*transaction.cleared, *transaction.entries})
        step("done")
        return removals


class PublishedView(SnapshotView):
    """What is published, by its catalogs; what is damaged is the repository's fault."""

    def __init__(self, snapshot: Snapshot, repository: ServerRepository) -> None:
        super().__init__(snapshot)
        self.snapshot = snapshot
        self.manifest = snapshot.manifest
        self._damage = repository.damage

    def read_file(self, path: RepoPath) -> bytes | None:
        with self._damage():
            return super().read_file(path)

    def read_symlink(self, path: RepoPath) -> str | None:
        with self._damage():
            return super().read_symlink(path)

    def is_directory(self, path: RepoPath) -> bool:
        with self._damage():
            return super().is_directory(path)

    def modified_at(self, path: RepoPath) -> int | None:
        with self._damage():
            return super().modified_at(path)

    def list_names(self, path: RepoPath) -> list[tuple[str, bool]]:
        with self._damage():
            return super().list_names(path)


class GatewayTransaction(ServerTransaction):
    """See `repository.base.Transaction`; nothing is written before it ends."""

    def __init__(
        self,
        repository: GatewayRepository,
        view: PublishedView,
        contents: Spooled,
        base: Manifest,
        now: int,
    ) -> None:
        self._reads = ReadSet(view)
        super().__init__(repository, view, contents, base, now, tree=self._reads)
        self.done: set[RepoPath] = set()  # what is published of it
        self._damage = repository.damage
        self._traits = replace(repository.traits(), nanoseconds=False)
        self._tried: dict[RepoPath, _Before] = {}  # what was there before

    def put_tree(self, path: RepoPath, tree: Tree) -> None:
        for below, entry in tree.walk():
            node = node_of(entry)
            if not (node.is_dir or node.is_file or node.is_symlink):
                raise InputError(
                    f"/{below} is a named pipe, a socket or a device: gateways drop those",
                    hint="build the image without it, or publish it into a repository without a"
                    " gateway",
                )
        super().put_tree(path, tree)
        self.put_file(listing_of(path), self._listing(self.pending[-1].listing).pack())

    def _listing(self, lines: tuple[str, ...]) -> Listing:
        return Listing(self._traits, lines)

    def parts(self) -> list[list[RepoPath]]:
        """Return what is changed, divided by the lease it belongs to, in the order to publish."""
        sandboxes = sorted(path for path, _ in self.trees())
        found: dict[tuple[int, str], list[RepoPath]] = {}
        for path in sorted({*self.entries, *self.cleared}):
            found.setdefault(_rank(path, sandboxes), []).append(path)
        return [found[key] for key in sorted(found)]

    def check(self, found: View) -> None:
        """Raise `OvertakenError` if somebody has changed what was read, or published, here."""
        expected = Changes(self.files, self.now)
        for path in self.done:
            if path in self.entries:
                expected.put(path, self.entries[path])
        expected.cleared = self.done & self.cleared
        arrived = {
            path
            for path, entry in self.entries.items()
            if isinstance(entry, NewDirectory | NewTree)
        }
        changed = self._reads.first_change(expected, found, arrived)
        if changed is not None:
            raise OvertakenError(
                f"another publisher has changed /{changed} meanwhile",
                hint="names may lead to what is new already; try again, which makes good the rest",
            )

    def left(self, paths: Iterable[RepoPath], view: PublishedView) -> list[RepoPath]:
        """Return what of this is not published yet."""
        with self._damage():
            return [path for path in paths if not self._is_in_place(path, view)]

    def note_try(self, paths: Iterable[RepoPath], view: PublishedView) -> None:
        """Remember what is there before it is published, to tell later whether it was."""
        with self._damage():
            for path in paths:
                self._tried[path] = _Before(view.snapshot.identity(path), _show(view, path))

    def _is_in_place(self, path: RepoPath, view: PublishedView) -> bool:
        entry = self.entries.get(path)
        if entry is None:
            return view.node(path) is None
        if isinstance(entry, NewFile):
            return view.read_file(path) == entry.data
        if isinstance(entry, NewLink):
            return view.read_symlink(path) == entry.target
        if not view.is_directory(path):
            return False
        if path in self.cleared and not self._was_left(path):  # in place of another
            before = self._tried.get(path)
            return before is not None and view.snapshot.identity(path) != before.identity
        return isinstance(entry, NewDirectory) or not self._differs(path, entry, view)

    def _was_left(self, path: RepoPath) -> bool:
        """Whether a sandbox is what a killed publisher has left: there is no record of it."""
        is_tree = isinstance(self.entries[path], NewTree)
        return is_tree and self.files.read_file(record_beside(path)) is None

    def _differs(self, path: RepoPath, entry: NewTree, view: PublishedView) -> str:
        listing = self._listing(self.pending[entry.number].listing)
        if view.read_file(listing_of(path)) != listing.pack():  # it came with the sandbox
            return "its listing is another"
        return differs(view, path, listing)

    def check_published(self, paths: Iterable[RepoPath], view: PublishedView) -> None:
        """Raise `RepositoryError` if what was just published is not there.

        A gateway drops what it does not expect without a word.  Files and links may have been
        changed by others meanwhile; that they are as they were before is no such change.
        """
        for path in self.left(paths, view):
            entry = self.entries.get(path)
            difference = (
                "it is as it was before" if _show(view, path) == self._tried[path].shown else ""
            )
            if isinstance(entry, NewTree):
                with self._damage():
                    difference = self._differs(path, entry, view)
            if difference:
                raise RepositoryError(
                    f"/{path}: what the gateway published is not what was written: {difference}",
                    hint="look at the log of the gateway, then try again",
                )


class _Before(NamedTuple):
    """What was at a path before something was published there."""

    identity: ContentHash | None
    shown: tuple[object, ...]


def _show(view: View, path: RepoPath) -> tuple[object, ...]:
    return view.is_directory(path), view.read_symlink(path), view.read_file(path)


def _rank(path: RepoPath, sandboxes: list[RepoPath]) -> tuple[int, str]:
    """Return of which part a path is; parts are published in the order of what is returned."""
    top = path.partition("/")[0]
    if top == FLAT:
        for sandbox in sandboxes:
            if path in (sandbox, listing_of(sandbox)) or sandbox.startswith(f"{path}/"):
                return 0, sandbox
        return 5, top
    if top in (MULTIARCH, METADATA):
        return (1 if top == MULTIARCH else 4), top
    is_registry = "." in top or ":" in top
    return (2 if is_registry else 3), top  # second names lead to the first


def lease_path(paths: list[RepoPath], view: View) -> RepoPath:
    """Return the narrowest path a lease can be on that has all of these; its parent is there."""
    common = common_path(paths)
    above = ""
    for name in common.split("/"):
        if not _PLAIN.fullmatch(name):
            return above
        above = posixpath.join(above, name)
        if not view.is_directory(above):
            break
    return above
