"""Files for Slurm: a submit template, prologs and epilog, the hook that runs scripts in images.

Source: slurm.conf(5), the prolog and epilog guide and the job submit plugin guide of Slurm, and
what Slurm 22.05 does (`tests/e2e/test_slurm.py`).
"""

from __future__ import annotations

from cvmfs_publish.errors import InputError
from cvmfs_publish.sites.hosts import (
    example_image,
    has_default_image,
    launcher_path,
    plan_cache,
)
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import PROGRAM, TEXT, Files, Pages

_DIR_LIMIT = 60  # bytes; leaves room for the interpreter in the 127 of a first line
_LIST = 3  # s, beyond a probe: to end `cat` of a list and to put the copy in place
_BATCH_START = 10  # s, Slurm's own BatchStartTimeout, which includes the prolog


def render_slurm(site: Site, pages: Pages) -> Files:
    """Return the files below slurm/.

    Raises `InputError` for an `install_dir` that is too long for the first line of scripts.
    """
    here = f"{site.install_dir}/slurm"
    wrapper = f"{here}/cvmfs-batch"
    if len(site.install_dir) > _DIR_LIMIT:
        raise InputError(
            f"install_dir {site.install_dir!r} has {len(site.install_dir)} characters; in the "
            f"first line of batch scripts of Slurm is room for {_DIR_LIMIT}",
            hint="choose a shorter path, or a link to this one",
        )
    program = launcher_path(site)
    default_image = has_default_image(site)
    cache = plan_cache(site)
    probe = int(site.probe_timeout.total_seconds())
    fill = (probe + _LIST) * len(cache.repositories)
    if cache.fills:
        fill = int(site.fallback.download_timeout.total_seconds())
    bound = (probe + 1) * len(cache.required + cache.repositories) + _BATCH_START
    bound += fill + 1 if cache.fetch else 0
    scratch = [place for place in site.scratch if place.startswith("/")]
    name = site.name
    return {
        "slurm/submit.sbatch": pages.render(
            "slurm/submit.sbatch",
            TEXT,
            site=name,
            program=program,
            image=example_image(site),
            options=site.batch.options.get("slurm", ()),
        ),
        "slurm/cvmfs-batch": pages.render(
            "slurm/cvmfs-batch",
            PROGRAM,
            site=name,
            program=program,
            default_image=default_image,
        ),
        "slurm/prolog": pages.render(
            "slurm/prolog",
            PROGRAM,
            site=name,
            program=program,
            required=cache.required,
            repositories=cache.repositories,
            # Where jobs may do without images, or get them in other ways, they judge themselves.
            drain=bool(default_image or site.required_repositories) and not site.fallback.chain,
            probe_timeout=probe,
            fetch=cache.fetch,
            fills=cache.fills,
            fill_timeout=fill,
            scratch=scratch,
        ),
        "slurm/epilog": pages.render("slurm/epilog", PROGRAM, site=name, scratch=scratch),
        "slurm/task-prolog": pages.render("slurm/task-prolog", PROGRAM, site=name, scratch=scratch),
        "slurm/health": pages.render(
            "slurm/health", PROGRAM, site=name, check=f"{site.install_dir}/bin/node-check"
        ),
        "slurm/job_submit.lua": pages.render(
            "slurm/job_submit.lua",
            TEXT,
            site=name,
            wrapper=wrapper,
            default_image=default_image,
        ),
        "slurm/slurm.conf": pages.render(
            "slurm/slurm.conf",
            TEXT,
            site=name,
            here=here,
            prolog_timeout=bound,
            start_timeout=bound + _BATCH_START,
        ),
    }
