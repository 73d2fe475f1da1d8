"""`site render --diff` and `--fallback-list` from the command line."""

from __future__ import annotations

from tests.unit.cli.support import Shell

ARTEFACT = "0123456789abcdef" * 4
LIST = f"a/b:1 sha256:{ARTEFACT} sha256:{ARTEFACT} sif {ARTEFACT} 4096 9000 {ARTEFACT}.sif\n"


def test_the_difference_is_shown_and_nothing_is_written(shell: Shell) -> None:
    document = shell.json("site", "render", "generic", "--diff")
    assert "bin/cvmfs-run" in document["added"]
    assert (document["changed"], document["removed"]) == ([], [])
    assert not (shell.cwd / "generic").exists()
    shell.run("site", "render", "generic")
    conf = shell.cwd / "generic" / "etc" / "site.conf"
    text = conf.read_text()
    conf.write_text(text.replace("cvmfs_site_home=host", "cvmfs_site_home=none"))
    ran = shell.run("site", "render", "generic", "--diff")
    assert ran.code == 0
    assert "--- a/etc/site.conf\n+++ b/etc/site.conf\n" in ran.out
    assert "\n-cvmfs_site_home=none\n+cvmfs_site_home=host\n" in ran.out
    assert "0 to add, 1 to change, 0 to remove; nothing was written" in ran.err
    assert "cvmfs_site_home=none" in conf.read_text()
    shell.run("site", "render", "generic")
    assert conf.read_text() == text
    ran = shell.run("site", "render", "generic", "--diff")
    assert (ran.code, ran.out) == (0, "")
    assert "nothing would change" in ran.err


def test_a_list_of_fallback_images_goes_with_the_site(shell: Shell) -> None:
    (shell.cwd / "list").write_text(LIST)
    assert shell.run("site", "render", "generic", "--fallback-list", "list").code == 0
    assert (shell.cwd / "generic" / "etc" / "fallback.txt").read_text() == LIST
    document = shell.json("site", "render", "generic", "--diff")
    assert document["removed"] == ["etc/fallback.txt"]


def test_a_broken_list_changes_nothing(shell: Shell) -> None:
    (shell.cwd / "list").write_text(LIST + "c/d:1 nonsense\n")
    ran = shell.run("site", "render", "generic", "--fallback-list", "list")
    assert ran.code == 2
    assert "list:2: 2 fields, not 8" in ran.err
    assert shell.run("site", "render", "generic", "--fallback-list", "absent").code == 2
    assert not (shell.cwd / "generic").exists()
