"""One repository and state for all tests of the status site; they only read it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.asgi import Browser
from tests.status_site import StatusSite, fill_state, make_repository


@pytest.fixture(scope="session")
def status_site(tmp_path_factory: pytest.TempPathFactory) -> StatusSite:
    base = make_repository(tmp_path_factory.mktemp("status"))
    site = StatusSite(base, datetime.now(UTC).replace(microsecond=0))
    fill_state(site.state_folder, site.now)
    return site


@pytest.fixture(scope="session")
def browser(status_site: StatusSite) -> Browser:
    """Asks a service that only shows."""
    return status_site.browser()
