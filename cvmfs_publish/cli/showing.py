"""Turn the configuration into what the status site shows; for `serve` and `watch --listen`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from cvmfs_publish.cli.assembly import open_native
from cvmfs_publish.config import Config
from cvmfs_publish.sites.data import load_site, templates_dir
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import Pages
from cvmfs_publish.sites.render import render_site
from cvmfs_publish.web.access import Access, check_token
from cvmfs_publish.web.library import Library
from cvmfs_publish.web.pages import HtmlPages
from cvmfs_publish.web.service import Control, Service, Watch

DEFAULT_SITE = "generic"


def open_service(
    config: Config,
    *,
    control: Control | None = None,
    probe: Callable[[], None] | None = None,
    expects_watcher: bool = False,
) -> Service:
    """Put together what is shown; nothing of the repository is read yet.

    Args:
        config: what is shown of it.
        control: does what is ordered; without it nothing can be.
        probe: writes to the watcher's state, if this process may.
        expects_watcher: there should be a watcher, here or elsewhere.

    Raises:
        InputError: the repository is not native; a site or the token's file is not what it should
            be.
    """
    token = config.web.read_token()
    templates = templates_dir()
    return Service(
        library=Library(open_native(config, "the status site is")),
        watch=Watch(config.state),
        html=HtmlPages(templates / "web"),
        access=Access(
            check_token(token) if token is not None and control is not None else None,
            lambda: datetime.now(UTC),
            url=config.web.url,
        ),
        clock=lambda: datetime.now(UTC),
        sites=_load_sites(config),
        site_pages=Pages(templates),
        control=control,
        probe=probe,
        expects_watcher=expects_watcher,
        replicas=tuple(each.url for each in config.known_replicas),
        url=config.web.url,
    )


def _load_sites(config: Config) -> tuple[Site, ...]:
    """A site that cannot be rendered is told now, not on every page of an image."""
    named = config.web.sites or config.sandbox.sites or (DEFAULT_SITE,)
    sites = tuple(load_site(str(name)) for name in named)
    for site in sites:
        render_site(site, templates_dir())
    return sites
