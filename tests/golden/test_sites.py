"""What is rendered for the sites that come along, compared with the files kept here.

After a wanted change: run with UPDATE_GOLDEN=1 in the environment and read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cvmfs_publish.sites.data import list_sites, load_site, templates_dir
from cvmfs_publish.sites.launcher import PROGRAMS
from cvmfs_publish.sites.render import MANIFEST, render_site

GOLDEN = Path(__file__).parent / "sites"


@pytest.mark.parametrize("name", [*list_sites(), "example"])
def test_rendered_files_are_those_kept(name: str) -> None:
    # Programs are the templates themselves; the manifest changes with them.
    rendered = {
        path: file.content.decode()
        for path, file in render_site(load_site(name), templates_dir()).items()
        if path not in PROGRAMS and path != MANIFEST
    }
    folder = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        for path, text in rendered.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    kept = {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert rendered == kept
