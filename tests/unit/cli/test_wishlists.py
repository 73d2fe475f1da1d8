"""`wishlist check|expand|import`, from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cvmfs_publish.settings import compose
from tests.fakes.registry import FakeRegistry, status, tar_of
from tests.support import SHARED
from tests.unit.cli.support import Shell

LISTS = SHARED / "data" / "wishlists"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        for tag in ("1.0", "1.1", "latest"):
            registry.add_image("a/b", [tar_of({"tag": tag.encode()})], tag=tag)
        yield registry


# ---------------------------------------------------------------- check


def test_the_lists_in_use_are_valid(shell: Shell) -> None:
    ran = shell.run("wishlist", "check", *map(str, sorted(LISTS.iterdir())))
    assert ran.code == 0
    assert "osg-docker_images.txt: 562 wishes, 0 errors, 0 warnings" in ran.out
    assert "unpacked-recipe.yaml: 46 wishes, 0 errors, 1 warning" in ran.out
    assert "unpacked-recipe.yaml:22: docker.io/stimela/pybdsf:1.6.6 stands in" in ran.err
    assert shell.run("wishlist", "check", "--strict", str(LISTS)).code == 2


def test_every_wrong_line_is_told_with_its_remedy(shell: Shell) -> None:
    (shell.cwd / "list.txt").write_text("debian:12\nghcr.io/x\nA/b\n")
    ran = shell.run("wishlist", "check", "list.txt")
    assert ran.code == 2
    assert ran.out == "list.txt: 1 wish, 2 errors, 0 warnings\n"
    assert "error: list.txt:2: 'ghcr.io/x': a name of two parts" in ran.err
    assert (
        "error: list.txt:3: 'docker.io/A/b': 'A/b' is not a repository\nhint: repositories"
        in ran.err
    )


def test_a_check_as_json_is_one_document(shell: Shell) -> None:
    (shell.cwd / "list.yaml").write_text(
        "version: 1\nimages:\n- debian:12\n- {name: A, owner: me}\n"
    )
    ran = shell.run("wishlist", "check", "list.yaml", "--json")
    assert (ran.code, ran.err) == (2, "")
    (checked,) = ran.document["lists"]
    assert (ran.document["valid"], checked["source"], checked["wishes"]) == (False, "list.yaml", 1)
    (problem,) = checked["problems"]
    assert problem["message"] == "'A': 'library/A' is not a repository"
    assert {name: problem[name] for name in ("line", "severity", "owner")} == {
        "line": 4,
        "severity": "error",
        "owner": "me",
    }


def test_against_an_older_version_only_what_changed_is_told(shell: Shell) -> None:
    (shell.cwd / "old.txt").write_text("debian:11\nA/b\ndebian:12\n")
    (shell.cwd / "new.txt").write_text("\n\ndebian:12\nA/b\nubuntu:24.04\n")
    ran = shell.run("wishlist", "check", "new.txt", "--against", "old.txt")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == (
        "new.txt: 1 added, 1 removed, 0 errors, 0 warnings\n"
        "+ docker.io/library/ubuntu:24.04\n"
        "- docker.io/library/debian:11\n"
    )
    (shell.cwd / "new.txt").write_text("A/b\nC/d\n")
    ran = shell.run("wishlist", "check", "new.txt", "--against", "old.txt", "--json")
    assert ran.code == 2
    (checked,) = ran.document["lists"]
    assert [problem["text"] for problem in checked["problems"]] == ["C/d"]
    assert checked["removed"] == ["docker.io/library/debian:11", "docker.io/library/debian:12"]


def test_a_duplicate_that_only_moved_is_not_of_the_change(shell: Shell) -> None:
    (shell.cwd / "old.txt").write_text("a/b:1\na/b:1\n")
    (shell.cwd / "new.txt").write_text("\na/b:1\n\na/b:1\n")
    ran = shell.run("wishlist", "check", "new.txt", "--against", "old.txt", "--strict")
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch.txt"], "nosuch.txt: cannot be read: No such file"),
        (["list.txt", "list.txt", "--against", "list.txt"], "--against compares one wishlist"),
        (["list.txt", "--against", "nosuch.txt"], "nosuch.txt: cannot be read"),
        (["ftp://example.org/x"], "is no URL"),
        ([], "no configuration"),
    ],
)
def test_a_check_of_nothing_is_wrong_usage(
    shell: Shell, arguments: list[str], message: str
) -> None:
    (shell.cwd / "list.txt").write_text("debian:12\n")
    ran = shell.run("wishlist", "check", *arguments)
    assert ran.code == 2
    assert message in ran.err


def test_without_a_name_the_lists_of_the_configuration_are_checked(shell: Shell) -> None:
    config = "repository: {name: a.example.org}\nwishlists: [{from: list.txt, owner: me}]\n"
    (shell.cwd / "cvmfs-publish.yaml").write_text(config)
    (shell.cwd / "list.txt").write_text("A\n")
    ran = shell.run("wishlist", "check", "--json")
    assert ran.document["lists"][0]["problems"][0]["owner"] == "me"
    (shell.cwd / "cvmfs-publish.yaml").write_text("repository: {name: a.example.org}\n")
    ran = shell.run("wishlist", "check")
    assert "none is named, and none is in the configuration" in ran.err


def test_a_list_that_is_none_is_wrong(shell: Shell) -> None:
    (shell.cwd / "list.txt").write_text("<html>\n")
    ran = shell.run("wishlist", "check", "list.txt")
    assert ran.code == 2
    assert "list.txt: this is a web page, not a wishlist" in ran.err


# ---------------------------------------------------------------- expand


def test_what_a_list_means_today_is_shown_with_digests(
    shell: Shell, registry: FakeRegistry
) -> None:
    name = registry.name("a/b", "1.*")
    (shell.cwd / "list.yaml").write_text(
        f"version: 1\nimages:\n- {name}\n- {{name: '{registry.name('a/b', '1.1')}', owner: me}}\n"
    )
    ran = shell.run("wishlist", "expand", "list.yaml", "--json")
    assert ran.code == 0, ran.err
    shown = [(each["reference"], each["line"], each["owner"]) for each in ran.document["images"]]
    assert shown == [
        (registry.name("a/b", "1.0"), 3, ""),
        (registry.name("a/b", "1.1"), 3, ""),
        (registry.name("a/b", "1.1"), 4, "me"),
    ]
    assert {len(each["digest"]) for each in ran.document["images"]} == {71}
    # one list of tags, one HEAD for each image, however often it is wished for
    assert (registry.count("GET", "/tags/"), registry.count("HEAD", "/manifests/")) == (1, 2)
    assert registry.count("GET", "/manifests/") == 0


def test_without_digests_no_image_is_asked_for(shell: Shell, registry: FakeRegistry) -> None:
    (shell.cwd / "list.txt").write_text(f"{registry.name('a/b', '*')}\n")
    ran = shell.run("wishlist", "expand", "list.txt", "--no-digests")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].split() == ["IMAGE", "DIGEST", "LINE"]
    assert lines[1].split() == [registry.name("a/b", "1.0"), "list.txt:1"]
    assert len(lines) == 4
    assert registry.count("HEAD") == 0


def test_one_image_that_fails_stops_no_other(shell: Shell, registry: FakeRegistry) -> None:
    registry.fault("GET", "/v2/a/closed/tags", status(403), times=None)
    (shell.cwd / "list.txt").write_text(
        f"{registry.name('a/b', '1.0')}\n{registry.name('a/b', 'nosuch')}\n"
        f"{registry.name('a/closed', '*')}\nA/b\n"
    )
    ran = shell.run("wishlist", "expand", "list.txt", "--json")
    assert ran.code == 6
    errors = [each["error"] and each["error"]["kind"] for each in ran.document["images"]]
    assert errors == [None, "not-found", "access-denied"]
    assert [problem["line"] for problem in ran.document["problems"]] == [4]


def test_a_wrong_line_alone_ends_with_2(shell: Shell, registry: FakeRegistry) -> None:
    (shell.cwd / "list.txt").write_text(f"{registry.name('a/b', '1.0')}\nA/b\n")
    assert shell.run("wishlist", "expand", "list.txt").code == 2


# ---------------------------------------------------------------- import


def test_a_list_of_others_is_converted_and_means_the_same(shell: Shell) -> None:
    for path in LISTS.iterdir():
        ran = shell.run("wishlist", "import", str(path))
        assert ran.code == 0, ran.err
        assert compose(ran.out, "x") is not None
        (shell.cwd / "own.yaml").write_text(ran.out)
        checked = shell.run("wishlist", "check", "own.yaml", "--strict")
        assert checked.code == 0, checked.err


def test_what_is_not_taken_over_is_told_and_ends_with_2(shell: Shell) -> None:
    (shell.cwd / "list.txt").write_text("debian:12\nA/b\n")
    ran = shell.run("wishlist", "import", "list.txt")
    assert ran.code == 2
    assert "list.txt:2: 'docker.io/A/b': 'A/b' is not a repository" in ran.err
    assert "  - docker.io/library/debian:12\n  # line 2 is left out: " in ran.out
    assert shell.run("wishlist", "import", "list.txt", "--json").document["text"] == ran.out


def test_the_own_format_is_not_imported(shell: Shell) -> None:
    (shell.cwd / "own.yaml").write_text("version: 1\nimages: [a]\n")
    ran = shell.run("wishlist", "import", "own.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert "is in the own format already" in ran.err
