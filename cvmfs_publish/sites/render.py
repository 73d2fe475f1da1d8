"""Turn a site configuration into the files its worker nodes get.

Pure: the same site and templates give the same bytes.  Templates place values; what is placed is
decided by one module for each group of files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from cvmfs_publish.sites.client import render_client
from cvmfs_publish.sites.fallback_list import FALLBACK_LIST
from cvmfs_publish.sites.launcher import CONF_FORMAT, render_launcher
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import Files, Pages, RenderedFile
from cvmfs_publish.sites.runtime_conf import render_runtime_conf
from cvmfs_publish.sites.schedulers import render_batch
from cvmfs_publish.sites.software import render_software

MANIFEST = "MANIFEST.json"

GROUPS: tuple[Callable[[Site, Pages], Files], ...] = (
    render_launcher,
    render_runtime_conf,
    render_client,
    render_batch,
    render_software,
)


def render_site(
    site: Site, templates: Path, fallback_list: bytes | None = None
) -> dict[str, RenderedFile]:
    """Return the files of `site` by path, `MANIFEST.json` with their digests included.

    `fallback_list`: the list of fallback images to ship, already checked.  Raises `InputError` when
    `templates` is not a folder of our templates, or a value does not fit into a file.
    """
    pages = Pages(templates)
    files: dict[str, RenderedFile] = {}
    for render in GROUPS:
        files |= render(site, pages)
    if fallback_list is not None:
        files[FALLBACK_LIST] = RenderedFile(fallback_list)
    files[MANIFEST] = RenderedFile(_manifest(site, files))
    return dict(sorted(files.items()))


def _manifest(site: Site, files: Mapping[str, RenderedFile]) -> bytes:
    document = {
        "site": site.name,
        "format": CONF_FORMAT,
        "files": {
            path: {
                "sha256": hashlib.sha256(file.content).hexdigest(),
                "size": len(file.content),
                "mode": f"{file.mode:04o}",
            }
            for path, file in sorted(files.items())
        },
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode("ascii")
