"""A stand-in for `cvmfs_server`: a program that behaves like the real one, fault by fault.

It keeps a real repository, written by our native writer, below a folder that stands for the host:

    server.conf        what `cvmfs_server mkfs` leaves in /etc/cvmfs/repositories.d/NAME
    srv/  keys/        the storage and its keys
    spool/             /var/spool/cvmfs/NAME with the flags and locks of the real one
    mount              /cvmfs/NAME: leads to the published tree or, in a transaction, to a copy
    views/N            the tree of revision N; a write without a transaction is noticed
    work               that copy, standing for the overlay
    clock              the time of this host, if it has one of its own
    version            what the program says of itself, if not 2.12.0-1
    faults.json        what is to go wrong: {"publish:before": "exit 1", "transaction:after": …}
    log                the commands, one a line

Faults: `exit N`, `kill parent` (the publisher, then go on), `kill both`, `hang`, `die` (itself).
Like the real one it keeps times in whole seconds and no extended attributes.

Source: facts/cvmfs-format.md sections 11.1 to 11.5.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FLAG, LOCK = "in_transaction.lock", "is_publishing.lock"
ROOT = Path(__file__).resolve().parents[2]


def make_host(base: Path, name: str, keys: Path, now: int) -> Path:
    """Make a host with an empty repository; return the program."""
    from datetime import UTC, datetime

    from cvmfs_publish.content.hashes import HashAlgorithm
    from cvmfs_publish.content.local import LocalStore
    from cvmfs_publish.repository.native.repository import NativeRepository

    shutil.copytree(keys, base / "keys")
    repository = NativeRepository(name, LocalStore(base / "srv"), base / "keys")
    repository.create(HashAlgorithm.SHA1, datetime.fromtimestamp(now, UTC))
    (base / "spool/scratch/current").mkdir(parents=True)
    (base / "views/1").mkdir(parents=True)
    (base / "mount").symlink_to("views/1")
    (base / "clock").write_text(str(now))
    write_server_conf(
        base / "server.conf",
        name,
        spool=base / "spool",
        stratum0=f"http://localhost/cvmfs/{name}",
        upstream=f"local,{base}/srv/data/txn,{base}/srv",
        keys=base / "keys",
    )
    program = base / "cvmfs_server"
    program.write_text(
        f"#!{sys.executable} -IS\nimport sys\nsys.path[:0] = {[str(ROOT), *sys.path]!r}\n"
        f"from tests.fakes.stock_server import main\nmain({str(base)!r}, sys.argv[1:])\n"
    )
    program.chmod(0o755)
    return program


def write_server_conf(
    path: Path, name: str, *, spool: Path, stratum0: str, upstream: str, keys: Path
) -> None:
    """Write what `cvmfs_server mkfs` writes of a repository."""
    values = {
        "CVMFS_CREATOR_VERSION": "143",
        "CVMFS_REPOSITORY_NAME": name,
        "CVMFS_REPOSITORY_TYPE": "stratum0",
        "CVMFS_USER": "root",
        "CVMFS_SPOOL_DIR": str(spool),
        "CVMFS_STRATUM0": stratum0,
        "CVMFS_UPSTREAM_STORAGE": upstream,
        "CVMFS_USE_FILE_CHUNKING": "true",
        "CVMFS_HASH_ALGORITHM": "sha1",
        "CVMFS_COMPRESSION_ALGORITHM": "default",
        "CVMFS_AUTO_TAG": "false",
        "CVMFS_GARBAGE_COLLECTION": "true",
        "CVMFS_INCLUDE_XATTRS": "false",
        "CVMFS_KEYS_DIR": str(keys),
    }
    path.write_text("".join(f"{key}={value}\n" for key, value in values.items()))


class Host:
    """What one command works on."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.flag = base / "spool" / FLAG
        self.work = base / "work"

    def now(self) -> int:
        with suppress(FileNotFoundError):
            return int((self.base / "clock").read_text())
        return int(time.time())

    def version(self) -> str:
        with suppress(FileNotFoundError):
            return (self.base / "version").read_text()
        return "2.12.0-1"

    def fault(self, place: str) -> None:
        """Do what is to go wrong here, once."""
        path = self.base / "faults.json"
        with suppress(FileNotFoundError):
            faults: dict[str, str] = json.loads(path.read_text())
            what = faults.pop(place, "")
            if what:
                path.write_text(json.dumps(faults))
            if what.startswith("exit"):
                fail(f"told to fail at {place}", int(what.split()[1]))
            if what in ("kill parent", "kill both"):
                os.kill(publisher_of(os.getppid()), signal.SIGKILL)
            if what in ("die", "kill both"):
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "hang":
                time.sleep(3600)

    # the mount

    def view(self) -> Path:
        """Return the published tree."""
        (newest,) = sorted((self.base / "views").iterdir(), key=lambda path: int(path.name))[-1:]
        return newest

    def show(self, tree: Path) -> None:
        link = self.base / "mount.new"
        link.unlink(missing_ok=True)
        link.symlink_to(tree.relative_to(self.base))
        link.replace(self.base / "mount")

    def open(self) -> None:
        try:
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            fail("another transaction is already open", 17)
        self.fault("opening")
        view = self.view()
        sealed = self.base / f"seal-{view.name}"
        if sealed.exists() and sealed.read_text() != fingerprint(view):
            fail("somebody wrote into the read-only mount", 5)
        shutil.rmtree(self.work, ignore_errors=True)
        subprocess.run(["cp", "-a", str(view), str(self.work)], check=True)
        self.show(self.work)

    def close(self) -> None:
        self.show(self.view())
        shutil.rmtree(self.work, ignore_errors=True)
        self.flag.unlink()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        path = self.base / "spool" / LOCK
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail("another publish is running", 1)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def publish(self, name: str) -> None:
        with self.publishing():
            self.fault("publishing")
            whole_seconds(self.work)
            number = write_revision(self.base, name, self.work, self.now())
            self.fault("published")
            target = self.base / "views" / str(number)
            shutil.rmtree(target, ignore_errors=True)
            self.work.rename(target)
            (self.base / f"seal-{number}").write_text(fingerprint(target))
            self.show(target)
            self.flag.unlink()


def publisher_of(pid: int) -> int:
    """Return who had the program run, by way of a shell."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def write_revision(base: Path, name: str, tree: Path, now: int) -> int:
    """Publish a tree of files with the native writer; return the revision."""
    from cvmfs_publish.content.local import LocalStore
    from cvmfs_publish.layers.tree import Directory, Tree, empty_tree
    from cvmfs_publish.repository.folder import Folder, FolderView
    from cvmfs_publish.repository.native.repository import NativeRepository

    repository = NativeRepository(name, LocalStore(base / "srv"), base / "keys")
    view = FolderView(Folder(tree))
    now = max(now, repository.manifest().timestamp)
    before = repository.revision().number
    with repository.transaction(now) as transaction:
        present = sorted(os.listdir(tree))
        for old, _ in transaction.list_names(""):
            if old not in present:
                transaction.remove(old)
        for top in present:
            node = view.node(top)
            assert node is not None
            if node.is_symlink:
                transaction.put_symlink(top, node.target)
            elif node.is_file:
                transaction.put_file(top, (tree / top).read_bytes())
            else:
                copy: Tree = empty_tree()
                copy.root = Directory(node)
                folders = {"": copy.root}
                for path, below in view.walk(top):
                    parent, _, own = path.rpartition("/")
                    if below.is_dir:
                        folders[path] = Directory(below)
                        folders[parent].children[own] = folders[path]
                        continue
                    kept = below
                    if below.is_file:
                        data = b"".join(view.iter_content(f"{top}/{path}", below))
                        kept = below._replace(content=transaction.store(data))
                    folders[parent].children[own] = kept
                transaction.put_tree(top, copy)
    after = repository.revision().number
    return after if after != before else before + 1


def whole_seconds(tree: Path) -> None:
    for path in [tree, *tree.rglob("*")]:
        seconds = path.lstat().st_mtime_ns // 1_000_000_000
        os.utime(path, (seconds, seconds), follow_symlinks=False)
        if not path.is_symlink():
            for attribute in os.listxattr(path):
                os.removexattr(path, attribute)


def fingerprint(tree: Path) -> str:
    found = []
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        found.append(f"{path.relative_to(tree)!r} {status.st_mode} {status.st_size}")
    return "\n".join(found)


def fail(text: str, code: int) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    os._exit(code)


# commands


def transaction(host: Host, words: list[str]) -> None:
    host.open()


def publish(host: Host, words: list[str]) -> None:
    if not host.flag.exists():
        fail("Repository is not in a transaction", 1)
    host.publish(words[-1])


def abort(host: Host, words: list[str]) -> None:
    if words[0] != "-f":
        fail("not confirmed", 4)
    if not host.flag.exists():
        fail("not in a transaction", 22)
    with host.publishing():
        host.close()


def ingest(host: Host, words: list[str]) -> None:
    assert words[:3] == ["-t", "-", "-b"]
    assert words[4:6] == ["-c", "-k"]
    base, name = words[3], words[6]
    if host.flag.exists():
        fail(f"Repository {name} is already in a transaction", 1)
    host.open()
    target = host.work / base
    target.mkdir(parents=True)
    folders = []
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            path = target / member.name
            if os.path.lexists(path):
                fail(f"{member.name}: UNIQUE constraint failed", 134)
            if member.isdir():
                path.mkdir()
                folders.append((path, member))
                continue
            if member.issym():
                path.symlink_to(member.linkname)
            elif member.isfifo():
                os.mkfifo(path)
            else:
                source = archive.extractfile(member)
                assert source is not None
                path.write_bytes(source.read())
            finish(path, member)
    for path, member in reversed(folders):
        finish(path, member)
    (target / ".cvmfscatalog").touch()
    host.fault("ingested")
    host.publish(name)


def finish(path: Path, member: tarfile.TarInfo) -> None:
    os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not stat.S_ISLNK(path.lstat().st_mode):
        path.chmod(member.mode)
    seconds = int(member.mtime // 1)
    os.utime(path, (seconds, seconds), follow_symlinks=False)


COMMANDS: dict[str, Callable[[Host, list[str]], None]] = {
    "transaction": transaction,
    "publish": publish,
    "abort": abort,
    "ingest": ingest,
}


def main(base: str, words: list[str]) -> None:
    host = Host(Path(base))
    if not words:
        fail(f"CernVM-FS Server Tool {host.version()}\n\nUsage: cvmfs_server COMMAND", 2)
    with (host.base / "log").open("a") as log:
        log.write(" ".join(words) + "\n")
    if words[0] not in COMMANDS:
        fail("unknown command", 2)
    host.fault(f"{words[0]}:before")
    COMMANDS[words[0]](host, words[1:])
    host.fault(f"{words[0]}:after")
