"""Taking turns with the real `cvmfs_server`, in a repository that it made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.stock_host import RealHost, find_real, real_host
from tests.unit.cli.support import Shell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_real() is None, reason="there is no real cvmfs_server to use here"),
]


def layer(name: str) -> bytes:
    tar = Tar()
    tar.directory("etc")
    tar.file(f"etc/{name}", name.encode() * 1000)
    tar.file("etc/large", bytes(range(256)) * 40_000)
    return tar.done()


@pytest.fixture(scope="module")
def host() -> Iterator[RealHost]:
    program = find_real()
    assert program is not None
    with real_host(program) as made:
        yield made


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        for name in ("one", "two"):
            registry.add_image(f"a/{name}", [layer("base"), layer(name)], tag="1")
        yield registry


@pytest.fixture
def shell(host: RealHost, tmp_path: Path) -> Shell:
    """Where the native backend writes a repository that `cvmfs_server` made."""
    host.empty()
    made = Shell(tmp_path)
    run(made, "init", host.name, "--adopt")
    return made


def run(shell: Shell, *words: str) -> str:
    ran = shell.run(*words)
    assert ran.code == 0, ran
    return ran.out


def check(shell: Shell, host: RealHost) -> None:
    run(shell, "check", "--scrub")
    assert "no problems found" in host.run("check", host.name)


def write(host: RealHost, name: str) -> None:
    """Publish a file as the people of `cvmfs_server` do."""
    host.run("transaction", host.name)
    (host.mount / name).write_text(name)
    host.run("publish", host.name)


def test_both_publish_in_turn_and_see_what_the_other_did(
    shell: Shell, host: RealHost, registry: FakeRegistry
) -> None:
    one, two = registry.name("a/one", "1"), registry.name("a/two", "1")
    run(shell, "publish", one)
    check(shell, host)
    write(host, "theirs")  # has to begin with what we published
    assert (host.mount / one / "etc/one").read_bytes() == b"one" * 1000
    check(shell, host)
    run(shell, "publish", two)
    run(shell, "tag", "ours")
    host.run("tag", "-a", "of-stock", host.name)
    assert "of-stock" in run(shell, "tag")
    check(shell, host)
    write(host, "more")
    assert {each.name for each in host.mount.iterdir()} >= {"theirs", "more", ".flat"}
    assert (host.mount / two / "etc/two").is_file()
    run(shell, "unpublish", one)
    run(shell, "gc", "--grace", "0s", "--keep-revisions", "1")
    check(shell, host)
    host.run("gc", "-f", "-r", "0", host.name)
    check(shell, host)
    run(shell, "publish", one)
    host.run("resign", host.name)
    check(shell, host)


def test_an_open_transaction_of_theirs_is_respected(
    shell: Shell, host: RealHost, registry: FakeRegistry
) -> None:
    one = registry.name("a/one", "1")
    host.run("transaction", host.name)
    refused = shell.run("publish", one)
    assert (refused.code, "in a transaction" in refused.err) == (5, True), refused
    (host.mount / "theirs").write_text("kept")
    host.run("publish", host.name)
    run(shell, "publish", one)
    check(shell, host)


def test_what_a_transaction_that_was_left_open_holds_is_not_taken_for_published(
    host: RealHost, registry: FakeRegistry, tmp_path: Path
) -> None:
    host.empty()
    shell = Shell(tmp_path)
    run(shell, "init", host.name, "--backend", "cvmfs_server")
    one = registry.name("a/one", "1")
    run(shell, "publish", one)
    (record,) = host.mount.glob(f".metadata/{one}/publication.json")
    host.run("transaction", host.name)
    record.unlink()
    try:
        assert [each["reference"] for each in shell.json("list")["images"]] == [one]
        (image,) = shell.json("publish", one)["images"]
        assert image["status"] == "unchanged"
    finally:
        host.run("abort", "-f", host.name)
