"""A CernVM-FS repository in a content store, written without any CernVM-FS software.

Source: facts/cvmfs-format.md sections 2, 5 and 6.1.

Invariants: objects before the catalogs that name them, catalogs leaf to root, then history,
certificate and metainfo; everything is durable before the reflog and the manifest are replaced, one
after the other.  Only these two files are ever replaced.  The holder of the store's lock is the
only writer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cvmfs_publish.content.hashes import DIGEST_BYTES, ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.ingest import Ingestor
from cvmfs_publish.content.local import storage_errors
from cvmfs_publish.content.objects import Compression, compress_exactly, decompress
from cvmfs_publish.content.rehearsal import Rehearsal
from cvmfs_publish.content.store import ContentStore, Fetched, Lock, has_whole
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, PublishError, RepositoryError
from cvmfs_publish.layers.tree import Content, Node, RepoPath, Tree
from cvmfs_publish.layers.treedigest import digest_lines, first_difference, list_tree, sort_lines
from cvmfs_publish.repository.base import Revision
from cvmfs_publish.repository.native import manifest as manifests
from cvmfs_publish.repository.native import reflog as reflogs
from cvmfs_publish.repository.native import whitelist as whitelists
from cvmfs_publish.repository.native.build import store_catalog
from cvmfs_publish.repository.native.catalog import (
    COUNTERS,
    MARKER,
    Catalog,
    CatalogRef,
    Row,
    kind_flags,
    split_path,
)
from cvmfs_publish.repository.native.commit import (
    MAX_DATABASE_BYTES,
    Base,
    Bookkeeping,
    Locks,
    Writer,
    ignore_step,
    open_history,
    publish,
    read_base,
)
from cvmfs_publish.repository.native.edit import TreeEditor
from cvmfs_publish.repository.native.history import History
from cvmfs_publish.repository.native.listing import list_stored
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.nesting import DEFAULT_LIMIT, choose_nested
from cvmfs_publish.repository.native.reader import Snapshot, browse_snapshot, iter_content
from cvmfs_publish.repository.native.reflog import Reflog
from cvmfs_publish.repository.native.signing import (
    DEFAULT_KEY_BITS,
    Certificate,
    Keys,
    create_keys,
    fingerprint,
    key_size,
    public_key_files,
    read_certificate,
    read_public_key,
)
from cvmfs_publish.repository.native.trust import Plan, Trust
from cvmfs_publish.repository.native.upgrade import schema_revision
from cvmfs_publish.repository.native.whitelist import Whitelist

MASTER_REPLICA = ".cvmfs_master_replica"
CLOCK_TOLERANCE = 60  # seconds a published time may lie ahead of this host's clock


@dataclass(frozen=True, slots=True)
class NativeOptions:
    """How a repository is written."""

    max_entries: int = DEFAULT_LIMIT  # above this many an image's catalog is divided
    compression: Compression = Compression.ADAPTIVE  # of file contents
    automatic_tags: timedelta | None = None  # each revision gets a tag that lives so long
    bookkeeping: Bookkeeping | None = None  # where stock tools write the repository too


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    """Facts for the operator."""

    manifest: Manifest
    whitelist: Whitelist  # verified, but for its expiry
    certificate: ContentHash  # fingerprint of ours
    certificate_expires_at: datetime  # clients do not care
    key_bits: int
    has_master_key: bool
    counters: dict[str, int]  # of the whole repository, root catalog included


class NativeRepository:
    """A repository in `store`, signed with the keys `<keys>/<name>.*`."""

    def __init__(
        self, name: str, store: ContentStore, keys: Path, options: NativeOptions | None = None
    ) -> None:
        """Name a repository; nothing is read before it is used."""
        self.name = name
        self.store = store
        self.location = store.location
        self.trust = Trust(name, store, keys)
        self._keys = keys
        self._options = options or NativeOptions()

    # creating

    def exists(self) -> bool:
        """Whether the store holds a repository, of whatever name."""
        return self._fetch(manifests.FILE_NAME, manifests.MAX_BYTES) is not None

    def create(
        self, algorithm: HashAlgorithm, now: datetime, *, key_bits: int = DEFAULT_KEY_BITS
    ) -> Revision:
        """Make keys (unless they exist), whitelist and an empty, signed first revision.

        Raises:
            RepositoryError: there is a repository already, or files cannot be written.
        """
        if self.exists():
            raise RepositoryError(
                f"{self.location} already holds a repository",
                hint="choose another --storage, or use the repository as it is",
            )
        with storage_errors("creating the repository"):
            keys = self._create_or_load_keys(now, key_bits)
            self.store.create()
            with self.writer(keys) as writer:
                self.store.write(MASTER_REPLICA, b"This repository may be replicated.\n")
                plan = Plan((fingerprint(keys.certificate),))
                self.trust.renew(keys, plan, now, whitelists.DEFAULT_DAYS)
                return self._create_first_revision(writer, algorithm, int(now.timestamp()))

    def _create_or_load_keys(self, now: datetime, bits: int) -> Keys:
        kinds = ("pub", "crt", "key")
        if all((self._keys / f"{self.name}.{kind}").exists() for kind in kinds):
            return self.trust.keys()
        return create_keys(self._keys, self.name, now=now, bits=bits)

    def _create_first_revision(
        self, writer: Writer, algorithm: HashAlgorithm, now: int
    ) -> Revision:
        with Catalog.create("") as catalog:
            node = Node(0o040755, mtime=now)
            catalog.put([Row("", node, kind_flags(node), 2)])
            catalog.set_counters(catalog.count_own(), dict.fromkeys(COUNTERS, 0))
            catalog.set_property("revision", 1)
            catalog.set_property("last_modified", now)
            catalog.set_property("previous_revision", ContentHash(bytes(DIGEST_BYTES), algorithm))
            root = store_catalog(catalog, self.store, algorithm)
        metainfo = {
            "administrator": "",
            "email": "",
            "organisation": "",
            "description": f"Container images, published by cvmfs-publish into {self.name}",
            "url": "",
            "recommended-stratum0": "",
            "recommended-stratum1s": [],
            "custom": {},
        }
        stored = compress_exactly((json.dumps(metainfo, indent=2) + "\n").encode())
        metainfo_hash = ContentHash.of(stored, algorithm)
        self.store.put(stored, metainfo_hash, Suffix.METAINFO)
        manifest = Manifest(
            name=self.name,
            root_hash=root.hash,
            root_size=root.size,
            revision=1,
            timestamp=now,
            certificate=None,
            metainfo=metainfo_hash,
            garbage_collectable=True,
        )
        # There is a reflog without a manifest if an earlier creation was killed at the very end.
        leftover = self.store.fetch(reflogs.FILE_NAME, MAX_DATABASE_BYTES)
        version = leftover.version if leftover is not None else None
        with (
            Base(manifest, None, Reflog.create(self.name), version) as base,
            History.create(self.name) as history,
        ):
            history.advance(manifest.root_hash, 1, now, manifest.root_size)
            return _revision(publish(writer, base, manifest, history))

    # reading

    def manifest(self) -> Manifest:
        """Return the published manifest, its signature unverified.

        Raises:
            RepositoryError: there is no repository of this name here.
        """
        return self._read_manifest()[0]

    def _read_manifest(self) -> tuple[Manifest, Fetched]:
        found = self._fetch(manifests.FILE_NAME, manifests.MAX_BYTES)
        if found is None:
            raise RepositoryError(
                f"{self.location} holds no repository: {manifests.FILE_NAME} does not exist",
                hint="`cvmfs-publish init NAME` creates one",
            )
        with damage(self.location):
            manifest, _, _ = manifests.parse_manifest(found.data)
        if manifest.name != self.name:
            raise RepositoryError(
                f"{self.location} holds repository {manifest.name!r}, not {self.name!r}",
                hint="correct `repository.name` or `repository.storage`",
            )
        return manifest, found

    def _fetch(self, name: str, limit: int) -> Fetched | None:
        with damage(self.location):
            return self.store.fetch(name, limit)

    def revision(self) -> Revision:
        return _revision(self.manifest())

    def algorithm(self) -> HashAlgorithm:
        return self.manifest().root_hash.algorithm

    def signer(self) -> Certificate:
        """Return the certificate whose key signed the published manifest.

        Raises:
            RepositoryError: it is missing or damaged.
        """
        with damage(self.location):
            return self.trust.certificate(self.manifest())

    def snapshot(self) -> Snapshot:
        """Open the published revision for reading; close it after use."""
        self.manifest()
        return browse_snapshot(self.store, name=self.name)

    @contextmanager
    def open(self) -> Iterator[SnapshotView]:
        with damage(self.location), self.snapshot() as snapshot:
            yield SnapshotView(snapshot)

    def has_objects(self, names: Iterable[str], stored_bytes: int | None = None) -> bool:
        return has_whole(self.store, names, stored_bytes)

    def info(self, now: datetime) -> RepositoryInfo:
        """Return facts about the published revision; no private key is needed.

        Raises:
            TrustError: the whitelist is not of the master key.
            RepositoryError: the repository or the public keys are missing or damaged.
        """
        manifest = self.manifest()
        certificate = read_certificate(self._keys / f"{self.name}.crt")
        master_keys = [read_public_key(path) for path in public_key_files(self._keys, self.name)]
        whitelist = self.trust.signed_whitelist(master_keys)
        with damage(self.location), self._open_catalog(manifest) as root:
            counters = root.total_counters()
        return RepositoryInfo(
            manifest,
            whitelist,
            fingerprint(certificate),
            certificate.not_valid_after_utc,
            key_size(certificate),
            (self._keys / f"{self.name}.masterkey").exists(),
            counters,
        )

    def _open_catalog(self, manifest: Manifest) -> Catalog:
        stored = self.store.read(manifest.root_hash, Suffix.CATALOG)
        return Catalog.open(decompress(stored, MAX_DATABASE_BYTES))

    def rehearsal(self) -> NativeRepository:
        """Return a repository that starts from this one and keeps what is written to itself.

        It takes the same locks, refuses what this one would refuse, and changes nothing.
        """
        bookkeeping = self._options.bookkeeping
        options = self._options
        if bookkeeping is not None:
            options = replace(options, bookkeeping=_HoldOnly(bookkeeping))
        return NativeRepository(self.name, Rehearsal(self.store), self._keys, options)

    # writing

    def resign(self, now: datetime, days: int = whitelists.DEFAULT_DAYS) -> datetime:
        """Renew the whitelist; return when the new one expires.  Needs the master key.

        `resigning` has what else can be done about it.
        """
        manifest = self.manifest()
        keys = self.trust.keys()
        with self.writer(keys):
            plan = self.trust.plan(keys, manifest, now)
            return self.trust.renew(keys, plan, now, days).expires_at

    @contextmanager
    def transaction(
        self, now: int, step: Callable[[str], None] = ignore_step
    ) -> Iterator[NativeTransaction]:
        """See `repository.base.Repository`.

        Raises:
            LockedError: another writer is active.
            RepositoryError: the repository is missing, damaged, unwritable, or its keys,
                whitelist or the clock forbid signing.
        """
        with (
            self._writing(now, step) as (writer, base),
            open_history(self.store, base.manifest) as history,
        ):
            self.store.sweep()
            manifest = base.manifest
            timestamp = max(now, manifest.timestamp)
            algorithm = manifest.root_hash.algorithm
            root = CatalogRef(manifest.root_hash, manifest.root_size)
            editor = TreeEditor(self.store, algorithm, root, timestamp)
            transaction = NativeTransaction(editor, self.store, self._options, manifest)
            try:
                yield transaction
                if editor.changed:
                    self._commit(writer, base, history, editor, now)
            except (OSError, RepositoryError):
                if self._is_published(manifest):  # the failure came before the switch
                    transaction.discard()  # a full disk must not stay full of it
                raise
            finally:
                editor.close()

    def _commit(
        self, writer: Writer, base: Base, history: History, editor: TreeEditor, now: int
    ) -> None:
        writer.step("catalogs")
        root, revision = editor.commit()
        writer.step("history")
        timestamp = max(now, base.manifest.timestamp)
        new = replace(
            base.manifest,
            root_hash=root.hash,
            root_size=root.size,
            revision=revision,
            timestamp=timestamp,
        )
        history.advance(root.hash, revision, timestamp, root.size)
        if self._options.automatic_tags is not None:
            history.add_automatic_tag(started=now)
            history.remove_automatic_tags(timestamp, self._options.automatic_tags)
        publish(writer, base, new, history)

    @contextmanager
    def maintenance(
        self, now: int, step: Callable[[str], None] = ignore_step
    ) -> Iterator[Maintenance]:
        """Change history or reflog and publish them with the same tree and revision number.

        Published at the end of the block, or when it calls `publish`; the lock is held until the
        end.  Nothing is published if the block raises before, or changes neither.

        Raises: as `transaction`.
        """
        with (
            self._writing(now, step) as (writer, base),
            open_history(self.store, base.manifest) as history,
        ):
            work = Maintenance(self.store, base, history, writer, now)
            yield work
            work.publish()

    @contextmanager
    def _writing(self, now: int, step: Callable[[str], None]) -> Iterator[tuple[Writer, Base]]:
        """Hold the lock and the published state, which is verified."""
        self.manifest()  # a clear error before anything else if there is none
        keys = self.trust.keys(with_master=False)
        with (
            self.writer(keys, step) as writer,
            storage_errors("writing the repository"),
            damage(self.location),
        ):
            manifest, version = self.verified_manifest(keys, now)
            self.check_content(manifest)
            with read_base(self.store, manifest, version, writer.bookkeeping) as base:
                yield writer, base

    def check_signable(self, writer: Writer, now: datetime) -> None:
        """Refuse what `maintenance` would refuse, but for a whitelist that is about to be renewed.

        Nothing is changed.

        Raises: as `transaction`.
        """
        with storage_errors("reading the repository"), damage(self.location):
            manifest, found = self._read_manifest()
            self._check_clock(manifest, int(now.timestamp()))
            self.trust.check_signature(manifest, found.data, self.trust.certificate(manifest))
            self.check_content(manifest)
            bookkeeping = writer.bookkeeping
            with (
                read_base(self.store, manifest, found.version, bookkeeping, repair=False),
                open_history(self.store, manifest),
            ):
                pass

    def check_content(self, manifest: Manifest) -> int:
        """Refuse to build on a manifest that does not fit what it names.

        Returns the schema revision of the root catalog.

        Raises:
            RepositoryError: it is of a kind or a version that cannot be written, or its revision
                is not that of its root catalog.
            IntegrityError: root catalog or metainfo are missing or damaged.
        """
        if manifest.root_path_hash != manifests.ROOT_PATH_HASH:
            raise IntegrityError(
                f"manifest field R is {manifest.root_path_hash!r}, not {manifests.ROOT_PATH_HASH}"
            )
        if manifest.alternative_paths:
            raise RepositoryError(
                f"{self.name} is a repository with access control (manifest field A), whose "
                "additional files are not written here",
                hint="publish into it with cvmfs_server",
            )
        if manifest.metainfo is not None:
            self._read_named("metainfo", manifest.metainfo, Suffix.METAINFO)
        stored = self._read_named("root catalog", manifest.root_hash, Suffix.CATALOG)
        data = decompress(stored, MAX_DATABASE_BYTES)
        if manifest.root_size and manifest.root_size != len(data):
            raise IntegrityError(
                f"root catalog has {len(data)} bytes, the manifest says {manifest.root_size}"
            )
        with Catalog.open(data) as root:
            found = schema_revision(
                f"root catalog {manifest.root_hash}",
                root.get_property("schema"),
                root.get_property("schema_revision"),
            )
            if root.prefix or root.get("") is None:
                raise IntegrityError(f"catalog {manifest.root_hash} is no root catalog")
            if root.revision != manifest.revision:
                # Clients compare both: the next revision has to be above either.
                newer = max(root.revision, manifest.revision) + 1
                raise RepositoryError(
                    f"root catalog of {self.name} has revision {root.revision}, the manifest "
                    f"{manifest.revision}",
                    hint=f"restore {manifests.FILE_NAME} from a backup or a replica, or publish "
                    f"once with `cvmfs_server publish -n {newer}`",
                )
            return found

    def _read_named(self, what: str, content_hash: ContentHash, kind: Suffix) -> bytes:
        try:
            return self.store.read(content_hash, kind)
        except IntegrityError as error:
            raise IntegrityError(f"{what}: {error}") from error

    @contextmanager
    def writer(self, keys: Keys, step: Callable[[str], None] = ignore_step) -> Iterator[Writer]:
        """Hold the repository against other writers, ours and stock's.

        Raises:
            LockedError: there is one.
        """
        bookkeeping = self._options.bookkeeping
        with ExitStack() as stack:
            lock = stack.enter_context(self.store.lock())
            if bookkeeping is not None:
                lock = Locks(lock, stack.enter_context(bookkeeping.hold()))
            yield Writer(self.store, keys, lock, bookkeeping, step)

    def _is_published(self, manifest: Manifest) -> bool:
        try:
            return self.manifest() == manifest
        except PublishError:
            return False

    def verified_manifest(self, keys: Keys, now: int) -> tuple[Manifest, str]:
        """Return the published manifest and the version of its file, if we may build on it.

        Raises:
            RepositoryError: clients would not accept it, or not what we would sign after it.
            IntegrityError: the certificate it names is missing or damaged.
        """
        manifest, found = self._read_manifest()
        self._check_clock(manifest, now)
        self.trust.check(manifest, found.data, keys, datetime.fromtimestamp(now, UTC))
        return manifest, found.version

    @staticmethod
    def _check_clock(manifest: Manifest, now: int) -> None:
        if manifest.timestamp > now + CLOCK_TOLERANCE:
            raise RepositoryError(
                f"revision {manifest.revision} was published at {_time(manifest.timestamp)}, but "
                f"the clock of this host says {_time(now)}; clients never go back in time",
                hint="set the clock of this host (NTP); if it is right, the one that published was "
                "ahead: wait until then, or restore the manifest before it from a backup",
            )


class _HoldOnly:
    """Locks as another `Bookkeeping` does, and tells nobody what was rehearsed."""

    def __init__(self, bookkeeping: Bookkeeping) -> None:
        self._bookkeeping = bookkeeping
        self._rehearsed: ContentHash | None = None  # of the reflog, once one was replaced

    def hold(self) -> AbstractContextManager[Lock]:
        return self._bookkeeping.hold()

    def check_reflog(self, reflog: bytes, *, repair: bool = False) -> None:
        rehearsed = self._rehearsed
        if rehearsed is None or ContentHash.of(reflog, rehearsed.algorithm) != rehearsed:
            self._bookkeeping.check_reflog(reflog)

    def announce_reflog(self, checksum: ContentHash) -> None:
        pass

    def reflog_replaced(self, checksum: ContentHash) -> None:
        self._rehearsed = checksum

    def manifest_replaced(self, root_hash: ContentHash) -> None:
        pass


class Maintenance:
    """Work on what a repository remembers, not on its tree."""

    def __init__(
        self, store: ContentStore, base: Base, history: History, writer: Writer, now: int
    ) -> None:
        self.store = store
        self.manifest = base.manifest  # published
        self.history = history  # may be changed until `publish`
        self.reflog = base.reflog  # may be changed until `publish`
        self.writer = writer
        self._base = base
        self._now = now
        self._before = history.serialize()
        self._done = False

    def publish(self, *, again: bool = False) -> None:
        """Publish what was changed, if anything was; nothing may be changed after that.

        A reflog that a killed writer left ahead of the manifest is a change as well.

        `again`: sign the present revision anew even if nothing was.
        """
        if self._done:
            return
        self._done = True
        changed = self.history.serialize() != self._before
        signed = self.manifest.reflog
        algorithm = self.manifest.root_hash.algorithm if signed is None else signed.algorithm
        if again or changed or ContentHash.of(self.reflog.serialize(), algorithm) != signed:
            new = replace(self.manifest, timestamp=max(self._now, self.manifest.timestamp))
            history = self.history if changed else None
            self.manifest = publish(self.writer, self._base, new, history)


@contextmanager
def damage(location: str) -> Iterator[None]:
    """Turn what is wrong with stored files into the error of a damaged repository."""
    try:
        yield
    except IntegrityError as error:
        raise RepositoryError(
            f"the repository in {location} is damaged: {error}",
            hint="`cvmfs-publish check` finds all of it; restore files from a backup or a replica",
        ) from error


class SnapshotView:
    """See `repository.base.View`."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def read_file(self, path: RepoPath) -> bytes | None:
        row = self._snapshot.lookup(path)
        return self._snapshot.read_file(path) if row is not None and row.node.is_file else None

    def read_symlink(self, path: RepoPath) -> str | None:
        row = self._snapshot.lookup(path)
        return row.node.target if row is not None and row.node.is_symlink else None

    def is_directory(self, path: RepoPath) -> bool:
        row = self._snapshot.lookup(path)
        return row is not None and row.node.is_dir

    def modified_at(self, path: RepoPath) -> int | None:
        """See `repository.base.Dated`."""
        row = self._snapshot.lookup(path)
        return row.node.mtime if row is not None else None

    def list_names(self, path: RepoPath) -> list[tuple[str, bool]]:
        rows = self._snapshot.listdir(path) if self.is_directory(path) else []
        return [(split_path(row.path)[1], row.node.is_dir) for row in rows]

    def find_files(
        self, top: RepoPath, name: str, excluded: Collection[str] = ()
    ) -> Iterator[tuple[RepoPath, bytes]]:
        return self._snapshot.find_files(top, name, excluded)

    def node(self, path: RepoPath) -> Node | None:
        """See `repository.base.Walkable`."""
        row = self._snapshot.lookup(path)
        return row.node if row is not None else None

    def walk(self, path: RepoPath) -> Iterator[tuple[RepoPath, Node]]:
        """See `repository.base.Walkable`; what a mark of a catalog is, no image has."""
        stack = self._snapshot.listdir(path)[::-1]
        while stack:
            row = stack.pop()
            if split_path(row.path)[1] == MARKER:
                continue
            yield row.path[len(path) + 1 :], row.node
            if row.node.is_dir:
                stack += self._snapshot.listdir(row.path)[::-1]

    def iter_content(self, path: RepoPath, node: Node) -> Iterator[bytes]:
        return iter_content(self._snapshot.origin, path, node)

    def read_xattrs(self, path: RepoPath, names: Collection[str]) -> tuple[tuple[str, bytes], ...]:
        """See `repository.folder_listing.Files`."""
        node = self.node(path)
        return tuple(each for each in (node.xattrs if node else ()) if each[0] in names)


class NativeTransaction:
    """See `repository.base.Transaction`."""

    def __init__(
        self,
        editor: TreeEditor,
        store: ContentStore,
        options: NativeOptions,
        base: Manifest,
    ) -> None:
        self._editor = editor
        self._store = store
        self._algorithm = base.root_hash.algorithm
        self._ingestors: list[Ingestor] = []
        self._options = options
        self.revision = base.revision + 1

    def read_file(self, path: RepoPath) -> bytes | None:
        with self._writing():
            return self._editor.read_file(path)

    def read_symlink(self, path: RepoPath) -> str | None:
        with self._writing():
            row = self._editor.get(path)
            return row.node.target if row is not None and row.node.is_symlink else None

    def is_directory(self, path: RepoPath) -> bool:
        with self._writing():
            row = self._editor.get(path)
            return row is not None and row.node.is_dir

    def modified_at(self, path: RepoPath) -> int | None:
        """See `repository.base.Dated`."""
        with self._writing():
            row = self._editor.get(path)
            return row.node.mtime if row is not None else None

    def list_names(self, path: RepoPath) -> list[tuple[str, bool]]:
        with self._writing():
            rows = self._editor.children(path) if self.is_directory(path) else []
            return [(split_path(row.path)[1], row.node.is_dir) for row in rows]

    def ingestor(self, readers: int) -> Ingestor:
        ingestor = Ingestor(self._store, self._algorithm, readers, self._options.compression)
        self._ingestors.append(ingestor)
        return ingestor

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Tell what is wrong with the repository from what is wrong with an image."""
        with storage_errors("writing the repository"), damage(self._store.location):
            yield

    def discard(self) -> None:
        """Remove what was stored for nothing."""
        for ingestor in self._ingestors:
            ingestor.discard()
        self._editor.discard()

    def store(self, data: bytes) -> Content:
        with self._writing():
            return self._editor.store(data)

    def iter_content(self, path: RepoPath, node: Node) -> Iterator[bytes]:
        return iter_content(self._store, path, node)

    def make_directories(self, path: RepoPath, nested: Iterable[RepoPath] = ()) -> None:
        with self._writing():
            self._editor.make_directories(path, nested)

    def put_file(self, path: RepoPath, data: bytes) -> None:
        with self._writing():
            self._editor.put_file(path, data)

    def put_symlink(self, path: RepoPath, target: str) -> None:
        with self._writing():
            self._editor.put_symlink(path, target)

    def put_tree(self, path: RepoPath, tree: Tree) -> None:
        with self._writing():
            self._editor.put_tree(path, tree, choose_nested(tree, self._options.max_entries))

    def tree_digest(self, path: RepoPath) -> Digest | None:
        with self._writing():
            ref = self._editor.stored_catalog(path)
            return digest_lines(list_stored(self._load, path, ref)) if ref is not None else None

    def tree_difference(self, path: RepoPath, tree: Tree, digest: Digest) -> str:
        with self._writing():
            ref = self._editor.stored_catalog(path)
            if ref is None:
                return f"/{path} has no catalog of its own"
            try:
                lines = list_stored(self._load, path, ref)
            except IntegrityError as error:
                return str(error)
        if digest_lines(lines) == digest:
            return ""
        return first_difference(list_tree(tree), sort_lines(lines)) or "its digest differs"

    def _load(self, ref: CatalogRef) -> Catalog:
        data = decompress(self._store.read(ref.hash, Suffix.CATALOG), MAX_DATABASE_BYTES)
        if ref.size and ref.size != len(data):
            raise IntegrityError(f"catalog {ref.hash} has {len(data)} bytes, promised {ref.size}")
        return Catalog.open(data)

    def remove(self, path: RepoPath) -> None:
        with self._writing():
            self._editor.remove(path)


def _revision(manifest: Manifest) -> Revision:
    return Revision(manifest.revision, str(manifest.root_hash), manifest.timestamp)


def _time(timestamp: int) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S} UTC"
