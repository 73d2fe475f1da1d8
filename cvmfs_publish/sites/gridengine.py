"""Files for Grid Engine: submit template, starter method, prolog, and the queue's part of them.

Source: the manual pages queue_conf(5), submit(1) and sge_shepherd(8), and what a starter method is
given in each shell_start_mode (seen with 8.1.9).
"""

from __future__ import annotations

from cvmfs_publish.sites.hosts import (
    example_image,
    has_default_image,
    launcher_path,
    plan_cache,
)
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import PROGRAM, TEXT, Files, Pages

# submit(1): a job that ends with 99 is queued again, with 100 it is put in error state.
_AGAIN = (69, 71, 73, 75, 76)  # the node is to blame
_ERROR = (64, 66, 70, 72, 77, 78)  # the job or the site is
EXIT_MAP = ",".join([f"{code}=99" for code in _AGAIN] + [f"{code}=100" for code in _ERROR])


def render_gridengine(site: Site, pages: Pages) -> Files:
    """Return the files below gridengine/."""
    here = f"{site.install_dir}/gridengine"
    program = launcher_path(site)
    default_image = has_default_image(site)
    cache = plan_cache(site)
    name = site.name
    return {
        "gridengine/submit.sh": pages.render(
            "gridengine/submit.sh",
            TEXT,
            site=name,
            program=program,
            image=example_image(site),
            options=site.batch.options.get("gridengine", ()),
            exit_map=EXIT_MAP,
        ),
        "gridengine/starter_method": pages.render(
            "gridengine/starter_method",
            PROGRAM,
            site=name,
            program=program,
            default_image=default_image,
            exit_map=EXIT_MAP,
        ),
        "gridengine/prolog": pages.render(
            "gridengine/prolog",
            PROGRAM,
            site=name,
            program=program,
            default_image=default_image,
            required=cache.required,
            repositories=cache.repositories,
            probe_timeout=int(site.probe_timeout.total_seconds()),
            fetch=cache.fetch,
            prefill=cache.prefill,
            download_timeout=int(site.fallback.download_timeout.total_seconds()),
            give_back="" if site.fallback.chain else str(int(site.fail_delay.total_seconds())),
        ),
        "gridengine/queue.conf": pages.render(
            "gridengine/queue.conf",
            TEXT,
            starter=f"{here}/starter_method",
            prolog=f"{here}/prolog",
        ),
    }
