"""An installed `cvmfs-publish` finds its templates and site configurations without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from cvmfs_publish.sites.data import load_site, templates_dir
from cvmfs_publish.sites.render import render_site
from tests import parts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as users get it, built from the checkout; pip fetches the build tool it names."""
    directory = tmp_path_factory.mktemp("wheel")
    _pip(["wheel", "--no-deps", "--wheel-dir", str(directory), str(parts.CHECKOUT)])
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel; what it depends on is borrowed from ours."""
    directory = tmp_path_factory.mktemp("installed")
    venv.create(directory, with_pip=False, symlinks=True)
    (site_packages,) = directory.glob("lib/python*/site-packages")
    _pip(
        [
            "--python",
            str(directory / "bin/python"),
            "install",
            "--no-deps",
            "--no-index",
            str(wheel),
        ]
    )
    # after installing: pip would take our editable installation for an older one to be replaced;
    # a path added this way comes last, and .pth files in it (the checkout's) are not followed
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return directory / "bin"


def _pip(words: Sequence[str]) -> None:
    parts.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words],
        env=parts.MACHINE_ENVIRONMENT,
    )


def _run(program: Path, *words: str, cwd: Path) -> str:
    environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": str(cwd)}
    done = subprocess.run(
        [program, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_contains_every_template_and_site_configuration(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    for folder in ("templates", "site-configs"):
        files = [
            path
            for path in (parts.CHECKOUT / folder).rglob("*")
            if path.is_file() and path.name != ".keep" and "__pycache__" not in path.parts
        ]
        assert files
        for path in files:
            assert f"cvmfs_publish/_data/{path.relative_to(parts.CHECKOUT)}" in inside


def test_the_wheel_contains_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    package = parts.CHECKOUT / "cvmfs_publish"
    files = (path for path in package.rglob("*") if path.is_file())
    expected = {str(path.relative_to(parts.CHECKOUT)) for path in files if path.suffix != ".pyc"}
    assert expected <= inside


def test_the_installed_package_is_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = "import cvmfs_publish; print(cvmfs_publish.__file__)"
    where = Path(_run(installed / "python", "-c", code, cwd=tmp_path).strip())
    assert where.is_relative_to(installed.parent)


def test_the_installed_program_knows_its_version(installed: Path, tmp_path: Path) -> None:
    code = "import cvmfs_publish; print(cvmfs_publish.__version__)"
    version = _run(installed / "python", "-c", code, cwd=tmp_path).strip()
    assert version in _run(installed / "cvmfs-publish", "--version", cwd=tmp_path)


def test_the_installed_program_lists_the_sites_that_came_along(
    installed: Path, tmp_path: Path
) -> None:
    listing = _run(installed / "cvmfs-publish", "site", "list", cwd=tmp_path)
    shipped = {path.stem for path in (parts.CHECKOUT / "site-configs").glob("*.yaml")} - {"example"}
    assert shipped
    assert [site for site in shipped if site not in listing] == []


def test_the_installed_program_renders_a_site(installed: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    _run(installed / "cvmfs-publish", "site", "render", "generic", "--out", str(out), cwd=tmp_path)
    assert os.access(out / "bin/cvmfs-run", os.X_OK)
    expected = render_site(load_site("generic"), templates_dir())
    found = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }
    assert found == {path: file.content for path, file in expected.items()}
