"""A stand-in for a gateway and for `cvmfs_server` of the publishers that use it.

One process, started with `python -m tests.fakes.gateway`, plays all of it for any number of worlds.
A world is a folder:

    gateway/srv, keys   the repository, written by our native writer, served over HTTP
    gateway/tree        what is published, as files
    gateway/down        as long as it exists, the gateway cannot be reached
    gateway/forgets     as long as it exists, records of names get lost
    HOST/               what `make_host` leaves for a publisher: server.conf, spool/, the program
    HOST/mount          leads to `work` while a transaction is open, else to an empty folder
    HOST/faults.json    what is to go wrong, once each: {"publish:before": "exit 1"}
    HOST/log            the commands, one a line

The program hands its words over to that process and ends as it is told.  What the real ones do is
done here: a mount is brought up to the newest manifest *before* the lease is asked for; leases
overlap as the gateway's SQL has it (`LIKE`, so "_" is any letter and `.flat/ab` is in the way of
`.flat/abc`); a commit takes from the publisher's tree what is at or below the lease and differs
from what is published at that moment, so that disjoint leases merge and a stale base undoes what
others did; what was changed elsewhere is dropped without a word; pipes are, too.

Faults, after one `later` for each time to pass by: `exit N`, `kill parent`, `kill both`, `die`,
`hang`, `expire` (this host's leases), `wait` (touch `reached`, go on when `go` exists).

Sources: facts/cvmfs-format.md sections 11.1 and 11.4; cvmfs/publish/repository_transaction.cc,
repository_session.cc, repository_abort.cc, server/cvmfs_server_publish.sh,
receiver/catalog_merge_tool_impl.h, gateway/internal/gateway/backend (2.12).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socketserver
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.layers.tree import Directory, Tree, empty_tree
from cvmfs_publish.repository.base import Transaction
from cvmfs_publish.repository.folder import Folder, FolderView
from cvmfs_publish.repository.native.repository import NativeRepository
from tests.fakes.stock_server import publisher_of, write_server_conf

FLAG, LOCK, TOKEN = "in_transaction.lock", "is_publishing.lock", "session_token"
MARKER = ".cvmfscatalog"
SMALL = 20  # changes after which a mount is not made anew for every transaction
_PROGRAM = """#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/{port} || exit 1
printf '%s\\n' "{host}" "$PPID" "$$" "$*" >&3
read -r code <&3 || exit 1
cat <&3 >&2
exit "$code"
"""


def make_world(base: Path, name: str, keys: Path, now: int) -> None:
    """Make a gateway with an empty repository."""
    gateway = base / "gateway"
    shutil.copytree(keys, gateway / "keys")
    repository = NativeRepository(name, LocalStore(gateway / "srv"), gateway / "keys")
    repository.create(HashAlgorithm.SHA1, datetime.fromtimestamp(now, UTC))
    (gateway / "tree").mkdir()


def make_host(base: Path, host: str, name: str, now: int, web: int, port: int) -> Path:
    """Make a publisher of a world; return the program."""
    place = base / host
    (place / "spool/scratch/current").mkdir(parents=True)
    (place / "spool/rdonly").mkdir()
    (place / "idle").mkdir()
    (place / "mount").symlink_to("idle")
    (place / "clock").write_text(str(now))
    write_server_conf(
        place / "server.conf",
        name,
        spool=place / "spool",
        stratum0=f"http://127.0.0.1:{web}{base}/gateway/srv",
        upstream=f"gw,/srv/cvmfs/{name}/data/txn,http://127.0.0.1:4929/api/v1",
        keys=base / "gateway/keys",
    )
    program = place / "cvmfs_server"
    program.write_text(_PROGRAM.format(port=port, host=place))
    program.chmod(0o755)
    return program


class EndError(Exception):
    """The program ends here."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class Lease:
    path: str
    host: Path
    expires: float


@dataclass
class Gateway:
    """The gateway of one world."""

    base: Path
    lock: threading.Lock = field(default_factory=threading.Lock)
    leases: dict[str, Lease] = field(default_factory=dict)
    journal: list[set[str]] = field(default_factory=list)  # paths changed, commit by commit

    @property
    def tree(self) -> Path:
        return self.base / "gateway/tree"

    def repository(self, name: str) -> NativeRepository:
        place = self.base / "gateway"
        return NativeRepository(name, LocalStore(place / "srv"), place / "keys")

    def check_reachable(self, what: str, code: int = 1) -> None:
        if (self.base / "gateway/down").exists():
            raise EndError(f"Make lease {what} request failed: 7. cannot {what} lease", code)

    def acquire(self, path: str, host: Path) -> str:
        with self.lock:
            now = time.monotonic()
            for lease in self.leases.values():
                if _like(path, lease.path) or _like(lease.path, path):
                    left = lease.expires - now
                    if left > 0:
                        raise EndError(
                            f"Path busy. Time remaining = {left}s\n"
                            "CernVM-FS transaction error: lease path busy",
                            16,
                        )
            self.leases = {t: lease for t, lease in self.leases.items() if lease.expires > now}
            token = secrets.token_hex(16)
            self.leases[token] = Lease(path, host, now + 7200)
            return token

    def drop(self, token: str) -> bool:
        with self.lock:
            return self.leases.pop(token, None) is not None

    def expire(self, host: Path) -> None:
        with self.lock:
            for lease in self.leases.values():
                if lease.host == host:
                    lease.expires = 0.0

    def commit(self, token: str, name: str, work: Path, now: int) -> None:
        with self.lock:
            lease = self.leases.get(token)
            if lease is None or lease.expires <= time.monotonic():
                reply = json.dumps({"reason": "invalid lease", "status": "error"})
                raise EndError(f"Lease end request - error reply: {reply}\n" + "more\n" * 20, 1)
            changes = list(find_changes(work, self.tree, lease.path.strip("/")))
            if (self.base / "gateway/forgets").exists():
                changes = [path for path in changes if not path.endswith("publication.json")]
            repository = self.repository(name)
            with repository.transaction(max(now, repository.manifest().timestamp)) as transaction:
                for path in changes:
                    carry_over(transaction, work, path)
            for path in changes:
                copy_entry(work, self.tree, path)
            self.journal.append(set(changes))
            del self.leases[token]


def _like(path: str, prefix: str) -> bool:
    """Whether `path LIKE prefix || '%'` holds."""
    pattern = "".join({"_": ".", "%": ".*"}.get(letter, re.escape(letter)) for letter in prefix)
    return re.match(pattern, path, re.IGNORECASE | re.DOTALL) is not None


# trees


def find_changes(new: Path, old: Path, path: str) -> Iterator[str]:
    """Yield what differs at and below a path: removed, new or other entries, whole trees."""
    here, there = _stat(new / path), _stat(old / path)
    if here is None or not stat.S_ISDIR(here.st_mode):
        if here is not None and stat.S_ISFIFO(here.st_mode):
            return
        if not _is_same(new / path, old / path, here, there):
            yield path
        return
    is_there = there is not None and stat.S_ISDIR(there.st_mode)
    if path and is_tree(new / path):
        if not is_there or _listing(new / path) != _listing(old / path):
            yield path
        return
    if not is_there:
        yield path
    names = {*os.listdir(new / path), *(os.listdir(old / path) if is_there else ())}
    for name in sorted(names - {MARKER}):
        yield from find_changes(new, old, f"{path}/{name}".lstrip("/"))


def is_tree(path: Path) -> bool:
    """Whether a directory is the top of an image: its time was set."""
    found = _stat(path / MARKER)
    return found is not None and path.stat().st_mtime_ns % 1_000_000_000 == 0


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_same(
    new: Path, old: Path, here: os.stat_result | None, there: os.stat_result | None
) -> bool:
    if here is None or there is None or here.st_mode != there.st_mode:
        return here is there is None
    if stat.S_ISLNK(here.st_mode):
        return os.readlink(new) == os.readlink(old)
    return here.st_size == there.st_size and new.read_bytes() == old.read_bytes()


def _listing(top: Path) -> list[str]:
    found = []
    for path in sorted([top, *top.rglob("*")]):
        status = path.lstat()
        text = f"{path.relative_to(top)} {status.st_mode} {status.st_mtime} {status.st_uid}"
        if stat.S_ISREG(status.st_mode):
            text += repr(path.read_bytes())
        elif stat.S_ISLNK(status.st_mode):
            text += os.readlink(path)
        found.append(text)
    return found


def copy_entry(source: Path, target: Path, path: str) -> None:
    """Make what is at a path the same in both; of a directory that is no tree, itself alone."""
    old, new = target / path, source / path
    here, there = _stat(new), _stat(old)
    if here is not None and stat.S_ISDIR(here.st_mode) and not is_tree(new):
        if there is not None and not stat.S_ISDIR(there.st_mode):
            old.unlink()
        old.mkdir(exist_ok=True)
        if (new / MARKER).exists():
            (old / MARKER).touch()
        return
    if there is not None and stat.S_ISDIR(there.st_mode):
        shutil.rmtree(old)
    elif there is not None:
        old.unlink()
    if here is not None:
        _copy(new, old, here)


def _copy(new: Path, old: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        old.mkdir()
        for entry in os.scandir(new):
            _copy(new / entry.name, old / entry.name, entry.stat(follow_symlinks=False))
    elif stat.S_ISLNK(status.st_mode):
        old.symlink_to(os.readlink(new))
    elif stat.S_ISREG(status.st_mode):
        old.write_bytes(new.read_bytes())
    else:
        return
    os.chown(old, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        old.chmod(stat.S_IMODE(status.st_mode))
    os.utime(old, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)


def carry_over(transaction: Transaction, work: Path, path: str) -> None:
    """Change one entry of the repository to what it is in a tree of files."""
    view = FolderView(Folder(work))
    node = view.node(path)
    if node is None:
        transaction.remove(path)
    elif node.is_symlink:
        if transaction.is_directory(path):
            transaction.remove(path)
        transaction.put_symlink(path, node.target)
    elif node.is_file:
        if transaction.is_directory(path):
            transaction.remove(path)
        transaction.put_file(path, (work / path).read_bytes())
    elif is_tree(work / path):
        transaction.put_tree(path, read_tree(transaction, view, path))
    else:
        if not transaction.is_directory(path):
            transaction.remove(path)
        transaction.make_directories(path, [path] if (work / path / MARKER).exists() else [])


def read_tree(transaction: Transaction, view: FolderView, top: str) -> Tree:
    copy: Tree = empty_tree()
    root = view.node(top)
    assert root is not None
    copy.root = Directory(root)
    folders = {"": copy.root}
    for path, node in view.walk(top):
        parent, _, own = path.rpartition("/")
        if node.is_dir:
            folders[path] = Directory(node)
            folders[parent].children[own] = folders[path]
        elif node.is_file:
            data = b"".join(view.iter_content(f"{top}/{path}", node))
            folders[parent].children[own] = node._replace(content=transaction.store(data))
        elif node.is_symlink:
            folders[parent].children[own] = node
    return copy


# publishers


@dataclass
class Host:
    """One publisher."""

    place: Path
    gateway: Gateway
    seen: int = 0  # so many commits the mount shows
    dirty: set[str] = field(default_factory=set)  # what is not as it was in any of them

    @property
    def flag(self) -> Path:
        return self.place / "spool" / FLAG

    @property
    def token(self) -> Path:
        return self.place / "spool" / TOKEN

    @property
    def work(self) -> Path:
        return self.place / "work"

    def show(self, name: str) -> None:
        link = self.place / "mount.new"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        link.replace(self.place / "mount")

    def remount(self, name: str) -> None:
        """Show what is published now."""
        with self.gateway.lock:
            manifest = self.gateway.repository(name).manifest()
            changes = self.gateway.journal[self.seen :]
            if len(self.gateway.journal) < SMALL or not self.work.exists():
                shutil.rmtree(self.work, ignore_errors=True)
                _copy(self.gateway.tree, self.work, self.gateway.tree.stat())
            else:
                for path in sorted(self.dirty.union(*changes)):
                    if (self.work / path).parent.is_dir():
                        copy_entry(self.gateway.tree, self.work, path)
            self.seen, self.dirty = len(self.gateway.journal), set()
        root, pinned = str(manifest.root_hash), ""
        try:
            os.setxattr(self.place / "spool/rdonly", "user.root_hash", root.encode())
        except OSError:  # not on this file system
            pinned = f"CVMFS_ROOT_HASH={root}\n"
        (self.place / "spool/client.local").write_text(pinned)

    @contextmanager
    def publishing(self) -> Iterator[None]:
        path = self.place / "spool" / LOCK
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        end = time.monotonic() + 2  # until it is noticed here that a program was killed
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    os.close(descriptor)
                    raise EndError("Another publish process is active", 1) from None
                time.sleep(0.01)
            else:
                break
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)


class Command:
    """One run of the program."""

    def __init__(self, host: Host, parent: int, own: int, words: list[str]) -> None:
        self.host = host
        self.parent = parent
        self.own = own
        self.words = words

    def run(self) -> None:
        if not self.words:
            raise EndError("CernVM-FS Server Tool 2.12.0-1\n\nUsage: cvmfs_server COMMAND", 2)
        with (self.host.place / "log").open("a") as log:
            log.write(" ".join(self.words) + "\n")
        commands: dict[str, Callable[[], None]] = {
            "transaction": self.transaction,
            "publish": self.publish,
            "abort": self.abort,
        }
        if self.words[0] not in commands:
            raise EndError("unknown command", 2)
        self.fault(f"{self.words[0]}:before")
        commands[self.words[0]]()
        self.fault(f"{self.words[0]}:after")

    def fault(self, place: str) -> None:
        """Do what is to go wrong here, once."""
        path = self.host.place / "faults.json"
        faults: dict[str, str] = {}
        with suppress(FileNotFoundError):
            faults = json.loads(path.read_text())
        what = faults.pop(place, "")
        if not what:
            return
        later = what.startswith("later ")
        if later:  # not this time
            faults[place] = what.removeprefix("later ")
        path.write_text(json.dumps(faults))
        if later:
            return
        if what.startswith("exit"):
            raise EndError(f"told to fail at {place}", int(what.split()[1]))
        if what in ("kill parent", "kill both"):
            os.kill(publisher_of(self.parent), signal.SIGKILL)
        if what in ("die", "kill both"):
            os.kill(self.own, signal.SIGKILL)
            raise EndError("killed", 137)
        if what == "expire":
            self.host.gateway.expire(self.host.place)
        if what == "hang":
            self.wait_for(lambda: not _is_alive(self.own))
            raise EndError("killed", 137)
        if what == "wait":
            (self.host.place / "reached").touch()
            self.wait_for((self.host.place / "go").exists)
            (self.host.place / "go").unlink()

    @staticmethod
    def wait_for(condition: Callable[[], bool]) -> None:
        while not condition():
            time.sleep(0.005)

    def transaction(self) -> None:
        host, gateway = self.host, self.host.gateway
        name, _, path = self.words[-1].partition("/")
        host.remount(name)
        self.fault("mounted")
        if host.flag.exists():
            raise EndError("CernVM-FS transaction error: another transaction is already open", 17)
        host.flag.touch()
        self.fault("opening")
        if not host.token.exists():
            try:
                gateway.check_reachable("acquire")
                token = gateway.acquire(f"/{path}", host.place)
            except EndError:
                host.flag.unlink()
                raise
            self.fault("leased")
            host.token.write_text(token)
        self.fault("opened")
        parent = host.work / path.rpartition("/")[0]
        if not parent.is_dir():
            gateway.drop(host.token.read_text())
            host.token.unlink()
            host.flag.unlink()
            code = 2 if _stat(parent) is None else 20
            raise EndError(f"cannot open transaction on non-existing path /{path}", code)
        host.show("work")

    def publish(self) -> None:
        host, gateway = self.host, self.host.gateway
        if not host.flag.exists():
            raise EndError("Repository is not in a transaction", 1)
        with host.publishing():
            self.fault("publishing")
            gateway.check_reachable("commit")
            token = host.token.read_text() if host.token.exists() else "INVALIDTOKEN"
            lease = gateway.leases.get(token)
            clock = int(time.time())
            with suppress(FileNotFoundError):
                clock = int((host.place / "clock").read_text())
            gateway.commit(token, self.words[-1], host.work, clock)
            self.fault("committed")
            if lease is not None:
                host.dirty |= {lease.path.strip("/"), *gateway.journal[-1]}
            self.close()

    def abort(self) -> None:
        host = self.host
        if self.words[1] != "-f":
            raise EndError("not confirmed", 4)
        with host.publishing():
            if host.token.exists():
                host.gateway.check_reachable("drop", 5)
                host.gateway.drop(host.token.read_text())  # `-f`: an invalid one does not matter
                host.token.unlink()
            if not host.flag.exists():
                raise EndError("Repository is not in a transaction", 22)
            host.dirty |= set(find_changes(host.work, host.gateway.tree, ""))
            self.close()

    def close(self) -> None:
        self.host.show("idle")
        self.host.token.unlink(missing_ok=True)
        self.host.flag.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# serving


class Worlds:
    """All worlds that this process has met."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gateways: dict[Path, Gateway] = {}
        self._hosts: dict[Path, Host] = {}

    def host(self, place: Path) -> Host:
        with self._lock:
            gateway = self._gateways.setdefault(place.parent, Gateway(place.parent))
            return self._hosts.setdefault(place, Host(place, gateway))


class Commands(socketserver.ThreadingTCPServer):
    daemon_threads = True
    worlds = Worlds()


class Runner(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        place, parent, own, words = (self.rfile.readline().decode().strip() for _ in range(4))
        host = Commands.worlds.host(Path(place))
        command = Command(host, int(parent), int(own), words.split())
        try:
            command.run()
            reply = "0\n"
        except EndError as error:
            reply = f"{error.code}\n{error}\n"
        with suppress(OSError):
            self.wfile.write(reply.encode())


class Files(BaseHTTPRequestHandler):
    """A web server of plain files."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        try:
            data = Path(self.path).read_bytes()
        except OSError:
            self.send_response_only(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n"
        self.wfile.write(head.encode() + data)


class Web(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def main() -> None:
    web = Web(("127.0.0.1", 0), Files)
    commands = Commands(("127.0.0.1", 0), Runner)
    for server in (web, commands):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{web.server_address[1]} {commands.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()  # until whoever started it ends


if __name__ == "__main__":
    main()
