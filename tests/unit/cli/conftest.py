"""Folders to run commands in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cli.support import Shell, repository


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """An empty folder."""
    return Shell(tmp_path)


@pytest.fixture
def home(tmp_path: Path) -> Shell:
    """A folder with a repository and its configuration."""
    return repository(Shell(tmp_path))
