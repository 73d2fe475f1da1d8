"""Turn the configuration into the parts that do the work."""

from __future__ import annotations

from cvmfs_publish.config import Config
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.repository.native.repository import NativeOptions, NativeRepository


def open_repository(config: Config) -> NativeRepository:
    """Return the repository the configuration names; nothing is read yet."""
    repository = config.repository
    return NativeRepository(
        repository.name,
        LocalStore(repository.storage),
        repository.keys,
        NativeOptions(max_entries=config.nesting.max_entries),
    )
