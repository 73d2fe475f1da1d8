"""Open what `list`, `show`, `export` and `verify` read: the configured repository or any other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cvmfs_publish.cli.assembly import open_native, open_repository
from cvmfs_publish.cli.context import Session
from cvmfs_publish.cli.lazy import load
from cvmfs_publish.cli.options import Elsewhere, elsewhere
from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.repository.base import View
from cvmfs_publish.repository.native.manifest import FILE_NAME
from cvmfs_publish.repository.native.reader import Snapshot, open_snapshot
from cvmfs_publish.repository.native.repository import NativeRepository, SnapshotView, damage
from cvmfs_publish.repository.native.signing import SignatureError, public_key_files


@dataclass(frozen=True, slots=True)
class Published:
    """What is published, on whatever backend."""

    name: str
    revision: int
    view: View


@contextmanager
def open_published(
    session: Session, location: str | None, keys: list[Path] | None
) -> Iterator[Published]:
    """Open the published revision of any backend; of a native one, its signatures verified.

    Arguments and errors as of `open_reading`.
    """
    if location is None and not keys and session.config.repository.backend != "native":
        repository = open_repository(session.config)
        with repository.open() as view:
            yield Published(session.config.repository.name, repository.revision().number, view)
        return
    with open_reading(session, location, keys) as snapshot:
        manifest = snapshot.manifest
        yield Published(manifest.name, manifest.revision, SnapshotView(snapshot))


@contextmanager
def open_reading(
    session: Session, location: str | None, keys: list[Path] | None, what: str = "this is"
) -> Iterator[Snapshot]:
    """Open the published revision of a native repository, its signatures verified.

    Args:
        session: with the configuration, which is not read if a location is given.
        location: what --from says.
        keys: what --key says.
        what: for the message where the configured one is of another backend, with its verb.

    Raises:
        SignatureError: a signature is wrong or, elsewhere, the whitelist has expired.
        InputError: the configured one is of another backend.
        RepositoryError: there is no repository, or the configured one is damaged.
        IntegrityError: another one is damaged.
    """
    other = elsewhere(location, keys, session.cwd)
    if other is not None:
        with _open_other(other) as snapshot:
            yield snapshot
        return
    repository = open_native(session.config, what)
    with (
        open_own(repository, session.config.repository.keys) as snapshot,
        damage(repository.location),
    ):
        yield snapshot


def _open_other(other: Elsewhere) -> Snapshot:
    origin = load("cvmfs_publish.repository.native.http_origin").open_origin(other.location)
    if origin.size(FILE_NAME) is None:
        origin.close()
        raise RepositoryError(
            f"{other.location} holds no repository: {FILE_NAME} does not exist",
            hint=f"name the folder or URL that holds {FILE_NAME}",
        )
    return open_snapshot(origin, other.keys, now=datetime.now(UTC))


def open_own(repository: NativeRepository, keys: Path) -> Snapshot:
    """Open one's own: that its whitelist has expired is for clients to refuse, not for us."""
    repository.manifest()  # a clear error if there is none
    trusted = public_key_files(keys, repository.name)
    with damage(repository.location):
        try:
            return open_snapshot(repository.store, trusted, now=None, name=repository.name)
        except SignatureError as error:
            problem = error
    raise SignatureError(
        f"the repository in {repository.location} was not signed for the master key {trusted[0]}: "
        f"{problem}",
        hint="name the right keys in `repository.keys`; if they are, somebody has changed files",
    ) from problem
