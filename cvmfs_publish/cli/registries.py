"""Turn the configuration into what asks registries for ever: one client each, with its logins."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Self

from cvmfs_publish.cli.publishing import find_credentials
from cvmfs_publish.config import Config
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.source import RegistrySource
from cvmfs_publish.state.model import Budget

ATTEMPTS = 2  # a connection that was kept may be closed; whatever lasts is for the next round


class Registries:
    """Sources by registry (`poller.Registries`, `wanted.Taggers`).  Any number of threads."""

    def __init__(self, config: Config, environ: Mapping[str, str]) -> None:
        self._config = config
        self._environ = environ
        self._lock = threading.Lock()
        self._sources: dict[str, RegistrySource] = {}
        self._clients: list[RegistryClient] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            for client in self._clients:
                client.close()

    def source(self, registry: str) -> RegistrySource:
        """As promised by `poller.Registries.source`."""
        with self._lock:
            found = self._sources.get(registry)
            if found is None:
                found = self._sources[registry] = RegistrySource(self._client(registry))
            return found

    def tagger(self, registry: str) -> RegistrySource:
        """As promised by `wanted.Taggers.tagger`."""
        return self.source(registry)

    def forget(self, registry: str) -> None:
        """As promised by `poller.Registries.forget`; its client may be in use, and is kept."""
        with self._lock:
            self._sources.pop(registry, None)

    def budget(self, registry: str, now: datetime) -> Budget:
        """As promised by `poller.Registries.budget`."""
        del now
        return Budget(registry)

    def _client(self, registry: str) -> RegistryClient:
        registries = self._config.registries
        client = RegistryClient(
            # only the host matters: logins are by host
            credentials=find_credentials(self._config, self._environ, [f"{registry}/any"]),
            plain_http=[host for host, found in registries.items() if found.plain_http],
            attempts=ATTEMPTS,
        )
        self._clients.append(client)
        return client
