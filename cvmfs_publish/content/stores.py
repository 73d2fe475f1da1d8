"""Open the store that a description names, of a repository or of artefacts."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from cvmfs_publish.content.artefacts import ArtefactStore, FolderStore
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.store import ContentStore


def open_store(description: dict[str, Any], *, remember: bool = False) -> ContentStore:
    """Undo `ContentStore.description`; nothing is read or written yet.

    `remember`: the store keeps in `used` what it is asked to put.
    """
    return STORES[description["kind"]](description, remember)


def _open_local(description: dict[str, Any], remember: bool) -> ContentStore:
    return LocalStore(Path(description["root"]), remember=remember)


def _open_s3(description: dict[str, Any], remember: bool) -> ContentStore:
    """The library behind it takes as long to load as all the rest of a worker process."""
    store: ContentStore = importlib.import_module("cvmfs_publish.content.s3").open_described(
        description, remember=remember
    )
    return store


STORES = {"local": _open_local, "s3": _open_s3}


def open_artefacts(description: dict[str, Any], spool: Path) -> ArtefactStore:
    """Open a place for artefacts; nothing is read or written yet.

    Args:
        description: as `ContentStore.description` makes it.
        spool: a folder for artefacts on their way; used where they go elsewhere.
    """
    if description["kind"] == "local":
        return FolderStore(Path(description["root"]))
    store: ArtefactStore = importlib.import_module(
        "cvmfs_publish.content.artefacts_s3"
    ).open_described(description, spool)
    return store
