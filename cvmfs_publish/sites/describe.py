"""Say what a site configuration means: its effective values, and remarks about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import timedelta

from cvmfs_publish.findings import Finding
from cvmfs_publish.sites.binds import plan_binds, plan_roots
from cvmfs_publish.sites.model import Bind, Site


def effective_values(site: Site) -> dict[str, object]:
    """Return every key with the value in force, defaults included, as plain data for YAML or JSON.

    `roots` is expanded to the list that jobs get.
    """
    values = _plain(site)
    if not isinstance(values, dict):
        raise TypeError("a site is a mapping")
    values["roots"] = list(plan_roots(site))
    return values


def check_site(site: Site) -> list[Finding]:
    """Return remarks on what is permitted but probably not meant; `path` names the key."""
    return [Finding(key, what) for key, what in _remarks(site)]


def _remarks(site: Site) -> Iterator[tuple[str, str]]:
    if not site.repositories:
        yield "repositories", "none: jobs can only name images by absolute path"
    if site.images.gpu and not site.images.cpu:
        yield "images.cpu", "not set, though images.gpu is: jobs without GPU have no default image"
    if site.images.allowed and site.repositories:
        for repository in site.repositories:
            path = f"{site.cvmfs}/{repository.name}/"
            if not any(path.startswith(f"{allowed}/") for allowed in site.images.allowed):
                yield "images.allowed", f"forbids the repository {repository.name}"
    for bind in plan_binds(site):
        yield from _bind_remarks(site, bind)
    if "host" in site.fallback.chain and not site.fail_delay:
        yield (
            "fallback.chain",
            "jobs on a sick node silently run outside the image, except for a message",
        )
    if site.runtime_conf.bind_paths:
        yield (
            "runtime_conf.bind_paths",
            "on a node that lacks one of them no container starts; `roots` has no such risk",
        )
    if site.client and site.client.domains:
        for repository in site.repositories:
            if not any(repository.name.endswith(f".{domain}") for domain in site.client.domains):
                yield "client.domains", f"none serves the repository {repository.name}"


def _bind_remarks(site: Site, bind: Bind) -> Iterator[tuple[str, str]]:
    for program in site.runtimes:
        runtime = program.runtime
        if bind.read_only and not runtime.mounts_read_only:
            yield "binds", f"{bind.source} is read-only, which {runtime.program} cannot do"
        if ":" in bind.destination and not runtime.odd_paths:
            yield "binds", f"{runtime.program} cannot mount at {bind.destination!r}"


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, timedelta):
        return f"{int(value.total_seconds())}s"
    return str(value) if isinstance(value, str) else value
