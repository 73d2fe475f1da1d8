"""Images from a registry into a repository behind a gateway, by the command line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.registry import FakeRegistry
from tests.gateway_world import World, stand_in
from tests.images import Tar
from tests.support import NAME
from tests.unit.cli.support import Shell

pytestmark = pytest.mark.slow


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        for name in ("one", "two"):
            registry.add_image(f"a/{name}", [layer("base"), layer(name)], tag="1")
        yield registry


def layer(name: str) -> bytes:
    tar = Tar()
    tar.directory("etc")
    tar.file(f"etc/{name}", name.encode())
    tar.symlink("etc/out", "/etc/passwd")
    return tar.done()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world", stand_in(), int(time.time()))


def publisher(world: World, name: str, more: str = "") -> Shell:
    """Return a folder with the configuration of another publisher."""
    host = world.host(name)
    (host.place / "clock").unlink()
    shell = Shell(host.place)
    (host.place / "cvmfs-publish.yaml").write_text(
        f"""\
repository:
  name: {NAME}
  backend: cvmfs_server
  cvmfs_server:
    server_conf: {host.place}/server.conf
    mount: {host.place}/mount
    program: {host.program}
    {more}
wishlists: [images.yaml]
"""
    )
    return shell


def test_two_publishers_publish_and_see_what_the_other_does(
    world: World, registry: FakeRegistry
) -> None:
    first, second = publisher(world, "a", "lease_wait: 1m"), publisher(world, "b")
    one, two = registry.name("a/one", "1"), registry.name("a/two", "1")
    assert first.json("info")["names"] == 0
    (image,) = first.json("publish", one)["images"]
    assert image["status"] == "published"
    (image,) = second.json("publish", one)["images"]
    assert image["status"] == "unchanged"
    document = second.json("publish", one, two)
    assert [image["status"] for image in document["images"]] == ["unchanged", "published"]
    assert document["revision"] == first.json("info")["revision"]
    for shell in (first, second):
        assert [image["reference"] for image in shell.json("list")["images"]] == [one, two]
        assert shell.json("check")["problems"] == []
    registry.add_image("a/one", [layer("newer")], tag="1")
    (second.cwd / "images.yaml").write_text(f"version: 1\nimages: [{one}, {two}]\n")
    ran = second.run("watch", "--once")
    assert ran.code == 0, ran
    assert first.json("rollback", one)["status"] == "rolled back"
    events = [event["what"] for event in second.json("history", one)["events"]]
    assert events == ["rolled back", "published", "published"]
    assert first.run("pin", two).code == 0
    assert second.run("unpublish", two).code == 2
    assert second.run("unpin", two).code == 0
    assert second.run("unpublish", two).code == 0
    planned = first.json("gc", "--dry-run", "--grace", "0")
    assert len(planned["sandboxes"]) == 2
    assert first.json("gc", "--grace", "0")["sandboxes"] == planned["sandboxes"]
    assert [image["reference"] for image in second.json("list")["images"]] == [one]
    assert second.json("check")["problems"] == []


def test_what_is_not_for_this_kind_of_repository_is_refused(world: World) -> None:
    shell = publisher(world, "a", "method: ingest")
    ran = shell.run("info")
    assert ran.code == 2
    assert "behind a gateway" in ran.err
    conf = shell.cwd / "server.conf"
    adopted = Shell(world.base).run("init", NAME, "--adopt", "--server-conf", str(conf))
    assert adopted.code == 2
    assert "backend: cvmfs_server" in adopted.err
    text = conf.read_text()
    start = text.index("CVMFS_UPSTREAM_STORAGE=")
    end = text.index("\n", start)
    conf.write_text(f"{text[:start]}CVMFS_UPSTREAM_STORAGE=local,/t,/srv/x{text[end:]}")
    config = shell.cwd / "cvmfs-publish.yaml"
    config.write_text(config.read_text().replace("method: ingest", "lease_wait: 1m"))
    ran = shell.run("info")
    assert ran.code == 2
    assert "lease_wait is for a repository behind a gateway" in ran.err


def test_doctor_looks_for_the_keys(world: World) -> None:
    shell = publisher(world, "a")

    def look() -> dict[str, str]:
        checks = shell.run("--json", "doctor").document["checks"]
        return {each["check"]: each["outcome"] for each in checks}

    assert look()["gateway"] == "missing"
    (world.base / f"gateway/keys/{NAME}.gw").write_text("plain_text key secret\n")
    found = look()
    assert (found["gateway"], found["mount"], found["repository"]) == ("ok", "ok", "ok")
