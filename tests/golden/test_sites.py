"""What is rendered for the sites that come along, compared with the files kept here.

After a wanted change: run with UPDATE_GOLDEN=1 in the environment and read the diff.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from cvmfs_publish.sites.data import load_site, templates_dir
from cvmfs_publish.sites.launcher import PROGRAMS
from cvmfs_publish.sites.render import MANIFEST, render_site
from tests.site_texts import SITES

GOLDEN = Path(__file__).parent / "sites"


@pytest.mark.parametrize("name", SITES)
def test_rendered_files_are_those_kept(name: str) -> None:
    # Programs are the templates themselves; the manifest changes with them.
    rendered = {
        path: f"{file.mode:o}\n{file.content.decode()}"
        for path, file in render_site(load_site(name), templates_dir()).items()
        if path not in PROGRAMS and path != MANIFEST
    }
    if os.environ.get("UPDATE_GOLDEN"):
        _keep(rendered, GOLDEN / name)
    assert rendered == _kept(GOLDEN / name)


def test_no_golden_files_are_kept_for_sites_that_are_gone() -> None:
    assert sorted(folder.name for folder in GOLDEN.iterdir()) == sorted(SITES)


def test_updating_removes_what_is_no_longer_rendered(tmp_path: Path) -> None:
    _keep({"a/old": "644\nx", "b": "755\ny"}, tmp_path)
    _keep({"b": "644\nz"}, tmp_path)
    assert _kept(tmp_path) == {"b": "644\nz"}
    assert not (tmp_path / "a").exists()


def _keep(rendered: Mapping[str, str], folder: Path) -> None:
    """Write the files; the first line of each text is its mode, which git keeps as well."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in rendered.items():
        mode, content = text.split("\n", 1)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content.encode())
        (folder / path).chmod(int(mode, 8))


def _kept(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): (
            # of the mode git keeps whether a file may be executed, and no more
            f"{0o755 if os.access(path, os.X_OK) else 0o644:o}\n{path.read_bytes().decode()}"
        )
        for path in folder.rglob("*")
        if path.is_file()
    }
