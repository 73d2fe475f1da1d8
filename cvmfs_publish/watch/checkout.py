"""Read files out of a git repository: one shallow fetch of one branch, and nothing is checked out.

So no hook, filter or submodule of the repository means anything, no link in it leads anywhere, and
no file of it is ever on this disk under its own name.  git itself asks nobody for a password and
reads no configuration of the user; a repository that needs a login cannot be read.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from cvmfs_publish.errors import InputError, RemoteError
from cvmfs_publish.watch.programs import Ran, run_program, words

TIMEOUT = timedelta(minutes=2)
MAX_PACK_BLOCKS = 1024 * 1024  # of 512 bytes: what git may write into one file, 512 MiB
# What a site's network may need git to know
PASSED = (
    *("http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY"),
    *("GIT_SSL_CAINFO", "SSL_CERT_FILE"),
)

_URL = re.compile(
    r"git\+((https|http|file)://(?:(?!//)[A-Za-z0-9./_~:\[\]%+-])*?)"
    r"(?://([A-Za-z0-9._+][A-Za-z0-9./_+-]*))?(?:@([A-Za-z0-9_][A-Za-z0-9._/-]*))?"
)
_LISTED = re.compile(rb"([0-7]{6}) ([a-z]+) ([0-9a-f]{40,64}) +([0-9]+|-)\t(.*)", re.DOTALL)
_PLAIN_FILES = (b"100644", b"100755")


class GitAddress(NamedTuple):
    """A file or folder in a git repository: git+https://HOST/REPOSITORY//PATH@BRANCH."""

    repository: str  # URL
    path: str  # "" is the whole tree
    ref: str  # branch or tag; "" is the repository's own choice
    protocol: str

    @classmethod
    def parse(cls, text: str) -> GitAddress:
        """Raise `InputError` for what is no such address, or leads out of the repository."""
        match = _URL.fullmatch(text)
        parts = (match[3] or "").split("/") if match else []
        if match is None or ".." in parts or ".." in (match[4] or "") or "/" not in match[1][8:]:
            raise InputError(
                f"{text[:200]!r} is not the address of a file in a git repository",
                hint="write git+https://HOST/REPOSITORY.git//PATH@BRANCH",
            )
        return cls(match[1], "/".join(filter(None, parts)), match[4] or "HEAD", match[2])

    def of_file(self, name: str) -> str:
        """Return the address of a file in this folder, for people."""
        path = f"{self.path}/{name}" if self.path else name
        return f"git+{self.repository}//{path}" + (f"@{self.ref}" if self.ref != "HEAD" else "")


class Blob(NamedTuple):
    """A plain file in a tree."""

    name: str
    object_id: str
    size: int


@dataclass(frozen=True, slots=True)
class Checkout:
    """A bare repository of our own that holds the last state of somebody else's branch."""

    address: GitAddress
    folder: Path
    environ: Mapping[str, str] = field(default_factory=dict)  # of PASSED
    timeout: timedelta = TIMEOUT

    def fetch(self) -> str:
        """Fetch what the branch is now; return the commit.

        Raises `RemoteError`; what was fetched before is then gone as well, which costs one fetch.
        """
        try:
            if not (self.folder / "HEAD").exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                self._git("init", "--quiet", "--bare", "--template=", str(self.folder))
            self._git(
                *("fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules"),
                *("--no-auto-gc", "--force", "--", self.address.repository),
                f"{self.address.ref}:refs/heads/list",
            )
            return self._git("rev-parse", "refs/heads/list^{commit}").decode("ascii").strip()
        except (RemoteError, OSError) as exc:
            shutil.rmtree(self.folder, ignore_errors=True)
            if isinstance(exc, OSError):
                raise RemoteError(f"{self.address.repository}: {exc.strerror or exc}") from exc
            raise

    def find_file(self, commit: str) -> Blob | None:
        """Return the file that the address names; None if it is a folder.

        Raises `RemoteError` if there is no such path in the repository.
        """
        if not self.address.path:
            return None
        found = list(self._listed(commit, "--", self.address.path))
        if not found:
            raise RemoteError(
                f"{self.address.repository} has no {self.address.path} in {self.address.ref}",
                hint="is the path behind // right?",
            )
        mode, blob = found[0]
        if mode == b"040000":
            return None
        if mode not in _PLAIN_FILES:
            raise RemoteError(f"{self.address.path} in {self.address.repository} is no plain file")
        return blob

    def files(self, commit: str) -> list[Blob]:
        """Return the plain files that lie in the folder of the address."""
        tree = f"{commit}:{self.address.path}"
        return [blob for mode, blob in self._listed(tree) if mode in _PLAIN_FILES]

    def read(self, blob: Blob) -> bytes:
        return self._git("cat-file", "blob", blob.object_id)

    def _listed(self, tree: str, *arguments: str) -> Iterator[tuple[bytes, Blob]]:
        for line in self._git("ls-tree", "-z", "--long", tree, *arguments).split(b"\0"):
            match = _LISTED.fullmatch(line)
            if match is not None:
                size = int(match[4]) if match[4] != b"-" else 0
                name = match[5].decode("utf-8", "surrogateescape")
                yield match[1], Blob(name, match[3].decode("ascii"), size)

    def _git(self, *arguments: str) -> bytes:
        command = [
            *("git", "-c", "core.hooksPath=/dev/null", "-c", "credential.helper="),
            *("-c", "fetch.fsckObjects=true", "-c", "transfer.bundleURI=false"),
            *("-c", "core.fsync=none", "-c", "gc.auto=0", "-c", "http.followRedirects=initial"),
        ]
        if arguments[0] != "init":
            command.append(f"--git-dir={self.folder}")
        ran = run_program(
            ["sh", "-c", f'ulimit -f {MAX_PACK_BLOCKS}; exec "$@"', "sh", *command, *arguments],
            environ=self._environment(),
            timeout=self.timeout,
            subject=self.address.repository,
        )
        if ran.code != 0:
            message = f"{self.address.repository}: {_reason(ran)}"
            raise RemoteError(message, hint=_hint(ran.said))
        return ran.out

    def _environment(self) -> dict[str, str]:
        return {
            **{name: self.environ[name] for name in PASSED if name in self.environ},
            "PATH": os.defpath,
            "LC_ALL": "C",
            "HOME": str(self.folder),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "false",
            "GIT_ALLOW_PROTOCOL": self.address.protocol,
        }


def _reason(ran: Ran) -> str:
    """Return the lines in which git says what is wrong, of all it says."""
    lines = ran.said.splitlines()
    told = [line for line in lines if line.startswith((b"fatal:", b"error:", b"remote:", b"sh:"))]
    shown = words(b" ".join((told or lines)[:2]))
    return f"git failed: {shown}" if shown else f"git ended with {ran.code}"


def _hint(said: bytes) -> str:
    if b"dubious ownership" in said:
        return "the repository belongs to another user than the one who reads it"
    if b"not found: did you" in said or b"command not found" in said or b"git: not found" in said:
        return "install git"
    if b"terminal prompts disabled" in said or b"could not read Username" in said:
        return "only repositories that need no login can be read"
    return "is the address right?"
