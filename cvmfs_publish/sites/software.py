"""Modules (Lmod, Tcl) and command wrappers for images whose entry says what they offer."""

from __future__ import annotations

from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import Files, Pages


def render_software(site: Site, pages: Pages) -> Files:
    """Return the files below modules/ and software/."""
    return {}
