"""`publish` and `verify` of images that are in no registry, from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archives import docker_members, oci_archive, pack
from tests.fakes.registry import FakeRegistry
from tests.images import Tar, write_oci_layout
from tests.unit.cli.support import Shell

pytestmark = pytest.mark.slow

NAME = "example.org/group/image:1"


def layer(name: str, data: bytes = b"content") -> bytes:
    tar = Tar()
    tar.file(name, data)
    return tar.done()


@pytest.fixture
def archive(home: Shell) -> Path:
    layout = write_oci_layout(home.cwd / "layout", [layer("one"), layer("two")])
    return oci_archive(home.cwd / "image.tar", layout)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        registry.add_image("a/one", [layer("one")], tag="1")
        yield registry


def test_an_archive_is_published_unchanged_and_verified(home: Shell, archive: Path) -> None:
    document = home.json("publish", "oci-archive:image.tar", "--as", NAME)
    (image,) = document["images"]
    assert (image["reference"], image["status"]) == (NAME, "published")
    assert image["path"] == f"/{NAME}"
    assert image["source"] == f"oci-archive:{archive}"
    again = home.json("publish", f"oci-archive:{archive}", "--as", NAME)
    assert again["images"][0]["status"] == "unchanged"
    assert again["revision"] == document["revision"]
    assert home.run("verify", NAME).code == 0
    assert home.run("check", "--scrub").code == 0
    assert f"source        oci-archive:{archive}\n" in home.run("show", NAME).out


def test_an_unchanged_file_is_not_even_opened_as_an_archive(home: Shell, archive: Path) -> None:
    home.json("publish", "oci-archive:image.tar", "--as", NAME)
    size, about = archive.stat().st_size, archive.stat()
    record = json.loads(home.run("--json", "show", NAME).out)
    assert record["source_state"].split()[:2] == [str(size), str(about.st_mtime_ns)]
    archive.touch()
    document = home.json("publish", "oci-archive:image.tar", "--as", NAME)
    assert document["images"][0]["status"] == "unchanged"  # read, and found to be the same


def test_a_changed_archive_is_published_anew(home: Shell, archive: Path) -> None:
    home.json("publish", "oci-archive:image.tar", "--as", NAME)
    layout = write_oci_layout(home.cwd / "other", [layer("one"), layer("three")])
    oci_archive(archive, layout)
    (image,) = home.json("publish", "oci-archive:image.tar", "--as", NAME)["images"]
    assert image["status"] == "published"
    assert image["layers"]["reused"] == 1
    assert len(home.json("history", NAME)["events"]) == 2


def test_an_image_that_gives_itself_no_name_needs_one(home: Shell, archive: Path) -> None:
    ran = home.run("publish", "oci-archive:image.tar")
    assert ran.code == 2
    assert "does not say what the image is called" in ran.err
    assert "--as REGISTRY/REPOSITORY:TAG" in ran.err


def test_the_name_in_an_archive_is_used(home: Shell) -> None:
    (home.cwd / "saved.tar").write_bytes(pack(docker_members([layer("one")], tags=["a/b:1"])))
    (image,) = home.json("publish", "docker-archive:saved.tar")["images"]
    assert image["reference"] == "docker.io/a/b:1"


def test_a_name_that_cannot_be_published_is_told_with_the_way_out(home: Shell) -> None:
    (home.cwd / "saved.tar").write_bytes(pack(docker_members([layer("one")], tags=["A/../b:1"])))
    ran = home.run("publish", "docker-archive:saved.tar")
    assert ran.code == 2
    assert "calls itself 'A/../b:1'" in ran.err
    assert "--as" in ran.err


def test_as_is_for_one_image(home: Shell, archive: Path) -> None:
    ran = home.run("publish", "oci-archive:image.tar", "debian", "--as", NAME)
    assert ran.code == 2
    assert "2 are to be published" in ran.err


def test_an_image_of_a_registry_is_published_under_another_name(
    home: Shell, registry: FakeRegistry
) -> None:
    there = registry.name("a/one", "1")
    (image,) = home.json("publish", there, "--as", NAME)["images"]
    assert (image["reference"], image["source"]) == (NAME, f"docker://{there}")
    asked = len(registry.requests)
    assert home.json("publish", there, "--as", NAME)["images"][0]["status"] == "unchanged"
    assert [request.method for request in registry.requests[asked:]] == ["HEAD"]
    assert home.run("verify", NAME).code == 0


def test_two_images_of_one_name_are_not_published_over_one_another(home: Shell) -> None:
    for number in "12":
        saved = pack(docker_members([layer(number)], tags=["a/b:1"]))
        (home.cwd / f"{number}.tar").write_bytes(saved)
    document = home.json("publish", "docker-archive:1.tar", "docker-archive:2.tar", code=6)
    assert [image["status"] for image in document["images"]] == ["published", "failed"]
    assert "in the same call" in document["images"][1]["error"]["message"]


def test_verify_says_where_the_image_went(home: Shell, archive: Path) -> None:
    home.json("publish", "oci-archive:image.tar", "--as", NAME)
    archive.rename(home.cwd / "moved.tar")
    ran = home.run("verify", NAME)
    assert ran.code == 3
    assert str(archive) in ran.err
