"""What files of several batch systems need to know of a site."""

from __future__ import annotations

from dataclasses import dataclass

from cvmfs_publish.sites.model import Site

_ANY_IMAGE = "docker.io/library/debian:12"  # in examples of sites without a default image


@dataclass(frozen=True, slots=True)
class CachePlan:
    """What root does on a node before a job."""

    places: tuple[str, ...]  # looked at, so that automount mounts them
    fetch: str  # absolute path of cvmfs-fetch, which copies lists of images; empty: no use for them
    fills: bool  # whether root fills the cache with it, too
    prefill: tuple[str, ...]  # images it brings into the cache then


def plan_cache(site: Site) -> CachePlan:
    """Say which repositories a job may need, and what of the shared cache root fills."""
    names = [entry.name for entry in site.repositories]
    names += [name for name in site.required_repositories if name not in names]
    places = tuple(f"{site.cvmfs}/{name}/." for name in names)
    if not set(site.fallback.chain) - {"host"}:
        return CachePlan(places, "", False, ())
    fetch = f"{site.install_dir}/bin/cvmfs-fetch"
    if not site.fallback.shared:
        return CachePlan(places, fetch, False, ())
    defaults = (site.images.cpu, site.images.gpu)
    wanted = dict.fromkeys(str(name) for name in defaults if name and not name.startswith("/"))
    return CachePlan(places, fetch, True, tuple(wanted))


def example_image(site: Site) -> str:
    """Return an image for submit templates, which people replace by their own."""
    return site.images.cpu or _ANY_IMAGE
