"""What the commands share that deal with images as files, for nodes without CernVM-FS."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cvmfs_publish.cli.assembly import open_artefact_store
from cvmfs_publish.cli.context import Session
from cvmfs_publish.config import Config
from cvmfs_publish.content.artefacts import ArtefactError, ArtefactStore
from cvmfs_publish.errors import InputError
from cvmfs_publish.repository.artefact import Packer
from cvmfs_publish.repository.base import Repository
from cvmfs_publish.repository.fallback import check_owner, refresh_copy
from cvmfs_publish.repository.records import Artefact


@contextmanager
def open_packer(
    config: Config, environ: Mapping[str, str], *, wanted: bool | None
) -> Iterator[Packer | None]:
    """Yield what writes artefacts; None if none are to be written.

    Args:
        config: names the store, if there is one.
        environ: whose PATH leads to sqfstar.
        wanted: by --fallback or --no-fallback; None: if the configuration names a store.
    """
    if wanted is False:
        yield None
        return
    if config.fallback is None and wanted:
        raise InputError(
            "--fallback: the configuration names no `fallback.store`",
            hint="say where the files go: `fallback: {store: DIR}`",
        )
    with open_own_store(config) as store:
        if store is None or config.fallback is None:
            yield None
            return
        program = shutil.which("sqfstar", path=environ.get("PATH") or os.defpath)
        yield Packer(
            store,
            config.fallback.format,
            sqfstar=Path(program) if program is not None else None,
            max_bytes=config.fallback.max_bytes,
        )


@contextmanager
def open_own_store(config: Config) -> Iterator[ArtefactStore | None]:
    """Yield the store of artefacts, which belongs to this repository; None if there is none."""
    store = open_artefact_store(config)
    if store is None:
        yield None
        return
    try:
        check_owner(store, config.repository.name)
        yield store
    finally:
        store.close()


def tell_copy(session: Session, repository: Repository, store: ArtefactStore | None) -> None:
    """Bring the copy of the list in the store up to date; nodes do not depend on it."""
    if store is None:
        return
    try:
        with repository.open() as view:
            refresh_copy(store, session.config.repository.name, view)
    except ArtefactError as error:
        session.out.warn(
            f"the copy of the list of fallback images is out of date: {error}", error.hint
        )


def refresh(session: Session, repository: Repository) -> None:
    """As `tell_copy`, for commands that have no use for the store otherwise."""
    if session.config.fallback is None:
        return
    try:
        with open_own_store(session.config) as store:
            tell_copy(session, repository, store)
    except (ArtefactError, InputError) as error:
        session.out.warn(
            f"the copy of the list of fallback images is out of date: {error}", error.hint
        )


def artefact_document(artefact: Artefact | None) -> dict[str, object] | None:
    """Return what JSON results say of an artefact; its keys are a promise to scripts."""
    if artefact is None:
        return None
    return {
        "file": artefact.file,
        "sha256": artefact.sha256,
        "size": artefact.size,
        "format": artefact.format,
    }
