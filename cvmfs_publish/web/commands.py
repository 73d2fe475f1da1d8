"""Turn a published image and a site into lines to copy: launcher, Apptainer, submit files.

The submit files are those that `site render` writes, with this image in the place of the example's
and without their explanations, so a page and a rendered folder cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM, place_name
from cvmfs_publish.repository.records import Publication
from cvmfs_publish.sites.hosts import launcher_path
from cvmfs_publish.sites.model import BatchSystem, Site
from cvmfs_publish.sites.pages import Pages, quote_sh
from cvmfs_publish.sites.schedulers import SCHEDULERS
from cvmfs_publish.sites.values import ImageName
from cvmfs_publish.sources.base import Platform

SUBMIT_FILES: dict[BatchSystem, str] = {
    "slurm": "slurm/submit.sbatch",
    "gridengine": "gridengine/submit.sh",
    "htcondor": "htcondor/submit.sub",
    "pbs": "pbs/submit.pbs",
    "lsf": "lsf/submit.lsf",
    "kubernetes": "kubernetes/job.yaml",
}
TITLES: dict[BatchSystem, str] = {
    "slurm": "Slurm",
    "gridengine": "Grid Engine",
    "htcondor": "HTCondor",
    "pbs": "PBS",
    "lsf": "LSF",
    "kubernetes": "Kubernetes",
}
_COMMAND = "cat /etc/os-release"  # shows that it works, and where
_DIRECTIVES = ("#!", "#SBATCH ", "#PBS ", "#$ ", "#BSUB ")  # comments that mean something


@dataclass(frozen=True, slots=True)
class Command:
    """Something to copy."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class SiteCommands:
    """How to start a job in an image at one site."""

    site: str
    description: str
    commands: tuple[Command, ...]


def plan_commands(
    record: Publication, repository: str, sites: Iterable[Site], pages: Pages
) -> list[SiteCommands]:
    """Return what to type at each site; `pages` are the templates of sites."""
    return [
        SiteCommands(site.name, site.description, tuple(_commands(record, repository, site, pages)))
        for site in sites
    ]


def _commands(record: Publication, repository: str, site: Site, pages: Pages) -> Sequence[Command]:
    path = _path(record, repository, site)
    image = _image(record, repository, site, path)
    run = f"{quote_sh(launcher_path(site))} {quote_sh(image)} -- {_COMMAND}"
    commands = [Command("cvmfs-run", run)]
    if any(runtime.rpartition("/")[2] == "apptainer" for runtime in site.runtimes):
        commands.append(Command("Apptainer", f"apptainer exec {quote_sh(path)} {_COMMAND}"))
    shown = replace(site, images=replace(site.images, cpu=ImageName(image)))
    for system in site.batch.systems:
        file = SCHEDULERS[system](shown, pages)[SUBMIT_FILES[system]]
        lines = _essential(file.content.decode("utf-8"))
        name = SUBMIT_FILES[system].rpartition("/")[2]
        commands.append(Command(f"{TITLES[system]}: {name}", lines))
    return commands


def _path(record: Publication, repository: str, site: Site) -> str:
    """Return where nodes find the image; another platform's by its own link."""
    platform = Platform.parse(record.platform)
    name = record.path.lstrip("/")
    if platform != DEFAULT_PLATFORM:
        name = place_name(Reference.parse(record.reference), platform).platform_name
    return f"{site.cvmfs}/{repository}/{name}"


def _image(record: Publication, repository: str, site: Site, path: str) -> str:
    """Return what the launcher is told: a name where it looks into this repository, or a path."""
    looked_up = any(
        entry.name == repository and entry.layout == "unpacked" for entry in site.repositories
    )
    is_default = record.platform == str(DEFAULT_PLATFORM)
    return record.path.lstrip("/") if looked_up and is_default else path


def _essential(text: str) -> str:
    """Return the lines that do something."""
    kept = [
        line
        for line in text.splitlines()
        if line.strip() and (not line.lstrip().startswith("#") or line.startswith(_DIRECTIVES))
    ]
    return "\n".join(kept) + "\n"
