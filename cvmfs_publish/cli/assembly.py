"""Turn the configuration into the parts that do the work."""

from __future__ import annotations

from cvmfs_publish.config import Config
from cvmfs_publish.repository.native.repository import NativeRepository


def open_repository(config: Config) -> NativeRepository:
    """Return the repository the configuration names; nothing is read yet."""
    repository = config.repository
    return NativeRepository(
        repository.name,
        repository.storage,
        repository.keys,
        max_entries=config.nesting.max_entries,
    )
