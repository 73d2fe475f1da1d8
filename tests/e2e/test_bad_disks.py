"""Every backend on a disk that is full or read-only: the old revision stays, the next run works.

`native` has more of it in test_bad_conditions.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from cvmfs_publish.config import RepositoryConfig
from tests import parts
from tests.disks import fill, read_only, small_disk
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.stock_host import StockHost, configure
from tests.support import NAME, keys_of_this_run
from tests.unit.cli.support import Shell

pytestmark = pytest.mark.parts

DISK = "8m"
NOISE = 12_000_000  # bytes of an image that has no room on it


@dataclass(frozen=True)
class Setting:
    """A repository with one image, and another one in the registry."""

    shell: Shell
    registry: FakeRegistry
    storage: Path  # what stands for the disk of the repository

    def publish(self, image: str, code: int) -> dict[str, str]:
        """Publish; return the error, with its kind, message and hint, or nothing."""
        ran = self.shell.run("publish", "--json", self.registry.name(image, "1"))
        assert ran.code == code, ran
        document = ran.document
        found: dict[str, str] = document.get("error") or document["images"][0]["error"] or {}
        return found

    def seen(self) -> dict[str, Any]:
        """What readers see."""
        info = self.shell.json("info")
        names = [each["reference"] for each in self.shell.json("list")["images"]]
        return {"revision": info["revision"], "names": names}

    def fails(self, *words: str) -> None:
        """An image that does not fit is refused with these words, and nothing changes."""
        before = self.seen()
        error = self.publish("a/large", 5)
        told = f"{error['message']} {error['hint']}"
        assert all(word in told for word in words), error
        assert error["hint"]
        assert self.seen() == before

    def lacks(self, words: str) -> None:
        """`doctor` says so, with a remedy, and says nothing good of the same thing."""
        ran = self.shell.run("--json", "doctor", "--offline")
        assert ran.code == 2, ran
        checks = ran.document["checks"]
        found = [each for each in checks if words in each["message"]]
        assert found, checks
        assert {each["outcome"] for each in found} == {"missing"}
        assert all(each["remedy"] for each in found)
        good = {each["check"] for each in checks if each["outcome"] == "ok"}
        assert good.isdisjoint(each["check"] for each in found)

    def recovers(self) -> None:
        assert self.publish("a/two", 0) == {}
        assert len(self.seen()["names"]) == 2
        assert self.shell.run("check").code == 0


def a_layer(text: str, size: int = 100) -> list[bytes]:
    tar = Tar()
    tar.file("content", text.encode() if size == 100 else os.urandom(size))
    return [tar.done()]


def native(shell: Shell, base: Path) -> Path:
    shutil.copytree(keys_of_this_run(), shell.cwd / "keys")
    assert shell.run("init", NAME).code == 0
    return shell.cwd / "repository"


def directory(shell: Shell, base: Path) -> Path:
    assert shell.run("init", NAME, "--backend", "directory").code == 0
    return shell.cwd / "repository"


def cvmfs_server(shell: Shell, base: Path) -> Path:
    host = StockHost(base / "host", int(datetime.now(UTC).timestamp()) - 60)
    (host.base / "clock").unlink()
    configure(shell.cwd, host)
    return host.base


BACKENDS = {each.__name__: each for each in (native, directory, cvmfs_server)}


@pytest.fixture(params=sorted(BACKENDS))
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setting]:
    if os.geteuid() != 0:
        parts.missing("root, to mount file systems")
    shell = Shell(tmp_path / "home", {"PATH": os.environ["PATH"]})
    shell.cwd.mkdir()
    storage = BACKENDS[request.param](shell, tmp_path)
    with FakeRegistry() as registry:
        for name in ("one", "two"):
            registry.add_image(f"a/{name}", a_layer(name), tag="1")
        registry.add_image("a/large", a_layer("large", NOISE), tag="1")
        made = Setting(shell, registry, storage)
        made.publish("a/one", 0)
        yield made


@contextmanager
def on_a_small_disk(place: Path) -> Iterator[None]:
    """Put what is at a place on a small disk; what the disk holds at the end is kept."""
    saved = place.with_name(f"{place.name}.saved")
    place.rename(saved)
    place.mkdir()
    with small_disk(place, DISK):
        shutil.copytree(saved, place, symlinks=True, dirs_exist_ok=True)
        for seal in place.glob("seal-*"):  # the stand-in's; folders have other sizes here
            seal.unlink()
        yield


def test_every_backend_is_here() -> None:
    known = get_args(get_type_hints(RepositoryConfig)["backend"])
    assert set(BACKENDS) == set(known)


def test_a_repository_that_becomes_full(setting: Setting) -> None:
    with on_a_small_disk(setting.storage):
        setting.fails("No space left on device", "space")
        setting.recovers()


def test_a_state_that_becomes_full(setting: Setting) -> None:
    with on_a_small_disk(setting.shell.cwd / "state"):
        filler = setting.shell.cwd / "state/filler"
        fill(filler)
        setting.fails("No space left on device", "space")
        setting.lacks("No space left on device")
        filler.unlink()
        setting.recovers()


@pytest.mark.parametrize("place", ["storage", "state"])
def test_what_is_read_only(setting: Setting, place: str) -> None:
    folder = setting.storage if place == "storage" else setting.shell.cwd / "state"
    with read_only(folder):
        setting.fails("Read-only file system", "writable")
        setting.lacks("Read-only file system")
    setting.recovers()
