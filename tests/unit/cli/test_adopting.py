"""`init --adopt`: everything is verified, nothing is changed, and then both sides take turns."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.cli.assembly import open_native
from cvmfs_publish.config import Config, load_config
from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.errors import LockedError, RepositoryError
from cvmfs_publish.repository.native.manifest import parse_manifest
from cvmfs_publish.repository.native.repository import NativeOptions, NativeRepository
from cvmfs_publish.repository.native.signing import create_keys
from cvmfs_publish.repository.native.spool import Spool
from tests.s3 import ACCESS_KEY, SECRET_KEY, S3Bucket
from tests.stock import Stock
from tests.unit.cli.support import Shell
from tests.unit.native.vectors import NAMES, SHA1

pytestmark = pytest.mark.slow

Damage = Callable[[Stock], object]


@pytest.fixture
def stock(tmp_path: Path) -> Stock:
    return Stock(tmp_path / "host")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    (tmp_path / "here").mkdir()
    return Shell(tmp_path / "here")


def arguments(stock: Stock, *more: str) -> list[str]:
    return ["init", stock.name, "--adopt", "--server-conf", str(stock.server_conf), *more]


def adopt(stock: Stock, shell: Shell) -> Config:
    before = stock.everything()
    ran = shell.run(*arguments(stock))
    assert ran.code == 0, ran.err
    assert stock.everything() == before
    return load_config(shell.cwd / "cvmfs-publish.yaml")


def publish(repository: NativeRepository, path: str = "link") -> None:
    with repository.transaction(int(time.time())) as transaction:
        transaction.put_symlink(path, f"target {time.monotonic_ns()}")


# taking over


@pytest.mark.parametrize("name", NAMES)
def test_a_stock_repository_is_taken_over_with_all_its_settings(
    tmp_path: Path, shell: Shell, name: str
) -> None:
    stock = Stock(tmp_path / "host", name)
    config = adopt(stock, shell)
    repository = config.repository
    assert repository.name == name
    assert repository.storage == stock.root
    assert repository.keys == stock.keys_folder
    assert repository.spool == stock.spool
    assert repository.hash == stock.manifest().root_hash.algorithm.value
    assert repository.compression == "zlib"
    assert config.history.automatic_tags == timedelta(weeks=4)
    assert shell.run("check").code == 0


def test_what_was_found_is_told_as_one_document(stock: Stock, shell: Shell) -> None:
    stock.configure(CVMFS_AUTO_GC="true", CVMFS_USER="nobody-here", CVMFS_HASH_ALGORITHM="rmd160")
    document = shell.json(*arguments(stock))
    manifest = stock.manifest()
    remarks = document.pop("remarks")
    assert [remark.partition(" ")[0].rstrip(":") for remark in remarks] == [
        "CVMFS_AUTO_GC",
        "CVMFS_HASH_ALGORITHM",
        "CVMFS_USER",
    ]
    assert document == {
        "repository": SHA1,
        "created": False,
        "revision": manifest.revision,
        "root_hash": str(manifest.root_hash),
        "storage": str(stock.root),
        "keys": str(stock.keys_folder),
        "spool": str(stock.spool),
        "config": str(shell.cwd / "cvmfs-publish.yaml"),
        "server_conf": str(stock.server_conf),
        "whitelist_expires_at": document["whitelist_expires_at"],
        "has_master_key": True,
        "tags": 5,
        "found": [],
    }


def test_without_server_conf_storage_and_keys_are_enough(stock: Stock, shell: Shell) -> None:
    before = stock.everything()
    ran = shell.run(
        "init", SHA1, "--adopt", "--storage", str(stock.root), "--keys", str(stock.keys_folder)
    )
    assert ran.code == 0, ran.err
    assert "cvmfs_server does not write here" in ran.out
    assert stock.everything() == before
    config = load_config(shell.cwd / "cvmfs-publish.yaml")
    assert (config.repository.storage, config.repository.spool) == (stock.root, None)
    assert config.history.automatic_tags == "off"


def test_options_override_what_server_conf_says(stock: Stock, shell: Shell) -> None:
    stock.configure(CVMFS_UPSTREAM_STORAGE="local,/nowhere/data/txn,/nowhere", CVMFS_KEYS_DIR="/no")
    shutil.copytree(stock.keys_folder, shell.cwd / "mine")
    ran = shell.run(*arguments(stock, "--storage", str(stock.root), "--keys", "mine"))
    assert ran.code == 0, ran.err
    text = (shell.cwd / "cvmfs-publish.yaml").read_text()
    assert f"  storage: {stock.root}\n" in text
    assert "  keys: mine\n" in text


def test_options_of_adopting_alone_are_refused(stock: Stock, shell: Shell) -> None:
    for option in (["--server-conf", "x"], ["--skip-check"]):
        ran = shell.run("init", SHA1, *option)
        assert ran.code == 2
        assert "add --adopt" in ran.err
    assert list(shell.cwd.iterdir()) == []
    (shell.cwd / "cvmfs-publish.yaml").touch()
    assert "already exists" in shell.run(*arguments(stock)).err


# refusing


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # it may be a link to the one that others read
    path.write_bytes(data)


def flip_catalog(prefix: str) -> Damage:
    return lambda stock: flip(stock.object_file(stock.catalog_hash(prefix), Suffix.CATALOG))


def lose(field: str, kind: Suffix) -> Damage:
    return lambda stock: stock.object_file(getattr(stock.manifest(), field), kind).unlink()


def expire(stock: Stock) -> None:
    past = datetime.now(UTC) - timedelta(hours=2)

    def change(payload: bytes) -> bytes:
        created, _, rest = payload.split(b"\n", 2)
        return b"\n".join([created, f"E{past:%Y%m%d%H%M%S}".encode(), rest])

    stock.rewrite_whitelist(change)


def other_keys(stock: Stock, *kinds: str) -> None:
    folder = stock.directory / "other"
    create_keys(folder, stock.name, now=datetime.now(UTC))
    for kind in kinds:
        target = stock.keys_folder / f"{stock.name}.{kind}"
        target.unlink()
        (folder / f"{stock.name}.{kind}").rename(target)


def schema(prefix: str, revision: int) -> Damage:
    sql = f"UPDATE properties SET value = '{revision}' WHERE key = 'schema_revision'"

    def change(stock: Stock) -> None:
        stock.edit_catalog(prefix, sql)
        stock.settle()

    return change


def sign(**fields: object) -> Damage:
    return lambda stock: stock.sign(**fields)


def write(name: str, text: str) -> Damage:
    return lambda stock: (stock.spool / name).write_text(text)


def new_history(stock: Stock) -> None:
    stock.edit_history("UPDATE properties SET value = '4' WHERE key = 'schema_revision'")
    stock.settle()


def data_object(stock: Stock) -> None:
    stock.object_file(stock.row_hash("/nested/inner/deep", "/nested/inner"), Suffix.DATA).unlink()


def whitelist_option(stock: Stock) -> None:
    stock.rewrite_whitelist(lambda text: text + b"Wcachain\n")


REFUSALS: dict[str, tuple[Damage, str, str]] = {
    "damaged root catalog": (flip_catalog(""), "damaged", "backup"),
    "damaged nested catalog": (flip_catalog("/nested/inner"), "/nested/inner", "backup"),
    "missing root catalog": (lose("root_hash", Suffix.CATALOG), "missing", "backup"),
    "missing nested catalog": (
        lambda s: s.object_file(s.catalog_hash("/nested"), Suffix.CATALOG).unlink(),
        "/nested",
        "backup",
    ),
    "missing history": (lose("history", Suffix.HISTORY), "missing", "backup"),
    "missing certificate": (lose("certificate", Suffix.CERTIFICATE), "missing", "backup"),
    "missing metainfo": (lose("metainfo", Suffix.METAINFO), "metainfo", "backup"),
    "wrong reflog checksum": (write("reflog.chksum", "0" * 40), "reflog", "check -r"),
    "garbage as reflog checksum": (write("reflog.chksum", "x"), "reflog", "check -r"),
    "missing reflog checksum": (
        lambda s: (s.spool / "reflog.chksum").unlink(),
        "reflog.chksum is missing",
        "check -r",
    ),
    "damaged reflog": (lambda s: flip(s.reflog_file), "reflog", "check -r"),
    "missing reflog": (lambda s: s.reflog_file.unlink(), "missing", "check -r"),
    "future manifest": (sign(timestamp=int(time.time()) + 3600), "go back in time", "clock"),
    "expired whitelist": (expire, "expired", "resign"),
    "missing whitelist": (lambda s: s.whitelist_file.unlink(), "missing", "resign"),
    "whitelist with options": (whitelist_option, "Wcachain", "resign"),
    "certificate not on the whitelist": (
        lambda s: other_keys(s, "crt", "key"),
        "does not trust",
        "resign",
    ),
    "key of another certificate": (lambda s: other_keys(s, "key"), "not the key of", ""),
    "another master key": (lambda s: other_keys(s, "pub", "masterkey"), "whitelist", ""),
    "open private key": (
        lambda s: (s.keys_folder / f"{s.name}.key").chmod(0o644),
        "open to others",
        "chmod",
    ),
    "missing key": (
        lambda s: (s.keys_folder / f"{s.name}.key").unlink(),
        "cannot be read",
        "keys",
    ),
    "changed manifest": (
        lambda s: s.manifest_file.write_bytes(s.manifest_file.read_bytes()[:-1] + b"\0"),
        "not signed",
        "backup",
    ),
    "access control": (sign(alternative_paths=True), "access control", "cvmfs_server"),
    "other size": (sign(root_size=1), "bytes", "backup"),
    "other revision": (sign(revision=77), "revision", "backup"),
    "newer root catalog": (schema("", 8), "newer than 7", "newer version"),
    "newer nested catalog": (schema("/nested", 8), "newest known is 7", "backup"),
    "newer history": (new_history, "newer than 3", "newer version"),
    "foreign transaction": (write("in_transaction.lock", ""), "transaction", "cvmfs_server abort"),
    "another repository": (
        lambda s: s.configure(CVMFS_REPOSITORY_NAME="other.example.org"),
        "not about",
        "--server-conf",
    ),
    "gateway": (
        lambda s: s.configure(CVMFS_UPSTREAM_STORAGE="gw,/tmp,http://gw:4929/api/v1"),
        "gateway",
        "cvmfs_server",
    ),
    "no spool": (lambda s: shutil.rmtree(s.spool), "does not exist", "repository.spool"),
    "no server.conf": (lambda s: s.server_conf.unlink(), "cannot be read", "--server-conf"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_written_is_refused_and_not_one_byte_changes(
    stock: Stock, shell: Shell, name: str
) -> None:
    damage, message, hint = REFUSALS[name]
    damage(stock)
    before = stock.everything()
    ran = shell.run(*arguments(stock))
    assert ran.code in (2, 5), ran
    assert message in ran.err
    assert "hint: " in ran.err or not hint
    assert hint in ran.err.partition("hint: ")[2]
    assert stock.everything() == before
    assert list(shell.cwd.iterdir()) == []


def test_a_missing_content_is_found_too(stock: Stock, shell: Shell) -> None:
    value = next(
        ContentHash(
            bytes.fromhex(path.parent.name + path.name), stock.manifest().root_hash.algorithm
        )
        for path in sorted(stock.root.glob("data/??/*"))
        if len(path.name) == 38
    )
    stock.object_file(value, Suffix.DATA).unlink()
    before = stock.everything()
    ran = shell.run(*arguments(stock))
    assert (ran.code, str(value)[2:] in ran.err) == (5, True), ran.err
    assert "--skip-check" in ran.err
    assert stock.everything() == before
    assert shell.run(*arguments(stock, "--skip-check")).code == 0


def test_without_a_spool_the_reflog_has_to_be_the_manifests(stock: Stock, shell: Shell) -> None:
    manifest = stock.manifest_file.read_bytes()
    stock.edit_reflog("UPDATE refs SET timestamp = timestamp + 1")
    stock.manifest_file.write_bytes(manifest)  # as after a stock gc
    stock.settle()
    places = ["--storage", str(stock.root), "--keys", str(stock.keys_folder)]
    ran = shell.run("init", SHA1, "--adopt", *places)
    assert ran.code == 5
    assert "another hash than the manifest says" in ran.err
    assert "--server-conf" in ran.err
    assert shell.run(*arguments(stock)).code == 0
    problems = shell.json("check")["problems"]
    assert [(p["place"], p["severity"]) for p in problems] == [(".cvmfsreflog", "warning")]
    publish(open_native(load_config(shell.cwd / "cvmfs-publish.yaml")))
    assert shell.json("check")["problems"] == []
    (stock.spool / "reflog.chksum").write_text("0" * 40)
    assert "reflog.chksum in the spool says 000" in shell.run("check").out
    (stock.spool / "reflog.chksum").write_text("hello")
    ran = shell.run("check")
    assert (ran.code, "reflog.chksum holds no hash: 'hello'" in ran.out) == (5, True), ran
    (stock.spool / "reflog.chksum").unlink()
    ran = shell.run("check")
    assert (ran.code, "reflog.chksum: is missing" in ran.out) == (5, True), ran


def test_without_anything_known_of_the_repository_it_says_what_to_name(shell: Shell) -> None:
    ran = shell.run("init", SHA1, "--adopt")
    assert ran.code == 2
    assert f"/etc/cvmfs/repositories.d/{SHA1}/server.conf does not exist" in ran.err
    assert "--server-conf FILE, or --storage and --keys" in ran.err


# taking turns


def test_the_spool_is_in_step_after_every_publish(stock: Stock, shell: Shell) -> None:
    repository = open_native(adopt(stock, shell))
    (stock.spool / "client.local").write_text("CVMFS_QUOTA_LIMIT=1\nCVMFS_ROOT_HASH=0\n")
    for _ in range(2):
        publish(repository)
        manifest = stock.manifest()
        reflog = ContentHash.of(stock.reflog_file.read_bytes(), manifest.root_hash.algorithm)
        assert (stock.spool / "reflog.chksum").read_text() == str(reflog) == str(manifest.reflog)
        assert (stock.spool / "client.local").read_text() == (
            f"CVMFS_QUOTA_LIMIT=1\nCVMFS_ROOT_HASH={manifest.root_hash}\n"
        )
        assert sorted(path.name for path in stock.spool.iterdir()) == [
            "client.local",
            "reflog.chksum",
        ]
    assert shell.run("check", "--scrub").code == 0


def test_nothing_is_published_while_stock_tools_write(stock: Stock, shell: Shell) -> None:
    repository = open_native(adopt(stock, shell))
    flag = stock.spool / "in_transaction.lock"
    flag.touch()
    before = stock.everything()
    with pytest.raises(LockedError, match="in a transaction of cvmfs_server"):
        publish(repository)
    assert stock.everything() == before
    flag.unlink()
    publish(repository)


def test_an_abort_by_stock_tools_ends_our_transaction_unpublished(
    stock: Stock, shell: Shell
) -> None:
    repository = open_native(adopt(stock, shell))
    before = stock.manifest()
    with (
        pytest.raises(LockedError, match="removed by somebody else"),
        repository.transaction(int(time.time())) as transaction,
    ):
        transaction.put_symlink("link", "target")
        (stock.spool / "in_transaction.lock").unlink()
    assert stock.manifest() == before
    publish(repository)
    assert shell.run("check").code == 0


class DiesBeforeChecksum(Spool):
    """Loses power between the reflog and its checksum."""

    def reflog_replaced(self, checksum: ContentHash) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class DiesBeforeReflog(Spool):
    """Loses power when it has announced a reflog."""

    def announce_reflog(self, checksum: ContentHash) -> None:
        super().announce_reflog(checksum)
        os.kill(os.getpid(), signal.SIGKILL)


class DiesBeforeMount(Spool):
    """Loses power when the manifest is in place."""

    def manifest_replaced(self, root_hash: ContentHash) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("spool", [DiesBeforeReflog, DiesBeforeChecksum, DiesBeforeMount])
def test_a_writer_killed_at_the_switch_leaves_what_the_next_one_repairs(
    stock: Stock, shell: Shell, spool: type[Spool]
) -> None:
    repository = open_native(adopt(stock, shell))
    dying = NativeRepository(
        stock.name,
        repository.store,
        stock.keys_folder,
        NativeOptions(bookkeeping=spool(stock.spool, stock.name)),
    )
    before = stock.manifest()
    child = os.fork()
    if child == 0:
        try:
            publish(dying)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (stock.manifest() != before) == (spool is DiesBeforeMount)
    publish(repository)
    manifest = stock.manifest()
    assert (stock.spool / "reflog.chksum").read_text() == str(manifest.reflog)
    assert str(manifest.root_hash) in (stock.spool / "client.local").read_text()
    assert sorted(path.name for path in stock.spool.iterdir()) == ["client.local", "reflog.chksum"]
    assert shell.run("check", "--scrub").code == 0


@pytest.mark.parametrize("name", ["wrong reflog checksum", "newer history", "missing history"])
def test_what_adopting_refuses_a_later_publish_refuses_before_it_writes(
    stock: Stock, shell: Shell, name: str
) -> None:
    repository = open_native(adopt(stock, shell))
    REFUSALS[name][0](stock)
    before = {k: v for k, v in stock.everything().items() if not k.endswith("/spool")}
    with pytest.raises(RepositoryError, match=REFUSALS[name][1]):
        publish(repository)
    after = {k: v for k, v in stock.everything().items() if not k.endswith("/spool")}
    assert after == before


def test_a_repository_in_an_object_store_is_taken_over_with_its_keys(
    stock: Stock, shell: Shell, bucket: S3Bucket
) -> None:
    for path in stock.root.rglob("*"):
        if path.is_file():
            bucket.put(str(path.relative_to(stock.root)), path.read_bytes())
    (stock.directory / "s3.conf").write_text(
        f"CVMFS_S3_HOST=127.0.0.1\nCVMFS_S3_PORT={bucket.server.port}\n"
        f"CVMFS_S3_BUCKET={bucket.name}\nCVMFS_S3_DNS_BUCKETS=false\n"
        f"CVMFS_S3_ACCESS_KEY={ACCESS_KEY}\nCVMFS_S3_SECRET_KEY='{SECRET_KEY}'\n"
        "CVMFS_S3_X_AMZ_ACL=\n"
    )
    stock.configure(
        CVMFS_UPSTREAM_STORAGE=f"S3,{stock.spool},{bucket.prefix}@{stock.directory}/s3.conf"
    )
    before = bucket.names()
    ran = shell.run(*arguments(stock))
    assert ran.code == 0, ran.err
    assert bucket.names() == before
    assert SECRET_KEY not in ran.out + ran.err
    path = shell.cwd / "cvmfs-publish.yaml"
    assert path.stat().st_mode & 0o777 == 0o600
    repository = open_native(load_config(path))
    publish(repository)
    repository.store.close()
    manifest = parse_manifest(bucket.get(".cvmfspublished"))[0]
    assert manifest.revision == stock.manifest().revision + 1
    assert (stock.spool / "reflog.chksum").read_text() == str(manifest.reflog)
    assert shell.run("check", "--scrub").code == 0
