"""The file-system roots sites mount into containers, with the evidence for each.

Source: the launcher facts, section (d): user guides, launcher scripts and configuration of the
sites named.  An entry costs one test of existence at the start of a job.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from cvmfs_publish.sites.model import Bind, ConfigMount, Site
from cvmfs_publish.sites.values import STANDARD


@dataclass(frozen=True, slots=True)
class Root:
    """A well-known root of a shared or scratch file system."""

    path: str
    kind: str
    evidence: str


WELL_KNOWN_ROOTS = (
    Root("/nfs", "NFS", "SLAC (before S3DF), DESY, Sanger"),
    Root("/u", "NFS, AFS", "SLAC homes"),
    Root("/sps", "GPFS, NFS", "CC-IN2P3 group space; its user guide binds it"),
    Root("/pbs", "NFS", "CC-IN2P3 homes and software; its user guide binds it"),
    Root("/afs", "AFS", "CERN, SLAC, DESY"),
    Root("/gpfs", "GPFS", "DESY and many HPC centres"),
    Root("/lustre", "Lustre", "Sanger, Digital Research Alliance of Canada, GSI"),
    Root("/sdf", "Lustre, WEKA", "SLAC S3DF; ALRB options for SLAC"),
    Root("/fs", "Lustre, WEKA", "SLAC S3DF; ALRB options for SLAC"),
    Root("/lscratch", "local", "SLAC, NIH"),
    Root("/scratch", "parallel, local", "CC-IN2P3, PSI, SDSC, Digital Research Alliance of Canada"),
    Root("/exp", "NFS", "FNAL"),
    Root("/nashome", "NFS", "FNAL homes"),
    Root("/pnfs", "dCache", "FNAL, DESY, PSI"),
    Root("/grid", "NFS", "FNAL"),
    Root("/eos", "FUSE", "CERN"),
    Root("/hadoop", "FUSE", "default list of OSG and GlideinWMS"),
    Root("/hdfs", "FUSE", "default list of OSG and GlideinWMS"),
    Root("/ceph", "CephFS", "default list of OSG and GlideinWMS"),
    Root("/lizard", "FUSE", "default list of OSG and GlideinWMS"),
    Root("/mnt/hadoop", "FUSE", "default list of OSG and GlideinWMS"),
    Root("/mnt/hdfs", "FUSE", "default list of OSG and GlideinWMS"),
    Root("/global", "GPFS", "NERSC"),
    Root("/pscratch", "Lustre", "NERSC"),
    Root("/project", "Lustre", "Digital Research Alliance of Canada and others"),
    Root("/projects", "Lustre", "SDSC and others"),
    Root("/work", "parallel", "MIT"),
    Root("/storage", "parallel", "several"),
    Root("/data", "parallel", "PSI, CMS sites"),
    Root("/oasis", "Lustre", "SDSC"),
    Root("/software", "NFS", "Sanger; experiment software at SLAC"),
)


def plan_roots(site: Site) -> tuple[str, ...]:
    """Return the roots of a site in order, `standard` expanded, each once."""
    roots: dict[str, None] = {}
    for entry in site.roots:
        if entry == STANDARD:
            roots.update((root.path, None) for root in WELL_KNOWN_ROOTS)
        else:
            roots[entry] = None
    # An explicit mount at the same place decides; the launcher would only skip the root.
    taken = {bind.destination for bind in plan_binds(site)}
    return tuple(root for root in roots if root not in taken)


def plan_binds(site: Site) -> tuple[Bind, ...]:
    """Return the explicit mounts of a site: CernVM-FS, `binds`, `config_mounts`."""
    own = (*site.binds, *site.config_mounts)
    if any(bind.destination == "/cvmfs" for bind in own):
        return own
    cvmfs = Bind(source=site.cvmfs, target=type(site.cvmfs)("/cvmfs"))
    return (cvmfs, *own)


def plan_targets(site: Site) -> tuple[str, ...]:
    """Return every directory of an image that the site mounts something at, each once.

    A publisher adds them, for runtimes that create no mount points.  A configuration file is no
    directory: only the folder it is mounted in is named.
    """
    mounts = (*plan_binds(site), *site.mpi.binds)
    return tuple(dict.fromkeys([*plan_roots(site), *filter(None, map(_mount_point, mounts))]))


def _mount_point(bind: Bind) -> str:
    if isinstance(bind, ConfigMount) and not bind.directory:
        return posixpath.dirname(bind.destination).rstrip("/")
    return bind.destination
