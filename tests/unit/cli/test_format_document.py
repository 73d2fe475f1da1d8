"""What docs/format.md says of a repository is so, and the way back to stock tools leads there."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmfs_publish.cli.assembly import open_native
from cvmfs_publish.config import load_config
from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.repository.native.reader import browse_snapshot
from cvmfs_publish.repository.native.reflog import FILE_NAME
from cvmfs_publish.repository.native.repository import NativeRepository
from tests import versions
from tests.support import site
from tests.unit.cli.support import Shell, repository

pytestmark = pytest.mark.slow

TEXT = (Path(__file__).parents[3] / "docs" / "format.md").read_text("utf-8")
NAME = "test.example.org"


def section(title: str) -> str:
    found = re.search(rf"(?ms)^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", TEXT)
    assert found, title
    return found[1]


def code(words: str) -> list[str]:
    """The words in `code` of a text."""
    return re.findall(r"`([^`]+)`", words)


def test_every_file_of_the_storage_is_explained(tmp_path: Path) -> None:
    with site(tmp_path) as target:
        with target.repository.transaction(int(time.time())) as transaction:
            transaction.put_file("file", bytes(10))
        explained = code(section("The storage"))
        for path in target.storage.iterdir():
            assert path.name in explained or path.name == "data"
        shards = {path.name for path in (target.storage / "data").iterdir()}
        assert shards == {f"{number:02x}" for number in range(256)} | {"txn"}
        letters = {path.name[38:] for path in target.storage.glob("data/??/*")}
        assert letters == {"", "C", "H", "X", "M"}
        assert {f"| `{letter}` |" in TEXT for letter in "PCHXM"} == {True}


def test_every_catalog_stands_where_it_is_said_to(tmp_path: Path) -> None:
    with site(tmp_path) as target:
        with target.repository.transaction(int(time.time())) as transaction:
            versions.put(transaction, "ghcr.io/a/b:1", "A", datetime.now(UTC))
        with browse_snapshot(target.repository.store) as snapshot:
            catalogs = [path for path, _ in snapshot.catalogs()]
    image = next(path for path in catalogs if re.fullmatch(r"\.flat/../.{64}", path))
    xx = image[6:8]
    names = {"", "ghcr.io", "ghcr.io/a", ".flat", f".flat/{xx}", image}
    records = {"ghcr.io", "ghcr.io/a", ".images", f".images/{xx}"}
    assert set(catalogs) == names | {".metadata"} | {f".metadata/{path}" for path in records}


def test_the_steps_of_a_publish_are_the_ones_that_are_named(tmp_path: Path) -> None:
    table = section("What a publish does")
    named = re.findall(r"^\| `([a-z ]+)` \|", table, re.MULTILINE)
    told: list[str] = []
    now = int(time.time())
    with (
        site(tmp_path) as target,
        target.repository.transaction(now, told.append) as transaction,
    ):
        transaction.put_file("file", b"1")
    assert told == named


def test_the_headers_of_an_object_store_are_the_ones_that_are_sent() -> None:
    sent = (Path(__file__).parents[3] / "cvmfs_publish/content/s3_client.py").read_text("utf-8")
    for line in section("In an object store").splitlines():
        if line.startswith("| ") and "max-age" in line:
            kind, age = code(line)[-2:]
            assert f'{{"Content-Type": "{kind}", "Cache-Control": "{age}"}}' in sent


def go_back(home: Path, name: str, spool: Path) -> None:
    """Run the commands of the document, in other folders."""
    (script,) = re.findall(
        r"(?s)```sh\n(.*?)```", section("A repository made by `cvmfs-publish init`")
    )
    script = script.replace("containers.example.org", name)
    script = script.replace("/srv/cvmfs/$name", str(home / "repository"))
    script = script.replace("/var/spool/cvmfs/$name", str(spool))
    subprocess.run(["/bin/sh", "-eu", "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize("algorithm", list(HashAlgorithm))
def test_a_repository_made_here_goes_back_to_stock_tools_and_comes_again(
    tmp_path: Path, algorithm: HashAlgorithm
) -> None:
    home, spool = Shell(tmp_path / "home"), tmp_path / "spool"
    home.cwd.mkdir()
    spool.mkdir()
    assert home.run("init", NAME, "--hash", algorithm.value, "--quiet").code == 0
    ours = open_native(load_config(home.cwd / "cvmfs-publish.yaml"))
    publish(ours, "one")
    go_back(home.cwd, NAME, spool)
    manifest = ours.manifest()
    # what `cvmfs_server` compares before it writes
    assert (spool / "reflog.chksum").read_text() == str(manifest.reflog)
    reflog = (home.cwd / "repository" / FILE_NAME).read_bytes()
    assert manifest.reflog is not None
    assert algorithm.digest(reflog) == manifest.reflog.digest
    assert (spool / "client.local").read_text() == f"CVMFS_ROOT_HASH={manifest.root_hash}\n"
    conf = tmp_path / "server.conf"
    storage = home.cwd / "repository"
    conf.write_text(
        f"CVMFS_REPOSITORY_NAME={NAME}\nCVMFS_SPOOL_DIR={spool}\n"
        f"CVMFS_UPSTREAM_STORAGE=local,{storage}/data/txn,{storage}\n"
        f"CVMFS_HASH_ALGORITHM={algorithm.value}\nCVMFS_GARBAGE_COLLECTION=true\n"
        "CVMFS_INCLUDE_XATTRS=true\n"
    )
    again = Shell(tmp_path / "again")
    again.cwd.mkdir()
    document = again.json(
        "init", NAME, "--adopt", "--server-conf", str(conf), "--keys", str(home.cwd / "keys")
    )
    assert document["remarks"] == []
    publish(open_native(load_config(again.cwd / "cvmfs-publish.yaml")), "two")
    assert again.run("check", "--scrub").code == 0


def publish(target: NativeRepository, path: str) -> None:
    with target.transaction(int(time.time())) as transaction:
        transaction.put_symlink(path, "target")


def test_spool_can_be_added_to_a_configuration_later(tmp_path: Path) -> None:
    home, spool = repository(Shell(tmp_path)), tmp_path / "spool"
    spool.mkdir()
    go_back(home.cwd, NAME, spool)
    path = home.cwd / "cvmfs-publish.yaml"
    text = re.sub(r"(?m)^  #spool: .*$", "  spool: spool", path.read_text())
    path.write_text(text)
    (spool / "in_transaction.lock").touch()
    ran = home.run("resign")
    assert (ran.code, "cvmfs_server abort" in ran.err) == (5, True)
    (spool / "in_transaction.lock").unlink()
    publish(open_native(load_config(path)), "one")
    assert home.run("check").code == 0
    shutil.rmtree(spool)
    assert "the spool" in home.run("resign").err
