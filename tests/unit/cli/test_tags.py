"""`tag`: names of revisions."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from cvmfs_publish.cli.assembly import open_native
from cvmfs_publish.config import load_config
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.repository.native.repository import NativeOptions, NativeRepository
from cvmfs_publish.repository.native.tags import list_tags
from tests.unit.cli.support import Shell

pytestmark = pytest.mark.slow

NAME = "test.example.org"


def repository(home: Shell, options: NativeOptions | None = None) -> NativeRepository:
    return NativeRepository(
        NAME, LocalStore(home.cwd / "repository"), home.cwd / "keys", options or NativeOptions()
    )


def put(home: Shell, data: bytes) -> None:
    """Publish one more revision."""
    target = repository(home)
    with target.transaction(target.manifest().timestamp) as transaction:
        transaction.put_file("f", data)


def files(home: Shell) -> dict[str, bytes]:
    storage = home.cwd / "repository"
    return {str(p.relative_to(storage)): p.read_bytes() for p in storage.rglob("*") if p.is_file()}


def tags(home: Shell) -> dict[str, int]:
    return {tag["name"]: tag["revision"] for tag in home.json("tag")["tags"]}


@pytest.fixture
def three(home: Shell) -> Shell:
    """A repository at revision 3."""
    put(home, b"2")
    put(home, b"3")
    return home


def test_the_list_shows_what_each_name_means(three: Shell) -> None:
    assert three.run("tag", "old", "--revision", "1", "-m", "the\nfirst").code == 0
    ran = three.run("tag")
    assert ran.code == 0
    header, *lines = ran.out.splitlines()
    assert header.split() == ["NAME", "REVISION", "DATE", "ROOT", "HASH", "DESCRIPTION"]
    assert [line.split()[0] for line in lines] == ["old", "trunk-previous", "trunk"]
    assert lines[0].endswith(r"the\nfirst")
    document = three.json("tag")
    assert document["repository"] == NAME
    assert document["tags"][0].keys() == {
        "name",
        "revision",
        "date",
        "root_hash",
        "description",
        "branch",
    }
    assert document["tags"][2]["root_hash"] == three.json("info")["root_hash"]


def test_any_revision_that_is_kept_can_be_named(three: Shell) -> None:
    before = three.json("info")
    assert three.json("tag", "now")["status"] == "tagged"
    three.json("tag", "second", "--revision", "2")
    first = three.json("tag", "first", "--revision", "1")["tag"]
    three.json("tag", "also/first:x", "--tag", "first")
    three.json("tag", "by-hash", "--hash", first["root_hash"])
    assert tags(three) == {
        "now": 3,
        "second": 2,
        "first": 1,
        "also/first:x": 1,
        "by-hash": 1,
        "trunk": 3,
        "trunk-previous": 2,
    }
    after = three.json("info")
    assert (after["revision"], after["root_hash"]) == (before["revision"], before["root_hash"])
    document = three.json("check", "--scrub")
    assert (document["errors"], document["warnings"]) == (0, 0)


def test_what_is_so_already_is_not_published_again(three: Shell) -> None:
    three.json("tag", "a", "-m", "why")
    before = files(three)
    for arguments in (["a"], ["a", "-m", "why"], ["a", "--revision", "3", "--force"]):
        assert three.json("tag", *arguments)["status"] == "unchanged"
    assert files(three) == before


def test_a_tag_is_moved_only_by_force(three: Shell) -> None:
    three.json("tag", "a")
    before = files(three)
    ran = three.run("tag", "a", "--revision", "1")
    assert ran.code == 2
    assert "tag 'a' exists already, of revision 3" in ran.err
    assert "tag --force" in ran.err
    assert files(three) == before
    assert three.json("tag", "a", "--revision", "1", "--force")["status"] == "tagged"
    assert tags(three)["a"] == 1
    assert three.json("tag", "a", "-m", "new", "--force", "--tag", "a")["status"] == "tagged"
    assert three.json("tag")["tags"][0]["description"] == "new"


def test_names_are_forgotten_all_or_none(three: Shell) -> None:
    for name in "abc":
        three.json("tag", name)
    before = files(three)
    ran = three.run("tag", "--delete", "a", "release")
    assert ran.code == 2
    assert "there is no tag 'release'" in ran.err
    assert files(three) == before
    ran = three.run("tag", "--delete", "a", "b")
    assert (ran.code, len(ran.out.splitlines())) == (0, 2)
    assert "`gc` may collect 1 revision" in ran.err
    assert tags(three).keys() == {"c", "trunk", "trunk-previous"}
    assert three.json("check")["ok"] is True


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (["trunk"], "'trunk' is reserved", "choose another name"),
        (["a b"], "'a b' is not made of letters", ""),
        (["x" * 256], "256 characters: 255 are possible", ""),
        (["a", "b"], "2 names are given", "-m 'several words'"),
        (["a", "--revision", "4"], "no revision 4: the published one is 3", "`tag` lists"),
        (["a", "--revision", "0"], "no revision 0: .*can be followed to 1", "`tag` lists"),
        (["a", "--hash", "ab" * 20], f"{'ab' * 20} is the root catalog of no", "`tag` lists"),
        (["a", "--hash", "x"], "--hash: ", "tag --json"),
        (["a", "--tag", "trunc"], "no tag 'trunc'", "did you mean 'trunk'"),
        (["a", "--tag", "b", "--revision", "1"], "exclude each other", ""),
        (["a", "-m", "\x00"], "is not text", ""),
        (["--revision", "1"], "a name is missing", "tag NAME"),
        (["--delete"], "a name is missing", "tag NAME"),
        (["--delete", "a", "-m", "b"], "--delete takes names", ""),
        (["--delete", "trunk"], "'trunk' cannot be removed", ""),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy_and_changes_nothing(
    three: Shell, arguments: list[str], message: str, remedy: str
) -> None:
    before = files(three)
    ran = three.run("tag", *arguments)
    assert ran.code == 2, ran
    assert ran.err.startswith("cvmfs-publish: error: ")
    assert re.search(message, ran.err), ran.err
    assert remedy in ran.err
    assert files(three) == before


def test_a_revision_whose_root_is_gone_cannot_be_named(three: Shell) -> None:
    first = three.json("tag", "first", "--revision", "1")["tag"]["root_hash"]
    (three.cwd / "repository" / "data" / first[:2] / f"{first[2:]}C").unlink()
    before = files(three)
    for how in (["--tag", "first"], ["--hash", first], ["--revision", "1"]):
        ran = three.run("tag", "again", *how)
        assert ran.code == 2
        assert f"root catalog {first}" in ran.err
        assert "collected" in ran.err
    three.json("tag", "--delete", "first")
    ran = three.run("tag", "again", "--revision", "1")
    assert "followed to 2" in ran.err
    assert files(three).keys() >= before.keys()


@pytest.mark.parametrize(
    ("value", "kept"), [("off", []), ("1m", [4]), ("2m", [3, 4]), ("forever", [2, 3, 4])]
)
def test_the_configuration_asks_for_automatic_tags(
    home: Shell, value: str, kept: list[int]
) -> None:
    path = home.cwd / "cvmfs-publish.yaml"
    path.write_text(path.read_text().replace("#automatic_tags: off", f"automatic_tags: {value}"))
    home.json("tag", "generic-mine")
    target = open_native(load_config(path))
    start = target.manifest().timestamp
    for minutes in (0, 1, 2):
        for _ in range(2):  # once with a change, once without: no revision, no tag
            with target.transaction(start + 61 * minutes) as transaction:
                transaction.put_file("f", b"%d" % minutes)
    found = {tag.name: tag.revision for tag in list_tags(target)}
    assert found.pop("generic-mine") == 1
    assert [number for name, number in found.items() if name.startswith("generic-")] == kept
    assert {found["trunk"], found["trunk-previous"]} == {4, 3}


def test_two_revisions_of_one_second_have_two_automatic_tags(home: Shell) -> None:
    target = repository(home, NativeOptions(automatic_tags=timedelta(days=1)))
    started = target.manifest().timestamp
    for data in (b"1", b"2"):
        with target.transaction(started) as transaction:
            transaction.put_file("f", data)
    first, second = (name for name in tags(home) if name.startswith("generic"))
    assert second == first.replace("generic-", "generic_1-")
    assert home.json("check")["ok"] is True
