"""What is published here, as the real CernVM-FS client shows it and its own check judges it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import images, parts
from tests.real_cvmfs import Mount, Replica, judge, mounted, needed
from tests.support import NAME, keys_of_this_run
from tests.unit.cli.support import Shell
from tests.unit.native.test_reader import served

pytestmark = [pytest.mark.parts, needed]
BUILD = {"debian": images.debian_image, "hostile": images.hostile_but_legal_image}


class Publisher:
    """A native repository and who writes it."""

    def __init__(self, folder: Path, registry: parts.RegistryServer) -> None:
        self.folder = folder
        self.shell = Shell(folder)
        self.registry = registry
        shutil.copytree(keys_of_this_run(), folder / "keys")

    def create(self, algorithm: str = "sha1", max_entries: int = 10_000) -> None:
        self.run("init", NAME, "--hash", algorithm)
        configuration = self.folder / "cvmfs-publish.yaml"
        text = configuration.read_text()
        unset = "#max_entries: 10000"
        assert unset in text
        configuration.write_text(text.replace(unset, f"max_entries: {max_entries}"))

    def run(self, *words: str) -> None:
        ran = self.shell.run(*words)
        assert ran.code == 0, ran

    def push(self, image: str, tag: str = "1") -> str:
        layout = self.folder / f"layout-{image}-{tag}"
        BUILD[image](layout)
        reference = f"{self.registry.host}/real/{image}:{tag}"
        images.push(layout, reference)
        return reference

    def judge(self) -> None:
        key = self.folder / "keys" / f"{NAME}.pub"
        judge(self.folder / "repository", NAME, key, self.folder / "judged")

    @contextmanager
    def client(self, folder: Path) -> Iterator[Mount]:
        key = self.folder / "keys" / f"{NAME}.pub"
        with mounted(self.folder / "repository", NAME, key, folder) as mount:
            yield mount


@pytest.fixture
def publisher(shared_tmp: Path, registry: parts.RegistryServer) -> Publisher:
    folder = shared_tmp / "home"
    folder.mkdir()
    return Publisher(folder, registry)


@pytest.mark.parametrize(
    ("image", "algorithm", "max_entries"),
    [("debian", "sha1", 10_000), ("debian", "shake128", 1_000), ("hostile", "rmd160", 10_000)],
)
def test_a_client_shows_every_entry_as_it_was_published(
    image: str, algorithm: str, max_entries: int, publisher: Publisher, shared_tmp: Path
) -> None:
    publisher.create(algorithm, max_entries)
    reference = publisher.push(image)
    publisher.run("publish", reference)
    publisher.judge()
    with publisher.client(shared_tmp) as mount:
        ran = publisher.shell.run("--json", "verify", reference, "--mount", str(mount.root))
        # Clients put variables of theirs in place of `$(…)`; a finding says so.
        variable = [each for each in ran.document["differences"] if "$(id)" in each["expected"]]
        assert ran.document["differences"] == variable
        assert {each["what"] for each in variable} <= {"link target"}
        assert ran.document["not_compared"] == []
        assert len(inodes_of_directories(mount.root)) > 20


def inodes_of_directories(root: Path) -> dict[int, str]:
    """Walk all; every directory has an inode of its own, or the kernel takes it for another."""
    found: dict[int, str] = {}
    for folder, _, _ in os.walk(root, onerror=_fail):
        inode = os.lstat(folder).st_ino
        assert inode not in found, f"{folder} has the inode of {found[inode]}"
        found[inode] = folder
    return found


def _fail(error: OSError) -> None:
    raise error


def test_a_client_follows_the_names(publisher: Publisher, shared_tmp: Path) -> None:
    publisher.create()
    reference = publisher.push("debian", "old")
    other = publisher.push("hostile", "new")
    publisher.run("publish", reference)
    name = reference.replace(":old", ":moving")
    images.push(publisher.folder / "layout-debian-old", name)
    publisher.run("publish", name)
    with publisher.client(shared_tmp) as mount:
        link = mount.root / name
        first = os.readlink(link)
        assert mount.revision == 3
        publisher.run("publish", other)
        publisher.run("unpublish", reference)
        publisher.run("pin", name)
        publisher.run("gc", "--grace", "0s", "--keep-revisions", "1")
        publisher.judge()
        assert os.readlink(link) == first
        mount.refresh()
        assert mount.revision == 6
        assert (mount.root / other).is_dir()
        assert not (mount.root / reference).is_symlink()
        assert stat.S_ISDIR((link / "etc").stat().st_mode)
        inodes_of_directories(mount.root)


def test_jobs_start_from_the_mount(publisher: Publisher, shared_tmp: Path) -> None:
    publisher.create()
    reference = publisher.push("debian")
    publisher.run("publish", reference)
    publisher.run("site", "render", "generic", "--out", str(shared_tmp / "site"))
    apptainer = parts.require("apptainer")
    with publisher.client(shared_tmp) as mount:
        launcher = [str(shared_tmp / "site/bin/cvmfs-run"), "--runtime", str(apptainer)]
        job = ["sh", "-c", "cat /etc/debian_version; exit 7"]
        ran = parts.run_as_test_user([*launcher, str(mount.root / reference), "--", *job])
        assert ran.returncode == 7, parts.describe(ran)
        assert ran.stdout.startswith(b"12"), parts.describe(ran)


def test_a_stratum_1_takes_each_revision_and_clients_read_it(
    publisher: Publisher, shared_tmp: Path
) -> None:
    publisher.create()
    one, two = publisher.push("debian"), publisher.push("hostile")
    publisher.run("publish", one)
    key = publisher.folder / "keys" / f"{NAME}.pub"
    with served(publisher.folder / "repository") as source:
        replica = Replica(shared_tmp / "replica", NAME, source, key)
        with served(replica.storage) as url:
            configuration = publisher.folder / "cvmfs-publish.yaml"
            configuration.write_text(f"{configuration.read_text()}\nreplicas: [{url}]\n")
            replica.pull(url)
            assert health(publisher) == "ok"
            publisher.run("publish", two)
            assert health(publisher) == "behind"
            replica.pull(url)
            publisher.run("publish", two, "--wait-replicas", "1")
            publisher.run("unpublish", one)
            publisher.run("gc", "--grace", "0s", "--keep-revisions", "1")
            replica.pull(url)
            assert health(publisher) == "ok"
    publisher.run("check", "--from", str(replica.storage), "--key", str(key), "--scrub")
    judge(replica.storage, NAME, key, shared_tmp / "judged", replica.checksum)
    with mounted(replica.storage, NAME, key, shared_tmp) as mount:
        assert (mount.root / two).is_dir()
        assert not (mount.root / one).is_symlink()


def health(publisher: Publisher) -> str:
    found: str = publisher.shell.json("replicas")["replicas"][0]["health"]
    return found
