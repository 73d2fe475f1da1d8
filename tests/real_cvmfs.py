"""The real CernVM-FS client and its tools, wherever they are installed.

No package of Debian brings them, so tests that need them are skipped where they are not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

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


def judge(storage: Path, name: str, key: Path, scratch: Path) -> None:
    """Have a repository checked by stock's own check, objects included."""
    scratch.mkdir(exist_ok=True)
    said = run(
        *(JUDGE, "check", "-c", "-r", str(storage), "-t", str(scratch)),
        *("-N", name, "-k", str(key), "-l", "2"),
    )
    assert "no problems found" in said, said


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def mounted(storage: Path, name: str, key: Path, folder: Path) -> Iterator[Mount]:
    """Mount the repository whose files are in `storage`; `folder` must be reachable for all."""
    handler = partial(_Quiet, directory=str(storage))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root, cache = folder / "mount", folder / "cache"
        for each in (root, cache):
            each.mkdir()
        configuration = folder / "client.conf"
        configuration.write_text(
            f"CVMFS_SERVER_URL=http://127.0.0.1:{server.server_port}\n"
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
            server.shutdown()
