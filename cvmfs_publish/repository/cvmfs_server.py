"""A repository that `cvmfs_server` writes: a Stratum 0 as it is, with its own storage and habits.

What is published is read from the mount, `/cvmfs/NAME`; what is to be published is written into the
mount while a transaction of ours is open, or handed over as a tar stream (`cvmfs_server ingest`).
Nothing is done before the block of a transaction ends, so a block that fails leaves no trace.

A sandbox goes in by `ingest` where that is quicker and loses nothing, else with the names and
records in the one transaction at the end; `-v` tells which and why.  Either way it is read back and
compared before the names that lead to it are published.

Source: facts/cvmfs-format.md section 11, facts/publishers.md a.11 and (e).
"""

from __future__ import annotations

import errno
import os
import posixpath
import pwd
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.content.local import storage_errors
from cvmfs_publish.content.store import ContentStore, has_whole
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, LockedError, PublishError, RepositoryError
from cvmfs_publish.layers.tree import Content, Directory, Node, RepoPath, Tree
from cvmfs_publish.layers.treedigest import digest_lines, first_difference, list_tree, sort_lines
from cvmfs_publish.repository.archive import iter_tar
from cvmfs_publish.repository.artefact import walk_tree
from cvmfs_publish.repository.base import Revision, View
from cvmfs_publish.repository.changes import Base, NewFile, NewTree
from cvmfs_publish.repository.folder import WORK, Folder, FolderView
from cvmfs_publish.repository.folder_listing import Files, Listing, Traits, read_back
from cvmfs_publish.repository.layouts import CATALOG_MARKER, listing_of
from cvmfs_publish.repository.mount_write import MountWriter, Pending
from cvmfs_publish.repository.native.commit import ignore_step
from cvmfs_publish.repository.native.http_origin import open_origin
from cvmfs_publish.repository.native.manifest import FILE_NAME, MAX_BYTES, Manifest, parse_manifest
from cvmfs_publish.repository.native.nesting import DEFAULT_LIMIT, choose_nested
from cvmfs_publish.repository.native.origin import Origin, read
from cvmfs_publish.repository.native.reader import Snapshot, browse_snapshot, open_snapshot
from cvmfs_publish.repository.native.server_conf import LocalUpstream, ServerConf
from cvmfs_publish.repository.native.whitelist import FILE_NAME as WHITELIST_NAME
from cvmfs_publish.repository.native.whitelist import MAX_BYTES as WHITELIST_BYTES
from cvmfs_publish.repository.native.whitelist import Whitelist, parse_whitelist
from cvmfs_publish.repository.records import renumbered
from cvmfs_publish.repository.removal import (
    NO_GRACES,
    Collection,
    Removal,
    apply_removals,
    plan_removals,
)
from cvmfs_publish.repository.server_program import Server
from cvmfs_publish.repository.spooled import (
    ALGORITHM,
    Spooled,
    SpooledTransaction,
    old_objects,
)
from cvmfs_publish.repository.tree_view import TreeView

_TREES = f"{WORK}/trees"
# Of the spool: the published revision alone, over which the mount lays what a transaction changes.
_PUBLISHED = "rdonly"
_CLOCK_TOLERANCE = 60  # seconds a published time may lie ahead of this host's clock
_LARGE = 32 * 1024**2  # bytes; `ingest` does not cut larger files into chunks, so clients wait
_SMALL = 1000  # entries; a publish of its own takes longer than to write so many
_PAUSE = 0.5  # seconds between two looks whether another writer has ended


class ServerView(Base, Files, Protocol):
    """What is published, by its mount or by its catalogs."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How `cvmfs_server` is used."""

    mount: Path  # /cvmfs/NAME
    program: str = "cvmfs_server"
    method: str = "auto"  # of putting sandboxes in: auto, ingest or transaction
    timeout: timedelta = timedelta(hours=6)  # of one command
    lock_wait: timedelta = timedelta()  # for another writer to end
    lease_wait: timedelta = timedelta(minutes=10)  # for a lease of another publisher to end
    max_entries: int = DEFAULT_LIMIT  # above this many an image's catalog is divided


class ServerRepository:
    """See `repository.base.Repository`."""

    def __init__(
        self, conf: ServerConf, state: Path, spool: ContentStore, options: ServerOptions
    ) -> None:
        """Name a repository; `spool` holds contents on their way.  Nothing is read yet."""
        self.name = conf.name
        self.conf = conf
        self.location = str(options.mount)
        self.options = options
        self.folder = Folder(options.mount)
        self._spool = spool
        self._server = Server(
            conf.name,
            conf.spool,
            state / "cvmfs_server.json",
            program=options.program,
            timeout=options.timeout.total_seconds(),
        )

    # reading

    def manifest(self) -> Manifest:
        """Return the published manifest, its signature unverified: `cvmfs_server` sees to that.

        Raises:
            RepositoryError: there is none, or it cannot be read.
        """
        place, origin = self._place(), self._origin()
        try:
            manifest, _, _ = parse_manifest(read(origin, FILE_NAME, MAX_BYTES))
        except PublishError as error:
            raise RepositoryError(
                f"{place} holds no repository that can be read: {error}",
                hint="`cvmfs_server mkfs` makes one",
            ) from error
        finally:
            origin.close()
        if manifest.name != self.name:
            raise RepositoryError(
                f"{place} holds repository {manifest.name!r}, not {self.name!r}",
                hint="correct `repository.name`",
            )
        return manifest

    def _place(self) -> str | Path:
        upstream = self.conf.upstream
        return upstream.directory if isinstance(upstream, LocalUpstream) else self.conf.url

    def _origin(self) -> Origin:
        return open_origin(self._place())

    def whitelist(self) -> Whitelist:
        """Return what the whitelist says, its signature unverified: `cvmfs_server` sees to that.

        Raises:
            RepositoryError: there is none, or it cannot be read.
        """
        origin = self._origin()
        try:
            return parse_whitelist(read(origin, WHITELIST_NAME, WHITELIST_BYTES))[0]
        except PublishError as error:
            raise RepositoryError(
                f"the whitelist in {self._place()} cannot be read: {error}",
                hint=f"`cvmfs_server resign {self.name}` makes one",
            ) from error
        finally:
            origin.close()

    @property
    def server(self) -> Server:
        """The program, for those who want to know about it."""
        return self._server

    def revision(self) -> Revision:
        manifest = self.manifest()
        return Revision(manifest.revision, str(manifest.root_hash), manifest.timestamp)

    def algorithm(self) -> HashAlgorithm:
        return ALGORITHM  # of the spool; the repository has its own

    @contextmanager
    def open(self) -> Iterator[ServerView]:
        """Show what is published, also while a transaction is open or was left open."""
        self._check_mount()
        published = self.conf.spool / _PUBLISHED
        yield FolderView(Folder(published)) if published.is_mount() else self.view()

    def view(self) -> ServerView:
        """Show the mount, in which an open transaction is seen as well."""
        return FolderView(self.folder)

    def _check_mount(self) -> None:
        if not self.view().is_directory(""):
            raise RepositoryError(
                f"{self.location} is no directory: the repository is not mounted",
                hint=f"`cvmfs_server mount {self.name}`, or correct"
                " `repository.cvmfs_server.mount`",
            )

    def list_stored(self, path: RepoPath) -> list[str] | None:
        """Return the listing of a sandbox by its catalogs: one that the native backend wrote."""
        with self.damage(), self.snapshot() as snapshot:
            return snapshot.list_lines(path)

    def snapshot(self) -> Snapshot:
        """Open what is published by its catalogs; close it after use."""
        return browse_snapshot(self._origin(), name=self.name)

    @contextmanager
    def damage(self) -> Iterator[None]:
        """Turn what is wrong with stored files into the error of a damaged repository."""
        try:
            yield
        except IntegrityError as error:
            raise RepositoryError(
                f"{self.name} is damaged: {error}",
                hint=f"`cvmfs_server check {self.name}` finds all of it",
            ) from error

    def read_verified(self, public_keys: Iterable[Path]) -> Manifest:
        """Return the published manifest, its signatures verified as clients do.

        That the whitelist has expired is for clients to refuse.

        Raises:
            RepositoryError: there is none, or it cannot be read.
            IntegrityError: it was not signed for these keys.
        """
        self.manifest()  # a clear error if there is none
        with open_snapshot(self._origin(), public_keys, now=None, name=self.name) as snapshot:
            return snapshot.manifest

    def has_objects(self, names: Iterable[str], stored_bytes: int | None = None) -> bool:
        return has_whole(self._spool, names, stored_bytes)

    # writing

    @contextmanager
    def transaction(
        self, now: int, step: Callable[[str], None] = ignore_step
    ) -> Iterator[ServerTransaction]:
        """See `repository.base.Repository`.

        Raises:
            LockedError: another writer is active, and did not end while we were told to wait.
            RepositoryError: the repository is missing or damaged, cannot be written, or
                `cvmfs_server` failed.
        """
        self._check_place()
        with storage_errors("writing the repository"):
            self._spool.create()
            with self._locked(step):
                self._spool.sweep()
                with self._begin(now) as transaction:
                    try:
                        yield transaction
                        if transaction.changed:
                            self._commit(transaction, step)
                    except LockedError:  # it will be tried again
                        raise
                    except (OSError, RepositoryError):
                        if self._is_published(transaction.base):
                            transaction.discard()  # a full disk must not stay full of it
                        raise

    @contextmanager
    def _begin(self, now: int) -> Iterator[ServerTransaction]:
        base = self.manifest()
        check_clock(base, now)
        yield ServerTransaction(self, self.view(), Spooled(self._spool), base, now)

    def _check_place(self) -> None:
        self._check_mount()
        self._check_owner()
        self._server.check_version()
        _check_writable(self.conf)

    def _check_owner(self) -> None:
        user = self.conf.user
        if not user or os.geteuid() == 0:
            return
        try:
            owner = pwd.getpwnam(user).pw_uid
        except KeyError:
            return  # `cvmfs_server` says what is wrong
        if os.geteuid() != owner:
            raise RepositoryError(
                f"{self.name} belongs to {user}, and only {user} may publish into it",
                hint=f"`sudo -u {user} cvmfs-publish …`; docs/backends.md has the line for sudoers",
            )

    @contextmanager
    def _locked(self, step: Callable[[str], None]) -> Iterator[None]:
        """Hold our own lock, make good what a killed one of us left, and find nobody else."""
        end = time.monotonic() + self.options.lock_wait.total_seconds()
        while True:
            with ExitStack() as stack:
                try:
                    stack.enter_context(self._spool.lock())
                    self._server.recover(step)
                    self._server.check_free()
                except LockedError:
                    if time.monotonic() >= end:
                        raise
                else:
                    yield
                    return
            time.sleep(_PAUSE)

    def _is_published(self, base: Manifest) -> bool:
        try:
            return self.manifest() == base
        except PublishError:
            return False

    def _commit(self, transaction: ServerTransaction, step: Callable[[str], None]) -> None:
        base = transaction.base
        ingested: set[RepoPath] = set()
        for path, pending in transaction.trees():
            why = self._why_not_ingest(path, pending.tree)
            step(f"/{path}: {f'transaction, because {why}' if why else 'ingest'}")
            if not why:
                self._ingest(path, pending.tree, transaction)
                ingested.add(path)
        if ingested:
            transaction.renumber(self.manifest().revision + 1)
        step("transaction")
        self._server.transaction()
        try:
            self._check_revision(base.revision + len(ingested))
            step("writing")
            self._write(transaction, ingested)
            step("switch")
            self._server.publish()
        except BaseException:
            self._server.abort()
            raise
        if self.manifest().revision <= base.revision:
            raise RepositoryError(
                f"`cvmfs_server publish {self.name}` succeeded, but revision {base.revision} is"
                " still the published one",
                hint=f"look at `cvmfs_server check {self.name}`",
            )
        step("done")

    def _check_revision(self, expected: int) -> None:
        """Refuse to go on where somebody else has published since the block began."""
        found = self.manifest().revision
        if found != expected:
            raise LockedError(
                f"{self.name} is at revision {found}, not {expected}: somebody else has changed it",
                hint="nothing was published; try again",
            )

    def _why_not_ingest(self, path: RepoPath, tree: Tree) -> str:
        """Return why a sandbox has to be written into the mount; "" if a tar stream does."""
        conf, method = self.conf, self.options.method
        if method == "transaction":
            return "the configuration says so"
        nodes = [node for _, node in walk_tree(tree)]
        checks = (
            (self.folder.stat(path) is not None, "it replaces another one"),
            (
                self.folder.stat(posixpath.dirname(path)) is None,
                "its directory is new, and `ingest` would make it as it likes",
            ),
            (not self._server.keeps_owners, "this `ingest` is too old to keep owners"),
            (any(node.xattrs for node in nodes), "`ingest` drops extended attributes"),
            (
                any(node.size > _LARGE for node in nodes) and conf.chunking,
                "`ingest` does not cut large files into chunks",
            ),
            (
                conf.hash is not HashAlgorithm.SHA1 or conf.compression != "zlib",
                "`ingest` knows only sha1 and zlib",
            ),
            (
                method == "auto" and len(nodes) < _SMALL,
                f"it has fewer than {_SMALL} entries",
            ),
        )
        return next((why for holds, why in checks if holds), "")

    def _ingest(self, path: RepoPath, tree: Tree, transaction: ServerTransaction) -> None:
        members = iter_tar(walk_tree(tree), transaction.iter_content)
        self._server.ingest(path, members)

    # collecting

    def plan(
        self,
        now: datetime,
        grace: timedelta,
        graces: Mapping[RepoPath, timedelta] = NO_GRACES,
    ) -> Collection:
        """Return what `collect` would remove; nothing is changed."""
        with self.open() as view:
            return self._collection(plan_removals(view, now, grace, graces), now, grace)

    def collect(
        self,
        now: datetime,
        grace: timedelta,
        graces: Mapping[RepoPath, timedelta] = NO_GRACES,
        step: Callable[[str], None] = ignore_step,
    ) -> Collection:
        """Remove sandboxes that no name has led to for `grace`; `cvmfs_server gc` does the rest.

        Raises: as `transaction` and `plan_removals`.
        """
        with self.transaction(int(now.timestamp()), step) as transaction:
            removals = plan_removals(transaction, now, grace, graces)
            apply_removals(transaction, removals)
        with storage_errors("removing contents of layers"), self._spool.lock():
            done = self._collection(removals, now, grace)
            self._spool.remove(name for name, _ in old_objects(self._spool, now, grace))
        return done

    def _collection(
        self, removals: tuple[Removal, ...], now: datetime, grace: timedelta
    ) -> Collection:
        sizes = [size for _, size in old_objects(self._spool, now, grace)]
        return Collection(removals, objects=len(sizes), object_bytes=sum(sizes))

    # into the mount, while our transaction is open

    def writer(self, transaction: ServerTransaction) -> MountWriter:
        """Return what writes the changes of a transaction into the mount."""
        return MountWriter(self.folder, self.traits(), transaction.iter_content, transaction.now)

    def traits(self) -> Traits:
        """Return what the mount keeps of an image."""
        return Traits(owners=os.geteuid() == 0, nanoseconds=False, xattrs=self.conf.include_xattrs)

    def _write(self, transaction: ServerTransaction, ingested: set[RepoPath]) -> None:
        writer = self.writer(transaction)
        writer.remove(transaction.cleared)
        for path in transaction.cleared:
            writer.remove([f"{_TREES}/{path}.zst", f"{_TREES}/{path}", listing_of(path)])
        trees = dict(enumerate(transaction.pending))
        listings = writer.put(transaction.entries, trees, there=ingested)
        for path, listing in listings.items():
            writer.keep(f"{_TREES}/{path}.zst", listing)

    def listing(self, path: RepoPath, view: View | None = None) -> Listing | None:
        """Return what the sandbox at `path` should be; None if it was not put there by us."""
        view = view or self.view()
        for place in (f"{_TREES}/{path}.zst", listing_of(path)):
            packed = view.read_file(place)
            try:
                if packed is not None:
                    listing = Listing.unpack(packed)
                    return replace(listing, traits=replace(listing.traits, nanoseconds=False))
            except IntegrityError as error:
                raise RepositoryError(
                    f"/{place} of {self.name}: {error}",
                    hint="`cvmfs-publish publish --force` makes the sandbox anew",
                ) from error
        return None


class ServerTransaction(SpooledTransaction):
    """See `repository.base.Transaction`; nothing is written before it ends."""

    def __init__(
        self,
        repository: ServerRepository,
        files: ServerView,
        contents: Spooled,
        base: Manifest,
        now: int,
        tree: Base | None = None,
    ) -> None:
        """Begin from what is published: its manifest `base`, and its tree in `files`.

        `tree` shows the same to whoever asks; by default it is `files`.
        """
        self.now = max(now, base.timestamp)
        super().__init__(tree or files, self.now, contents)
        self.base = base
        self.files = files
        self.revision = base.revision + 1
        self.pending: list[Pending] = []  # sandboxes by number
        self._repository = repository
        self._digests: list[Digest] = []

    def put_tree(self, path: RepoPath, tree: Tree) -> None:
        lines = list_tree(tree)
        empty = self.store(b"")
        nested = choose_nested(tree, self._repository.options.max_entries)
        number = len(self.pending)
        self.pending.append(Pending(_with_marks(tree, {"", *nested}, empty), tuple(lines)))
        self._digests.append(digest_lines(lines))
        self.place_tree(path, NewTree(number, TreeView(tree, self.iter_content)))

    def trees(self) -> Iterator[tuple[RepoPath, Pending]]:
        for path, entry in list(self.entries.items()):
            if isinstance(entry, NewTree):
                yield path, self.pending[entry.number]

    def tree_digest(self, path: RepoPath) -> Digest | None:
        entry = self.entries.get(path)
        if isinstance(entry, NewTree):
            return self._digests[entry.number]
        lines = self._read_back(path) or self._repository.list_stored(path)
        return digest_lines(lines) if lines else None

    def tree_difference(self, path: RepoPath, tree: Tree, digest: Digest) -> str:
        """See `repository.base.Transaction`; what is not written yet is compared when it is."""
        entry = self.entries.get(path)
        if isinstance(entry, NewTree):
            lines: Iterable[str] = self.pending[entry.number].listing
        else:
            lines = self._read_back(path)
        if digest_lines(lines) == digest:
            return ""
        return first_difference(list_tree(tree), sort_lines(lines)) or "its digest differs"

    def _read_back(self, path: RepoPath) -> list[str]:
        listing = self._repository.listing(path, self.files)
        if listing is None or not self.is_directory(path):
            return []
        return read_back(self.files, path, listing)

    def renumber(self, revision: int) -> None:
        """Let records name the revision they become visible in, after others came in between."""
        for path, entry in list(self.entries.items()):
            if isinstance(entry, NewFile) and path.endswith(".json"):
                self.put(path, NewFile(renumbered(entry.data, self.revision, revision)))
        self.revision = revision


def _with_marks(tree: Tree, nested: set[RepoPath], empty: Content) -> Tree:
    """Return the tree with what marks a catalog in these directories; the tree itself stays."""
    mark = Node(stat.S_IFREG | 0o644, content=empty)

    def copy(path: RepoPath, directory: Directory) -> Directory:
        children = dict(directory.children)
        for name, child in directory.children.items():
            below = f"{path}/{name}".lstrip("/")
            if isinstance(child, Directory) and any(
                each == below or each.startswith(below + "/") for each in nested
            ):
                children[name] = copy(below, child)
        if path in nested:
            children[CATALOG_MARKER] = mark
        return Directory(directory.node, children)

    return Tree(copy("", tree.root))


def _check_writable(conf: ServerConf) -> None:
    """Refuse what `cvmfs_server` would fail over in the middle, with words of its own."""
    places = [conf.spool]
    if isinstance(conf.upstream, LocalUpstream):
        places.append(conf.upstream.directory)
    for place in places:
        with storage_errors("looking at the repository"), suppress(FileNotFoundError):
            if os.statvfs(place).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place))


def check_clock(base: Manifest, now: int) -> None:
    """Refuse to publish before the published revision; raises `RepositoryError`."""
    if base.timestamp > now + _CLOCK_TOLERANCE:
        raise RepositoryError(
            f"revision {base.revision} was published {base.timestamp - now} seconds after what "
            "the clock of this host says; clients never go back in time",
            hint="set the clock of this host (NTP); if it is right, the one that published was "
            "ahead: wait until then",
        )
