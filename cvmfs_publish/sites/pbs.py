"""Files for OpenPBS and Torque: submit template, launch hook, job starter and prologue.

Source: the OpenPBS hooks documentation (`pbs_module(7B)`) and source of pbs_mom, which hands a
batch job's shell the path of its script through a pipe, as Torque's does.
"""

from __future__ import annotations

from cvmfs_publish.sites.hosts import (
    example_image,
    has_default_image,
    launcher_path,
    plan_cache,
)
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import PROGRAM, TEXT, Files, Pages, quote_json


def render_pbs(site: Site, pages: Pages) -> Files:
    """Return the files below pbs/."""
    here = f"{site.install_dir}/pbs"
    program = launcher_path(site)
    options = site.batch.options.get("pbs", ())
    default_image = has_default_image(site)
    cache = plan_cache(site)
    name = site.name
    return {
        "pbs/submit.pbs": pages.render(
            "pbs/submit.pbs",
            TEXT,
            site=name,
            program=program,
            image=example_image(site),
            options=options,
        ),
        "pbs/job_starter": pages.render(
            "pbs/job_starter", PROGRAM, site=name, program=program, default_image=default_image
        ),
        "pbs/execjob_launch.py": pages.render(
            "pbs/execjob_launch.py",
            TEXT,
            site=name,
            starter=quote_json(f"{here}/job_starter"),
            default_image=default_image,
        ),
        "pbs/hook.qmgr": pages.render(
            "pbs/hook.qmgr", TEXT, site=name, hook=f"{here}/execjob_launch.py"
        ),
        "pbs/prologue": pages.render(
            "pbs/prologue",
            PROGRAM,
            site=name,
            places=cache.places,
            fetch=cache.fetch,
            fills=cache.fills,
        ),
    }
