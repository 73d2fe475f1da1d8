"""Replicas of a repository that `cvmfs_server` writes: looked at, waited for, named after."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.test_backends import layer
from tests.fakes.registry import FakeRegistry
from tests.stock_host import StockHost, configure
from tests.stratum1 import stranger
from tests.support import NAME
from tests.unit.cli.support import Shell
from tests.unit.native.test_reader import served
from tests.versions import at

pytestmark = pytest.mark.slow


class Site:
    """A Stratum 0 of the stand-in for `cvmfs_server`, and a replica of it."""

    def __init__(self, base: Path, stack: ExitStack) -> None:
        self.host = StockHost(base / "host", int(at(0).timestamp()))
        (self.host.base / "clock").unlink()
        (base / "home").mkdir()
        self.shell = Shell(base / "home")
        configure(self.shell.cwd, self.host)
        self.replica = base / "replica"
        self.fetch()
        self.url = stack.enter_context(served(self.replica))
        with (self.shell.cwd / "cvmfs-publish.yaml").open("a") as file:
            file.write(f"\nreplicas: [{self.url}]\n")
        self.registry = stack.enter_context(FakeRegistry())
        self.registry.add_image("a/one", [layer("one")], tag="1")
        self.image = self.registry.name("a/one", "1")

    def fetch(self) -> None:
        shutil.copytree(self.host.base / "srv", self.replica, dirs_exist_ok=True)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


def test_its_replicas_are_read_with_the_key_that_its_server_conf_names(site: Site) -> None:
    (replica,) = site.shell.json("replicas")["replicas"]
    assert replica["health"] in ("ok", "expired")  # the stand-in's clock began long ago
    keys = site.host.base / "keys"
    (keys / f"{NAME}.pub").rename(keys / "hidden.pub")
    ran = site.shell.run("replicas")
    assert ran.code != 0
    assert f"{NAME}.pub" in ran.err
    # what the configuration names goes first
    (site.shell.cwd / "keys").mkdir()
    shutil.copy(keys / "hidden.pub", site.shell.cwd / "keys" / f"{NAME}.pub")
    assert site.shell.run("replicas").code == 0


def test_a_manifest_that_is_not_signed_by_that_key_is_refused(site: Site) -> None:
    path = site.host.base / "srv" / ".cvmfspublished"
    path.write_bytes(path.read_bytes().partition(b"\n--\n")[0] + b"\n")
    ran = site.shell.run("replicas")
    assert ran.code == 5
    assert "no signature block" in ran.err


def test_a_key_that_is_not_its_own_is_told(site: Site, tmp_path: Path) -> None:
    stranger(tmp_path / "other")
    shutil.copy(tmp_path / "other/keys" / f"{NAME}.pub", site.host.base / "keys")
    ran = site.shell.run("replicas")
    assert ran.code == 4
    assert "none of the given master keys" in ran.err


@pytest.mark.parametrize("method", ["transaction", "ingest"])
def test_publishing_waits_for_them_and_names_follow_them(site: Site, method: str) -> None:
    shell, image = site.shell, site.image
    path = shell.cwd / "cvmfs-publish.yaml"
    path.write_text(path.read_text().replace("    mount:", f"    method: {method}\n    mount:"))
    ran = shell.run("publish", image, "--name-after", "1", "--wait-timeout", "0s")
    assert ran.code == 3, ran
    assert ran.out.startswith("staged  ")
    mount = site.host.base / "mount"
    assert not (mount / image).is_symlink()
    (staged,) = shell.json("list")["staged"]
    revision = shell.json("info")["revision"]
    assert staged["revision"] == revision
    assert (mount / staged["sandbox"].lstrip("/") / "etc/one").read_text() == "one"
    site.fetch()
    document = shell.json(
        "publish",
        image,
        "--name-after",
        "1",
        "--wait-replicas",
        "1",
        "--wait-timeout",
        "0s",
        code=3,
    )
    (published,) = document["images"]
    assert published["status"] == "published"  # and its replica has not that revision yet
    assert document["replicas"]["error"]["kind"] == "lagging"
    assert document["revision"] == revision + 1
    assert (mount / image / "etc/one").read_text() == "one"
    site.fetch()
    assert shell.run("publish", image, "--wait-replicas", "1").code == 0
    assert shell.json("list")["staged"] == []
