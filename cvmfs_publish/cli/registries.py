"""Turn the configuration into what asks registries for ever: one client each, with its logins."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Self

from cvmfs_publish.cli.publishing import (
    find_credentials,
    open_budgets,
    open_registries,
    share_budgets,
)
from cvmfs_publish.config import Config
from cvmfs_publish.sources.registry.source import RegistrySource
from cvmfs_publish.state.model import Budget
from cvmfs_publish.watch.memory import AnswerMemory, Asked, RememberedSource

ATTEMPTS = 2  # a connection that was kept may be closed; whatever lasts is for the next round
SHARE_EVERY = timedelta(seconds=5)  # what publishes ask counts for the watcher, and the reverse


class Registries:
    """Sources by registry (`poller.Registries`, `wanted.Taggers`).  Any number of threads."""

    def __init__(
        self,
        config: Config,
        environ: Mapping[str, str],
        memory: AnswerMemory | None = None,
    ) -> None:
        """Ask as configured; with a `memory`, what others have not asked a moment ago."""
        self._memory = memory
        self._config = config
        self._environ = environ
        self._budgets = open_budgets(config, datetime.now(UTC))
        self._lock = threading.Lock()
        self._sources: dict[str, RegistrySource] = {}
        self._stack = ExitStack()
        self._is_limited = any(
            registry.requests_per_hour or registry.pulls_per_hour
            for registry in config.registries.values()
        )
        self._shared_at = datetime.min.replace(tzinfo=UTC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._stack.close()

    def source(self, registry: str) -> Asked:
        """As promised by `poller.Registries.source`."""
        found = self._source(registry)
        return RememberedSource(found, self._memory) if self._memory is not None else found

    def _source(self, registry: str) -> RegistrySource:
        with self._lock:
            found = self._sources.get(registry)
            if found is None:
                # only the host matters: logins are by host
                logins = find_credentials(self._config, self._environ, [f"{registry}/any"])
                found = self._sources[registry] = self._stack.enter_context(
                    open_registries(self._config, logins, self._budgets, attempts=ATTEMPTS)
                )
            return found

    def tagger(self, registry: str) -> Asked:
        """As promised by `wanted.Taggers.tagger`."""
        return self.source(registry)

    def forget(self, registry: str) -> None:
        """As promised by `poller.Registries.forget`; its client may be in use, and is kept."""
        with self._lock:
            self._sources.pop(registry, None)

    def budget(self, registry: str, now: datetime) -> Budget:
        """As promised by `poller.Registries.budget`."""
        self._share(now)
        known = self._budgets.of(registry).snapshot(now)
        limit = known.allowance.requests_per_hour
        return Budget(
            registry,
            limit=limit,
            remaining=max(0, limit - known.requests) if limit is not None else None,
        )

    def _share(self, now: datetime) -> None:
        with self._lock:
            if not self._is_limited or abs(now - self._shared_at) < SHARE_EVERY:
                return
            self._shared_at = now
            share_budgets(self._config, self._budgets, now)
