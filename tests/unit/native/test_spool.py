"""Taking turns with `cvmfs_server`: its locks are respected, ours are seen, nothing is left."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.errors import IntegrityError, LockedError, RepositoryError
from cvmfs_publish.repository.native.spool import Spool

NAME = "test.example.org"
LOCKS = {"in_transaction.lock", "is_publishing.lock", "is_collecting.lock"}
OLD, NEW = (ContentHash.of(data, HashAlgorithm.SHAKE128) for data in (b"old", b"new"))

HOLDER = """\
import sys, time
from pathlib import Path
from cvmfs_publish.repository.native.spool import Spool
with Spool(Path(sys.argv[1]), "test.example.org").hold():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, NAME)


def names(spool: Spool) -> set[str]:
    return {path.name for path in spool.directory.iterdir()}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock as stock tools do."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def another_writer(spool: Spool) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(spool.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_all_three_locks_are_held_and_then_gone(spool: Spool) -> None:
    with spool.hold() as lock:
        assert names(spool) == LOCKS
        lock.check()
        for name in ("is_publishing.lock", "is_collecting.lock"):
            descriptor = os.open(spool.directory / name, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(descriptor)
    assert names(spool) == set()
    with spool.hold():
        pass


def test_an_error_of_the_writer_releases_all_and_is_not_changed(spool: Spool) -> None:
    with pytest.raises(OSError, match="of the writer"), spool.hold():
        raise OSError("of the writer")
    assert names(spool) == set()


@pytest.mark.parametrize("content", [b"", b"cvmfs_server\n", b"\xff" * 100])
def test_a_foreign_transaction_is_refused_and_stays(spool: Spool, content: bytes) -> None:
    flag = spool.directory / "in_transaction.lock"
    flag.write_bytes(content)
    os.utime(flag, (0, 0))
    with pytest.raises(LockedError, match="in a transaction") as caught, spool.hold():
        pytest.fail("nothing may be written")
    assert f"cvmfs_server abort {NAME}" in caught.value.hint
    assert names(spool) == {"in_transaction.lock"}
    assert (flag.read_bytes(), flag.stat().st_mtime) == (content, 0)
    with pytest.raises(LockedError):
        spool.check_free()


def test_a_flag_that_is_no_file_is_foreign_too(spool: Spool) -> None:
    (spool.directory / "in_transaction.lock").symlink_to("nowhere")
    with pytest.raises(LockedError, match="in a transaction"), spool.hold():
        pass
    assert (spool.directory / "in_transaction.lock").is_symlink()


@pytest.mark.parametrize(
    ("name", "who"), [("is_publishing.lock", "publish"), ("is_collecting.lock", "gc or check")]
)
def test_a_running_stock_command_is_waited_for_by_the_user(
    spool: Spool, name: str, who: str
) -> None:
    path = spool.directory / name
    with locked(path):
        with pytest.raises(LockedError, match=f"a {who} is running"), spool.hold():
            pytest.fail("nothing may be written")
        assert names(spool) == {name}
    with spool.hold():
        assert names(spool) == LOCKS


def test_a_lock_file_left_by_a_dead_process_does_not_matter(spool: Spool) -> None:
    for name in ("is_publishing.lock", "is_collecting.lock"):
        (spool.directory / name).touch()
    with spool.hold():
        pass
    assert names(spool) == set()


def test_two_writers_of_ours_do_not_meet(spool: Spool) -> None:
    with another_writer(spool) as process:
        with pytest.raises(LockedError, match=f"another cvmfs-publish .*pid={process.pid}"):
            spool.check_free()
        with pytest.raises(LockedError, match="another cvmfs-publish"), spool.hold():
            pytest.fail("nothing may be written")
        assert names(spool) == LOCKS
        assert process.poll() is None


def test_the_locks_of_a_killed_writer_are_taken_over_at_once(spool: Spool) -> None:
    with another_writer(spool) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names(spool) == LOCKS
    spool.check_free()
    assert names(spool) == LOCKS
    with spool.hold() as lock:
        lock.check()
        assert f"pid={os.getpid()} " in (spool.directory / "in_transaction.lock").read_text()
    assert names(spool) == set()


def test_an_abort_by_somebody_else_is_noticed_and_his_flag_stays(spool: Spool) -> None:
    flag = spool.directory / "in_transaction.lock"
    with spool.hold() as lock:
        flag.unlink()
        with pytest.raises(LockedError, match="removed by somebody else"):
            lock.check()
        flag.touch()
        with pytest.raises(LockedError, match="removed by somebody else"):
            lock.check()
    assert names(spool) == {"in_transaction.lock"}


def test_unfinished_files_of_a_killed_writer_go(spool: Spool) -> None:
    (spool.directory / ".client.local.cvmfs-publish-0011").touch()
    (spool.directory / ".other").touch()
    with spool.hold():
        pass
    assert names(spool) == {".other"}


def test_a_missing_spool_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(RepositoryError, match="does not exist") as caught,
        Spool(tmp_path / "none", NAME).hold(),
    ):
        pass
    assert "repository.spool" in caught.value.hint


# the checksum of the reflog


def write_checksum(spool: Spool, text: str) -> None:
    (spool.directory / "reflog.chksum").write_text(text)


def test_the_checksum_is_as_stock_tools_write_it(spool: Spool) -> None:
    assert spool.read_reflog_checksum() is None
    spool.announce_reflog(NEW)
    spool.reflog_replaced(NEW)
    assert names(spool) == {"reflog.chksum"}
    assert (spool.directory / "reflog.chksum").read_text() == str(NEW)
    assert spool.read_reflog_checksum() == NEW
    write_checksum(spool, f"{OLD}\n")
    assert spool.read_reflog_checksum() == OLD


def test_a_checksum_that_fits_is_accepted(spool: Spool) -> None:
    write_checksum(spool, str(OLD))
    spool.check_reflog(b"old")
    spool.announce_reflog(NEW)  # and killed before the reflog was put in place
    spool.check_reflog(b"old")
    assert names(spool) == {"reflog.chksum", "reflog.chksum.cvmfs-publish"}
    spool.check_reflog(b"old", repair=True)
    assert names(spool) == {"reflog.chksum"}
    assert spool.read_reflog_checksum() == OLD


def test_a_writer_killed_between_reflog_and_checksum_is_repaired(spool: Spool) -> None:
    write_checksum(spool, str(OLD))
    spool.announce_reflog(NEW)
    spool.check_reflog(b"new")
    assert spool.read_reflog_checksum() == OLD
    spool.check_reflog(b"new", repair=True)
    assert spool.read_reflog_checksum() == NEW
    assert names(spool) == {"reflog.chksum"}


@pytest.mark.parametrize("text", [str(OLD), "", "garbage", None])
@pytest.mark.parametrize("planned", [str(OLD), "cut", None])
def test_a_wrong_checksum_is_refused_and_stays(
    spool: Spool, text: str | None, planned: str | None
) -> None:
    for name, content in (("reflog.chksum", text), ("reflog.chksum.cvmfs-publish", planned)):
        if content is not None:
            (spool.directory / name).write_text(content)
    before = {path.name: path.read_bytes() for path in spool.directory.iterdir()}
    with pytest.raises(RepositoryError, match=r"reflog\.chksum") as caught:
        spool.check_reflog(b"new", repair=True)
    assert f"cvmfs_server check -r {NAME}" in caught.value.hint
    assert {path.name: path.read_bytes() for path in spool.directory.iterdir()} == before


def test_a_checksum_that_is_no_hash_is_told(spool: Spool) -> None:
    write_checksum(spool, "garbage")
    with pytest.raises(IntegrityError, match="holds no hash"):
        spool.read_reflog_checksum()


# the mount


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "CVMFS_ROOT_HASH={}\n"),
        ("CVMFS_ROOT_HASH=1234\n", "CVMFS_ROOT_HASH={}\n"),
        ("A=1\nexport CVMFS_ROOT_HASH=12\nB=2", "A=1\nB=2\nCVMFS_ROOT_HASH={}\n"),
        ("CVMFS_ROOT_HASH=1\nA=\udcff\nCVMFS_ROOT_HASH=2", "A=\udcff\nCVMFS_ROOT_HASH={}\n"),
        ("#CVMFS_ROOT_HASH=1\n", "#CVMFS_ROOT_HASH=1\nCVMFS_ROOT_HASH={}\n"),
    ],
)
def test_the_mount_is_told_and_other_lines_stay(
    spool: Spool, before: str | None, after: str
) -> None:
    path = spool.directory / "client.local"
    if before is not None:
        path.write_bytes(os.fsencode(before))
    spool.manifest_replaced(NEW)
    assert path.read_bytes() == os.fsencode(after.format(NEW))
    inode = path.stat().st_ino
    spool.manifest_replaced(NEW)
    assert path.stat().st_ino == inode
    assert names(spool) == {"client.local"}


def test_what_root_writes_belongs_to_the_owner_of_the_spool(spool: Spool) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(spool.directory, 12345, 23456)
    with spool.hold():
        spool.announce_reflog(NEW)
        spool.manifest_replaced(NEW)
        found = {(path.name, path.stat().st_uid) for path in spool.directory.iterdir()}
        assert {owner for _, owner in found} == {12345}
        assert len(found) == 5
