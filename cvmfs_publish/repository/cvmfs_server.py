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

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.content.ingest import Ingestor
from cvmfs_publish.content.local import DIRECTORY_MODE, storage_errors
from cvmfs_publish.content.store import ContentStore, has_whole
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, LockedError, PublishError, RepositoryError
from cvmfs_publish.layers.tree import Content, Directory, Node, RepoPath, Tree, encode_name
from cvmfs_publish.layers.treedigest import digest_lines, first_difference, list_tree, sort_lines
from cvmfs_publish.repository.archive import iter_tar
from cvmfs_publish.repository.artefact import walk_tree
from cvmfs_publish.repository.base import Revision
from cvmfs_publish.repository.changes import Changes, NewDirectory, NewFile, NewLink, NewTree
from cvmfs_publish.repository.folder import WORK, Folder, FolderView
from cvmfs_publish.repository.folder_listing import Listing, Traits, read_back
from cvmfs_publish.repository.folder_write import TreeWriter, finish_directory
from cvmfs_publish.repository.layouts import CATALOG_MARKER
from cvmfs_publish.repository.native.commit import ignore_step
from cvmfs_publish.repository.native.http_origin import open_origin
from cvmfs_publish.repository.native.manifest import FILE_NAME, MAX_BYTES, Manifest, parse_manifest
from cvmfs_publish.repository.native.nesting import DEFAULT_LIMIT, choose_nested
from cvmfs_publish.repository.native.origin import Origin, read
from cvmfs_publish.repository.native.reader import browse_snapshot, open_snapshot
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
from cvmfs_publish.repository.spooled import ALGORITHM, Spooled, old_objects
from cvmfs_publish.repository.tree_view import TreeView

_TREES = f"{WORK}/trees"
# Of the spool: the published revision alone, over which the mount lays what a transaction changes.
_PUBLISHED = "rdonly"
_CLOCK_TOLERANCE = 60  # seconds a published time may lie ahead of this host's clock
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_LARGE = 32 * 1024**2  # bytes; `ingest` does not cut larger files into chunks, so clients wait
_SMALL = 1000  # entries; a publish of its own takes longer than to write so many
_PAUSE = 0.5  # seconds between two looks whether another writer has ended


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How `cvmfs_server` is used."""

    mount: Path  # /cvmfs/NAME
    program: str = "cvmfs_server"
    method: str = "auto"  # of putting sandboxes in: auto, ingest or transaction
    timeout: timedelta = timedelta(hours=6)  # of one command
    lock_wait: timedelta = timedelta()  # for another writer to end
    max_entries: int = DEFAULT_LIMIT  # above this many an image's catalog is divided


@dataclass(frozen=True, slots=True)
class _Pending:
    """A sandbox that is to be put in its place."""

    tree: Tree  # with the marks of its catalogs
    listing: tuple[str, ...]  # without


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
    def open(self) -> Iterator[FolderView]:
        """Show what is published, also while a transaction is open or was left open."""
        self._check_mount()
        published = self.conf.spool / _PUBLISHED
        yield FolderView(Folder(published)) if published.is_mount() else self.view()

    def view(self) -> FolderView:
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
        origin = self._origin()
        try:
            with browse_snapshot(origin, name=self.name) as snapshot:
                return snapshot.list_lines(path)
        except IntegrityError as error:
            raise RepositoryError(
                f"{self.name} is damaged: {error}",
                hint=f"`cvmfs_server check {self.name}` finds all of it",
            ) from error
        finally:
            origin.close()

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
        self._check_mount()
        self._check_owner()
        self._server.check_version()
        _check_writable(self.conf)
        with storage_errors("writing the repository"):
            self._spool.create()
            with self._locked(step):
                self._spool.sweep()
                base = self.manifest()
                _check_clock(base, now)
                transaction = ServerTransaction(
                    self, Spooled(self._spool), base.revision + 1, max(now, base.timestamp)
                )
                try:
                    yield transaction
                    if transaction.changed:
                        self._commit(transaction, base, step)
                except (OSError, RepositoryError):
                    if self._is_published(base):
                        transaction.discard()  # a full disk must not stay full of it
                    raise

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

    def _commit(
        self, transaction: ServerTransaction, base: Manifest, step: Callable[[str], None]
    ) -> None:
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

    def _write(self, transaction: ServerTransaction, ingested: set[RepoPath]) -> None:
        folder = self.folder
        for path in sorted(transaction.cleared, reverse=True):
            remove_entry(folder, path)
            remove_entry(folder, f"{_TREES}/{path}.zst")
            remove_entry(folder, f"{_TREES}/{path}")
        entries = transaction.entries
        for path in sorted(entries, key=lambda p: (isinstance(entries[p], NewLink), p)):
            entry = entries[path]
            if isinstance(entry, NewDirectory):
                self._make_directory(path, nested=entry.is_nested)
            elif isinstance(entry, NewFile):
                self._put_file(path, entry.data, transaction.now)
            elif isinstance(entry, NewLink):
                remove_entry(folder, path)
                with folder.parent(path) as (above, name):
                    os.symlink(encode_name(entry.target), name, dir_fd=above)
            else:
                self._put_tree(path, entry.number, transaction, is_there=path in ingested)

    def _make_directory(self, path: RepoPath, *, nested: bool) -> None:
        with self.folder.parent(path) as (above, name):
            os.mkdir(name, DIRECTORY_MODE, dir_fd=above)
            os.chmod(name, DIRECTORY_MODE, dir_fd=above)
        if nested:
            self._put_file(f"{path}/{CATALOG_MARKER}", b"")

    def _put_file(self, path: RepoPath, data: bytes, at: int | None = None) -> None:
        remove_entry(self.folder, path)
        with self.folder.parent(path) as (above, name):
            descriptor = os.open(name, _NEW, 0o644, dir_fd=above)
        try:
            os.fchmod(descriptor, 0o644)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if at is not None:
                os.utime(descriptor, (at, at))
        finally:
            os.close(descriptor)

    def _put_tree(
        self, path: RepoPath, number: int, transaction: ServerTransaction, *, is_there: bool
    ) -> None:
        pending = transaction.pending[number]
        is_root = os.geteuid() == 0
        traits = Traits(
            owners=is_root or is_there,
            nanoseconds=False,
            xattrs=self.conf.include_xattrs and not is_there,
        )
        root = pending.tree.root.node
        if not is_there:
            TreeWriter(
                self.folder, transaction.iter_content, replace(traits, owners=is_root)
            ).write(path, pending.tree)
        finish_directory(self.folder, path, root, replace(traits, owners=is_root))
        listing = Listing(replace(traits, owners=is_root), pending.listing)
        found = read_back(self.view(), path, Listing(traits, pending.listing))
        if digest_lines(found) != digest_lines(pending.listing):
            difference = first_difference(sort_lines(pending.listing), sort_lines(found))
            raise RepositoryError(
                f"/{path}: what was written of it is not what its layers say: {difference}",
                hint="nothing of it was named; look at the disk of the spool, then try again",
            )
        self._keep_listing(path, listing)

    def _keep_listing(self, path: RepoPath, listing: Listing) -> None:
        place = f"{_TREES}/{path}.zst"
        parts = place.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            with (
                self.folder.parent("/".join(parts[:count])) as (above, name),
                suppress(FileExistsError),
            ):
                os.mkdir(name, DIRECTORY_MODE, dir_fd=above)
        self._put_file(place, listing.pack())

    def listing(self, path: RepoPath) -> Listing | None:
        """Return what the sandbox at `path` should be; None if it was not put there by us."""
        packed = self.view().read_file(f"{_TREES}/{path}.zst")
        try:
            if packed is None:
                return None
            listing = Listing.unpack(packed)
            return replace(listing, traits=replace(listing.traits, nanoseconds=False))
        except IntegrityError as error:
            raise RepositoryError(
                f"{self.location}/{_TREES}/{path}.zst: {error}",
                hint="`cvmfs-publish publish --force` makes the sandbox anew",
            ) from error


class ServerTransaction(Changes):
    """See `repository.base.Transaction`; nothing is written before it ends."""

    def __init__(
        self, repository: ServerRepository, contents: Spooled, revision: int, now: int
    ) -> None:
        super().__init__(repository.view(), now)
        self.now = now
        self.revision = revision
        self.pending: list[_Pending] = []  # sandboxes by number
        self._repository = repository
        self._contents = contents
        self._digests: list[Digest] = []

    def ingestor(self, readers: int) -> Ingestor:
        return self._contents.ingestor(readers)

    def store(self, data: bytes) -> Content:
        with storage_errors("storing file contents"):
            return self._contents.store(data)

    def iter_content(self, path: RepoPath, node: Node) -> Iterator[bytes]:
        return self._contents.iter_content(path, node)

    def discard(self) -> None:
        """Remove what was stored for nothing."""
        self._contents.discard()

    def put_tree(self, path: RepoPath, tree: Tree) -> None:
        lines = list_tree(tree)
        empty = self.store(b"")
        nested = choose_nested(tree, self._repository.options.max_entries)
        number = len(self.pending)
        self.pending.append(_Pending(_with_marks(tree, {"", *nested}, empty), tuple(lines)))
        self._digests.append(digest_lines(lines))
        self.place_tree(path, NewTree(number, TreeView(tree, self.iter_content)))

    def trees(self) -> Iterator[tuple[RepoPath, _Pending]]:
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
        listing = self._repository.listing(path)
        if listing is None or not self.is_directory(path):
            return []
        return read_back(self._repository.view(), path, listing)

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


def remove_entry(folder: Folder, path: RepoPath) -> None:
    """Remove an entry and everything below it; no error if there is none."""
    found = folder.stat(path)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        with folder.parent(path) as (above, name), suppress(FileNotFoundError):
            os.unlink(name, dir_fd=above)
        return
    directories = [path]
    for directory in directories:  # grows while it is walked: parents first
        with folder.parent(directory) as (above, name):
            os.chmod(name, 0o700, dir_fd=above)
        for name_, is_directory in folder.names(directory):
            if is_directory:
                directories.append(f"{directory}/{name_}")
            else:
                with folder.parent(f"{directory}/{name_}") as (above, name):
                    os.unlink(name, dir_fd=above)
    for directory in reversed(directories):
        with folder.parent(directory) as (above, name):
            os.rmdir(name, dir_fd=above)


def _check_writable(conf: ServerConf) -> None:
    """Refuse what `cvmfs_server` would fail over in the middle, with words of its own."""
    places = [conf.spool]
    if isinstance(conf.upstream, LocalUpstream):
        places.append(conf.upstream.directory)
    for place in places:
        with storage_errors("looking at the repository"), suppress(FileNotFoundError):
            if os.statvfs(place).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place))


def _check_clock(base: Manifest, now: int) -> None:
    if base.timestamp > now + _CLOCK_TOLERANCE:
        raise RepositoryError(
            f"revision {base.revision} was published {base.timestamp - now} seconds after what "
            "the clock of this host says; clients never go back in time",
            hint="set the clock of this host (NTP); if it is right, the one that published was "
            "ahead: wait until then",
        )
