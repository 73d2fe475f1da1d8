"""`list`, `show`, `export`, `verify`: of the configured repository, and of any other."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.repository.native import whitelist as whitelists
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.repository.native.signing import create_keys, fingerprint, load_keys
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.support import Site
from tests.tampering import tamper
from tests.unit.cli.support import Shell
from tests.unit.cli.test_repository import NAME

pytestmark = pytest.mark.slow


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing, and keeps connections open as real servers do."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@contextmanager
def served(directory: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    tar = Tar()
    tar.file("etc/one", b"1", mtime=5)
    with FakeRegistry() as registry:
        for name in ("one", "two"):
            registry.add_image(f"a/{name}", [tar.done()], {"author": name}, tag="1")
            registry.add_image(f"a/{name}", [tar.done()], {"author": name}, tag="1")
        yield registry


@pytest.fixture
def full(home: Shell, registry: FakeRegistry) -> Shell:
    """A folder with a repository of two images."""
    ran = home.run("publish", registry.name("a/one", "1"), registry.name("a/two", "1"))
    assert ran.code == 0, ran
    return home


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder without any configuration."""
    return Shell(tmp_path_factory.mktemp("elsewhere"))


def key(shell: Shell) -> str:
    return str(shell.cwd / "keys" / f"{NAME}.pub")


def write_whitelist(shell: Shell, days: int) -> None:
    """Renew the whitelist at a time so many days from now; it is valid for ten."""
    keys = load_keys(shell.cwd / "keys", NAME)
    assert keys.master_key is not None
    then = datetime.now(UTC) + timedelta(days=days)
    prints = [fingerprint(keys.certificate)]
    data = whitelists.make_whitelist(NAME, prints, then + timedelta(10), keys.master_key, then)
    (shell.cwd / "repository" / ".cvmfswhitelist").write_bytes(data)


@pytest.mark.parametrize("over_http", [False, True], ids=["folder", "http"])
def test_any_repository_is_read_with_its_key_and_no_configuration(
    full: Shell, elsewhere: Shell, registry: FakeRegistry, over_http: bool
) -> None:
    storage = full.cwd / "repository"
    image = registry.name("a/one", "1")
    with served(storage) as url:
        place = ["--from", url if over_http else str(storage), "--key", key(full)]
        assert elsewhere.json("list", *place) == full.json("list")
        assert elsewhere.json("show", image, *place) == full.json("show", image)
        exported = elsewhere.json("export", image, "out", *place)
        assert exported["reference"] == image
        assert (elsewhere.cwd / "out" / "etc" / "one").read_bytes() == b"1"
        verified = elsewhere.json("verify", image, *place)
        assert verified["ok"]
        assert verified["recipe"]["same"]


def test_a_repository_elsewhere_is_not_believed_without_the_right_key(
    full: Shell, elsewhere: Shell, tmp_path: Path
) -> None:
    create_keys(tmp_path / "others", NAME, now=datetime.now(UTC))
    other = str(tmp_path / "others" / f"{NAME}.pub")
    ran = elsewhere.run("list", "--from", str(full.cwd / "repository"), "--key", other)
    assert ran.code == 4
    assert "master keys" in ran.err
    ran = elsewhere.run("list", "--from", str(tmp_path), "--key", other)
    assert ran.code == 5
    assert "holds no repository" in ran.err
    assert elsewhere.run("list").code == 2


def test_an_expired_whitelist_is_refused_elsewhere_and_not_at_home(
    full: Shell, elsewhere: Shell
) -> None:
    write_whitelist(full, -11)
    ran = full.run("list", "--json")
    assert (ran.code, len(ran.document["images"])) == (0, 2)
    assert "expired" in ran.err
    ran = elsewhere.run("list", "--from", str(full.cwd / "repository"), "--key", key(full))
    assert ran.code == 4
    assert "expired" in ran.err


def test_a_signature_of_somebody_else_is_an_error_at_home_too(full: Shell, tmp_path: Path) -> None:
    create_keys(tmp_path / "others", NAME, now=datetime.now(UTC))
    shutil.copy(tmp_path / "others" / f"{NAME}.pub", key(full))
    for command in (["list"], ["show", "x:1"], ["export", "x:1", "out"], ["verify", "x:1"]):
        ran = full.run(*command)
        assert ran.code == 4, command
        assert "was not signed for the master key" in ran.err
    assert full.json("list", code=4)["error"]["kind"] == "signature"


def test_a_damaged_repository_of_ones_own_is_exit_code_5(
    full: Shell, elsewhere: Shell, registry: FakeRegistry
) -> None:
    storage = full.cwd / "repository"
    for path in (storage / "data").glob("??/*C"):
        path.write_bytes(b"damaged")
    assert full.run("list").code == 5
    ran = elsewhere.run("list", "--from", str(storage), "--key", key(full))
    assert ran.code == 4
    assert "is damaged: its hash differs" in ran.err


def test_verify_tells_what_differs_and_has_an_exit_code_for_it(
    full: Shell, registry: FakeRegistry
) -> None:
    image = registry.name("a/one", "1")
    ran = full.run("verify", image)
    assert ran.code == 0, ran
    assert ran.out.startswith(f"{image} (linux/amd64): no difference in ")
    target = Site(full.cwd)
    target.repository = NativeRepository(
        NAME, LocalStore(full.cwd / "repository"), full.cwd / "keys"
    )
    sandbox = full.json("show", image)["sandbox"]
    tamper(target, sandbox[1:] + "/etc/one", lambda node: node._replace(uid=9, mtime=6))
    ran = full.run("verify", image)
    assert ran.code == 4
    assert "/etc/one: owner is 9:0, expected 0:0\n" in ran.out
    assert "/etc/one: mtime is 6.000000000, expected 5.000000000\n" in ran.out
    assert "3 differences" in ran.out
    document = full.json("verify", image, code=4)
    assert not document["ok"]
    assert {"path": "etc/one", "what": "owner", "expected": "0:0", "found": "9:0"} in document[
        "differences"
    ]
    target.client.close()


def test_verify_of_an_export_and_of_a_mount(
    full: Shell, elsewhere: Shell, registry: FakeRegistry
) -> None:
    image = registry.name("a/one", "1")
    assert full.run("export", image, "out").code == 0
    ran = full.run("verify", image, "--mount", "out")
    assert (ran.code, ran.err) == (0, "")
    # as a client shows it; the worker has neither configuration nor storage
    record = full.json("show", image)
    mount = elsewhere.cwd / "mount"
    shutil.copytree(full.cwd / "out", mount / record["sandbox"][1:], symlinks=True)
    folder = mount / f".metadata{record['path']}"
    folder.mkdir(parents=True)
    folder.joinpath("publication.json").write_text(json.dumps({"format": 1, **record}))
    document = elsewhere.json("verify", image, "--mount", "mount")
    assert document["mount"] == str(mount / record["sandbox"][1:])
    (mount / record["sandbox"][1:] / "etc" / "one").write_bytes(b"2")
    document = elsewhere.json("verify", image, "--mount", "mount", code=4)
    assert {d["what"] for d in document["differences"]} == {"content", "mtime"}
    shutil.rmtree(mount / record["sandbox"][1:])
    assert elsewhere.run("verify", image, "--mount", "mount").code == 2


def test_verify_shows_the_first_differences_and_counts_the_rest(
    full: Shell, registry: FakeRegistry, tmp_path: Path
) -> None:
    image = registry.name("a/one", "1")
    assert full.run("export", image, "out").code == 0
    for number in range(60):
        (full.cwd / "out" / f"more-{number:02}").write_bytes(b"")
    os.utime(full.cwd / "out", (0, 0))
    ran = full.run("verify", image, "--mount", "out")
    assert ran.code == 4
    assert ran.out.count("not expected") >= 49
    assert "more differences; --json lists them" in ran.out
    assert len(full.json("verify", image, "--mount", "out", code=4)["differences"]) >= 60


def test_other_settings_are_told(full: Shell, registry: FakeRegistry) -> None:
    image = registry.name("a/one", "1")
    path = full.cwd / "cvmfs-publish.yaml"
    repository = f"repository: {{name: {NAME}, storage: repository, keys: keys}}\n"
    path.write_text(repository + "sandbox: {roots: [/another]}\n")
    ran = full.run("verify", image)
    assert ran.code == 4
    assert "/another: missing: directory" in ran.out
    assert "prepared with other settings" in ran.err
