"""`cvmfs-fetch` and the jobs it rescues: CernVM-FS is away, mirrors lie, downloaders are killed.

As an unprivileged user, with real curl, wget, flock, tar and runtimes; only the mirror is ours.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from cvmfs_publish.settings import parse
from cvmfs_publish.sites.data import templates_dir
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.render import render_site
from cvmfs_publish.sites.writing import write_site
from tests.fakes.mirror import Mirror, running_mirror
from tests.images import push, tiny_image
from tests.parts import (
    docker_registry,
    popen_as_test_user,
    require,
    run_as_test_user,
    test_user,
)

pytestmark = pytest.mark.parts

T = TypeVar("T")
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "ash"]}
IMAGE = "docker.io/library/small:1"
SECONDS = 10  # until a test gives up waiting for something that should take a moment
TOOLS = (
    *("sh", "ls", "id", "mkdir", "rm", "mv", "ln", "readlink", "cat", "head", "tail", "tr", "wc"),
    *("df", "du", "od", "date", "touch", "chmod", "sync", "sleep", "sha256sum", "timeout", "find"),
    *("grep", "tar", "gzip"),
)


def archive(image: Mapping[str, bytes], *, mode: int = 0o755) -> bytes:
    """Return a tree as the publisher packs it; `mode` is that of its directories."""
    packed = io.BytesIO()
    folders = sorted({str(parent) for name in image for parent in Path(name).parents})
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for folder in folders:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            tar.addfile(entry)
        for name, data in image.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o4755
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def line(data: bytes, name: str = IMAGE, *, unpacked: int = 4_000_000, kind: str = "tar.gz") -> str:
    """Return the line of the list of fallback images."""
    digest = hashlib.sha256(data).hexdigest()
    some = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
    return f"{name} {some} {some} {kind} {digest} {len(data)} {unpacked} {digest}.{kind}\n"


@dataclass(frozen=True)
class Node:
    """A node without CernVM-FS: an empty mount folder, a cache as open as /tmp, a rendered site."""

    root: Path
    mirror: Mirror
    data: bytes

    @property
    def top(self) -> Path:
        return self.root / "cache"

    @property
    def cache(self) -> Path:
        return self.top / str(test_user().uid)

    @property
    def key(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def tree(self) -> Path:
        return self.cache / f"{self.key}.tree"

    @property
    def fetcher(self) -> Path:
        return self.root / "site" / "bin" / "cvmfs-fetch"

    def configure(self, *manners: str, listed: str | None = None, **settings: object) -> None:
        """Render the site anew: mirrors of these manners, and settings of `fallback`."""
        values = {
            "chain": "[cache, mirror]",
            "cache_dir": self.top,
            "mirrors": f"[{', '.join(map(self.mirror.url, manners or ['good']))}]",
            "jitter": "0s",
            **settings,
        }
        text = "".join(f"  {name}: {value}\n" for name, value in values.items())
        site = parse(
            Site,
            f"name: test\ncvmfs: {self.root}/cvmfs\nrepositories: [{{name: images.example.org}}]\n"
            f"fallback:\n{text}",
            "test.yaml",
        )
        shutil.rmtree(self.root / "site", ignore_errors=True)
        write_site(render_site(site, templates_dir()), self.root / "site")
        listed = line(self.data) if listed is None else listed
        (self.root / "site" / "etc" / "fallback.txt").write_text(listed)

    def fetch(
        self, *words: str, shell: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        argv = [*shell, str(self.fetcher), *(words or [IMAGE])]
        return run_as_test_user(argv, env=env, cwd=self.root)

    def start(self, *argv: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        return popen_as_test_user(
            argv or [self.fetcher, IMAGE],
            env=env,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def leftovers(self) -> list[str]:
        """Return what only a download in progress may have in the cache."""
        return [path.name for path in self.cache.iterdir() if path.name.startswith(".")]

    def holder(self) -> tuple[int, int]:
        """Wait for a download and return the numbers of its process and of its curl."""

        def found() -> tuple[int, int] | None:
            for child in self.cache.glob(".tmp.*/child"):
                words = child.read_text().split()
                if len(words) == 2 and Path(f"/proc/{words[0]}").exists():
                    return int(child.parent.name.split(".")[-2]), int(words[0])
            return None

        return until(found)


def until(look: Callable[[], T | None]) -> T:
    """Return what `look` sees as soon as it sees something."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            seen = look()
        except FileNotFoundError:
            seen = None
        if seen:
            return seen
        time.sleep(0.01)
    pytest.fail("what the test waits for does not come")


@pytest.fixture(scope="module")
def data() -> bytes:
    """Return an artefact whose files are large enough to be downloaded in pieces."""
    busybox = require("busybox").read_bytes()
    image = {"bin/busybox": busybox, "bin/sh": busybox, "marker": b"inside\n", "dev/x": b""}
    image |= {f"{root}/.keep": b"" for root in ("proc", "sys", "tmp", "var/tmp", "nfs")}
    image |= {f"etc/{name}": b"" for name in ("passwd", "group", "hosts", "resolv.conf")}
    return archive(image, mode=0o700)


@pytest.fixture(scope="module")
def mirrors(data: bytes) -> Iterator[Mirror]:
    with running_mirror({f"{hashlib.sha256(data).hexdigest()}.tar.gz": data}) as mirror:
        yield mirror


@pytest.fixture
def node(mirrors: Mirror, data: bytes) -> Iterator[Node]:
    require("curl")
    mirrors.reset()
    with tempfile.TemporaryDirectory(prefix="fetch-", dir="/var/tmp") as folder:
        node = Node(Path(folder), mirrors, data)
        node.root.chmod(0o755)
        (node.root / "cvmfs").mkdir()
        node.top.mkdir()
        node.top.chmod(0o1777)
        node.configure()
        yield node


def failure(result: subprocess.CompletedProcess[bytes]) -> tuple[int, str]:
    """Return status and cause of a fetch that ended with a message, its last line."""
    assert result.stdout == b"", result
    last = result.stderr.decode().splitlines()[-1]
    assert last.startswith("cvmfs-fetch: class="), result
    fields = dict(word.split("=", 1) for word in last.split(" hint=")[0].split()[1:])
    assert fields["code"] == str(result.returncode), result
    return result.returncode, fields["cause"]


def tools_without(folder: Path, *left_out: str, **others: str) -> dict[str, str]:
    """Return an environment whose PATH has `TOOLS`, less `left_out`, and `others` as scripts."""
    folder.mkdir()
    for name in TOOLS:
        if name not in left_out:
            (folder / name).symlink_to(require(name))
    for name, script in others.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


# ---------------------------------------------------------------- one download


@pytest.mark.parametrize("shell", SHELLS)
def test_a_copy_is_made_once_and_readable_for_all(node: Node, shell: str) -> None:
    for _ in range(2):
        result = node.fetch("small:1", shell=SHELLS[shell])
        assert (result.stdout.decode(), result.stderr) == (f"{node.tree}\n", b"")
    assert node.mirror.asked == ["good"]
    assert (node.tree / "marker").read_text() == "inside\n"
    assert (node.tree / "nfs").stat().st_mode & 0o7777 == 0o755  # it was 0700
    assert (node.tree / "bin" / "sh").stat().st_mode & 0o7777 == 0o755  # it was setuid
    assert node.cache.stat().st_mode & 0o7777 == 0o700
    assert node.leftovers() == []


def waiting(lock: Path) -> int:
    """Return how many processes wait for this flock."""
    with open("/proc/locks") as locks:
        wanted = f":{lock.stat().st_ino} "
        return sum("->" in entry and wanted in entry for entry in locks)


@pytest.mark.parametrize("kills", [0, 2])
def test_jobs_that_start_together_share_one_download(node: Node, kills: int) -> None:  # g.7-8
    node.configure("gate")
    runtime = str(require("ch-run"))
    job = ["site/bin/cvmfs-run", "--runtime", runtime, IMAGE, "/bin/busybox", "cat", "/marker"]
    with ExitStack() as stack:
        jobs = [stack.enter_context(node.start(*job, env={"TMPDIR": "/tmp"})) for _ in range(24)]
        until(lambda: waiting(node.cache / f"{node.key}.lock") == len(jobs) - 1)
        for number in range(kills):
            until(lambda: node.mirror.asked[number:])  # noqa: B023  # called now
            for process in node.holder():
                os.kill(process, signal.SIGKILL)
        until(lambda: node.mirror.asked[kills:])
        node.mirror.gate.set()
        ends = [(*job.communicate(timeout=SECONDS), job.returncode) for job in jobs]
    assert ends == [(b"inside\n", b"", 0)] * len(jobs)
    assert node.mirror.asked == ["gate"] * (kills + 1)


def test_a_killed_downloader_is_replaced_by_one_that_waits(node: Node) -> None:  # g.7-8
    node.configure("gate")
    with ExitStack() as stack:
        fetches = [stack.enter_context(node.start()) for _ in range(6)]
        killed = []
        for number in (1, 2):
            until(lambda: node.mirror.asked[number - 1 :])  # noqa: B023  # called now
            holder, curl = node.holder()
            for process in (holder, curl):
                os.kill(process, signal.SIGKILL)
            killed.append(holder)
        until(lambda: len(node.mirror.asked) == 3)
        node.mirror.gate.set()
        ends = {
            fetch.pid: (fetch.communicate(timeout=SECONDS)[0], fetch.wait()) for fetch in fetches
        }
    for pid in killed:
        assert ends.pop(pid) == (b"", -signal.SIGKILL)
    assert set(ends.values()) == {(f"{node.tree}\n".encode(), 0)}
    assert len(node.mirror.asked) == 3
    assert node.leftovers() == []


def test_a_download_that_outlives_its_shell_is_ended_by_the_next_one(node: Node) -> None:
    node.configure("gate", "good")
    with node.start() as first:
        holder, curl = node.holder()
        os.kill(holder, signal.SIGKILL)
        first.communicate(timeout=SECONDS)
    node.configure("good")
    assert node.fetch().returncode == 0
    until(lambda: not Path(f"/proc/{curl}").exists() or "Z" in stat_of(curl))
    assert node.leftovers() == []


def stat_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_a_signal_ends_the_download_and_leaves_nothing(node: Node, name: str) -> None:
    node.configure("gate")
    with node.start() as fetch:
        curl = node.holder()[1]
        number = signal.Signals[f"SIG{name}"]
        fetch.send_signal(number)
        assert fetch.communicate(timeout=SECONDS) == (b"", b"")
        assert fetch.returncode == 128 + number
    until(lambda: not Path(f"/proc/{curl}").exists())
    assert node.leftovers() == []


# ---------------------------------------------------------------- mirrors


def test_mirrors_that_lie_are_passed_over(node: Node) -> None:  # g.7-8
    manners = ["wrong", "short", "gone", "later", "endless", "hang", "good", "gate"]
    node.configure(*manners, download_timeout="4s")  # a silent mirror is given up after 1 s
    result = node.fetch()
    assert result.stdout.decode() == f"{node.tree}\n", result
    assert [word.split()[0] for word in node.mirror.asked] == manners[:-1]
    warnings = result.stderr.decode().splitlines()
    assert len(warnings) == 3, result
    assert [warning.split("/")[3] for warning in warnings] == ["wrong", "short", "endless"]
    assert all("cause=wrong-bytes" in warning for warning in warnings)


def test_a_mirror_that_is_busy_is_asked_again_after_a_pause(node: Node) -> None:
    node.configure("gone", "wrong", "busy")
    assert node.fetch().stdout.decode() == f"{node.tree}\n"
    assert node.mirror.asked == ["gone", "wrong", "busy", "busy"]


def test_a_download_goes_on_where_it_broke_off(node: Node) -> None:
    node.configure("cut", "good")
    assert node.fetch().returncode == 0
    assert node.mirror.asked == ["cut", f"good {len(node.data) // 2}-"]


def test_a_mirror_that_cannot_resume_is_asked_for_all_of_it(node: Node) -> None:
    node.configure("cut", "ignore")
    assert node.fetch().returncode == 0
    assert node.mirror.asked == ["cut", f"ignore {len(node.data) // 2}-", "ignore"]


def test_a_good_mirror_is_not_blamed_for_bytes_of_another(node: Node) -> None:
    node.configure("spoiled", "good")
    result = node.fetch()
    assert (result.stdout.decode(), result.stderr) == (f"{node.tree}\n", b"")
    assert node.mirror.asked == ["spoiled", f"good {len(node.data) // 2}-", "good"]


def test_after_a_failure_others_fail_at_once_and_nothing_is_kept(node: Node) -> None:
    node.configure("wrong")
    assert failure(node.fetch()) == (75, "no-mirror-has-it")
    assert failure(node.fetch()) == (75, "no-mirror-has-it")
    assert node.mirror.asked == ["wrong"]
    assert sorted(path.suffix for path in node.cache.iterdir()) == [".fail", ".lock"]
    node.configure("good", retry_after="0s")
    assert node.fetch().returncode == 0
    assert sorted(path.suffix for path in node.cache.iterdir()) == [".lock", ".tree", ".use"]


@pytest.mark.parametrize("client", ["wget", "busybox"])
def test_wget_does_where_there_is_no_curl(node: Node, client: str) -> None:
    node.configure("wrong", "short", "gone", "good")
    env = tools_without(node.root / "tools", flock=f'exec {require("flock")} "$@"')
    program = f"{require('busybox')} wget" if client == "busybox" else str(require("wget"))
    (node.root / "tools" / "wget").write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    (node.root / "tools" / "wget").chmod(0o755)
    result = node.fetch(env=env)
    assert result.stdout.decode() == f"{node.tree}\n", result
    assert [word.split()[0] for word in node.mirror.asked] == ["wrong", "short", "gone", "good"]


@pytest.mark.parametrize("name", ["id", "sha256sum", "gzip", "curl"])
def test_a_program_that_is_missing_is_named_before_anything_is_asked_for(
    node: Node, name: str
) -> None:
    others = {"curl": f'exec {require("curl")} "$@"'} if name != "curl" else {}
    result = node.fetch(env=tools_without(node.root / "tools", name, **others))
    assert failure(result) == (69, "no-program")
    assert f"{name} ".encode() in result.stderr
    assert node.mirror.asked == []


def test_an_image_above_the_limit_is_not_downloaded(node: Node) -> None:
    node.configure(listed=line(node.data).replace(f" {len(node.data)} ", " 2000000 "), image_mb=1)
    assert failure(node.fetch()) == (69, "too-large")
    assert node.mirror.asked == []


# ---------------------------------------------------------------- no space


@contextmanager
def small_disk(node: Node, size: int) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Mount a file system of `size` bytes at the cache and /tmp, for what the function starts.

    The function takes further variables of the environment.
    """
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    script = f'mount -t tmpfs -o size={size},mode=1777 none "$1" && mount --bind "$1" /tmp && '
    script += "echo mounted && exec sleep 600"
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, "sh", str(node.top)], stdout=subprocess.PIPE
    ) as keeper:
        assert keeper.stdout is not None
        try:
            assert keeper.stdout.readline() == b"mounted\n"
            user = test_user()
            enter = ["nsenter", "-t", str(keeper.pid), "-m", f"--wd={node.root}", "setpriv"]
            enter += [f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", "--"]

            def start(image: str = IMAGE, **env: str | Path) -> subprocess.Popen[bytes]:
                return subprocess.Popen(
                    [*enter, str(node.fetcher), image],
                    env={**os.environ, "TMPDIR": "/tmp", **env},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )

            start.disk = Path(f"/proc/{keeper.pid}/root{node.top}")  # type: ignore[attr-defined]
            yield start
        finally:
            keeper.kill()


def end_of(process: subprocess.Popen[bytes]) -> subprocess.CompletedProcess[bytes]:
    with process:
        out, err = process.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_a_disk_that_fills_up_is_told_and_blames_no_mirror(node: Node) -> None:  # g.7-8
    node.configure("half", "gone")
    needed = (len(node.data) + 4_000_000) * 11 // 10
    with small_disk(node, needed + (1 << 20)) as start:
        disk: Path = start.disk  # type: ignore[attr-defined]
        filler = disk / "filler"
        filler.write_bytes(bytes(1 << 21))
        assert failure(end_of(start())) == (73, "no-space")  # seen before anything is asked for
        assert node.mirror.asked == []

        filler.unlink()
        late, waits = start(), start()
        until(lambda: node.mirror.asked)
        until(lambda: waiting(disk / node.cache.name / f"{node.key}.lock") == 1)
        with filler.open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space"):
            while True:
                stream.write(bytes(1 << 12))
        node.mirror.gate.set()
        assert {failure(end_of(late)), failure(end_of(waits))} == {(73, "no-space")}
        assert node.mirror.asked == ["half"]
        assert [path for path in (disk / node.cache.name).iterdir() if path.name[0] == "."] == []

        filler.unlink()
        assert end_of(start()).stdout.decode() == f"{node.tree}\n"


def test_old_copies_make_room_on_a_full_disk(node: Node) -> None:
    old = archive({"file": os.urandom(3_000_000)})
    node.mirror.files[f"{hashlib.sha256(old).hexdigest()}.tar.gz"] = old
    listed = line(node.data) + line(old, "docker.io/library/old:1", unpacked=3_000_000)
    node.configure(listed=listed)
    with small_disk(node, (len(node.data) + 4_000_000) * 11 // 10 + (1 << 20)) as start:
        disk: Path = start.disk  # type: ignore[attr-defined]
        assert end_of(start(image="old:1")).returncode == 0
        result = end_of(start())
        assert (result.stdout.decode(), result.stderr) == (f"{node.tree}\n", b"")
        trees = [path.name for path in (disk / node.cache.name).glob("*.tree")]
        assert trees == [node.tree.name]


def test_a_copy_without_room_in_the_cache_goes_to_the_next_place(node: Node) -> None:
    node.configure("half")
    other = own_folder(node)
    with small_disk(node, (len(node.data) + 4_000_000) * 11 // 10 + (1 << 20)) as start:
        disk: Path = start.disk  # type: ignore[attr-defined]
        jobs = [start(TMPDIR=other) for _ in range(4)]
        until(lambda: node.mirror.asked)
        with (
            (disk / "filler").open("wb", buffering=0) as stream,
            pytest.raises(OSError, match="No"),
        ):
            while True:
                stream.write(bytes(1 << 12))
        node.mirror.gate.set()
        copy = other / f"cvmfs-run-{test_user().uid}" / node.tree.name
        ends = [end_of(job) for job in jobs]
        assert {(end.stdout.decode(), end.stderr) for end in ends} == {(f"{copy}\n", b"")}, ends
        (disk / "filler").unlink()
        assert end_of(start(TMPDIR=other)).stdout.decode() == f"{copy}\n"  # it is there already
    assert node.mirror.asked == ["half", "half"]


def own_folder(node: Node) -> Path:
    """Return a new folder of the test user."""
    folder = node.root / "own"
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, test_user().uid, test_user().gid)
    return folder


# ---------------------------------------------------------------- without flock


@pytest.mark.parametrize("flock", ["absent", "ENOLCK"])
def test_without_flock_a_link_is_the_lock(node: Node, flock: str) -> None:  # g.7-8
    node.configure("gate", lock_wait="20s")
    curl = f'exec {require("curl")} "$@"'
    others = {"curl": curl, "flock": "exit 71"} if flock == "ENOLCK" else {"curl": curl}
    env = tools_without(node.root / "tools", **others)
    with ExitStack() as stack:
        fetches = [stack.enter_context(node.start(env=env)) for _ in range(4)]
        until(lambda: node.mirror.asked)
        holder, child = node.holder()
        os.kill(holder, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        until(lambda: node.mirror.asked[1:])  # somebody saw that the holder is dead
        node.mirror.gate.set()
        ends = [(fetch.communicate(timeout=SECONDS)[0].decode(), fetch.wait()) for fetch in fetches]
    assert sorted(ends) == [("", -signal.SIGKILL), *[(f"{node.tree}\n", 0)] * 3]
    assert len(node.mirror.asked) == 2
    assert [path.name for path in node.cache.glob("*.link")] == []


def test_the_lock_of_another_host_is_not_broken(node: Node) -> None:
    node.configure(lock_wait="1s")
    env = tools_without(node.root / "tools", curl=f'exec {require("curl")} "$@"')
    run_as_test_user(["mkdir", "-m", "700", node.cache], check=True)
    run_as_test_user(["ln", "-s", "elsewhere-1.boot.1.1", node.cache / f"{node.key}.lock.link"])
    assert failure(node.fetch(env=env)) == (75, "timeout")
    assert node.mirror.asked == []


# ---------------------------------------------------------------- whose cache


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ('mkdir "$1.real" && ln -s "$1.real" "$1"', "not-a-directory"),
        ('mkdir -m 770 "$1"', "writable-for-others"),
        ('mkdir -m 777 "$1"', "writable-for-others"),
    ],
)
def test_a_cache_that_others_could_write_to_is_not_used(
    node: Node, script: str, cause: str
) -> None:
    run_as_test_user(["sh", "-c", script, "sh", node.cache], check=True)
    passed_over(node, cause)


def passed_over(node: Node, cause: str) -> None:
    """Assert that the copy is made in the next place, with a message."""
    other = own_folder(node)
    result = node.fetch(env={"TMPDIR": str(other)})
    assert result.stdout.decode() == f"{other}/cvmfs-run-{test_user().uid}/{node.tree.name}\n"
    assert f"cause={cause}".encode() in result.stderr, result
    assert list(node.cache.iterdir()) == []


def test_a_cache_somebody_else_has_made_is_not_used(node: Node) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make files of others")
    node.cache.mkdir()
    passed_over(node, "wrong-owner")


def test_a_cache_in_a_folder_of_somebody_else_is_not_used(node: Node) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make files of others")
    run_as_test_user(["mkdir", "-m", "700", node.cache], check=True)
    os.chown(node.top, 12345, -1)
    other = own_folder(node)
    assert node.fetch(env={"TMPDIR": str(other)}).stdout.startswith(os.fsencode(other))
    assert list(node.cache.iterdir()) == []


def test_where_every_place_is_taken_by_others_there_is_no_copy(node: Node) -> None:
    with small_disk(node, 1 << 24) as start:
        disk: Path = start.disk  # type: ignore[attr-defined]
        for name in (node.cache.name, f"cvmfs-run-{node.cache.name}"):
            (disk / name).symlink_to("/var/tmp")
        assert failure(end_of(start())) == (77, "not-a-directory")
    assert node.mirror.asked == []


def test_root_makes_the_cache_of_a_user_where_users_cannot(node: Node) -> None:
    if os.geteuid() != 0:
        pytest.skip("--owner is for root")
    node.top.chmod(0o755)
    user = test_user()
    root = [str(node.fetcher), "--refresh", "--owner", f"{user.uid}:{user.gid}"]
    assert subprocess.run(root, check=False).returncode == 0
    assert node.fetch().stdout.decode() == f"{node.tree}\n"
    assert failure(node.fetch("--refresh", "--owner", "0")) == (77, "not-root")

    node.top.chmod(0o777)  # who may rename what root has made could lead root elsewhere
    refused = subprocess.run([root[0], "--refresh"], stderr=subprocess.PIPE, check=False)
    assert (refused.returncode, b"cause=replaceable" in refused.stderr) == (77, True)


def test_root_fills_a_shared_cache_and_users_read_it_or_wait(node: Node) -> None:
    if os.geteuid() != 0:
        pytest.skip("a shared cache is root's")
    node.configure("gate", shared="true")
    node.top.chmod(0o755)
    assert failure(node.fetch()) == (69, "not-in-cache")
    assert failure(node.fetch("--prefill", IMAGE)) == (77, "not-root")
    with subprocess.Popen([node.fetcher, "--prefill", IMAGE]) as root:
        lock = node.top / f"{node.key}.wait"
        until(lambda: node.mirror.asked)
        # What a user can read he can lock, and keep root waiting.
        assert lock.with_suffix(".lock").stat().st_mode & 0o777 == 0o600
        with node.start() as user:
            until(lambda: waiting(lock) == 1)
            node.mirror.gate.set()
            copy = node.top / f"{node.key}.tree"
            assert user.communicate(timeout=SECONDS) == (f"{copy}\n".encode(), b"")
        assert root.wait(SECONDS) == 0
    assert node.mirror.asked == ["gate"]
    found = [path for path in node.top.rglob("*") if not path.is_symlink()]
    assert {path.stat().st_mode & 0o022 for path in found} == {0}
    os.chown(node.root, test_user().uid, -1)  # who could put another cache in its place
    try:
        assert failure(node.fetch("--prefill", IMAGE)) == (77, "not-root")
        ended = subprocess.run([node.fetcher, "--prefill"], stderr=subprocess.PIPE, check=False)
        assert (ended.returncode, b"cause=replaceable" in ended.stderr) == (77, True)
    finally:
        os.chown(node.root, 0, -1)


def archive_of(*entries: tuple[str, bytes, str]) -> bytes:
    """Return an archive of names, types and what they link to."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, kind, link in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = kind, link, 0o6666
            entry.devmajor, entry.devminor = 1, 3
            tar.addfile(entry)
    return packed.getvalue()


@pytest.mark.parametrize("program", ["tar", "busybox"])
def test_what_root_unpacks_touches_nothing_outside_and_has_no_devices(
    node: Node, program: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a shared cache is root's")
    secret = node.root / "secret"
    secret.touch(0o600)
    linked = archive_of(("folder", tarfile.SYMTYPE, str(node.root)), ("x", b"1", "folder/secret"))
    device = archive_of(("null", tarfile.CHRTYPE, ""), ("pipe", tarfile.FIFOTYPE, ""))
    files = {hashlib.sha256(data).hexdigest(): data for data in (linked, device)}
    node.mirror.files |= {f"{key}.tar.gz": data for key, data in files.items()}
    listed = [line(data, f"docker.io/library/{n}:1") for n, data in enumerate(files.values())]
    node.configure(shared="true", listed="".join(listed))
    node.top.chmod(0o755)
    others = {name: f'exec {require(name)} "$@"' for name in ("curl", "flock", "busybox")}
    word = f"{require('busybox')} tar" if program == "busybox" else str(require("tar"))
    env = tools_without(node.root / "tools", "tar", **others, tar=f'exec {word} "$@"')
    for number, status in ((0, 75), (1, 0)):
        words = [str(node.fetcher), "--prefill", f"{number}:1"]
        assert subprocess.run(words, env=env, check=False).returncode == status
    assert secret.stat().st_mode & 0o7777 == 0o600
    assert [list(tree.iterdir()) for tree in node.top.glob("*.tree")] == [[]]
    assert list(node.top.glob(".*")) == []


# ---------------------------------------------------------------- lists


def test_a_line_that_means_no_good_is_not_followed(node: Node) -> None:
    good = line(node.data).split()
    for field, value in ((7, "../../../etc/passwd"), (5, "0"), (5, "9" * 19), (4, "A" * 64)):
        fields = [*good[:field], value, *good[field + 1 :]]
        node.configure(listed=" ".join(fields) + "\n")
        result = node.fetch()
        assert failure(result) == (66, "not-listed")
        assert b"cause=bad-entry" in result.stderr
    assert node.mirror.asked == []


def test_lists_are_copied_while_repositories_answer(node: Node) -> None:
    node.configure(listed="")
    assert failure(node.fetch()) == (66, "not-listed")
    listed = node.root / "cvmfs/images.example.org/share/cvmfs-publish/fallback.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("# fallback images\n" + line(node.data))
    assert node.fetch("--refresh").returncode == 0
    listed.write_text(line(node.data)[:-9])  # cut short
    refused = node.fetch("--refresh")
    assert (refused.returncode, b"cause=bad-list" in refused.stderr) == (78, True)
    shutil.rmtree(node.root / "cvmfs")
    assert node.fetch().stdout.decode() == f"{node.tree}\n"  # by the good copy

    (node.cache / "lists").chmod(0o777)
    result = node.fetch()
    assert failure(result) == (66, "not-listed")
    assert b"cause=untrusted" in result.stderr


def test_a_node_takes_the_image_of_its_own_platform_if_there_is_one(node: Node) -> None:
    arm64 = tools_without(node.root / "arm64", curl='exec /usr/bin/curl "$@"', uname="echo aarch64")
    both = line(b"of amd64") + line(node.data, f".multiarch/arm64/{IMAGE}")
    node.configure(listed="".join(sorted(both.splitlines(keepends=True))))
    assert node.fetch(env=arm64).stdout.decode() == f"{node.tree}\n"
    node.configure(listed=line(node.data) + line(b"of s390x", f".multiarch/s390x/{IMAGE}"))
    for env in (arm64, None):  # what has one platform only is for all nodes, as in CernVM-FS
        assert node.fetch(env=env).stdout.decode() == f"{node.tree}\n"


def test_a_repository_that_answers_comes_before_copies_of_its_list(node: Node) -> None:
    listed = node.root / "cvmfs/images.example.org/share/cvmfs-publish/fallback.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text(line(node.data))
    node.configure(listed=line(b"of old"))
    assert node.fetch().stdout.decode() == f"{node.tree}\n"


# ---------------------------------------------------------------- making room


def test_the_oldest_copies_make_room_but_not_those_of_jobs(node: Node) -> None:
    images = {str(n): archive({f"file{n}": os.urandom(1_500_000)}) for n in range(3)}
    files = {hashlib.sha256(data).hexdigest(): data for data in images.values()}
    node.mirror.files |= {f"{key}.tar.gz": data for key, data in files.items()}
    listed = "".join(line(data, f"docker.io/library/{n}:1") for n, data in images.items())
    node.configure(listed=listed, cache_mb=4, image_mb=2)
    keys = list(files)
    for n in ("0", "1"):
        assert node.fetch(f"{n}:1").returncode == 0
    os.utime(node.cache / f"{keys[0]}.use", (1, 1))
    os.utime(node.cache / f"{keys[1]}.use", (2, 2))
    with popen_as_test_user(
        ["flock", "-s", node.cache / f"{keys[0]}.use", "-c", "echo held; read end"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"held\n"
        assert node.fetch("2:1").returncode == 0
        job.communicate()
    assert {path.stem for path in node.cache.glob("*.tree")} == {keys[0], keys[2]}
    node.configure(listed=listed, cache_mb=2, image_mb=2)
    assert node.fetch("--collect").returncode == 0
    assert {path.stem for path in node.cache.glob("*.tree")} == {keys[2]}
    assert node.leftovers() == []


@pytest.mark.parametrize("runtime", ["ch-run", "apptainer"])
def test_a_running_job_holds_its_copy(node: Node, runtime: str) -> None:
    script = "echo ready; read end"
    with popen_as_test_user(
        [node.root / "site/bin/cvmfs-run", "--runtime", require(runtime), IMAGE, "/bin/sh", "-c",
         script],
        cwd="/tmp", env={"TMPDIR": "/tmp"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as job:  # fmt: skip
        assert job.stdout is not None
        assert job.stdout.readline() == b"ready\n"
        node.configure(cache_mb=1, image_mb=1)
        assert node.fetch("--collect").returncode == 0
        assert node.tree.exists()
        job.communicate()
    assert node.fetch("--collect").returncode == 0
    assert not node.tree.exists()


# ---------------------------------------------------------------- SIF files and registries


def test_a_sif_file_is_unpacked_where_it_cannot_be_mounted(node: Node) -> None:
    require("unsquashfs")
    source = node.root / "source"
    source.mkdir()
    subprocess.run(["tar", "-xz", "-C", source], input=node.data, check=True)
    built = node.root / "cache" / "built.sif"
    apptainer = require("apptainer")
    for path in (source, *source.rglob("*")):
        path.chmod(0o755)
    run_as_test_user([apptainer, "build", built, source], check=True)
    data = built.read_bytes()
    key = hashlib.sha256(data).hexdigest()
    node.mirror.files[f"{key}.sif"] = data
    node.configure(listed=line(data, kind="sif"))
    assert node.fetch("--tell", IMAGE).stdout.decode() == f"mirror {node.cache}/{key}.sif\n"
    for way in ("mirror", "cache"):
        result = node.fetch("--tell", "--directory", IMAGE)
        assert result.stdout.decode() == f"{way} {node.cache}/{key}.tree\n", result
    assert (node.cache / f"{key}.tree" / "marker").read_text() == "inside\n"
    assert node.mirror.asked == ["good"]
    assert node.leftovers() == []


def test_an_image_is_pulled_from_its_registry(node: Node) -> None:
    require("mksquashfs")
    require("apptainer")
    node.configure(chain="[registry]", listed="")
    with docker_registry(node.root) as registry:
        digest = push(tiny_image(node.root / "layout"), f"{registry.host}/a/b:1")
        env = {"APPTAINER_NOHTTPS": "1"}
        name = f"{registry.host}/a/b@{digest}"
        result = node.fetch("--directory", name, env=env)
        copy = node.cache / f"oci-{digest.removeprefix('sha256:')}.tree"
        assert result.stdout.decode() == f"{copy}\n", result
        assert (copy / "bin" / "sh").exists()
        assert failure(node.fetch(f"{registry.host}/a/none:1", env=env)) == (75, "pull-failed")
    assert node.fetch("--directory", name).stdout.decode() == f"{copy}\n"
    assert node.leftovers() == []


# ---------------------------------------------------------------- what the job is told


def test_without_a_copy_the_first_failure_stands(node: Node) -> None:
    node.configure("wrong")
    result = node.start("site/bin/cvmfs-run", IMAGE, "true")
    with result:
        err = result.communicate(timeout=SECONDS)[1].decode().splitlines()[-1]
    assert result.returncode == 69
    assert err.startswith("cvmfs-run: class=noservice code=69 step=probe cause=not-mounted")
    assert "no local copy either" in err
    assert "wrong bytes" in err
