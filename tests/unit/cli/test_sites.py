"""`site list|check|show|render`: site configurations from the command line."""

from __future__ import annotations

import pytest

from cvmfs_publish.sites.data import list_sites
from tests.unit.cli.support import Shell


def test_list_names_every_site_that_came_along(shell: Shell) -> None:
    names = [site["name"] for site in shell.json("site", "list")["sites"]]
    assert names == list_sites()
    assert "generic" in names
    lines = shell.run("site", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["SITE", *names]


@pytest.mark.parametrize("name", list_sites())
def test_every_site_can_be_checked_and_shown(shell: Shell, name: str) -> None:
    document = shell.json("site", "check", name)
    assert document == {
        "valid": True,
        "sites": [{"site": name, "valid": True, "errors": [], "remarks": []}],
    }
    assert shell.run("site", "check", name).out == f"{name}: valid, 0 remarks\n"
    shown = shell.json("site", "show", name)
    assert shown["values"]["name"] == name
    assert shown["values"]["runtimes"]
    assert shown["origins"]["name"].startswith(f"{name}.yaml:")
    assert f"name: {name} " in shell.run("site", "show", name).out


def test_render_writes_the_files_and_lists_them(shell: Shell) -> None:
    document = shell.json("site", "render", "generic", "--out", "rendered")
    folder = shell.cwd / "rendered"
    assert document["out"] == str(folder)
    assert "bin/cvmfs-run" in document["files"]
    assert all((folder / name).is_file() for name in document["files"])
    ran = shell.run("site", "render", "generic", "--out", "rendered")
    assert ran.code == 0
    assert ran.out == f"{folder}: {len(document['files'])} files for generic\n"


def test_render_refuses_a_folder_with_other_things_in_it(shell: Shell) -> None:
    keep = shell.cwd / "mine" / "precious"
    keep.parent.mkdir()
    keep.write_text("keep")
    ran = shell.run("site", "render", "generic", "--out", "mine")
    assert ran.code == 2
    assert keep.read_text() == "keep"


def test_a_site_of_ones_own_is_a_path(shell: Shell) -> None:
    (shell.cwd / "own.yaml").write_text("name: own\nruntmes: [apptainer]\n")
    ran = shell.run("site", "check", str(shell.cwd / "own.yaml"))
    assert ran.code == 2
    assert "own.yaml:2: unknown key 'runtmes'; did you mean 'runtimes'?" in ran.err


def test_a_site_nobody_knows_is_answered_with_the_known_ones(shell: Shell) -> None:
    ran = shell.run("site", "show", "genric")
    assert ran.code == 2
    assert "did you mean 'generic'?" in ran.err


def test_site_alone_is_wrong_usage(shell: Shell) -> None:
    ran = shell.run("site")
    assert ran.code == 2
    assert ran.err.startswith("cvmfs-publish: error: missing command\n")
