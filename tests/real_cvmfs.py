"""The real CernVM-FS client and its tools, wherever they are installed.

No package of Debian brings them, so tests that need them are skipped where they are not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.unit.native.test_reader import served

CLIENT, JUDGE, TALK = "cvmfs2", "cvmfs_swissknife", "cvmfs_talk"


def _why_not() -> str:
    for program in (CLIENT, JUDGE, TALK):
        if shutil.which(program) is None:
            return f"{program} is not installed here"
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "only root can mount here"
    return ""


needed = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "all is there")


@dataclass(frozen=True)
class Mount:
    """A repository as a client shows it."""

    root: Path
    sockets: Path
    name: str

    def refresh(self) -> None:
        """Take the newest revision at once, as a client does by itself every few minutes."""
        socket = self.sockets / f"cvmfs_io.{self.name}"
        run(TALK, "-p", str(socket), "remount", "sync")

    @property
    def revision(self) -> int:
        return int(os.getxattr(self.root, "user.revision"))


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def judge(storage: Path, name: str, key: Path, scratch: Path, checksum: Path | None = None) -> None:
    """Have a repository checked by stock's own check; `checksum` is a replica's, of its reflog."""
    scratch.mkdir(exist_ok=True)
    reflog = [] if checksum is None else ["-R", str(checksum)]
    said = run(
        *(JUDGE, "check", "-c", "-r", str(storage), "-t", str(scratch)),
        *("-N", name, "-k", str(key), "-l", "2", *reflog),
    )
    assert "no problems found" in said, said


class Replica:
    """A Stratum 1 as stock tools fill it."""

    def __init__(self, folder: Path, name: str, source: str, key: Path) -> None:
        self.storage = folder / "storage"
        self._scratch = folder / "scratch"
        self.checksum = folder / "reflog.chksum"
        self._name, self._source, self._key = name, source, key
        (self.storage / "data/txn").mkdir(parents=True)
        for number in range(256):
            (self.storage / f"data/{number:02x}").mkdir()
        self._scratch.mkdir()

    def pull(self, url: str) -> None:
        """Take the newest revision, as `cvmfs_server snapshot` does; it is served at `url`."""
        again = ["-p"] if self.checksum.exists() else ["-i"]
        upstream = f"local,{self.storage / 'data/txn'},{self.storage}"
        run(
            *(JUDGE, "pull", "-m", self._name, "-u", self._source, "-w", url, "-r", upstream),
            *("-x", str(self._scratch), "-k", str(self._key), "-n", "2", "-t", "10", "-a", "2"),
            *("-R", str(self.checksum), *again),
        )
        now = datetime.now(UTC).strftime("%a %b %d %H:%M:%S UTC %Y")
        (self.storage / ".cvmfs_last_snapshot").write_text(f"{now}\n")


@contextmanager
def mounted(storage: Path, name: str, key: Path, folder: Path) -> Iterator[Mount]:
    """Mount the repository whose files are in `storage`; `folder` must be reachable for all."""
    with served(storage) as url:
        root, cache = folder / "mount", folder / "cache"
        for each in (root, cache):
            each.mkdir()
        configuration = folder / "client.conf"
        configuration.write_text(
            f"CVMFS_SERVER_URL={url}\n"
            f"CVMFS_PUBLIC_KEY={key}\n"
            "CVMFS_HTTP_PROXY=DIRECT\n"
            f"CVMFS_CACHE_BASE={cache}\n"
            f"CVMFS_RELOAD_SOCKETS={cache}\n"
            "CVMFS_QUOTA_LIMIT=2000\n"
            "CVMFS_NFILES=8192\n"
        )
        options = f"allow_other,uid=0,gid=0,config={configuration}"
        run(CLIENT, "-o", options, name, str(root))
        try:
            sockets = next(cache.rglob(f"cvmfs_io.{name}")).parent
            yield Mount(root, sockets, name)
        finally:
            subprocess.run(["umount", "--lazy", str(root)], check=True)
