"""Replace the published manifest of a repository by the next one, in one visible step.

Source: facts/cvmfs-format.md sections 5.1, 5.3 and 6.1.  Everything the manifest names is stored
before it: catalogs by whoever edits the tree; history, certificate, metainfo and reflog here.  Only
two files are ever replaced, the reflog and then the manifest, and only if they are still what this
writer started from.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.objects import compress_catalog, compress_exactly, decompress
from cvmfs_publish.content.store import ContentStore, Lock
from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.repository.native import manifest as manifests
from cvmfs_publish.repository.native import reflog as reflogs
from cvmfs_publish.repository.native.history import History
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.reflog import Reflog, RefType
from cvmfs_publish.repository.native.signing import Keys

MAX_DATABASE_BYTES = 1024**3  # uncompressed; of reflog and history


def ignore_step(_: str) -> None:
    """Do nothing: for those who need not know how far a commit is."""


class Bookkeeping(Protocol):
    """What else has to be locked and told on a host where stock tools write the repository too."""

    def hold(self) -> AbstractContextManager[Lock]:
        """Keep stock tools from writing; `LockedError` at once if they are at it."""

    def check_reflog(self, reflog: bytes, *, repair: bool = False) -> None:
        """Raise `RepositoryError` unless this is the reflog that stock tools know.

        `repair`: finish what a writer of ours, killed while it replaced the reflog, left undone.
        """

    def announce_reflog(self, checksum: ContentHash) -> None:
        """The reflog is about to have this hash."""

    def reflog_replaced(self, checksum: ContentHash) -> None:
        """The reflog now has this hash."""

    def manifest_replaced(self, root_hash: ContentHash) -> None:
        """The published root catalog now has this hash."""


class Locks:
    """The right to write where several locks give it together."""

    def __init__(self, *locks: Lock) -> None:
        self._locks = locks

    def check(self) -> None:
        """See `content.store.Lock`."""
        for lock in self._locks:
            lock.check()


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: with what, whether it still may, and whom it tells."""

    store: ContentStore
    keys: Keys
    lock: Lock
    bookkeeping: Bookkeeping | None = None
    step: Callable[[str], None] = ignore_step


class Base:
    """The published state a writer starts from.  Close it."""

    def __init__(
        self, manifest: Manifest, version: str | None, reflog: Reflog, reflog_version: str | None
    ) -> None:
        self.manifest = manifest
        self.version = version  # of the manifest file; None: there is none yet
        self.reflog = reflog
        self.reflog_version = reflog_version

    def close(self) -> None:
        self.reflog.close()

    def __enter__(self) -> Base:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_base(
    store: ContentStore,
    manifest: Manifest,
    version: str,
    bookkeeping: Bookkeeping | None = None,
    *,
    repair: bool = True,
) -> Base:
    """Open the reflog the manifest belongs to, or the newer one of a writer that was killed.

    A writer killed between its two replacements leaves a reflog that lists more than the manifest
    names: harmless, and the base of the next one (section 6.1).

    `bookkeeping` has to agree; `repair` it where a writer was killed, with its lock held.

    Raises:
        RepositoryError: there is no reflog, or it is another repository's or an older one.
        IntegrityError: it is damaged.
    """
    found = store.fetch(reflogs.FILE_NAME, MAX_DATABASE_BYTES)
    if found is None:
        raise RepositoryError(
            f"{reflogs.FILE_NAME} of {manifest.name} is missing from {store.location}",
            hint=REFLOG_HINT,
        )
    if bookkeeping is not None:
        bookkeeping.check_reflog(found.data, repair=repair)
    reflog = Reflog.open(found.data)
    try:
        expected = manifest.reflog
        if expected is None or ContentHash.of(found.data, expected.algorithm) != expected:
            _check_newer(reflog, manifest)
    except BaseException:
        reflog.close()
        raise
    return Base(manifest, version, reflog, found.version)


def _check_newer(reflog: Reflog, manifest: Manifest) -> None:
    listed = {entry.hash for entry in reflog.entries()}
    needed = {manifest.root_hash, manifest.certificate, manifest.history, manifest.metainfo}
    missing = sorted(str(h) for h in needed if h is not None and h not in listed)
    if missing or reflog.name != manifest.name:
        raise RepositoryError(
            f"{reflogs.FILE_NAME} of {manifest.name} does not belong to revision "
            f"{manifest.revision}: it lacks {', '.join(missing) or 'its name'}",
            hint=REFLOG_HINT,
        )


REFLOG_HINT = "restore it from a backup, or rebuild it with `cvmfs_server check -r`"


def open_history(store: ContentStore, manifest: Manifest) -> History:
    """Return the published history, or an empty one; close it."""
    if manifest.history is None:
        return History.create(manifest.name)
    stored = store.read(manifest.history, Suffix.HISTORY)
    return History.open(decompress(stored, MAX_DATABASE_BYTES))


def publish(writer: Writer, base: Base, manifest: Manifest, history: History | None) -> Manifest:
    """Sign and publish `manifest`, completed with history, certificate and reflog.

    Args:
        writer: holds the lock.
        base: what is replaced; entries may have been removed from its reflog.
        manifest: root catalog and metainfo are stored already.
        history: becomes the next history; None keeps the one `manifest` names.

    Returns:
        What was published.

    Raises:
        LockedError: somebody else has published since `base` was read; nothing changed.
        OSError, RepositoryError: the store could not take it; the old manifest is in place, except
            that after an error in the very last step it may be either.
    """
    store, step, algorithm = writer.store, writer.step, manifest.root_hash.algorithm
    history_hash = manifest.history
    if history is not None:
        history.previous_revision = base.manifest.history if base.version is not None else None
        stored = compress_catalog(history.serialize())
        history_hash = ContentHash.of(stored, algorithm)
        store.put(stored, history_hash, Suffix.HISTORY)
    step("certificate")
    stored = compress_exactly(writer.keys.certificate_pem())
    certificate_hash = ContentHash.of(stored, algorithm)
    store.put(stored, certificate_hash, Suffix.CERTIFICATE)
    step("reflog")
    now = manifest.timestamp
    base.reflog.add(manifest.root_hash, RefType.CATALOG, now)
    base.reflog.add(certificate_hash, RefType.CERTIFICATE, now)
    if history_hash is not None:
        base.reflog.add(history_hash, RefType.HISTORY, now)
    if manifest.metainfo is not None:
        base.reflog.add(manifest.metainfo, RefType.METAINFO, now)
    reflog_data = base.reflog.serialize()
    final = replace(
        manifest,
        certificate=certificate_hash,
        history=history_hash,
        reflog=ContentHash.of(reflog_data, algorithm),
    )
    signed = manifests.sign_manifest(final, writer.keys.private_key)
    step("sync")
    store.sync()
    step("prepare")
    new_reflog = store.prepare(reflogs.FILE_NAME, reflog_data, base.reflog_version)
    new_manifest = store.prepare(manifests.FILE_NAME, signed, base.version)
    step("switch reflog")
    writer.lock.check()
    if writer.bookkeeping is not None and final.reflog is not None:
        writer.bookkeeping.announce_reflog(final.reflog)
    store.replace(new_reflog)
    if writer.bookkeeping is not None and final.reflog is not None:
        writer.bookkeeping.reflog_replaced(final.reflog)
    step("switch")
    store.replace(new_manifest)
    if writer.bookkeeping is not None:
        writer.bookkeeping.manifest_replaced(final.root_hash)
    step("done")
    return final
