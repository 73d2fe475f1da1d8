"""The API keeps what its OpenAPI document promises, whatever is asked: schemathesis finds nothing.

Its program is run as a person would: examples at every limit, data of all kinds the document allows
and many that it does not, with and without the token, and requests that follow from one another.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served import serving
from tests.status_site import TOKEN, Orders, StatusSite, fill_state, make_repository

EXAMPLES = 12  # of each route and kind; more of them find nothing either


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    base = make_repository(tmp_path_factory.mktemp("status"))
    site = StatusSite(base)
    fill_state(site.state_folder, site.now)
    with serving(site.app(site.service(control=Orders(), token=TOKEN))) as url:
        yield url


def test_schemathesis_finds_nothing(url: str, tmp_path: Path) -> None:
    process = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", f"{url}/api/openapi.json", "--max-examples", str(EXAMPLES), "--seed", "1"),
            *("--no-color", "--header", f"Authorization: Bearer {TOKEN}"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-8000:] + process.stderr[-2000:]
    assert "Selected: 11/11" in process.stdout
    assert "Tested: 11" in process.stdout
