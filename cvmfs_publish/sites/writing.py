"""Put a rendered set of files on disk so that nobody ever finds half of it.

A set is written whole beside the folder it is for, and then the two change places.  Linux does
that in one step (renameat2, RENAME_EXCHANGE), so that there is never a moment without the folder;
where a file system cannot (NFS), two renames follow each other.  Killed at any instant this leaves
the old set or the new one, and what it leaves beside the folder the next run removes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cvmfs_publish.errors import InputError
from cvmfs_publish.sites.pages import RenderedFile
from cvmfs_publish.sites.render import MANIFEST

LOCK_SECONDS = 60.0  # a set is written in well under a second
_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h
# What a kernel or file system answers that cannot exchange.
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
# What a file system answers that has no locks, or none for directories opened to read (NFS).
_NO_LOCK = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def write_site(files: Mapping[str, RenderedFile], out: Path, *, durable: bool = False) -> None:
    """Write `files` as the folder `out`, replacing an earlier rendering whole.

    `durable`: wait until the disk has the new set before it takes the place of the old one, so that
    a power failure cannot leave empty files.
    Raises `InputError` when `out` is a folder that holds something else than an earlier rendering,
    which is never deleted, and when it cannot be written; then what was there stays.
    """
    out = absolute(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _turn(out.parent) as alone:
            if alone:
                _recover(out)
            rendered_files(out)
            _replace(files, out, durable)
            if alone:
                _tidy(out)
    except OSError as exc:
        raise InputError(
            f"{out}: cannot be written: {exc.strerror or exc}",
            hint=f"what was there is unchanged; the folder {out.parent} needs room and must be"
            " writable, since the new set is written beside the old one",
        ) from exc


def absolute(out: Path) -> Path:
    """Return `out` from the root of the file system, a link in its last place left as it is."""
    return Path(os.path.abspath(out))  # noqa: PTH100  # resolve() would follow the link


def rendered_files(out: Path) -> frozenset[str]:
    """Return the paths of the earlier rendering in `out`; none if there is none.

    Raises `InputError` when `out` holds anything else, which replacing it would delete.
    """
    if not os.path.lexists(out):
        return frozenset()
    if out.is_symlink() or not out.is_dir():
        raise InputError(f"{out}: exists and is not a folder", hint="choose another --out")
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if MANIFEST not in present and any(out.iterdir()):
        raise InputError(
            f"{out}: is not empty and no earlier rendering: it has no {MANIFEST}",
            hint="choose a folder of its own, as --out ./site",
        )
    for path in sorted(present - _manifest_paths(out / MANIFEST) - {MANIFEST}):
        raise InputError(
            f"{out / path}: was not rendered; replacing {out} would delete it",
            hint="move it elsewhere, or choose another --out",
        )
    return frozenset(present)


def _manifest_paths(manifest: Path) -> set[str]:
    if not manifest.exists():
        return set()
    try:
        document = json.loads(manifest.read_bytes())
        return set(document["files"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError(f"{manifest}: cannot be understood", hint="remove the folder") from exc


# ---------------------------------------------------------------- one at a time


@contextmanager
def _turn(parent: Path) -> Iterator[bool]:
    """Wait for other renderings into folders of `parent`; yield whether there is no other.

    The folder itself is locked: a lock file would be left behind.  Where there are no locks nobody
    waits.  Changing places is safe all the same, but what looks left behind may be in use.
    """
    try:
        descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # one may write to a folder and not list it
        yield False
        return
    try:
        yield _lock(descriptor, parent)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, parent: Path) -> bool:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise InputError(
                    f"{parent}: locked by another process for {LOCK_SECONDS:.0f} s",
                    hint="is another rendering stuck?",
                ) from None
            time.sleep(0.02)
        except OSError as exc:
            if exc.errno not in _NO_LOCK:
                raise
            return False
        else:
            return True


# ---------------------------------------------------------------- writing beside, changing places


def _replace(files: Mapping[str, RenderedFile], out: Path, durable: bool) -> None:
    work = Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))
    try:
        _fill(work / "new", files)
        if durable:
            _sync(work / "new")
        if not os.path.lexists(out):
            (work / "new").rename(out)
        elif not _exchange(work / "new", out):
            _move_aside(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fill(folder: Path, files: Mapping[str, RenderedFile]) -> None:
    folder.mkdir()
    folder.chmod(0o755)
    for name, file in files.items():
        path = folder / name
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
            (folder / parent).chmod(0o755)  # whatever the umask: nodes read them as users
        path.write_bytes(file.content)
        path.chmod(file.mode)


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(new: Path, out: Path) -> bool:
    """Let two folders change places in one step; return False where that is not possible."""
    # Of the C library, if it is not older than Linux 3.15 (glibc 2.28, musl 1.2.5).
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    words = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(out), _RENAME_EXCHANGE)
    if renameat2(*words) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(out))


def _move_aside(work: Path, out: Path) -> None:
    """Move `out` away and the new set in its place; between the two there is no folder."""
    out.rename(work / "old")
    try:
        (work / "new").rename(out)
    except OSError:
        (work / "old").rename(out)
        raise


# ---------------------------------------------------------------- after a run that was killed


def _prefix(out: Path) -> str:
    return f".{out.name}.render."


def _leftovers(out: Path) -> list[Path]:
    """Return the working folders that killed runs left; only our own ever are removed."""
    form = re.compile(re.escape(_prefix(out)) + "[a-z0-9_]{8}")
    return [
        path
        for path in out.parent.iterdir()
        if form.fullmatch(path.name) and path.lstat().st_uid == os.geteuid()
    ]


def _tidy(out: Path) -> None:
    for leftover in _leftovers(out):
        shutil.rmtree(leftover, ignore_errors=True)


def _recover(out: Path) -> None:
    """Bring back the old set of a run that was killed between two renames."""
    if os.path.lexists(out):
        return
    for leftover in _leftovers(out):
        with suppress(FileNotFoundError):
            (leftover / "old").rename(out)
            return
