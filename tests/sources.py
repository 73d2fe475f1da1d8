"""Sources of images as the tests use them: every transport, on this machine alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cvmfs_publish.sources.base import SourceLimits
from cvmfs_publish.sources.downloads import Downloads
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.source import RegistrySource
from cvmfs_publish.sources.transports import Access, Sources
from tests import parts


@contextmanager
def open_sources(folder: Path, **changes: Any) -> Iterator[Sources]:  # noqa: ANN401
    """Open all of them; `changes` of `Access`."""
    limits = changes.get("limits", SourceLimits())
    with RegistryClient(attempts=3, sleep=lambda _: None) as client, ExitStack() as stack:
        access = Access(
            registry=RegistrySource(client),
            downloads=Downloads(client, stack, folder, limits.layer_bytes),
            limits=limits,
            scratch=folder,
            sqfs2tar=parts.find("sqfs2tar"),
        )
        yield Sources(replace(access, **changes), str(folder))
