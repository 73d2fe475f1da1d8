"""Files for batch systems: submit templates, and hooks that run jobs in the site's image.

One function for each system, found in `SCHEDULERS` by the name that `batch.systems` uses; its
files lie in a folder of that name.
"""

from __future__ import annotations

from collections.abc import Callable

from cvmfs_publish.sites.gridengine import render_gridengine
from cvmfs_publish.sites.htcondor import render_htcondor
from cvmfs_publish.sites.kubernetes import render_kubernetes
from cvmfs_publish.sites.lsf import render_lsf
from cvmfs_publish.sites.model import BatchSystem, Site
from cvmfs_publish.sites.pages import Files, Pages, RenderedFile
from cvmfs_publish.sites.pbs import render_pbs
from cvmfs_publish.sites.slurm import render_slurm

Renderer = Callable[[Site, Pages], Files]


def render_batch(site: Site, pages: Pages) -> Files:
    """Return the files of every batch system the site names."""
    files: dict[str, RenderedFile] = {}
    for system in site.batch.systems:
        files |= SCHEDULERS[system](site, pages)
    return files


SCHEDULERS: dict[BatchSystem, Renderer] = {
    "slurm": render_slurm,
    "gridengine": render_gridengine,
    "htcondor": render_htcondor,
    "pbs": render_pbs,
    "lsf": render_lsf,
    "kubernetes": render_kubernetes,
}
