"""Images from a registry to plain trees and to `cvmfs_server`, by the command line."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.stock_host import RealHost, StockHost, configure, real_host_or_none
from tests.support import NAME
from tests.unit.cli.support import Shell
from tests.versions import at

pytestmark = pytest.mark.slow


def layer(name: str) -> bytes:
    tar = Tar()
    tar.directory("etc")
    tar.file(f"etc/{name}", name.encode())
    tar.symlink("etc/out", "/etc/passwd")
    return tar.done()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        registry.add_image("a/one", [layer("base"), layer("one")], tag="1")
        registry.add_image("a/two", [layer("base"), layer("two")], tag="1")
        yield registry


@pytest.fixture
def host(tmp_path: Path) -> StockHost:
    created = StockHost(tmp_path / "host", int(at(0).timestamp()))
    (created.base / "clock").unlink()
    return created


@pytest.fixture(scope="module")
def real() -> Iterator[RealHost | None]:
    """The real `cvmfs_server` where it can be used: one repository, emptied for each test."""
    with real_host_or_none() as made:
        yield made


@pytest.fixture(params=["directory", "cvmfs_server"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    """A folder with a configuration for an empty repository.

    `cvmfs_server` is the real one where it is installed, else its stand-in.
    """
    folder = tmp_path / "home"
    folder.mkdir()
    made = Shell(folder)
    if request.param == "directory":
        ran = made.run("init", NAME, "--backend", "directory")
        assert ran.code == 0, ran
        yield made
        return
    real = request.getfixturevalue("real")
    if real is None:
        configure(made.cwd, request.getfixturevalue("host"))
    else:
        real.empty()
        ran = made.run("init", real.name, "--backend", "cvmfs_server")
        assert ran.code == 0, ran
    yield made


def backend_of(shell: Shell) -> str:
    return str(shell.json("info")["backend"])


def tree_of(shell: Shell) -> Path:
    return Path(shell.json("info")["storage"])


def test_images_are_published_listed_verified_and_found_unchanged(
    shell: Shell, registry: FakeRegistry
) -> None:
    one, two = registry.name("a/one", "1"), registry.name("a/two", "1")
    assert shell.json("info")["names"] == 0
    ran = shell.run("publish", one, two)
    assert ran.code == 0, ran
    document = shell.json("publish", one)
    assert [image["status"] for image in document["images"]] == ["unchanged"]
    assert document["revision"] == shell.json("info")["revision"] > 1
    assert [image["reference"] for image in shell.json("list")["images"]] == [one, two]
    assert shell.json("show", one)["path"] == f"/{one}"
    sandbox = tree_of(shell) / one
    assert (sandbox / "etc/one").read_text() == "one"
    assert not (sandbox / "etc/two").exists()
    ran = shell.run("verify", two)
    assert (ran.code, ran.err) == (0, "")
    assert "no difference" in ran.out
    assert shell.json("check")["ok"] is True


def test_layers_are_read_once_and_what_was_damaged_is_found_and_made_again(
    shell: Shell, registry: FakeRegistry
) -> None:
    one, two = registry.name("a/one", "1"), registry.name("a/two", "1")
    shell.json("publish", one)
    (image,) = shell.json("publish", two)["images"]
    assert (image["layers"]["total"], image["layers"]["reused"]) == (2, 1)
    if backend_of(shell) == "cvmfs_server":
        return  # its mount takes no writes without a transaction
    sandbox = (tree_of(shell) / one).resolve()
    (sandbox / "etc/one").write_text("not what the registry has")
    assert shell.run("verify", one).code == 4
    assert shell.run("check").code == 5
    assert shell.run("publish", "--force", one).code == 0
    assert shell.run("verify", one).code == 0
    assert shell.run("check").code == 0


def test_names_go_back_and_are_unpublished_and_collected(
    shell: Shell, registry: FakeRegistry
) -> None:
    image = registry.name("a/one", "1")
    shell.json("publish", image)
    registry.add_image("a/one", [layer("newer")], tag="1")
    shell.json("publish", image)
    assert shell.json("rollback", image)["status"] == "rolled back"
    assert (tree_of(shell) / image / "etc/one").exists()
    events = [event["what"] for event in shell.json("history", image)["events"]]
    assert events == ["rolled back", "published", "published"]
    assert shell.run("unpublish", image).code == 0
    assert not (tree_of(shell) / image).is_symlink()
    planned = shell.json("gc", "--dry-run", "--grace", "0")
    assert len(planned["sandboxes"]) == 2
    done = shell.json("gc", "--grace", "0")
    assert done["sandboxes"] == planned["sandboxes"]
    assert list((tree_of(shell) / ".flat").rglob("etc")) == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["tag"], ("pin", "cvmfs_server tag")),
        (["resign"], ("nothing expires", "cvmfs_server resign")),
        (["export", "ghcr.io/a/b:1", "out"], ("cp -a", "cp -a")),
        (["serve"], ("from its file system", "web server")),
        (["check", "--scrub"], ("verify IMAGE", "cvmfs_server check -i")),
        (["gc", "--keep-revisions", "5"], ("--grace", "cvmfs_server gc -r")),
    ],
)
def test_what_only_native_repositories_have_is_refused_with_what_to_do(
    shell: Shell, arguments: list[str], hint: tuple[str, str]
) -> None:
    ran = shell.run(*arguments)
    backend = backend_of(shell)
    assert ran.code == 2
    assert f"is of `backend: {backend}`" in ran.err
    assert hint[backend == "cvmfs_server"] in ran.err


def test_how_it_goes_in_is_told_with_v(
    host: StockHost, tmp_path: Path, registry: FakeRegistry
) -> None:
    shell = Shell(tmp_path)
    configure(shell.cwd, host)
    ran = shell.run("-v", "publish", registry.name("a/one", "1"))
    assert ran.code == 0
    assert "transaction, because its directory is new" in ran.err


def test_init_writes_a_configuration_for_a_repository_of_cvmfs_server(
    host: StockHost, tmp_path: Path
) -> None:
    shell = Shell(tmp_path)
    conf = str(host.base / "server.conf")
    ran = shell.run("init", NAME, "--backend", "cvmfs_server", "--server-conf", conf)
    assert ran.code == 5  # the stand-in is not mounted below /cvmfs
    assert f"/cvmfs/{NAME} is no directory: the repository is not mounted" in ran.err
    assert not (tmp_path / "cvmfs-publish.yaml").exists()
    other = shell.run("init", "other.org", "--backend", "cvmfs_server", "--server-conf", conf)
    assert other.code == 2
    assert f"is of repository '{NAME}', not of 'other.org'" in other.err


def test_init_begins_in_a_folder_that_is_not_empty_only_if_told_to(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    (tmp_path / "repository/library").mkdir(parents=True)
    (tmp_path / "repository/.images").mkdir()
    target = "/cvmfs/singularity.opensciencegrid.org/.images/ab/cd"
    (tmp_path / "repository/library/debian:12").symlink_to(target)
    ran = shell.run("init", NAME, "--backend", "directory")
    assert ran.code == 2
    assert "--adopt" in ran.err
    document = shell.json("init", NAME, "--backend", "directory", "--adopt")
    (found,) = document["found"]
    assert (found["path"], found["program"]) == ("/library/debian:12", "cvmfs-singularity-sync")
    assert shell.json("info")["foreign"] == document["found"]
    (tmp_path / "cvmfs-publish.yaml").unlink()
    assert shell.json("init", NAME, "--backend", "directory")["created"] is False


def test_names_records_and_history_move_from_kind_to_kind(
    host: StockHost, tmp_path: Path, registry: FakeRegistry
) -> None:
    image = registry.name("a/one", "1")
    first = Shell(tmp_path / "first")
    first.cwd.mkdir()
    assert first.run("init", NAME, "--backend", "directory").code == 0
    first.json("publish", image)
    registry.add_image("a/one", [layer("newer")], tag="1")
    first.json("publish", image)
    # into the mount of a repository of cvmfs_server, as docs/backends.md says
    subprocess.run([host.program, "transaction", NAME], check=True)
    mount = host.base / "mount"
    shutil.copytree(tree_of(first), mount.resolve(), symlinks=True, dirs_exist_ok=True)
    for name in ("files", "txn", "trash"):
        shutil.rmtree(mount / ".cvmfs-publish" / name)
    subprocess.run([host.program, "publish", NAME], check=True)
    second = Shell(tmp_path / "second")
    second.cwd.mkdir()
    configure(second.cwd, host)
    third = Shell(tmp_path / "third")
    third.cwd.mkdir()
    shutil.copytree(mount.resolve(), third.cwd / "repository", symlinks=True)
    assert third.run("init", NAME, "--backend", "directory", "--adopt").code == 0
    for moved in (second, third):
        assert moved.json("list")["images"] == first.json("list")["images"]
        assert moved.json("history", image)["events"] == first.json("history", image)["events"]
        assert moved.json("check")["problems"] == []
        (result,) = moved.json("publish", image)["images"]
        assert result["status"] == "unchanged"
        assert moved.json("rollback", image)["status"] == "rolled back"
        assert moved.run("pin", image).code == 0
        assert moved.run("unpublish", image).code == 2
