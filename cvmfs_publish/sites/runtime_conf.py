"""Files for apptainer.conf and singularity.conf: scripts that change one, and complete ones.

Sources: the launcher facts, sections (c) and g.8, and the settings each generation's parser knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvmfs_publish.sites.model import RuntimeConf, Site
from cvmfs_publish.sites.pages import PROGRAM, Files, Pages

DEFAULT_SESSION_MIB = 64  # of Apptainer since 1.2 and SingularityCE; 16 before


@dataclass(frozen=True, slots=True)
class Family:
    """What the scripts for Apptainer and for Singularity do differently."""

    program: str
    conf_variable: str  # in the output of `PROGRAM buildcfg`
    can_set: str  # alternatives of a shell `case`, over the output of `PROGRAM --version`
    overlay: str  # `try` where `yes` is fatal on a kernel without overlay


FAMILIES = (
    Family("apptainer", "APPTAINER_CONF_FILE", "'apptainer version '[1-9]*", "yes"),
    # Before, a refused value could leave an empty file behind.
    Family(
        "singularity",
        "SINGULARITY_CONF_FILE",
        "'singularity-ce version '[4-9]* | 'singularity-ce version 3.9'* | "
        "'singularity-ce version 3.'[1-9][0-9]*",
        "try",
    ),
)

COMPLETE = ("conf/apptainer.conf", "conf/singularity-ce.conf", "conf/singularity.conf")


def render_runtime_conf(site: Site, pages: Pages) -> Files:
    """Return the files below conf/."""
    conf = site.runtime_conf
    entries = [("bind path", path) for path in conf.bind_paths]
    entries += [("limit container paths", path) for path in conf.limit_container_paths]
    files = {
        f"conf/{family.program}-config.sh": pages.render(
            "conf/runtime-config.sh",
            PROGRAM,
            site=site.name,
            program=family.program,
            conf_variable=family.conf_variable,
            can_set=family.can_set,
            scalars=plan_scalars(conf, family),
            entries=entries,
        )
        for family in FAMILIES
    }
    for path in COMPLETE:
        files[path] = pages.render(
            path,
            site=site.name,
            bind_paths=conf.bind_paths,
            limit_paths=conf.limit_container_paths,
            session_mib=conf.session_dir_mib or DEFAULT_SESSION_MIB,
            use_nv="yes" if conf.always_use_nv else "no",
        )
    return files


def plan_scalars(conf: RuntimeConf, family: Family) -> dict[str, str]:
    """Return the settings with one value that the site needs.

    The first four are defaults and asserted all the same: published images are directories on
    automounted file systems.
    """
    scalars = {
        "mount slave": "yes",
        "enable overlay": family.overlay,
        "enable underlay": "yes",
        "allow container dir": "yes",
    }
    if conf.session_dir_mib is not None:
        scalars["sessiondir max size"] = str(conf.session_dir_mib)
    if conf.always_use_nv:
        scalars["always use nv"] = "yes"
    return scalars
