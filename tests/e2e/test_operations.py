"""`docs/operations.md` as an operator follows it: its commands, in their order.

What this machine does not have is replaced: its root is a folder, the account is ours, and instead
of systemd `tests/systemctl.py` starts what the units say and waits until the service says READY=1.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from cvmfs_publish.state.model import ImageKey
from cvmfs_publish.state.reading import Reader
from tests.fakes.registry import FakeRegistry, tar_of
from tests.parts import CHECKOUT, require

PAGE = CHECKOUT / "docs" / "operations.md"
UNITS = CHECKOUT / "packaging" / "systemd"
IMAGE = "docker.io/library/debian:12"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)


def sections() -> dict[str, list[str]]:
    """Return the commands of the page, block by block, by the headings they stand below."""
    parts = HEADING.split(PAGE.read_text("utf-8"))
    titles, texts = parts[1::2], parts[2::2]
    return {title: BLOCK.findall(text) for title, text in zip(titles, texts, strict=True)}


@dataclass
class Machine:
    """A machine whose root is a folder."""

    root: Path
    port: int
    image: str

    def prepare(self) -> None:
        for folder in ("bin", "etc/systemd/system", "var/lib", "var/backups", "srv", "run"):
            (self.root / folder).mkdir(parents=True)
        python = f"{sys.executable} -P"
        self.program("cvmfs-publish", f'exec {python} -m cvmfs_publish "$@"\n')
        self.program("systemctl", f'exec {python} -m tests.systemctl {self.root} "$@"\n')
        for name in ("useradd", "chown"):  # this account is ours
            self.program(name, "exit 0\n")

    def program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)

    def here(self, commands: str) -> str:
        """Put this machine's places and names into commands."""
        for old, new in (
            (" -o cvmfs-publish -g cvmfs-publish", ""),
            ("s|^  #listen: |  listen: |", f"s|^  #listen: .*|  listen: 127.0.0.1:{self.port}|"),
            (IMAGE, self.image),
            ("127.0.0.1:8080", f"127.0.0.1:{self.port}"),
            ("tar -C / ", f"tar -C {self.root}/ "),
            (" packaging/", f" {CHECKOUT}/packaging/"),
        ):
            commands = commands.replace(old, new)
        places = r"(?<![\w.])/(?=(?:etc/cvmfs|etc/systemd|var/lib|var/backups|srv/cvmfs))"
        return re.sub(places, f"{self.root}/", commands)

    def environ(self) -> dict[str, str]:
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        config = self.root / "etc" / "cvmfs-publish" / "cvmfs-publish.yaml"
        found = {**os.environ, "PATH": path, "CVMFS_PUBLISH_CONFIG": str(config)}
        return found | {"PYTHONPATH": str(CHECKOUT), "HOME": str(self.root)}

    def follow(self, commands: str) -> str:
        done = subprocess.run(
            ["/bin/sh", "-euc", self.here(commands)],
            cwd=self.root,
            env=self.environ(),
            capture_output=True,
            text=True,
            check=False,
        )
        log = self.root / "run" / "log"
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}{log.read_text()}"
        return done.stdout

    def follow_all(self, blocks: list[str]) -> list[str]:
        return [self.follow(block) for block in blocks]

    def status(self) -> str:
        with Reader.open(self.root / "var/lib/cvmfs-publish/state") as state:
            image = state.image(ImageKey(self.image, "linux/amd64"))
        return image.status if image is not None else ""

    def wait_for(self, *statuses: str) -> None:
        deadline = time.monotonic() + 60
        while self.status() not in statuses:
            assert time.monotonic() < deadline, (self.root / "run" / "log").read_text()
            time.sleep(0.2)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as found:
        found.add_image("library/debian", [tar_of({"etc/os-release": b"ID=test\n"})], tag="12")
        yield found


@pytest.fixture
def machine(tmp_path: Path, registry: FakeRegistry) -> Iterator[Machine]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    found = Machine(tmp_path / "root", port, registry.name("library/debian", "12"))
    found.prepare()
    yield found
    subprocess.run(
        [found.root / "bin" / "systemctl", "stop", "cvmfs-publish-watch.service"],
        env=found.environ(),
        check=False,
    )


@pytest.mark.parts
def test_the_page_is_right_from_the_installation_to_the_last_trouble(
    machine: Machine, registry: FakeRegistry
) -> None:
    page = sections()
    # install
    account, repository, service, works, reload, cron = page["Install as a service"]
    machine.follow_all([account, repository, service])
    machine.wait_for("published")
    said = machine.follow(works)
    assert said.startswith("active\n")
    assert '"ok": true' in said
    assert machine.image in said
    (fit,) = machine.follow_all(page["What this machine lacks"])
    assert f"registry {machine.image.partition('/')[0]}" in fit
    assert "nothing is missing" in fit
    machine.follow(reload)
    machine.follow_all(["systemctl is-active cvmfs-publish-watch.service\n"])
    # back up, lose everything, restore
    machine.follow_all(page["Back up"])
    keys = (machine.root / "var/lib/cvmfs-publish/keys").iterdir()
    assert {path.suffix for path in keys} >= {".key", ".crt", ".pub", ".masterkey"}
    machine.follow("systemctl stop cvmfs-publish-watch.service\n")
    for place in ("srv/cvmfs", "var/lib/cvmfs-publish", "etc/cvmfs-publish"):
        shutil.rmtree(machine.root / place)
    whole, stateless = page["Restore"]
    machine.follow(whole)
    machine.wait_for("published", "unchanged")
    fetched = registry.count("GET", "/blobs/")
    machine.follow(stateless)
    machine.wait_for("unchanged")
    assert registry.count("GET", "/blobs/") == fetched
    # keys
    before = (machine.root / "var/lib/cvmfs-publish/keys/containers.example.org.crt").read_bytes()
    secret = (machine.root / "etc/cvmfs-publish/hook.secret").read_bytes()
    machine.follow_all(page["Rotate keys"])
    after = (machine.root / "var/lib/cvmfs-publish/keys/containers.example.org.crt").read_bytes()
    assert after != before
    assert (machine.root / "etc/cvmfs-publish/hook.secret").read_bytes() != secret
    registry.add_image("library/debian", [tar_of({"etc/os-release": b"ID=new\n"})], tag="12")
    # figures, and the last resort
    (figures,) = machine.follow_all(page["Read the metrics"])
    assert "cvmfs_publish_" in figures
    (retried,) = machine.follow_all(page["What to do when"])
    assert retried == f"queued  {machine.image} (linux/amd64)\n"
    machine.wait_for("published")
    machine.follow("systemctl stop cvmfs-publish-watch.service\n")
    assert cron == "cvmfs-publish watch --once\n"
    machine.follow_all([cron, "cvmfs-publish check\n"])


def test_every_block_of_the_page_is_followed() -> None:
    assert {title: len(blocks) for title, blocks in sections().items()} == {
        "Install as a service": 6,
        "What this machine lacks": 1,
        "What the watcher does when": 0,
        "Back up": 1,
        "Restore": 2,
        "Rotate keys": 2,
        "Read the metrics": 1,
        "What to do when": 1,
    }


# the units


@pytest.mark.parts
@pytest.mark.parametrize("unit", sorted(UNITS.iterdir()), ids=lambda path: path.name)
def test_systemd_understands_the_units(unit: Path, tmp_path: Path) -> None:
    analyse = require("systemd-analyze")
    for other in UNITS.iterdir():
        text = other.read_text().replace("/usr/bin/cvmfs-publish", "/bin/true")
        text = re.sub(r"^(User|Group)=.*$", r"\1=root", text, flags=re.MULTILINE)
        (tmp_path / other.name).write_text(text)
    done = subprocess.run(
        [analyse, "verify", "--man=no", tmp_path / unit.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parts
@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda path: path.name)
def test_the_services_may_do_little(unit: Path) -> None:
    analyse = require("systemd-analyze")
    done = subprocess.run(
        [analyse, "security", "--offline=true", "--threshold=15", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:]


def test_units_name_only_documents_and_commands_that_exist() -> None:
    for unit in UNITS.iterdir():
        text = unit.read_text()
        for name in re.findall(r"/usr/share/doc/cvmfs-publish/([\w.-]+)", text):
            assert (CHECKOUT / "docs" / name).exists(), f"{unit.name}: {name}"
        assert not unit.stat().st_mode & stat.S_IXUSR


def test_the_container_file_installs_what_it_starts() -> None:
    text = (CHECKOUT / "packaging" / "Containerfile").read_text()
    assert "USER cvmfs-publish" in text
    assert text.rstrip().endswith('CMD ["cvmfs-publish", "watch", "--listen", "0.0.0.0:8080"]')
    assert "COPY . /usr/src/cvmfs-publish" in text
