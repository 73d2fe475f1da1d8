"""The launcher, its companions and `site.conf`, the file of assignments they read.

Programs are the same for all sites: copied, never rendered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta

from cvmfs_publish.sites.binds import plan_binds, plan_roots
from cvmfs_publish.sites.model import Bind, ConfigMount, Site
from cvmfs_publish.sites.pages import PROGRAM, Files, Pages, RenderedFile
from cvmfs_publish.sites.values import Line, VariableName

CONF_FORMAT = 2  # of site.conf; `cr_format` in the launcher

PROGRAMS = {
    "bin/cvmfs-run": "launcher/cvmfs-run",
    "bin/cvmfs-fetch": "launcher/cvmfs-fetch",
    "bin/node-check": "launcher/node-check",
}


def render_launcher(site: Site, pages: Pages) -> Files:
    """Return the programs of worker nodes and their configuration."""
    files = {path: RenderedFile(pages.read(name), PROGRAM) for path, name in PROGRAMS.items()}
    files["etc/site.conf"] = pages.render("launcher/site.conf", values=conf_values(site))
    return files


def conf_values(site: Site) -> dict[str, str]:
    """Return the assignments of site.conf; lists have one entry per line."""
    repositories = [
        line
        for entry in site.repositories
        for line in (entry.layout, entry.name, str(entry.min_revision))
    ]
    fallback = site.fallback
    return {
        "format": str(CONF_FORMAT),
        "name": site.name,
        "base": site.cvmfs,
        "repositories": "\n".join(repositories),
        "required_repositories": "\n".join(site.required_repositories),
        "pin": _flag(site.pin),
        "default_registry": site.default_registry,
        "image_cpu": site.images.cpu or "",
        "image_gpu": site.images.gpu or "",
        "allowed_images": "\n".join(site.images.allowed),
        "runtimes": "\n".join(site.runtimes),
        "roots": "\n".join(plan_roots(site)),
        "binds": "\n".join(line for bind in plan_binds(site) for line in _bind_lines(bind)),
        "home": site.home,
        "scratch": "\n".join(site.scratch),
        "gpu": site.gpu,
        "processes": site.processes,
        "mpi_binds": "\n".join(line for bind in site.mpi.binds for line in _bind_lines(bind)),
        "mpi_env": _assignments(site.mpi.environment),
        "env_mode": site.environment.mode,
        "env_keep": "\n".join(site.environment.keep),
        "env_drop": "\n".join(site.environment.drop),
        "env_set": _assignments(site.environment.set),
        "hook_before": site.hooks.before or "",
        "hook_after": site.hooks.after or "",
        "probe_timeout": _seconds(site.probe_timeout),
        "nested": site.nested,
        "mode": site.mode,
        "fallback": "\n".join(fallback.chain),
        "cache_dir": fallback.cache_dir,
        "cache_shared": _flag(fallback.shared),
        "cache_mb": str(fallback.cache_mb),
        "image_mb": str(fallback.image_mb),
        "mirrors": "\n".join(fallback.mirrors),
        "lock_wait": _seconds(fallback.lock_wait),
        "download_timeout": _seconds(fallback.download_timeout),
        "jitter": _seconds(fallback.jitter),
        "retry_after": _seconds(fallback.retry_after),
        "fail_delay": _seconds(site.fail_delay),
        "metrics_dir": site.metrics_dir or "",
    }


def _bind_lines(bind: Bind) -> Iterator[str]:
    yield f"bind {'r' if bind.read_only else 'w'}{'R' if bind.required else 'O'}"
    yield f"from {bind.source}"
    yield f"to {bind.destination}"
    if isinstance(bind, ConfigMount):
        for name, text in bind.environment.items():
            yield f"env {name}={text}"


def _assignments(variables: Mapping[VariableName, Line]) -> str:
    return "\n".join(f"{name}={text}" for name, text in variables.items())


def _seconds(duration: timedelta) -> str:
    return str(int(duration.total_seconds()))


def _flag(value: bool) -> str:
    return "yes" if value else ""
