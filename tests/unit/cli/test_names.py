"""`unpublish`, `rollback`, `pin`, `unpin`, `history`, from the command line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvmfs_publish.cli.assembly import open_native
from cvmfs_publish.config import load_config
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.unit.cli.support import Shell
from tests.unit.cli.test_repository import NAME, checker

pytestmark = pytest.mark.slow


def layer(text: str) -> bytes:
    tar = Tar()
    tar.file("version", text.encode())
    return tar.done()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def image(home: Shell, registry: FakeRegistry) -> str:
    """A name that led to one image and leads to another."""
    for version in ("old", "new"):
        registry.add_image("a/one", [layer(version)], tag="1")
        home.json("publish", registry.name("a/one", "1"))
    return registry.name("a/one", "1")


def judged(home: Shell) -> None:
    checker(str(home.cwd / "repository"), home.cwd / f"keys/{NAME}.pub")


def content(home: Shell, image: str, folder: str) -> str:
    home.json("export", image, folder)
    return Path(home.cwd / folder / "version").read_text()


def test_a_name_goes_back_without_the_registry_and_comes_forward_with_it(
    home: Shell, registry: FakeRegistry, image: str
) -> None:
    asked = len(registry.requests)
    new = home.json("show", image)
    document = home.json("rollback", image)
    assert (document["status"], document["revision"]) == ("rolled back", 4)
    assert document["digest"] != new["digest"]
    assert document["path"] == f"/{image}"
    assert len(registry.requests) == asked
    assert content(home, image, "old") == "old"
    judged(home)
    (published,) = home.json("publish", image)["images"]
    assert (published["status"], published["digest"]) == ("published", new["digest"])
    assert published["layers"]["fetched_bytes"] == 0
    assert content(home, image, "new") == "new"
    ran = home.run("rollback", image, "--to", document["digest"][7:15])
    assert ran.code == 0
    assert ran.out == f"rolled back  {image}  /{image} leads to {document['digest']}\n"
    assert ran.err == f"{NAME} is at revision 6\n"
    ran = home.run("rollback", image, "--to", document["image_id"])
    assert ran.out.startswith(f"unchanged  {image}  ")
    assert home.json("info")["revision"] == 6
    judged(home)


def test_history_tells_what_a_name_led_to(home: Shell, image: str) -> None:
    home.json("rollback", image)
    home.json("pin", image)
    lines = home.run("history", image).out.splitlines()
    assert lines[0].split("  ")[0] == "WHEN"
    assert [line.split("UTC  ")[1].split("  ")[0].strip() for line in lines[1:]] == [
        "rolled back", "published", "published",
    ]  # fmt: skip
    assert lines[1].endswith("4  current, pinned")
    assert lines[2].endswith("3  kept")
    document = home.json("history", image)
    assert (document["reference"], document["published"]) == (image, True)
    assert [event["state"] for event in document["events"]] == ["current", "kept", "kept"]
    assert [event["pinned"] for event in document["events"]] == [True, False, True]
    assert document["events"][0]["digest"] == document["events"][2]["digest"]
    assert document["events"][0].keys() == {
        "at", "revision", "digest", "manifest_digest", "image_id", "what", "state", "pinned",
    }  # fmt: skip
    shown = home.json("show", image)
    assert shown["what"] == "rolled back"
    assert [event["revision"] for event in shown["history"]] == [2, 3]
    assert "before        2 events" in home.run("show", image).out
    assert "rolled back   2" in home.run("show", image).out


def test_an_unpublished_name_is_gone_but_not_its_history(home: Shell, image: str) -> None:
    ran = home.run("unpublish", image)
    assert ran.code == 0
    assert ran.out.startswith(f"unpublished  {image}  its sandbox /.flat/")
    assert ran.err == f"{NAME} is at revision 4\n"
    assert home.json("list")["images"] == []
    ran = home.run("show", image)
    assert ran.code == 2
    assert "not published any more" in ran.err
    document = home.json("history", image)
    assert document["published"] is False
    assert [event["what"] for event in document["events"]] == [
        "unpublished", "published", "published",
    ]  # fmt: skip
    judged(home)
    home.json("rollback", image)
    assert content(home, image, "back") == "new"
    judged(home)


def test_unpublish_does_what_it_can(home: Shell, registry: FakeRegistry, image: str) -> None:
    registry.add_image("a/two", [layer("two")], tag="1")
    two = registry.name("a/two", "1")
    home.json("publish", two)
    home.json("pin", two)
    document = home.json("unpublish", "Not/Valid", image, two, registry.name("a/twoo", "1"), code=6)
    assert (document["repository"], document["revision"]) == (NAME, 6)
    assert [each["status"] for each in document["images"]] == [
        "failed", "unpublished", "failed", "failed",
    ]  # fmt: skip
    gone, pinned, unknown = document["images"][1:]
    assert gone["path"] == f"/{image}"
    assert gone["sandbox"].startswith("/.flat/")
    assert gone["error"] is None
    assert "is pinned" in pinned["error"]["message"]
    assert f"unpin {two}" in pinned["error"]["hint"]
    assert unknown["error"]["hint"] == f"did you mean {two}?"
    ran = home.run("unpublish", image)
    assert (ran.code, ran.out) == (2, "")
    assert "not published any more" in ran.err
    assert f"rollback {image}" in ran.err


def test_a_pin_is_told_wherever_the_image_is(home: Shell, image: str) -> None:
    assert "PINNED" not in home.run("list").out
    ran = home.run("pin", image)
    assert ran.code == 0
    assert ran.out.startswith(f"pinned  {image}  keeps /.flat/")
    assert [line.split()[-1] for line in home.run("list").out.splitlines()] == ["PINNED", "pinned"]
    assert "pinned        since 2" in home.run("show", image).out
    assert home.json("history", image)["pinned_at"]
    (listed,) = home.json("list")["images"]
    assert listed["pinned"] == [listed["sandbox"]]
    revision = home.json("pin", image)["revision"]
    assert revision == home.json("pin", image)["revision"] == 4
    document = home.json("unpin", image)
    assert (document["revision"], document["pinned"], document["pinned_at"]) == (5, [], "")
    assert "pinned        no" in home.run("show", image).out
    assert home.run("unpin", image).out == f"unpinned  {image}\n"
    judged(home)


@pytest.mark.parametrize("command", ["rollback", "history", "pin", "unpin", "unpublish"])
def test_a_name_that_is_none_is_wrong_usage(home: Shell, image: str, command: str) -> None:
    before = home.json("info")["revision"]
    for text in (image.replace("one", "oen"), f"{image}:x"):
        ran = home.run(command, text)
        assert (ran.code, ran.out) == (2, "")
        assert "hint: " in ran.err
    ran = home.run(command, image, "--platform", "linux/arm64")
    assert (ran.code, ran.out) == (2, "")
    assert "hint: add --platform linux/amd64" in ran.err
    assert home.run(command, image, "--platform", "arm").code == 2
    assert home.json("info")["revision"] == before


def test_another_platform_has_names_of_its_own(home: Shell, registry: FakeRegistry) -> None:
    images = {
        platform: registry.add_image("a/m", [layer(platform)], tag="", platform=platform)
        for platform in ("linux/amd64", "linux/arm64")
    }
    registry.add_index("a/m", images, tag="1")
    image = registry.name("a/m", "1")
    other = ("--platform", "linux/arm64")
    home.json("publish", image)
    home.json("publish", image, *other)
    home.json("unpublish", image)
    assert [each["platform"] for each in home.json("list")["images"]] == ["linux/arm64"]
    home.json("rollback", image)
    home.json("unpublish", image, *other)
    assert [each["platform"] for each in home.json("list")["images"]] == ["linux/amd64"]
    assert home.json("history", image, *other)["platform"] == "linux/arm64"
    judged(home)


def test_a_name_by_digest_is_unpublished(home: Shell, registry: FakeRegistry, image: str) -> None:
    digest = home.json("show", image)["manifest_digest"]
    name = f"{image.rpartition(':')[0]}@{digest}"
    assert home.run("show", name).code == 2  # nobody published it by that name
    home.json("publish", name)
    assert len(home.json("list")["images"]) == 2
    assert home.run("unpublish", name).code == 0
    assert len(home.json("list")["images"]) == 1
    judged(home)


def test_names_of_other_programs_are_listed_after_ours(home: Shell, image: str) -> None:
    flat, gone = f".flat/ab/ab{'0' * 62}", f".flat/cd/cd{'0' * 62}"
    repository = open_native(load_config(home.cwd / "cvmfs-publish.yaml"))
    with repository.transaction(int(time.time())) as transaction:
        transaction.make_directories(flat)
        transaction.make_directories("docker.io/library")
        transaction.put_symlink("docker.io/library/software", f"../../{flat}")
        for tag, target in (("12", flat), ("11", gone)):
            name = f"docker.io/library/debian:{tag}"
            transaction.put_symlink(name, f"../../{target}")
            transaction.make_directories(f".metadata/{name}")
            transaction.put_file(f".metadata/{name}/manifest.json", b"{}")
    assert home.json("list")["foreign"] == [
        {
            "path": f"/docker.io/library/debian:{tag}",
            "target": f"/{target}",
            "program": "DUCC",
            "is_there": is_there,
        }
        for tag, target, is_there in (("11", gone, False), ("12", flat, True))
    ]
    ours, others = home.run("list").out.split("\n\n")
    assert ours.splitlines()[1].startswith(image)
    assert [line.split() for line in others.splitlines()] == [
        ["OF", "OTHERS", "MADE", "BY", "LEADS", "TO"],
        ["/docker.io/library/debian:11", "DUCC", f"/{gone}", "gone"],
        ["/docker.io/library/debian:12", "DUCC", f"/{flat}"],
    ]
    stock = ["init", NAME, "--adopt", "--storage", "repository", "--keys", "keys"]
    (home.cwd / "cvmfs-publish.yaml").unlink()
    assert "left as found: 2 names of other programs" in home.run(*stock).err


def test_second_names_and_former_images_of_ours_are_not_of_others(
    home: Shell, registry: FakeRegistry, image: str
) -> None:
    configuration = home.cwd / "cvmfs-publish.yaml"
    text = configuration.read_text()
    configuration.write_text(text.replace("\nrepository:\n", "\nrepository:\n  layout: osg\n"))
    home.json("publish", image)
    assert home.json("list")["foreign"] == []
    home.json("unpublish", image)
    assert home.json("list") | {"revision": 0} == {
        "repository": NAME,
        "revision": 0,
        "images": [],
        "staged": [],
        "foreign": [],
    }
