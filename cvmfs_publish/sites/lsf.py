"""Files for LSF: submit template, job starter, pre-execution program, parts of its configuration.

Source: IBM's reference of lsb.applications and lsb.queues (JOB_STARTER, PRE_EXEC,
REQUEUE_EXIT_VALUES).
"""

from __future__ import annotations

from cvmfs_publish.sites.hosts import example_image, has_default_image, launcher_path
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import PROGRAM, TEXT, Files, Pages


def render_lsf(site: Site, pages: Pages) -> Files:
    """Return the files below lsf/."""
    here = f"{site.install_dir}/lsf"
    program = launcher_path(site)
    options = site.batch.options.get("lsf", ())
    default_image = has_default_image(site)
    name = site.name
    parts: dict[str, object] = {
        "site": name,
        "starter": f"{here}/job_starter",
        "pre_exec": f"{here}/pre_exec",
    }
    return {
        "lsf/submit.lsf": pages.render(
            "lsf/submit.lsf",
            TEXT,
            site=name,
            program=program,
            image=example_image(site),
            options=options,
        ),
        "lsf/job_starter": pages.render(
            "lsf/job_starter",
            PROGRAM,
            site=name,
            program=program,
            default_image=default_image,
            home_visible=site.home == "host",
        ),
        "lsf/pre_exec": pages.render(
            "lsf/pre_exec",
            PROGRAM,
            site=name,
            program=program,
            default_image=default_image,
            # With a way round CernVM-FS the node may be able to run what its probe would refuse.
            probe=not site.fallback.chain,
        ),
        "lsf/lsb.applications": pages.render("lsf/lsb.applications", TEXT, **parts),
        "lsf/lsb.queues": pages.render("lsf/lsb.queues", TEXT, **parts),
    }
