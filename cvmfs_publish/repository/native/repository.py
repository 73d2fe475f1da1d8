"""A CernVM-FS repository in a local directory, written without any CernVM-FS software.

Source: facts/cvmfs-format.md sections 1.6, 2, 5 and 6.1.

Invariants: objects before the catalogs that name them, catalogs leaf to root, then history,
certificate and metainfo; everything is on disk (syncfs) before the reflog and the manifest are
renamed into place, one after the other.  Only these two files are ever replaced.  The holder of the
lock on the storage directory is the only writer.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cvmfs_publish.content.hashes import DIGEST_BYTES, ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.ingest import Ingestor
from cvmfs_publish.content.local import LocalStore, storage_errors
from cvmfs_publish.content.objects import CATALOG_LEVEL, compress, compress_exactly, decompress
from cvmfs_publish.errors import IntegrityError, LockedError, PublishError, RepositoryError
from cvmfs_publish.layers.tree import Content, Node, RepoPath, Tree
from cvmfs_publish.repository.base import Revision
from cvmfs_publish.repository.native import manifest as manifests
from cvmfs_publish.repository.native import reflog as reflogs
from cvmfs_publish.repository.native import whitelist as whitelists
from cvmfs_publish.repository.native.build import store_catalog
from cvmfs_publish.repository.native.catalog import (
    COUNTERS,
    MAX_ENTRIES,
    Catalog,
    CatalogRef,
    Row,
    kind_flags,
    split_path,
)
from cvmfs_publish.repository.native.edit import TreeEditor
from cvmfs_publish.repository.native.history import History
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.nesting import choose_nested
from cvmfs_publish.repository.native.reader import Snapshot, browse_snapshot
from cvmfs_publish.repository.native.reflog import Reflog, RefType
from cvmfs_publish.repository.native.signing import Keys, create_keys, fingerprint, load_keys

MASTER_REPLICA = ".cvmfs_master_replica"
MAX_DATABASE_BYTES = 1024**3
CLOCK_TOLERANCE = 60  # seconds a published time may lie ahead of this host's clock


def _ignore(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    """Facts for the operator."""

    manifest: Manifest
    whitelist_expires_at: datetime
    certificate_expires_at: datetime
    has_master_key: bool
    counters: dict[str, int]  # of the whole repository, root catalog included


class NativeRepository:
    """A repository below `storage`, signed with the keys `<keys>/<name>.*`."""

    def __init__(
        self, name: str, storage: Path, keys: Path, *, max_entries: int = MAX_ENTRIES
    ) -> None:
        """Name a repository; nothing is read before it is used.

        `max_entries`: above this many entries an image's catalog is divided.
        """
        self.name = name
        self.storage = storage
        self._keys = keys
        self._max_entries = max_entries
        self._store = LocalStore(storage, remember=True)

    # creating

    def create(self, algorithm: HashAlgorithm, now: datetime) -> Revision:
        """Make keys (unless they exist), whitelist and an empty, signed first revision.

        Raises:
            RepositoryError: there is a repository already, or files cannot be written.
        """
        if (self.storage / manifests.FILE_NAME).exists():
            raise RepositoryError(
                f"{self.storage} already holds a repository",
                hint="choose another --storage, or use the repository as it is",
            )
        with storage_errors("creating the repository"):
            keys = self._create_or_load_keys(now)
            self._store.create()
            with self._locked():
                self._store.write(MASTER_REPLICA, b"This repository may be replicated.\n")
                self._write_whitelist(keys, now, whitelists.DEFAULT_DAYS)
                return self._create_first_revision(keys, algorithm, int(now.timestamp()))

    def _create_or_load_keys(self, now: datetime) -> Keys:
        kinds = ("pub", "crt", "key")
        if all((self._keys / f"{self.name}.{kind}").exists() for kind in kinds):
            return load_keys(self._keys, self.name)
        return create_keys(self._keys, self.name, now=now)

    def _write_whitelist(self, keys: Keys, now: datetime, days: int) -> datetime:
        if keys.master_key is None:
            raise RepositoryError(
                f"the master key of {self.name} is not in {self._keys}",
                hint=f"bring {self.name}.masterkey from where it is kept, or sign there",
            )
        expires = now + timedelta(days=days)
        data = whitelists.make_whitelist(
            self.name, [fingerprint(keys.certificate)], expires, keys.master_key, now
        )
        self._store.write(whitelists.FILE_NAME, data)
        return expires

    def _create_first_revision(self, keys: Keys, algorithm: HashAlgorithm, now: int) -> Revision:
        with Catalog.create("") as catalog:
            node = Node(0o040755, mtime=now)
            catalog.put([Row("", node, kind_flags(node), 2)])
            catalog.set_counters(catalog.count_own(), dict.fromkeys(COUNTERS, 0))
            catalog.set_property("revision", 1)
            catalog.set_property("last_modified", now)
            catalog.set_property("previous_revision", ContentHash(bytes(DIGEST_BYTES), algorithm))
            root = store_catalog(catalog, self._store, algorithm)
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
        self._store.put(stored, metainfo_hash, Suffix.METAINFO)
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
        with Reflog.create(self.name) as reflog, History.create(self.name) as history:
            return self._publish(manifest, keys, reflog, history, None, _ignore)

    # reading

    def manifest(self) -> Manifest:
        """Return the published manifest, its signature unverified.

        Raises:
            RepositoryError: there is no repository of this name here.
        """
        path = self.storage / manifests.FILE_NAME
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise RepositoryError(
                f"{self.storage} holds no repository: {path.name} does not exist",
                hint="`cvmfs-publish init NAME` creates one",
            ) from None
        except OSError as error:
            raise RepositoryError(f"{path} cannot be read: {error.strerror}") from error
        with damage(self.storage):
            manifest, _, _ = manifests.parse_manifest(data)
        if manifest.name != self.name:
            raise RepositoryError(
                f"{self.storage} holds repository {manifest.name!r}, not {self.name!r}",
                hint="correct `repository.name` or `repository.storage`",
            )
        return manifest

    def revision(self) -> Revision:
        manifest = self.manifest()
        return Revision(manifest.revision, str(manifest.root_hash), manifest.timestamp)

    def snapshot(self) -> Snapshot:
        """Open the published revision for reading; close it after use."""
        self.manifest()
        return browse_snapshot(self.storage, name=self.name)

    @contextmanager
    def open(self) -> Iterator[SnapshotView]:
        with damage(self.storage), self.snapshot() as snapshot:
            yield SnapshotView(snapshot)

    def has_objects(self, names: Iterable[str]) -> bool:
        return all(map(self._store.has, names))

    def info(self, now: datetime) -> RepositoryInfo:
        """Return facts about the published revision; the whitelist is verified against the keys."""
        manifest = self.manifest()
        keys = load_keys(self._keys, self.name)
        with damage(self.storage):
            whitelist, _, _ = whitelists.parse_whitelist(self._read(whitelists.FILE_NAME))
            with self._open_catalog(manifest) as root:
                counters = root.total_counters()
        return RepositoryInfo(
            manifest,
            whitelist.expires_at,
            keys.certificate.not_valid_after_utc,
            keys.master_key is not None,
            counters,
        )

    def _open_catalog(self, manifest: Manifest) -> Catalog:
        stored = self._store.read(manifest.root_hash, Suffix.CATALOG)
        return Catalog.open(decompress(stored, MAX_DATABASE_BYTES))

    def _read(self, name: str) -> bytes:
        try:
            return (self.storage / name).read_bytes()
        except OSError as error:
            raise RepositoryError(
                f"{self.storage / name} cannot be read: {error.strerror}", hint=_HINTS[name]
            ) from error

    # writing

    def resign(self, now: datetime, days: int = whitelists.DEFAULT_DAYS) -> datetime:
        """Renew the whitelist; return when the new one expires.  Needs the master key."""
        self.manifest()
        keys = load_keys(self._keys, self.name)
        with self._locked(), storage_errors("renewing the whitelist"):
            return self._write_whitelist(keys, now, days)

    @contextmanager
    def transaction(
        self, now: int, step: Callable[[str], None] = _ignore
    ) -> Iterator[NativeTransaction]:
        """See `repository.base.Repository`.

        Raises:
            LockedError: another writer is active.
            RepositoryError: the repository is missing, damaged, unwritable, or its keys,
                whitelist or the clock forbid signing.
        """
        self.manifest()  # a clear error before anything else if there is none
        keys = load_keys(self._keys, self.name, with_master=False)
        with self._locked():
            manifest = self.manifest()
            self._check_base(manifest, keys, now)
            timestamp = max(now, manifest.timestamp)
            with (
                storage_errors("writing the repository"),
                damage(self.storage),
                self._reflog(manifest) as reflog,
            ):
                self._store.sweep()
                algorithm = manifest.root_hash.algorithm
                root = CatalogRef(manifest.root_hash, manifest.root_size)
                editor = TreeEditor(self._store, algorithm, root, timestamp)
                transaction = NativeTransaction(
                    editor, self._store, algorithm, self._max_entries, manifest.revision + 1
                )
                try:
                    yield transaction
                    if editor.changed:
                        self._commit(manifest, keys, editor, reflog, timestamp, step)
                except (OSError, RepositoryError):
                    if self._is_published(manifest):  # the failure came before the switch
                        transaction.discard()  # a full disk must not stay full of it
                    raise
                finally:
                    editor.close()

    def _is_published(self, manifest: Manifest) -> bool:
        try:
            return self.manifest() == manifest
        except PublishError:
            return False

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the repository against other writers on this host; the kernel frees it if we die."""
        with storage_errors("locking the repository"):
            descriptor = os.open(self.storage, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(
                    f"repository {self.name} is locked: another publisher is writing to "
                    f"{self.storage}",
                    hint="wait for it to end, then try again",
                ) from None
            except OSError as error:
                raise RepositoryError(
                    f"{self.storage} cannot be locked: {error.strerror}",
                    hint="keep the repository on a file system with flock",
                ) from error
            yield
        finally:
            os.close(descriptor)

    def _check_base(self, manifest: Manifest, keys: Keys, now: int) -> None:
        """Refuse to build on, or to sign, what clients would not accept."""
        if manifest.timestamp > now + CLOCK_TOLERANCE:
            raise RepositoryError(
                f"revision {manifest.revision} was published at {_time(manifest.timestamp)}, but "
                f"the clock of this host says {_time(now)}; clients never go back in time",
                hint="set the clock of this host (NTP)",
            )
        try:
            found = whitelists.verify_whitelist(
                self._read(whitelists.FILE_NAME),
                [keys.public_key],
                name=self.name,
                now=datetime.fromtimestamp(now, UTC),
            )
        except IntegrityError as error:
            raise RepositoryError(
                f"{self.storage / whitelists.FILE_NAME}: {error}",
                hint=error.hint or _HINTS[whitelists.FILE_NAME],
            ) from error
        if not any(
            fingerprint(keys.certificate, trusted.algorithm) == trusted
            for trusted in found.fingerprints
        ):
            raise RepositoryError(
                f"the whitelist of {self.name} does not trust the certificate in {self._keys}",
                hint="`cvmfs-publish resign`, where the master key is, makes it trusted",
            )
        try:
            manifests.verify_manifest(self._read(manifests.FILE_NAME), keys.certificate)
        except IntegrityError as error:
            raise RepositoryError(
                f"{manifests.FILE_NAME} of {self.name} was not signed with the key in "
                f"{self._keys}: {error}",
                hint="name the right keys in `repository.keys`",
            ) from error

    @contextmanager
    def _reflog(self, manifest: Manifest) -> Iterator[Reflog]:
        """Open the reflog the manifest belongs to, or the newer one of a publish that was killed.

        A publisher killed between its two renames leaves a reflog that lists more than the
        manifest names: harmless, and the base of the next one (section 6.1).
        """
        data = self._read(reflogs.FILE_NAME)
        expected = manifest.reflog
        with Reflog.open(data) as reflog:
            if expected is None or ContentHash.of(data, expected.algorithm) != expected:
                listed = {entry.hash for entry in reflog.entries()}
                needed = {
                    manifest.root_hash,
                    manifest.certificate,
                    manifest.history,
                    manifest.metainfo,
                }
                missing = sorted(str(h) for h in needed if h is not None and h not in listed)
                if missing or reflog.name != self.name:
                    raise RepositoryError(
                        f"{reflogs.FILE_NAME} of {self.name} does not belong to revision "
                        f"{manifest.revision}: it lacks {', '.join(missing) or 'its name'}",
                        hint="restore it from a backup, or rebuild it with `cvmfs_server check -r`",
                    )
            yield reflog

    def _commit(
        self,
        manifest: Manifest,
        keys: Keys,
        editor: TreeEditor,
        reflog: Reflog,
        timestamp: int,
        step: Callable[[str], None],
    ) -> None:
        step("catalogs")
        root, revision = editor.commit()
        step("history")
        new = replace(
            manifest,
            root_hash=root.hash,
            root_size=root.size,
            revision=revision,
            timestamp=timestamp,
        )
        previous = manifest.history
        if previous is None:
            history = History.create(self.name)
        else:
            stored = self._store.read(previous, Suffix.HISTORY)
            history = History.open(decompress(stored, MAX_DATABASE_BYTES))
        with history:
            self._publish(new, keys, reflog, history, previous, step)

    def _publish(
        self,
        manifest: Manifest,
        keys: Keys,
        reflog: Reflog,
        history: History,
        previous: ContentHash | None,
        step: Callable[[str], None],
    ) -> Revision:
        """Sign and publish `manifest`, completed with new history, certificate and reflog."""
        algorithm = manifest.root_hash.algorithm
        history.previous_revision = previous
        history.advance(
            manifest.root_hash, manifest.revision, manifest.timestamp, manifest.root_size
        )
        stored = compress(history.serialize(), CATALOG_LEVEL)
        history_hash = ContentHash.of(stored, algorithm)
        self._store.put(stored, history_hash, Suffix.HISTORY)
        step("certificate")
        stored = compress_exactly(keys.certificate_pem())
        certificate_hash = ContentHash.of(stored, algorithm)
        self._store.put(stored, certificate_hash, Suffix.CERTIFICATE)
        step("reflog")
        now = manifest.timestamp
        reflog.add(manifest.root_hash, RefType.CATALOG, now)
        reflog.add(certificate_hash, RefType.CERTIFICATE, now)
        reflog.add(history_hash, RefType.HISTORY, now)
        if manifest.metainfo is not None:
            reflog.add(manifest.metainfo, RefType.METAINFO, now)
        reflog_data = reflog.serialize()
        final = replace(
            manifest,
            certificate=certificate_hash,
            history=history_hash,
            reflog=ContentHash.of(reflog_data, algorithm),
        )
        signed = manifests.sign_manifest(final, keys.private_key)
        step("sync")
        self._store.sync()
        step("prepare")
        prepared_reflog = self._store.prepare(reflog_data)
        prepared_manifest = self._store.prepare(signed)
        step("switch")
        self._store.switch(
            (prepared_reflog, reflogs.FILE_NAME), (prepared_manifest, manifests.FILE_NAME)
        )
        step("done")
        return Revision(final.revision, str(final.root_hash), final.timestamp)


_HINTS = {
    manifests.FILE_NAME: "restore it from a backup or a replica",
    whitelists.FILE_NAME: "`cvmfs-publish resign`, where the master key is, makes a new one",
    reflogs.FILE_NAME: "restore it from a backup, or rebuild it with `cvmfs_server check -r`",
}


@contextmanager
def damage(storage: Path) -> Iterator[None]:
    """Turn what is wrong with stored files into the error of a damaged repository."""
    try:
        yield
    except IntegrityError as error:
        raise RepositoryError(
            f"the repository in {storage} is damaged: {error}",
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

    def list_names(self, path: RepoPath) -> list[tuple[str, bool]]:
        rows = self._snapshot.listdir(path) if self.is_directory(path) else []
        return [(split_path(row.path)[1], row.node.is_dir) for row in rows]


class NativeTransaction:
    """See `repository.base.Transaction`."""

    def __init__(
        self,
        editor: TreeEditor,
        store: LocalStore,
        algorithm: HashAlgorithm,
        max_entries: int,
        revision: int,
    ) -> None:
        self._editor = editor
        self._store = store
        self._algorithm = algorithm
        self._ingestors: list[Ingestor] = []
        self._max_entries = max_entries
        self.revision = revision

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

    def list_names(self, path: RepoPath) -> list[tuple[str, bool]]:
        with self._writing():
            rows = self._editor.children(path) if self.is_directory(path) else []
            return [(split_path(row.path)[1], row.node.is_dir) for row in rows]

    def ingestor(self, readers: int) -> Ingestor:
        ingestor = Ingestor(self._store, self._algorithm, readers)
        self._ingestors.append(ingestor)
        return ingestor

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Tell what is wrong with the repository from what is wrong with an image."""
        with storage_errors("writing the repository"), damage(self._store.root):
            yield

    def discard(self) -> None:
        """Remove the file contents that were stored for nothing."""
        for ingestor in self._ingestors:
            ingestor.discard()

    def store(self, data: bytes) -> Content:
        with self._writing():
            return self._editor.store(data)

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
            self._editor.put_tree(path, tree, choose_nested(tree, self._max_entries))

    def remove(self, path: RepoPath) -> None:
        with self._writing():
            self._editor.remove(path)


def _time(timestamp: int) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S} UTC"
