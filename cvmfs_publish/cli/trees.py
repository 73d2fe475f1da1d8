"""`init` and `info` where the tree is seen as files: plain trees and those of `cvmfs_server`."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cvmfs_publish import settings
from cvmfs_publish.cli.adopting import (
    as_written,
    default_storage,
    new_config_path,
    tell_foreign,
    write_config,
)
from cvmfs_publish.cli.assembly import open_directory, open_server, open_tree
from cvmfs_publish.cli.context import Session
from cvmfs_publish.cli.output import format_fields, format_minute, format_time, plural
from cvmfs_publish.config import Config, ConfigFile, RepositoryName, render_default_config
from cvmfs_publish.content.local import storage_errors
from cvmfs_publish.errors import InputError
from cvmfs_publish.repository.base import View
from cvmfs_publish.repository.foreign import find_foreign
from cvmfs_publish.repository.records import iter_publications

if TYPE_CHECKING:  # they are loaded where they are used: not every run needs them
    from cvmfs_publish.repository.cvmfs_server import ServerRepository
    from cvmfs_publish.repository.directory import DirectoryRepository


def init_directory(
    session: Session, name: RepositoryName, storage: str | None, *, adopt: bool
) -> None:
    """Begin in a folder and write the configuration.

    Raises:
        InputError: the storage is no folder, or it holds something and `adopt` is not said.
        RepositoryError: it holds a repository of another name, or cannot be written.
    """
    if storage is not None and storage.startswith("s3:"):
        raise InputError("a plain tree is a folder", hint="object stores: --backend native")
    config_path = new_config_path(session, name)
    storage = storage or default_storage(config_path, name)
    place = session.cwd / storage
    text = render_default_config(
        name, backend="directory", storage=as_written(session, config_path, storage)
    )
    repository = open_directory(
        settings.parse(ConfigFile, text, str(config_path), base=config_path.parent).configs[0]
    )
    is_new = not repository.exists()
    if not is_new:
        repository.revision()  # refuses another name
    else:
        if _is_used(place) and not adopt:
            raise InputError(
                f"{place} is not empty",
                hint="name another --storage; --adopt begins in it and leaves all as it is",
            )
        repository.create(datetime.now(UTC))
    write_config(
        config_path,
        name,
        text,
        hint="the repository exists now; `init` elsewhere with the same folder uses it",
    )
    _report_init(session, repository, "directory", config_path, is_new=is_new and not adopt)


def create_directory(session: Session, config: Config, config_path: Path) -> None:
    """Begin in the empty folder that the configuration names.

    Raises `InputError` if something is there.
    """
    repository, place = open_directory(config), config.repository.storage
    if repository.exists():
        raise InputError(
            f"{config_path} has the repository {repository.name} already, and it exists",
            hint="choose another name, or change the section with an editor",
        )
    if _is_used(Path(str(place))):
        raise InputError(
            f"{place} is not empty",
            hint=f"name another folder in `repositories.{repository.name}.storage`; to begin in it,"
            " take the section out and let `init --adopt` add it",
        )
    repository.create(datetime.now(UTC))
    _report_init(session, repository, "directory", config_path, is_new=True)


def _is_used(place: Path) -> bool:
    with storage_errors("looking at the storage"):
        return os.path.lexists(place) and (not place.is_dir() or any(place.iterdir()))


def init_server(session: Session, name: RepositoryName, server_conf: str | None) -> None:
    """Use a repository of `cvmfs_server` and write the configuration.

    Raises:
        InputError: its server.conf is missing, or says what cannot be done here.
        RepositoryError: there is no such repository, or it is not mounted.
    """
    config_path = new_config_path(session, name)
    conf = as_written(session, config_path, server_conf) if server_conf is not None else None
    text = render_default_config(name, backend="cvmfs_server", storage=None, server_conf=conf)
    config = settings.parse(ConfigFile, text, str(config_path), base=config_path.parent).configs[0]
    repository = open_server(config)
    with repository.open():
        repository.revision()
    write_config(config_path, name, text, hint="nothing was changed; --config names another file")
    _report_init(session, repository, "cvmfs_server", config_path, is_new=False)


def _report_init(
    session: Session,
    repository: DirectoryRepository | ServerRepository,
    backend: str,
    config_path: Path,
    *,
    is_new: bool,
) -> None:
    revision = repository.revision()
    with repository.open() as view:
        foreign = list(find_foreign(view))
    session.out.result(
        {
            "repository": repository.name,
            "backend": backend,
            "created": is_new,
            "revision": revision.number,
            "root_hash": revision.root_hash,
            "storage": repository.location,
            "config": str(config_path),
            "found": [found.to_document() for found in foreign],
        },
        f"{'created' if is_new else 'adopted'} {repository.name}, revision {revision.number}\n"
        + format_fields([("storage", repository.location), ("configuration", str(config_path))]),
    )
    tell_foreign(session, foreign)
    session.out.note("next: cvmfs-publish publish docker.io/library/debian:12")


def tell_tree(session: Session) -> None:
    """Show what is known of a repository as a whole."""
    repository = open_tree(session.config)
    backend = session.config.repository.backend
    revision = repository.revision()
    with repository.open() as view:
        counts = _count(view)
        foreign = list(find_foreign(view))
    published = datetime.fromtimestamp(revision.timestamp, UTC)
    session.out.result(
        {
            "repository": repository.name,
            "backend": backend,
            "revision": revision.number,
            "root_hash": revision.root_hash,
            "published_at": format_time(published),
            "storage": repository.location,
            **counts,
            "foreign": [found.to_document() for found in foreign],
        },
        format_fields(
            [
                ("repository", repository.name),
                ("backend", backend),
                ("revision", str(revision.number)),
                ("published", format_minute(published)),
                ("storage", repository.location),
                ("images", f"{plural(counts['names'], 'name')}, "
                 f"{plural(counts['sandboxes'], 'sandbox', 'sandboxes')}"),
                ("entries", f"{counts['entries']:,}"),
                *(("foreign" if number == 0 else "", str(found))
                  for number, found in enumerate(foreign)),
            ]
        ),
    )  # fmt: skip


def _count(view: View) -> dict[str, int]:
    records = list(iter_publications(view))
    sandboxes = {record.sandbox: record.entries for record in records}
    return {
        "names": len(records),
        "sandboxes": len(sandboxes),
        "entries": sum(sandboxes.values()),
    }
