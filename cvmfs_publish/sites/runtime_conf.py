"""Files for apptainer.conf and singularity.conf: a script that changes one, and complete ones."""

from __future__ import annotations

from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import PROGRAM, TEXT, Files, Pages


def render_runtime_conf(site: Site, pages: Pages) -> Files:
    """Return the files below conf/."""
    conf = site.runtime_conf
    # Asserted although they are defaults: published images are directories on autofs mounts.
    scalars = {
        "mount slave": "yes",
        "enable overlay": "yes",
        "enable underlay": "yes",
        "allow container dir": "yes",
    }
    if conf.session_dir_mib is not None:
        scalars["sessiondir max size"] = str(conf.session_dir_mib)
    if conf.always_use_nv:
        scalars["always use nv"] = "yes"
    lists = {
        "bind path": conf.bind_paths,
        "limit container paths": conf.limit_container_paths,
    }
    entries = [(key, path) for key, paths in lists.items() for path in paths]
    complete = {"sessiondir max size": "64", "always use nv": "no"} | scalars  # their defaults
    whole: dict[str, object] = {"site": site.name, "scalars": complete, "conf": conf}
    return {
        "conf/apptainer-config.sh": pages.render(
            "conf/apptainer-config.sh", PROGRAM, site=site.name, scalars=scalars, entries=entries
        ),
        "conf/apptainer.conf": pages.render("conf/apptainer.conf", TEXT, **whole),
        "conf/singularity.conf": pages.render("conf/singularity.conf", TEXT, **whole),
    }
