"""The lock of plain trees: one holder, never stolen silently, never left for a person to remove."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cvmfs_publish.content.holder import Holder
from cvmfs_publish.errors import LockedError
from cvmfs_publish.repository.folder_lock import FILE_NAME, ROUNDING, FolderLease, hold_folder

LEASE = 60.0
OTHER = replace(Holder.this_process(LEASE), host="other", boot="another kernel", pid=1)


@contextmanager
def held(directory: Path, wait: float = 0) -> Iterator[FolderLease]:
    with hold_folder(directory, "the tree", lease=LEASE, wait=wait) as lease:
        yield lease


def lock_of(directory: Path, data: bytes, age: float) -> Path:
    path = directory / FILE_NAME
    path.write_bytes(data)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_one_holds_it_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    with held(tmp_path) as lease:
        lease.check()
        document = json.loads((tmp_path / FILE_NAME).read_text())
        assert document["pid"] == os.getpid()
        with pytest.raises(LockedError, match="the tree is locked by process"), held(tmp_path):
            pass
        lease.check()
    assert list(tmp_path.iterdir()) == []


def test_whoever_may_wait_gets_it_when_it_is_given_back(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with held(tmp_path):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    threading.Timer(0.1, leave.set).start()
    with held(tmp_path, wait=30) as lease:
        lease.check()
    thread.join()


def test_the_lock_of_a_killed_process_of_this_host_is_taken_over_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pid = os.fork()
    if pid == 0:
        with held(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / FILE_NAME).exists()
    with held(tmp_path) as lease:
        lease.check()
    assert f"process {pid} on" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [OTHER.dump(), b"what is this?"])
def test_a_lock_that_is_kept_fresh_elsewhere_is_respected(tmp_path: Path, data: bytes) -> None:
    path = lock_of(tmp_path, data, LEASE)
    with pytest.raises(LockedError, match="is locked by") as caught, held(tmp_path):
        pass
    assert "ends in" in caught.value.hint
    assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("data", [OTHER.dump(), b"what is this?"])
def test_a_lock_that_was_not_refreshed_for_its_lease_is_taken_over_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    lock_of(tmp_path, data, LEASE + ROUNDING + 5)
    with caplog.at_level(logging.WARNING), held(tmp_path) as lease:
        lease.check()
    assert "taking over the lock" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_whoever_lost_it_is_told_and_leaves_that_of_the_others_alone(tmp_path: Path) -> None:
    with held(tmp_path) as lease:
        (tmp_path / FILE_NAME).unlink()
        with pytest.raises(LockedError, match="was lost"):
            lease.check()
        path = lock_of(tmp_path, OTHER.dump(), 0)
        with pytest.raises(LockedError, match="was lost"):
            lease.check()
    assert path.read_bytes() == OTHER.dump()


def test_an_answer_that_a_network_file_system_lost_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def lose(*arguments: Path) -> None:
        link(*arguments)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", lose)
    with held(tmp_path) as lease:
        lease.check()


def test_of_many_at_the_same_time_each_has_it_alone(tmp_path: Path) -> None:
    inside, most = 0, []
    mutex = threading.Lock()

    def work() -> None:
        nonlocal inside
        for _ in range(10):
            with held(tmp_path, wait=60):
                with mutex:
                    inside += 1
                    most.append(inside)
                with mutex:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 40
