"""`publish` and `verify` of images that are in no registry, from the command line."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archives import docker_members, oci_archive, pack
from tests.fakes.places import KEY, PROJECT, USER, FakePlaces
from tests.fakes.registry import FakeRegistry
from tests.images import Tar, write_oci_layout
from tests.s3 import S3Bucket
from tests.sifs import make_sif, squashfs_of, system
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


# places beyond this machine, as configuration and environment name them


@pytest.fixture
def places() -> Iterator[FakePlaces]:
    with FakePlaces() as running:
        running.images["rootfs.tar.gz"] = gzip.compress(layer("one"))
        yield running


def test_a_root_behind_a_url_is_published_once(home: Shell, places: FakePlaces) -> None:
    url = places.url_of("rootfs.tar.gz")
    (image,) = home.json("publish", f"{url}?token=secret", "--as", NAME)["images"]
    assert (image["status"], image["source"]) == ("published", url)
    asked = len(places.requests)
    (image,) = home.json("publish", f"{url}?token=other", "--as", NAME)["images"]
    assert image["status"] == "unchanged"
    assert [request.method for request in places.requests[asked:]] == ["HEAD"]
    assert home.run("verify", NAME).code == 0
    assert list((home.cwd / "state/scratch").iterdir()) == []


def test_a_pin_that_does_not_hold_publishes_nothing(home: Shell, places: FakePlaces) -> None:
    url = f"{places.url_of('rootfs.tar.gz')}#sha256={'0' * 64}"
    ran = home.run("publish", url, "--as", NAME)
    assert ran.code == 4
    assert "not sha256:000" in ran.err
    assert home.json("list")["images"] == []


def test_logins_are_those_of_the_configuration(home: Shell, places: FakePlaces) -> None:
    (home.cwd / "secret").write_text("token")
    (home.cwd / "cvmfs-publish.yaml").write_text(
        f"""\
repository: {{name: test.example.org}}
registries:
  "{places.host}": {{username: bot, password_file: secret}}
sources:
  library: "{places.host}"
  shub: "{places.host}"
"""
    )
    places.images["image.sif"] = make_sif([system(squashfs_of(layer("one")))])
    places.library["group/apps/image:1", "amd64"] = "image.sif"
    places.library_token = "token"
    places.hub["user/image:1"] = "image.sif"
    home = Shell(home.cwd, {"PATH": os.environ["PATH"]})
    document = home.json("publish", "library://group/apps/image:1", "shub://user/image:1")
    names = [image["reference"] for image in document["images"]]
    assert names == [f"{places.host}/group/apps/image:1", f"{places.host}/user/image:1"]
    assert home.run("verify", names[0]).code == 0


def test_swift_is_found_by_openstacks_variables(home: Shell, places: FakePlaces) -> None:
    places.objects["images/rootfs.tar"] = layer("one")
    variables = {"OS_AUTH_URL": f"{places.url}/v3", "OS_USERNAME": USER, "OS_PASSWORD": KEY}
    more = {"OS_PROJECT_NAME": PROJECT, "OS_REGION_NAME": "one"}
    shell = Shell(home.cwd, variables | more)
    (image,) = shell.json("publish", "swift://images/rootfs.tar", "--as", NAME)["images"]
    assert image["status"] == "published"
    ran = home.run("publish", "swift://images/rootfs.tar", "--as", NAME)
    assert ran.code == 2
    assert "sources.swift.auth_url" in ran.err


def test_s3_is_found_by_amazons_variables(home: Shell, bucket: S3Bucket) -> None:
    bucket.put("rootfs.tar", layer("one"))
    variables = {
        "AWS_ENDPOINT_URL": bucket.server.url,
        "AWS_ACCESS_KEY_ID": bucket.server.access_key,
        "AWS_SECRET_ACCESS_KEY": bucket.server.secret_key,
    }
    shell = Shell(home.cwd, variables)
    text = f"s3://{bucket.name}/{bucket.prefix}/rootfs.tar"
    (image,) = shell.json("publish", text, "--as", NAME)["images"]
    assert (image["status"], image["source"]) == ("published", text)
    assert shell.json("publish", text, "--as", NAME)["images"][0]["status"] == "unchanged"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("sources: {swift: {user: a}}", "a login needs both"),
        ("sources: {swift: {user: a, key: b, key_file: c}}", "both given"),
        ("sources: {s3: {access_key: a}}", "secret_key_file is missing"),
        ("sources: {s3: {lease: 1m}}", "lease"),
        ("sources: {library: 'a b'}", "library"),
    ],
)
def test_what_the_configuration_says_wrongly_is_told(
    home: Shell, section: str, message: str
) -> None:
    path = home.cwd / "cvmfs-publish.yaml"
    path.write_text(f"repository: {{name: test.example.org}}\n{section}\n")
    ran = home.run("list")
    assert ran.code == 2
    assert message in ran.err


def test_what_is_published_is_compared_with_any_file(home: Shell, archive: Path) -> None:
    home.json("publish", "oci-archive:image.tar", "--as", NAME)
    copy = home.cwd / "copy.tar"
    archive.rename(copy)
    assert home.run("verify", NAME).code == 3  # it is not there any more
    ran = home.run("verify", "oci-archive:copy.tar", "--as", NAME)
    assert (ran.code, "no difference" in ran.out) == (0, True), ran
    oci_archive(copy, write_oci_layout(home.cwd / "other", [layer("three")]))
    ran = home.run("verify", "oci-archive:copy.tar", "--as", NAME)
    assert ran.code == 3
    assert "any more" in ran.err
    (home.cwd / "saved.tar").write_bytes(pack(docker_members([layer("one")], tags=["a/b:1"])))
    home.json("publish", "docker-archive:saved.tar")
    assert home.run("verify", "docker-archive:saved.tar").code == 0
