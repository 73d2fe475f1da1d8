"""Open the store that a description names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.s3 import S3Store
from cvmfs_publish.content.s3_client import S3Settings
from cvmfs_publish.content.store import ContentStore


def open_store(description: dict[str, Any]) -> ContentStore:
    """Undo `ContentStore.description`; nothing is read or written yet."""
    return STORES[description["kind"]](description)


def _open_local(description: dict[str, Any]) -> ContentStore:
    return LocalStore(Path(description["root"]), remember=False)


def _open_s3(description: dict[str, Any]) -> ContentStore:
    settings = {key: value for key, value in description.items() if key != "kind"}
    return S3Store(S3Settings(**settings), remember=False)


STORES = {"local": _open_local, "s3": _open_s3}
