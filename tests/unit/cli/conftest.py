"""Folders to run commands in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.cli.support import Shell, repository


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """An empty folder."""
    return Shell(tmp_path)


@pytest.fixture(scope="session")
def _new_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, since new keys take a second; the configuration has relative paths only."""
    return repository(Shell(tmp_path_factory.mktemp("new-repository"))).cwd


@pytest.fixture
def home(tmp_path: Path, _new_repository: Path) -> Shell:
    """A folder with a repository and its configuration."""
    shutil.copytree(_new_repository, tmp_path, dirs_exist_ok=True)
    return Shell(tmp_path)
