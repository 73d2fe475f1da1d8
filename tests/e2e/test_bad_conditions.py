"""What goes wrong around a publish: a clear error, the right exit code, nothing lost."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.repository.native.signing import fingerprint, load_keys
from cvmfs_publish.repository.native.whitelist import make_whitelist
from tests import parts
from tests.disks import fill, read_only, small_disk
from tests.fakes.registry import FakeRegistry, cut, reset, stall, wrong_bytes
from tests.images import Tar
from tests.support import NAME, judged, keys_of_this_run
from tests.unit.cli.support import Shell


@dataclass
class Publisher:
    """A release manager's folder and what is typed in it."""

    folder: Path
    registry: FakeRegistry

    @property
    def storage(self) -> Path:
        return self.folder / "repository"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command as typed there, in this process: a start of Python costs half a second."""
        ran = Shell(self.folder, {"PATH": os.environ["PATH"]}).run(*words)
        return subprocess.CompletedProcess(words, ran.code, ran.out, ran.err)

    def publish(self, image: str = "a/one") -> tuple[int, dict[str, Any]]:
        """Publish; return exit status and the one JSON document."""
        result = self.run("publish", "--json", self.registry.name(image, "1"))
        return result.returncode, json.loads(result.stdout)

    def revision(self) -> bytes:
        return (self.storage / ".cvmfspublished").read_bytes()

    def judge(self) -> None:
        text = judged(self.storage, self.folder / "keys" / f"{NAME}.pub", "--scrub")
        assert text.splitlines()[-1].startswith("0 errors, "), text


def image(text: str, size: int = 100) -> list[bytes]:
    tar = Tar()
    tar.file("content", text.encode() * size)
    return [tar.done()]


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    """One image published, another one waiting in the registry as a/two."""
    shutil.copytree(keys_of_this_run(), tmp_path / "keys")
    with FakeRegistry() as registry:
        made = Publisher(tmp_path, registry)
        assert made.run("init", NAME).returncode == 0
        registry.add_image("a/one", image("one"), tag="1")
        registry.add_image("a/two", image("two"), tag="1")
        assert made.publish()[0] == 0
        yield made


def error_of(document: dict[str, Any]) -> dict[str, str]:
    """Return the error of the whole run, or of its only image."""
    found: dict[str, str] = document.get("error") or document["images"][0]["error"]
    return found


def fails(publisher: Publisher, status: int, *words: str) -> None:
    """Publishing a/two fails with this status and these words, and changes nothing."""
    before = publisher.revision()
    code, document = publisher.publish("a/two")
    error = error_of(document)
    assert code == status, error
    for word in words:
        assert word in f"{error['message']} {error['hint']}"
    assert publisher.revision() == before
    publisher.judge()


def recovers(publisher: Publisher) -> None:
    code, document = publisher.publish("a/two")
    assert (code, document["images"][0]["status"]) == (0, "published")
    publisher.judge()


def test_an_unknown_tag(publisher: Publisher) -> None:
    code, document = publisher.publish("a/none")
    assert code == 3
    assert "a/none:1" in error_of(document)["message"]
    recovers(publisher)


def test_an_unknown_platform(publisher: Publisher) -> None:
    name = publisher.registry.name("a/two", "1")
    result = publisher.run("publish", "--platform", "linux/s390x", name)
    assert result.returncode == 2
    assert "linux/amd64" in result.stderr
    recovers(publisher)


def test_no_credentials(publisher: Publisher) -> None:
    publisher.registry.require_bearer("bot", "secret")
    fails(publisher, 3, "login", "a/two")
    config = publisher.folder / "cvmfs-publish.yaml"
    text = config.read_text()
    (publisher.folder / "token").write_text("secret\n")
    login = f"registries:\n  {publisher.registry.host}: {{username: bot, password_file: token}}\n"
    config.write_text(text.replace("registries:\n", login, 1))
    recovers(publisher)


def test_a_registry_that_is_down(publisher: Publisher) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        result = publisher.run("publish", f"{host}/a/two:1")
    assert result.returncode == 3
    assert host in result.stderr
    recovers(publisher)


@pytest.mark.parametrize("fault", [cut(50), reset(50)], ids=["cut", "reset"])
def test_a_transfer_that_always_breaks_is_given_up_and_one_that_breaks_once_is_not(
    publisher: Publisher, fault: Callable[..., Any]
) -> None:
    publisher.registry.fault("GET", "/blobs/", fault, times=1)
    recovers(publisher)


def test_wrong_bytes(publisher: Publisher) -> None:
    publisher.registry.fault("GET", "/blobs/", wrong_bytes(), times=None)
    fails(publisher, 4, "sha256:")
    publisher.registry._faults.clear()
    recovers(publisher)


def test_a_repository_that_is_locked(publisher: Publisher) -> None:
    descriptor = os.open(publisher.storage, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        fails(publisher, 5, "locked", str(publisher.storage))
        # what is unchanged needs no lock
        assert publisher.publish("a/one")[0] == 0
    finally:
        os.close(descriptor)
    recovers(publisher)


def test_missing_keys(publisher: Publisher) -> None:
    key = publisher.folder / "keys" / f"{NAME}.key"
    data = key.read_bytes()
    key.unlink()
    fails(publisher, 5, str(key))
    key.write_bytes(data)
    key.chmod(0o644)
    fails(publisher, 5, "chmod 400")
    key.chmod(0o400)
    recovers(publisher)


def test_the_master_key_may_be_offline(publisher: Publisher) -> None:
    (publisher.folder / "keys" / f"{NAME}.masterkey").unlink()
    recovers(publisher)


def test_keys_of_another_repository(publisher: Publisher, tmp_path: Path) -> None:
    assert publisher.run("init", "other.example.org", "--storage", "elsewhere").returncode == 2
    other = tmp_path / "other"
    other.mkdir()
    made = Publisher(other, publisher.registry)
    assert made.run("init", NAME).returncode == 0
    for kind in ("pub", "crt", "key"):
        target = publisher.folder / "keys" / f"{NAME}.{kind}"
        target.unlink()
        shutil.copy(other / "keys" / f"{NAME}.{kind}", target)
    (publisher.folder / "keys" / f"{NAME}.masterkey").unlink()
    before = publisher.revision()
    code, _ = publisher.publish("a/two")
    assert code == 5
    assert publisher.revision() == before


def test_an_expired_whitelist(publisher: Publisher) -> None:
    keys = load_keys(publisher.folder / "keys", NAME)
    assert keys.master_key is not None
    past = datetime.now(UTC) - timedelta(days=40)
    good = (publisher.storage / ".cvmfswhitelist").read_bytes()
    expired = make_whitelist(
        NAME, [fingerprint(keys.certificate)], past + timedelta(days=30), keys.master_key, past
    )
    (publisher.storage / ".cvmfswhitelist").write_bytes(expired)
    before = publisher.revision()
    code, document = publisher.publish("a/two")
    assert code == 5
    assert "expired" in error_of(document)["message"]
    assert "resign" in error_of(document)["hint"]
    assert publisher.revision() == before
    assert good != expired
    assert publisher.run("resign").returncode == 0
    recovers(publisher)


def test_renewing_the_whitelist_needs_the_master_key(publisher: Publisher) -> None:
    before = (publisher.storage / ".cvmfswhitelist").read_bytes()
    (publisher.folder / "keys" / f"{NAME}.masterkey").unlink()
    result = publisher.run("resign")
    assert result.returncode == 5
    assert "masterkey" in result.stderr
    assert (publisher.storage / ".cvmfswhitelist").read_bytes() == before


def test_a_revision_from_the_future(publisher: Publisher) -> None:
    """A host whose clock went back must not sign: clients never go back in time."""

    repository = NativeRepository(NAME, LocalStore(publisher.storage), publisher.folder / "keys")
    earlier = int((datetime.now(UTC) - timedelta(hours=1)).timestamp())
    with pytest.raises(RepositoryError, match="clock"), repository.transaction(earlier):
        pass
    recovers(publisher)


@pytest.mark.parts
@pytest.mark.parametrize("folder", ["repository", "state"])
def test_a_full_disk(publisher: Publisher, folder: str) -> None:
    if os.geteuid() != 0:
        parts.missing("root, to mount a small file system")
    place = publisher.folder / folder
    saved = publisher.folder / "saved"
    place.mkdir(exist_ok=True)
    place.rename(saved)
    place.mkdir()
    with small_disk(place, "3m"):
        shutil.copytree(saved, place, dirs_exist_ok=True)
        noise = Tar()
        noise.file("noise", os.urandom(6_000_000))
        for number in range(3000):
            noise.file(f"d/{number}", os.urandom(300))
        publisher.registry.add_image("a/two", [noise.done()], tag="1")
        if folder == "state":
            fill(place / "filler")
        fails(publisher, 5, "No space left on device", "space")
        if folder == "state":
            (place / "filler").unlink()
        publisher.registry.add_image("a/two", image("two"), tag="1")
        recovers(publisher)


@pytest.mark.parts
def test_a_storage_that_is_read_only(publisher: Publisher) -> None:
    if os.geteuid() != 0:
        parts.missing("root, to mount a file system read-only")
    storage = publisher.storage
    with read_only(storage):
        fails(publisher, 5, "Read-only file system", "writable")
    recovers(publisher)


def test_a_folder_without_a_repository(tmp_path: Path) -> None:
    with FakeRegistry() as registry:
        lost = Publisher(tmp_path, registry)
        result = lost.run("publish", "debian:12")
        assert result.returncode == 2
        assert "init" in result.stderr
        shutil.copytree(keys_of_this_run(), tmp_path / "keys")
        assert lost.run("init", NAME).returncode == 0
        shutil.rmtree(lost.storage)
        result = lost.run("publish", registry.name("a/one"))
        assert result.returncode == 5
        assert "init" in result.stderr


def test_damaged_records_of_layers_only_cost_another_read(publisher: Publisher) -> None:
    records = list((publisher.folder / "state").rglob("*.zst"))
    assert records
    for record in records:
        record.write_bytes(b"\x28\xb5\x2f\xfd garbage")
    result = publisher.run("publish", "--force", "--json", publisher.registry.name("a/one", "1"))
    document = json.loads(result.stdout)
    assert document["images"][0]["layers"]["reused"] == 0
    publisher.judge()


def test_a_damaged_catalog_stops_a_publish(publisher: Publisher) -> None:

    repository = NativeRepository(NAME, LocalStore(publisher.storage), publisher.folder / "keys")
    path = publisher.storage / f"data/{str(repository.manifest().root_hash)[:2]}"
    root = path / f"{str(repository.manifest().root_hash)[2:]}C"
    data = root.read_bytes()
    root.write_bytes(data[:40] + bytes((data[40] ^ 1,)) + data[41:])
    before = publisher.revision()
    code, document = publisher.publish("a/two")
    assert code == 5
    assert root.name in error_of(document)["message"]
    assert "cvmfs-publish check" in error_of(document)["hint"]
    assert publisher.revision() == before
    assert publisher.run("check").returncode != 0
    root.write_bytes(data)
    recovers(publisher)


@pytest.mark.parametrize("name", [".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog"])
def test_a_damaged_or_missing_file_of_the_repository(publisher: Publisher, name: str) -> None:
    path = publisher.storage / name
    data = path.read_bytes()
    for damaged in (data[:100], b"garbage" * 100, None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        code, document = publisher.publish("a/two")
        error = error_of(document)
        assert (code, bool(error["hint"])) == (5, True), error
        assert str(publisher.storage) in error["message"] or NAME in error["message"]
        path.write_bytes(data)
    recovers(publisher)


def objects(publisher: Publisher) -> set[Path]:
    return {path for path in publisher.storage.glob("data/??/*") if path.is_file()}


def test_a_layer_that_fails_leaves_no_objects_behind(publisher: Publisher) -> None:
    """Nor does it take away what another image of the call uses."""
    bad = Tar()
    bad.file("shared", b"in both images")
    bad.file("only here", b"in the bad image only")
    bad.file("empty", b"")
    good = Tar()
    good.file("shared", b"in both images")
    registry = publisher.registry
    rootfs = {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}
    registry.add_image("a/bad", [bad.done()], config={"rootfs": rootfs}, tag="1")
    registry.add_image("a/two", [good.done()], tag="1")
    result = publisher.run(
        "publish", "--json", registry.name("a/bad", "1"), registry.name("a/two", "1")
    )
    assert result.returncode == 6, result.stdout
    publisher.judge()
    before = objects(publisher)
    assert publisher.publish("a/bad")[0] == 4
    assert objects(publisher) == before
    publisher.judge()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_publisher_that_is_stopped_leaves_nothing_behind(
    publisher: Publisher, number: signal.Signals
) -> None:
    noise = Tar()
    for count in range(400):
        noise.file(f"noise/{count}", os.urandom(50_000))
    publisher.registry.add_image("a/two", [noise.done()], tag="1")
    started = threading.Event()
    layer = max(publisher.registry.blobs, key=lambda digest: len(publisher.registry.blobs[digest]))
    publisher.registry.before("GET", layer, started.set)
    publisher.registry.fault("GET", layer, stall(12_000_000, 3.0), times=None)
    before = objects(publisher)
    command = [sys.executable, "-m", "cvmfs_publish", "publish"]
    with subprocess.Popen(
        [*command, publisher.registry.name("a/two", "1")],
        cwd=publisher.folder,
        env={**os.environ, "HOME": str(publisher.folder)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert started.wait(30)
        time.sleep(1.0)
        os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in stderr
    assert objects(publisher) == before
    publisher.registry.add_image("a/two", image("two"), tag="1")
    recovers(publisher)
