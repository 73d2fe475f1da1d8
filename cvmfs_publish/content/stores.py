"""Open the store that a description names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

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
