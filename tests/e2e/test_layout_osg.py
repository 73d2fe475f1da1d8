"""`layout: osg` on every backend: each name has a second one without its registry."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.repository.native.repository import NativeRepository
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.stock_host import StockHost, configure
from tests.support import NAME
from tests.unit.cli.support import Shell

Read = Callable[[str], str | None]  # where a link leads


def layer(text: str) -> list[bytes]:
    tar = Tar()
    tar.file("content", text.encode())
    return [tar.done()]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as made:
        for name in ("one", "two"):
            made.add_image(f"a/{name}", layer(name), tag="1")
        yield made


def set_layout(shell: Shell, layout: str) -> None:
    config = shell.cwd / "cvmfs-publish.yaml"
    kept = [line for line in config.read_text().splitlines() if "layout:" not in line]
    kept.insert(kept.index("repository:") + 1, f"  layout: {layout}")
    config.write_text("\n".join(kept) + "\n")


def native(shell: Shell, base: Path) -> Read:
    assert shell.run("init", NAME).code == 0

    def read(path: str) -> str | None:
        repository = NativeRepository(
            NAME, LocalStore(shell.cwd / "repository"), shell.cwd / "keys"
        )
        with repository.open() as view:
            return view.read_symlink(path)

    return read


def in_folder(root: Path) -> Read:
    return lambda path: str((root / path).readlink()) if (root / path).is_symlink() else None


def directory(shell: Shell, base: Path) -> Read:
    assert shell.run("init", NAME, "--backend", "directory").code == 0
    return in_folder(shell.cwd / "repository")


def cvmfs_server(shell: Shell, base: Path) -> Read:
    host = StockHost(base / "host", int(datetime.now(UTC).timestamp()) - 60)
    (host.base / "clock").unlink()
    configure(shell.cwd, host)
    return in_folder(host.base / "mount")


@pytest.fixture(params=[native, directory, cvmfs_server])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Shell, Read]:
    shell = Shell(tmp_path / "home")
    shell.cwd.mkdir()
    read = request.param(shell, tmp_path)
    set_layout(shell, "osg")
    return shell, read


def test_a_second_name_comes_goes_and_comes_back_with_the_first(
    place: tuple[Shell, Read], registry: FakeRegistry
) -> None:
    shell, read = place
    image = registry.name("a/one", "1")
    shell.json("publish", image)
    assert read("a/one:1") == f"../{image}"
    assert shell.json("publish", image)["images"][0]["status"] == "unchanged"
    registry.add_image("a/one", layer("newer"), tag="1")
    shell.json("publish", image)
    assert shell.json("rollback", image)["status"] == "rolled back"
    assert read("a/one:1") == f"../{image}"
    assert shell.json("check")["problems"] == []
    assert shell.json("info").get("foreign", []) == []
    assert shell.run("unpublish", image).code == 0
    assert (read("a/one:1"), read(image)) == (None, None)
    assert shell.json("rollback", image)["status"] == "rolled back"
    assert read("a/one:1") == f"../{image}"
    planned = shell.json("gc", "--grace", "0")
    assert read("a/one:1") == f"../{image}"
    assert planned is not None


def test_the_layout_may_change_and_the_next_publish_obeys(
    place: tuple[Shell, Read], registry: FakeRegistry
) -> None:
    shell, read = place
    image = registry.name("a/one", "1")
    set_layout(shell, "unpacked")
    shell.json("publish", image)
    assert read("a/one:1") is None
    for layout, expected in (("osg", f"../{image}"), ("unpacked", None)):
        set_layout(shell, layout)
        (result,) = shell.json("publish", image)["images"]
        assert (result["status"], result["layers"]["reused"]) == ("published", 1)
        assert read("a/one:1") == expected


def test_the_same_name_of_two_registries_is_refused_and_the_first_stays(
    place: tuple[Shell, Read], registry: FakeRegistry
) -> None:
    shell, read = place
    first = registry.name("a/one", "1")
    shell.json("publish", first)
    with FakeRegistry() as other:
        other.add_image("a/one", layer("other"), tag="1")
        other.add_image("a/three", layer("three"), tag="1")
        second = other.name("a/one", "1")
        for force in ([], ["--force"]):
            ran = shell.run("publish", *force, second, other.name("a/three", "1"))
            assert ran.code == 6
            assert f"/a/one:1, its name in the layout osg, is that of {first}" in ran.err
            assert "repository.layout" in ran.err
    assert read("a/one:1") == f"../{first}"
    assert read(second) is None
    assert read("a/three:1") is not None
    assert shell.json("check")["problems"] == []


def test_a_name_of_another_program_is_taken_over_only_if_told_to(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    shell = Shell(tmp_path)
    theirs = tmp_path / "repository/.images/ab/cdef"
    theirs.mkdir(parents=True)
    link = tmp_path / "repository/a/one:1"
    link.parent.mkdir()
    link.symlink_to("/cvmfs/singularity.opensciencegrid.org/.images/ab/cdef")
    assert shell.run("init", NAME, "--backend", "directory", "--adopt").code == 0
    set_layout(shell, "osg")
    image = registry.name("a/one", "1")
    ran = shell.run("publish", image)
    assert ran.code == 2
    assert "was not published here" in ran.err
    assert os.readlink(link).startswith("/cvmfs/singularity")
    assert shell.run("publish", "--force", image).code == 0
    assert os.readlink(link) == f"../{image}"
    assert theirs.is_dir()
