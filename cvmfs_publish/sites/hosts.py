"""What files of several batch systems need to know of a site."""

from __future__ import annotations

from dataclasses import dataclass

from cvmfs_publish.sites.model import Site

_ANY_IMAGE = "docker.io/library/debian:12"  # in examples of sites without a default image


@dataclass(frozen=True, slots=True)
class CachePlan:
    """What root does on a node before a job."""

    required: tuple[str, ...]  # repositories every job needs, as folders to look into
    repositories: tuple[str, ...]  # those that images are looked up in, likewise
    fetch: str  # absolute path of cvmfs-fetch, which copies lists of images; empty: no use for them
    fills: bool  # whether root fills the cache with it, too
    prefill: tuple[str, ...]  # images it brings into the cache then

    @property
    def places(self) -> tuple[str, ...]:
        """What is looked at, each once, so that automount mounts it."""
        return tuple(dict.fromkeys((*self.repositories, *self.required)))


def plan_cache(site: Site) -> CachePlan:
    """Say which repositories a job may need, and what of the shared cache root fills."""
    required = tuple(f"{site.cvmfs}/{name}/." for name in site.required_repositories)
    repositories = tuple(f"{site.cvmfs}/{entry.name}/." for entry in site.repositories)
    if not set(site.fallback.chain) - {"host"}:
        return CachePlan(required, repositories, "", False, ())
    fetch = f"{site.install_dir}/bin/cvmfs-fetch"
    if not site.fallback.shared:
        return CachePlan(required, repositories, fetch, False, ())
    defaults = (site.images.cpu, site.images.gpu)
    wanted = dict.fromkeys(str(name) for name in defaults if name and not name.startswith("/"))
    return CachePlan(required, repositories, fetch, True, tuple(wanted))


def launcher_path(site: Site) -> str:
    """Return where `cvmfs-run` lies on nodes."""
    return f"{site.install_dir}/bin/cvmfs-run"


def has_default_image(site: Site) -> bool:
    """Say whether a job that names no image runs in one."""
    return bool(site.images.cpu or site.images.gpu)


def example_image(site: Site) -> str:
    """Return an image for submit templates, which people replace by their own."""
    return site.images.cpu or _ANY_IMAGE
