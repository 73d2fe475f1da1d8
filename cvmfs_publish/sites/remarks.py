"""Find what a site configuration permits but probably does not mean.

A remark is no error: the files are rendered and jobs run, at some sites or on some nodes not as
somebody who wrote the line expects.  Sources: the launcher facts, by their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cvmfs_publish.sites.binds import WELL_KNOWN_ROOTS, plan_roots
from cvmfs_publish.sites.model import KEPT_VARIABLES, Bind, Site
from cvmfs_publish.sites.services import Client, Squid
from cvmfs_publish.sites.values import HostPath, ImageName, VariableName

# f.1: the client's limit is soft, and the file system wants a fifth and 1 GB more.
PARTITION_FACTOR = 1.25
PARTITION_EXTRA_MB = 1000
IMAGE_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "HOME", "SHELL")  # the image's or the user's own
BIG_CACHE = 20_000  # MB; squid below that keeps nothing of a few images (R26: 100 GB)


class Remark(NamedTuple):
    """One remark about one key."""

    key: str  # as errors write it: "binds[0].read_only"
    what: str
    remedy: str


def check_site(site: Site) -> list[Remark]:
    """Return remarks on a site that is valid, in the order of its keys in the model."""
    found: list[Remark] = []
    for check in _CHECKS:
        found += check(site)
    return found


def _images(site: Site) -> Iterator[Remark]:
    if not site.repositories:
        yield Remark(
            "repositories",
            "none: jobs can only name images by absolute path",
            "name the repository you publish to",
        )
    if site.images.gpu and not site.images.cpu:
        yield Remark(
            "images.gpu",
            "jobs that use no GPU have no default image",
            "set images.cpu as well",
        )
    for at, repository in enumerate(site.repositories):
        if repository.min_revision and not site.fail_delay:
            yield Remark(
                f"repositories[{at}].min_revision",
                "a node that has not caught up ends job after job at once",
                "set fail_delay to the minutes its client may take",
            )
        if not site.images.allowed:
            continue
        if not any(_is_below(f"{site.cvmfs}/{repository.name}", a) for a in site.images.allowed):
            yield Remark(
                f"repositories[{at}].name",
                f"images.allowed forbids every image of {repository.name}",
                f"add {site.cvmfs}/{repository.name} to images.allowed, or remove the repository",
            )
    for key, image in (("images.cpu", site.images.cpu), ("images.gpu", site.images.gpu)):
        if image is not None:
            yield from _image(site, key, image)
    for at, entry in enumerate(site.software):
        yield from _image(site, f"software[{at}].image", entry.image)


def _image(site: Site, key: str, image: ImageName) -> Iterator[Remark]:
    if not image.startswith("/"):
        if not site.repositories:
            yield Remark(key, f"{image} is found nowhere", "name its repository in repositories")
        return
    places = [f"{site.cvmfs}/{repository.name}" for repository in site.repositories]
    if not any(_is_below(image, place) for place in places):
        yield Remark(
            key,
            f"{image} is in none of the repositories",
            "write the published name, or see that every node has the path",
        )
    if site.images.allowed and not any(_is_below(image, a) for a in site.images.allowed):
        yield Remark(key, f"images.allowed forbids {image}", "add its folder to images.allowed")


def _runtimes(site: Site) -> Iterator[Remark]:
    kinds = [program.runtime for program in site.runtimes]
    if site.gpu in ("nv", "rocm") and not any(kind.gpu for kind in kinds):
        yield Remark(
            "gpu",
            f"{site.gpu} is always wanted, and no runtime of the site brings the libraries",
            "add apptainer to runtimes",
        )
    if site.processes == "own" and not any(kind.processes for kind in kinds):
        yield Remark(
            "processes",
            "own is wanted, and no runtime of the site can give a job its own",
            "add apptainer to runtimes",
        )
    if site.runtime_conf.always_use_nv and site.gpu == "none":
        yield Remark(
            "runtime_conf.always_use_nv",
            "NVIDIA libraries in every container, though gpu is none",
            "remove it, or set gpu to auto",
        )
    if site.runtime_conf.bind_paths:
        yield Remark(
            "runtime_conf.bind_paths",
            "on a node that lacks one of them no container starts",
            "use roots, which has no such risk, unless containers are started without cvmfs-run",
        )
    for at, program in enumerate(site.runtimes):
        if program in site.runtimes[:at]:
            yield Remark(f"runtimes[{at}]", f"{program} is named before", "remove it")


def _binds(site: Site) -> Iterator[Remark]:
    lists: dict[str, tuple[Bind, ...]] = {
        "binds": site.binds,
        "config_mounts": tuple(site.config_mounts),
        "mpi.binds": site.mpi.binds,
    }
    every = [
        (f"{name}[{at}]", bind) for name, binds in lists.items() for at, bind in enumerate(binds)
    ]
    for key, bind in every:
        yield from _by_runtime(site, key, bind)
        yield from _below_roots(site, key, bind)
        for other_key, other in every:
            if other is not bind and _is_below(bind.destination, other.destination):
                yield from _nested(key, bind, other_key, other)


def _by_runtime(site: Site, key: str, bind: Bind) -> Iterator[Remark]:
    for program in dict.fromkeys(program.runtime for program in site.runtimes):
        if bind.read_only and not program.mounts_read_only:
            what = "ends the job with 72" if bind.required else "leaves it out"
            yield Remark(
                f"{key}.read_only",
                f"{program.program} cannot mount {bind.source} read-only and {what}",
                f"remove {program.program} from runtimes, or read_only here",
            )
        if not program.odd_paths and ":" in bind.destination:
            yield Remark(
                key,
                f"{program.program} cannot mount at {bind.destination!r}, because of the colon",
                f"remove {program.program} from runtimes, or choose another target",
            )


def _below_roots(site: Site, key: str, bind: Bind) -> Iterator[Remark]:
    for root in plan_roots(site):
        if not _is_below(bind.destination, root):
            continue
        if bind.source != bind.destination:
            yield from _nested(key, bind, "roots", Bind(source=HostPath(root)))
        elif bind.required:
            yield Remark(
                f"{key}.required",
                f"{bind.source} is required, and the root {root} it lies in is not",
                f"make {root} itself a required bind, if no job can do without it",
            )


def _nested(key: str, bind: Bind, outer_key: str, outer: Bind) -> Iterator[Remark]:
    """A runtime would make a missing mount point on the node (X7), so the launcher does not."""
    place = outer.source + bind.destination[len(outer.destination) :]
    if bind.source != place:
        what = "ends the job with 72" if bind.required else "leaves it out"
        yield Remark(
            key,
            f"{bind.destination} lies in {outer.destination}, which {outer_key} mounts: a node"
            f" without a folder {place} {what}",
            f"make {place} on every node, or choose a target outside {outer.destination}",
        )


def _environment(site: Site) -> Iterator[Remark]:
    environment = site.environment
    if environment.mode == "inherit" and tuple(environment.keep) != KEPT_VARIABLES:
        yield Remark(
            "environment.keep",
            "has no effect: mode is inherit",
            "set environment.mode to clean, or remove it",
        )
    for section, variables in (("environment", environment.set), ("mpi", site.mpi.environment)):
        for name in variables:
            key = f"{section}.{'set' if section == 'environment' else 'environment'}.{name}"
            if name in IMAGE_VARIABLES:
                yield Remark(
                    key,
                    f"{name} is the image's own or the user's: programs of the image may be lost",
                    "remove it; use full paths, or publish an image with the right value",
                )
    for name in environment.set:
        if name in environment.drop:
            yield Remark(
                f"environment.set.{name}", f"{name} is dropped and set", "remove it from drop"
            )


def _job(site: Site) -> Iterator[Remark]:
    hooks = site.hooks
    for key, hook in (("hooks.before", hooks.before), ("hooks.after", hooks.after)):
        if hook is not None and site.mode == "exec":
            yield Remark(
                key,
                "hooks make the launcher supervise, though mode is exec",
                "set mode to supervise, so that nobody is surprised",
            )
            break
    if site.metrics_dir is not None:
        shared = [root.path for root in WELL_KNOWN_ROOTS if root.kind != "local"]
        for root in ("/home", *shared):
            if _is_below(site.metrics_dir, root) or site.metrics_dir == root:
                yield Remark(
                    "metrics_dir",
                    f"{site.metrics_dir} is on a shared file system: every start waits for it",
                    "use a local folder, as /var/log/cvmfs-run",
                )
    if site.home == "none" and not site.scratch:
        yield Remark(
            "home",
            "jobs have no home and no scratch but /tmp",
            "name a folder that the batch system empties in scratch",
        )


def _fallback(site: Site) -> Iterator[Remark]:
    fallback = site.fallback
    chain = fallback.chain
    if "host" in chain and not site.fail_delay:
        yield Remark(
            "fallback.chain",
            "jobs on a sick node silently run outside the image, except for a message",
            "remove host, or set fail_delay so that such a node does not empty the queue",
        )
    if fallback.mirrors and "mirror" not in chain:
        yield Remark(
            "fallback.mirrors", "are not used: chain has no mirror", "add mirror to fallback.chain"
        )
    if chain and chain[0] != "cache" and "cache" in chain:
        yield Remark(
            "fallback.chain", "cache is not first: copies are fetched anew", "write cache first"
        )
    if chain and set(chain) <= {"cache", "host"} and "cache" in chain:
        yield Remark(
            "fallback.chain",
            "nothing fills the cache",
            "add mirror with fallback.mirrors, or registry",
        )
    if {"mirror", "registry"} & set(chain) and "cache" not in chain:
        yield Remark(
            "fallback.chain",
            "copies that are on the node already are not looked for",
            "write cache first",
        )
    if "registry" in chain and not any(
        program.runtime.program in ("apptainer", "singularity") for program in site.runtimes
    ):
        yield Remark(
            "fallback.chain",
            "registry needs Apptainer or Singularity, which runtimes does not have",
            "add apptainer to runtimes, or remove registry",
        )


def _client(site: Site) -> Iterator[Remark]:
    if site.client is not None:
        yield from _cache(site.client)
        yield from _servers(site, site.client)
    if site.squid is not None:
        yield from _squid(site.squid, site.client)


def _cache(client: Client) -> Iterator[Remark]:
    quota, partition = client.quota_mb, client.partition_mb
    if partition is not None and quota is None:
        yield Remark(
            "client.partition_mb",
            "is compared with quota_mb, which is not set",
            "set client.quota_mb",
        )
    if partition is not None and quota is not None and quota > 0:
        needed = int(quota * PARTITION_FACTOR) + PARTITION_EXTRA_MB
        if partition < needed:
            fits = int((partition - PARTITION_EXTRA_MB) / PARTITION_FACTOR)
            yield Remark(
                "client.quota_mb",
                f"a cache of {quota} MB needs a partition of {needed} MB, and it has"
                f" {partition}: full, every repository answers with errors",
                f"lower quota_mb to {max(fits, 1000)}, or enlarge the partition",
            )
    alien = "CVMFS_ALIEN_CACHE" in client.parameters
    shared = client.parameters.get(VariableName("CVMFS_SHARED_CACHE"))
    if alien and (quota != -1 or shared != "no"):
        yield Remark(
            "client.parameters.CVMFS_ALIEN_CACHE",
            "an alien cache cannot be shared or cleaned by the client",
            "set quota_mb to -1 and CVMFS_SHARED_CACHE to no",
        )


def _servers(site: Site, client: Client) -> Iterator[Remark]:
    if client.http_proxy is None and "CVMFS_CLIENT_PROFILE" not in client.parameters:
        yield Remark(
            "client.http_proxy",
            "not set, and the client mounts nothing without",
            "name the site's proxies, or write DIRECT",
        )
    for at, repository in enumerate(site.repositories):
        if client.domains and not any(
            repository.name.endswith(f".{domain}") for domain in (*client.domains, *STOCK_DOMAINS)
        ):
            yield Remark(
                f"repositories[{at}].name",
                f"no domain of client.domains serves {repository.name}",
                "add its domain, with servers and key",
            )
    for name in client.repositories:
        names = [entry.name for entry in site.repositories]
        if name not in (*names, *site.required_repositories):
            yield Remark(
                f"client.repositories.{name}",
                f"{name} is among neither repositories nor required_repositories",
                "add it there, or remove it here",
            )


# Served by the configuration that comes with the client (package cvmfs-config-default, f.2).
STOCK_DOMAINS = ("cern.ch", "egi.eu", "opensciencegrid.org")


def _squid(squid: Squid, client: Client | None) -> Iterator[Remark]:
    if squid.cache_mb < BIG_CACHE:
        yield Remark(
            "squid.cache_mb",
            f"{squid.cache_mb} MB hold a few images at most",
            "100000 is a usual size",
        )
    if squid.memory_mb > squid.cache_mb:
        yield Remark(
            "squid.memory_mb",
            f"more memory ({squid.memory_mb} MB) than disk ({squid.cache_mb} MB)",
            "exchange them, or raise cache_mb",
        )
    if not squid.servers and not (client is not None and client.domains):
        yield Remark(
            "squid.servers",
            "none, and client.domains names none: the proxy may fetch from nobody",
            "name the Stratum 1 servers of your repositories",
        )


def _batch(site: Site) -> Iterator[Remark]:
    batch = site.batch
    if batch.kubernetes != type(batch.kubernetes)() and "kubernetes" not in batch.systems:
        yield Remark(
            "batch.kubernetes",
            "has no effect: kubernetes is not in batch.systems",
            "add it there, or remove the section",
        )


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


_CHECKS = (_images, _runtimes, _binds, _environment, _job, _fallback, _client, _batch)
