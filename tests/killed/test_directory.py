"""A publisher into a plain tree that is killed, at whatever operation on a file.

Readers see the old state or the new one, and the next publisher needs no person.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.layers.tree import RepoPath
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository import directory
from cvmfs_publish.repository.base import Repository, View
from cvmfs_publish.repository.directory import DirectoryRepository
from cvmfs_publish.repository.folder import WORK
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM
from cvmfs_publish.repository.names import unpublish
from tests import versions
from tests.support import NAME
from tests.versions import at, leads_to, sandbox

pytestmark = pytest.mark.slow

IMAGES = ("ghcr.io/a/b:1", "ghcr.io/a/c:1")
# Everything that changes a tree of files, as `sys.addaudithook` tells it; "open" also reads.
CHANGES = {
    "open", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.remove",
    "os.chmod", "os.chown", "os.utime", "os.truncate",
}  # fmt: skip


def repository_at(base: Path) -> DirectoryRepository:
    """All share a spool, whose hundreds of folders would take most of the time."""
    return DirectoryRepository(NAME, base / "repository", LocalStore(base.parent / "spool"))


def publish(repository: Repository, version: str, day: float) -> None:
    """Publish a version under two names at once."""
    with repository.transaction(int(at(day).timestamp())) as transaction:
        for name in IMAGES:
            versions.put(transaction, name, f"{version}-{name}", at(day))


def replace(repository: DirectoryRepository) -> None:
    """Make a sandbox anew that is there already, move one name and remove the other."""
    day = 3
    with repository.transaction(int(at(day).timestamp())) as transaction:
        versions.put(transaction, IMAGES[0], f"C-{IMAGES[0]}", at(day))
        versions.put(transaction, "ghcr.io/a/d:1", "B", at(day), force=True)
        unpublish(transaction, Reference.parse(IMAGES[1]), DEFAULT_PLATFORM, at(day))


def collect(repository: DirectoryRepository) -> None:
    repository.collect(at(40), timedelta(days=30))


def everything(view: View) -> dict[RepoPath, object]:
    """Return all that is there, for a reader of ours."""
    found: dict[RepoPath, object] = {}
    stack = [""]
    while stack:
        folder = stack.pop()
        for name, is_directory in view.list_names(folder):
            path = f"{folder}/{name}".lstrip("/")
            found[path] = is_directory or (view.read_symlink(path), view.read_file(path))
            if is_directory:
                stack.append(path)
    return found


def seen(base: Path) -> dict[RepoPath, object]:
    with repository_at(base).open() as view:
        return everything(view)


def in_child(work: Callable[[], None], fatal: int = -1, where: str = "") -> tuple[int, int]:
    """Do something in a process that dies before the operation with that number.

    Returns how it ended and how many operations it began.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        count = 0

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event not in CHANGES or (event == "open" and not _is_written(arguments)):
                return
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        try:
            sys.addaudithook(watch)
            work()
            os.write(writer, str(count).encode())
        finally:
            os._exit(1 if sys.exc_info()[0] is not None else 0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), int(text or 0)


def _is_written(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) != 0


@pytest.mark.parametrize("work", [replace, collect])
def test_killed_before_any_operation_there_is_the_old_state_or_the_new_one(
    work: Callable[[DirectoryRepository], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The disk lives on, and to wait for it would take most of the time.
    monkeypatch.setattr(directory, "sync_file_system", lambda _: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    prepared, whole = tmp_path / "prepared", tmp_path / "whole"
    repository = repository_at(prepared)
    repository.create(at(0))
    publish(repository, "A", 1)
    publish(repository, "B", 2)
    for base in (tmp_path / "before", whole):  # the first brings contents into the spool
        shutil.copytree(prepared, base, symlinks=True)
        if base != whole:
            work(repository_at(base))
    old = seen(whole)
    code, operations = in_child(lambda: work(repository_at(whole)))
    assert code == 0
    assert operations > 20
    new = seen(whole)
    assert old != new
    turned = False
    for number in range(0, operations, 1 if work is replace else 3):
        base = tmp_path / str(number)
        shutil.copytree(prepared, base, symlinks=True)
        code, _ = in_child(lambda base=base: work(repository_at(base)), number)  # type: ignore[misc]
        assert code == -signal.SIGKILL
        found = seen(base)
        assert _shown(found) in (_shown(old), _shown(new)), number
        is_new = _shown(found) == _shown(new)
        assert is_new or not turned, number  # once done it stays done
        turned = is_new
        repository = repository_at(base)
        assert repository.revision().number == (4 if is_new else 3)
        if is_new:
            publish(repository, "D", 41)
        else:
            work(repository)  # nobody has to do anything before
            assert _shown(seen(base)) == _shown(new)
        with repository.open() as view:
            assert leads_to(view, IMAGES[0]) is not None
        work_folder = base / "repository" / WORK
        assert sorted(os.listdir(work_folder / "txn")) == []
        assert not (work_folder / "journal.json").exists()
        assert not (work_folder / "lock").exists()
        shutil.rmtree(base)
    assert turned


def _shown(found: dict[RepoPath, object]) -> set[RepoPath]:
    """What is there, and where links lead: records hold times of which run wrote them."""
    return {f"{path} {entry[0]}" if isinstance(entry, tuple) and entry[0] else path
            for path, entry in found.items()}  # fmt: skip


def test_a_job_finds_a_name_at_every_moment_of_a_publish(tmp_path: Path) -> None:
    """Also who looks at the files alone, as jobs do: each name leads somewhere, old or new."""
    base = tmp_path
    repository = repository_at(base)
    repository.create(at(0))
    publish(repository, "A", 1)
    root = base / "repository"
    ends = {(root / sandbox(f"{v}-{IMAGES[0]}")).resolve() for v in "AB"}
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:

        def watch(event: str, _: tuple[object, ...]) -> None:
            if event in CHANGES:
                os.write(writer, b"%d" % ((root / IMAGES[0]).resolve() in ends
                                          and (root / IMAGES[0]).is_dir()))  # fmt: skip

        try:
            sys.addaudithook(watch)
            publish(repository, "B", 2)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        looks = answer.read()
    os.waitpid(pid, 0)
    assert len(looks) > 20
    assert set(looks) == {"1"}
