"""What nodes and servers get besides the launcher, read by the real programs.

Apptainer and its configuration, squid, nginx, and `node-check` on good and on sick nodes.
"""

from __future__ import annotations

import http.client
import http.server
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cvmfs_publish.sites.data import templates_dir
from cvmfs_publish.sites.pages import RenderedFile
from cvmfs_publish.sites.render import render_site
from cvmfs_publish.sites.runtime_conf import COMPLETE
from cvmfs_publish.sites.writing import write_site
from tests.parts import require, run, run_as_test_user, test_user
from tests.site_texts import PUBLIC_KEY, parse_site
from tests.worker_node import (
    IMAGE,
    REPOSITORY,
    WorkerNode,
    fuse_mount,
    let_hang,
    worker_node,
)

pytestmark = pytest.mark.parts

HAS_CLIENT = shutil.which("cvmfs_config", path="/usr/bin:/bin") is not None
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "ash"]}


def rendered(text: str) -> dict[str, RenderedFile]:
    return render_site(parse_site(text), templates_dir())


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can enter, and the test user write to."""
    with tempfile.TemporaryDirectory(prefix="conf-", dir="/var/tmp") as name:
        path = Path(name)
        path.chmod(0o755)
        os.chown(path, test_user().uid, test_user().gid)
        yield path


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------- apptainer.conf

CONF = "runtime_conf: {session_dir_mib: 256, bind_paths: [/usr/share, /does/not/exist, /usr/lib]}"
# As files of Singularity 3.x look: tabs, obsolete names, lists in one line, comments of the site.
STOCK_LIKE = """\
# SINGULARITY.CONF
allow setuid = yes
\tmount slave\t=   no
# our own note: ask before changing
autofs bug path = /nfs
#sessiondir max size = 16
bind path = /etc/localtime, /usr/lib
bind path = /etc/hosts
mount  slave = no
allow container dir = no
user bind control = no
mount slave = maybe
"""


@dataclass(frozen=True)
class Conf:
    """A configuration file, and the script that changes it."""

    script: Path
    file: Path

    def apply(self, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
        return run_as_test_user([self.script, "--config", self.file, *words])

    def settings(self) -> list[str]:
        lines = map(str.strip, self.file.read_text().splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def conf_in(folder: Path, program: str, text: str, site: str = CONF) -> Conf:
    script = folder / f"{program}-config.sh"
    script.write_bytes(rendered(site)[f"conf/{program}-config.sh"].content)
    script.chmod(0o755)
    file = folder / f"{program}.conf"
    file.write_text(text)
    os.chown(file, test_user().uid, test_user().gid)
    return Conf(script, file)


@pytest.mark.parametrize("method", ["global", "edit"])
def test_apptainer_config_replaces_values_and_is_idempotent(
    folder: Path, method: str
) -> None:  # g.7-13
    apptainer = require("apptainer")
    before = "mount slave = no\nsessiondir max size = 64\nbind path = /etc/hosts\n"
    conf = conf_in(folder, "apptainer", before)
    words: list[str | Path] = ["--apptainer", apptainer, *["--edit"] * (method == "edit")]
    dry = conf.apply(*words, "--dry-run")
    assert (dry.returncode, conf.file.read_text()) == (0, before)
    assert b"+bind path = /usr/share\n" in dry.stdout
    assert conf.apply(*words).returncode == 0
    once = conf.file.read_bytes()
    again = conf.apply(*words)
    assert b"unchanged" in again.stderr
    assert conf.file.read_bytes() == once
    found = conf.settings()
    assert [line for line in found if line.startswith("mount slave")] == ["mount slave = yes"]
    assert "sessiondir max size = 256" in found
    assert {line for line in found if line.startswith("bind path")} == {
        "bind path = /etc/hosts",
        "bind path = /usr/share",
        "bind path = /usr/lib",
    }
    assert b"/does/not/exist does not exist on this node; left out" in again.stderr
    (saved,) = folder.glob("apptainer.conf.2*")
    assert saved.read_text() == before
    assert len(list(folder.iterdir())) == 3  # the script, the file, the former one


def test_what_is_right_already_stays_with_its_comments(folder: Path) -> None:
    apptainer = require("apptainer")
    text = """# ours
mount slave = yes  
enable overlay = yes
enable underlay = yes
allow container dir = yes
sessiondir max size = 256
bind path = /etc/hosts, /usr/share , /usr/lib
"""  # noqa: W291
    conf = conf_in(folder, "apptainer", text)
    assert conf.apply("--apptainer", apptainer).returncode == 0
    assert conf.file.read_text() == text


@pytest.mark.parametrize("shell", SHELLS)
def test_a_singularity_conf_is_changed_in_place_and_nothing_else_in_it(
    folder: Path, shell: str
) -> None:  # g.7-13
    conf = conf_in(folder, "singularity", STOCK_LIKE)
    words: list[str | Path] = [*SHELLS[shell], conf.script, "--edit", "--config", conf.file]
    done = run_as_test_user(words)
    assert done.returncode == 0, done.stderr
    expected = STOCK_LIKE.replace("\tmount slave\t=   no", "mount slave = yes")
    expected = expected.replace("allow container dir = no", "allow container dir = yes")
    expected = expected.replace("mount slave = maybe\n", "")  # never counted
    expected = expected.replace(
        "bind path = /etc/hosts\n", "bind path = /etc/hosts\nbind path = /usr/share\n"
    )
    expected += "enable overlay = try\nenable underlay = yes\nsessiondir max size = 256\n"
    assert conf.file.read_text() == expected
    assert b"'user bind control = no' drops" in done.stderr
    assert run_as_test_user(words).stderr.endswith(b"unchanged\n")
    # where names agree Apptainer reads the file, and takes the same lines for those that count
    asked: list[str | Path] = [require("apptainer"), "-c", conf.file, "config", "global", "--get"]
    assert run_as_test_user([*asked, "mount slave"], check=True).stdout == b"yes\n"
    assert run_as_test_user([*asked, "bind path"], check=True).stdout.replace(b" ", b"") == (
        b"/etc/localtime,/usr/lib,/etc/hosts,/usr/share\n"
    )


def test_a_link_to_the_file_stays_one_and_a_dead_entry_is_named(folder: Path) -> None:  # g.7-13
    conf = conf_in(folder, "singularity", "bind path = /nowhere/old:/x\n")
    real = conf.file.rename(folder / "real.conf")
    conf.file.symlink_to("real.conf")
    done = conf.apply("--edit")
    assert done.returncode == 0
    assert b"/nowhere/old, in the file already, does not exist: no container" in done.stderr
    assert conf.file.is_symlink()
    assert "mount slave = yes" in real.read_text()


def test_what_the_script_cannot_do_has_a_status_of_its_own(folder: Path) -> None:
    apptainer = require("apptainer")
    conf = conf_in(folder, "apptainer", "mount slave = no\n")
    assert conf.apply("--nonsense").returncode == 64
    assert conf.apply("--apptainer").returncode == 64
    assert conf.apply("--apptainer", "/nowhere/apptainer").returncode == 69
    unwilling = folder / "unwilling"
    unwilling.write_text("#!/bin/sh\n[ $1 != --version ] || echo apptainer version 1.0.0\n")
    unwilling.chmod(0o755)
    assert conf.apply("--apptainer", unwilling).returncode == 70
    assert run_as_test_user([conf.script, "--edit", "--config", "/nowhere"]).returncode == 66
    other = conf_in(folder, "singularity", "")
    assert other.apply("--singularity", apptainer).returncode == 64
    folder.chmod(0o555)
    assert conf.apply("--apptainer", apptainer).returncode == 73
    folder.chmod(0o755)
    assert conf.file.read_text() == "mount slave = no\n"


def test_the_file_of_a_setuid_installation_must_belong_to_root(folder: Path) -> None:
    starter = folder / "apptainer" / "bin" / "starter-suid"
    starter.parent.mkdir(parents=True)
    starter.touch()
    starter.chmod(0o4755)
    program = folder / "program"
    program.write_text(f"#!/bin/sh\necho 'apptainer version 1.4.5'\necho LIBEXECDIR={folder}\n")
    program.chmod(0o755)
    conf = conf_in(folder, "apptainer", "mount slave = no\n")
    refused = conf.apply("--apptainer", program)
    assert refused.returncode == 77
    assert b"does not belong to root" in refused.stderr
    assert conf.file.read_text() == "mount slave = no\n"


def names_in(text: str) -> set[str]:
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {line.split("=")[0].strip() for line in lines}


def test_apptainer_knows_every_name_in_the_complete_files(folder: Path) -> None:
    files = rendered("runtime_conf: {limit_container_paths: [/usr]}\n")
    names = sorted(set.union(*(names_in(files[path].content.decode()) for path in COMPLETE)))
    script = 'for name do "$APPTAINER" config global --get "$name" >/dev/null || exit 1; done'
    env = {"APPTAINER": str(require("apptainer"))}
    assert len(names) > 25
    run_as_test_user(["sh", "-c", script, "sh", *names], env=env, check=True)


# ---------------------------------------------------------------- servers


class Origin(http.server.BaseHTTPRequestHandler):
    """A Stratum 1 that counts what it is asked."""

    asked: list[str]
    manifest = b""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = self.manifest if self.path.endswith("/.cvmfspublished") else b"hello"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "max-age=3600")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def origin(manifest: bytes = b"") -> Iterator[tuple[int, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (Origin,), {"asked": asked, "manifest": manifest})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def running(words: list[str | Path], port: int) -> Iterator[None]:
    """Run a server in the foreground until the block ends; it listens when the block begins."""
    with subprocess.Popen(
        list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as server:
        try:
            deadline = time.monotonic() + 30
            while server.poll() is None and time.monotonic() < deadline:
                with closing(socket.socket()) as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.02)
            else:
                server.kill()
                pytest.fail(f"{words[0]} does not listen: {server.communicate()[1]!r}")
            yield
        finally:
            server.terminate()
            try:
                server.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()


def ask(
    port: int, path: str, method: str = "GET", **headers: str
) -> tuple[int, Mapping[str, str], bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request(method, path, headers={n.replace("_", "-"): v for n, v in headers.items()})
        answer = client.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def test_squid_fetches_for_the_nodes_from_the_stratum_servers_and_nobody_else(
    folder: Path,
) -> None:
    squid = require("squid")
    folder.chmod(0o777)  # squid leaves root for a user of its own
    key = "".join(f"            {line}\n" for line in PUBLIC_KEY.splitlines())
    port = free_port()
    with origin() as (stratum, asked):
        files = rendered(
            "client:\n  domains:\n    example.org:\n"
            f"      servers: ['http://127.0.0.1:{stratum}/cvmfs/@fqrn@']\n"
            f"      public_keys:\n          a.pub: |\n{key}"
            f"squid: {{clients: [127.0.0.0/8], port: {port}, cache_mb: 100, memory_mb: 16,\n"
            f"  cache_dir: {folder}/cache}}\n"
        )
        conf = folder / "squid.conf"
        conf.write_bytes(files["proxy/squid.conf"].content)
        run([squid, "-k", "parse", "-f", conf])
        whole = folder / "whole.conf"  # what the distribution decides, to stay in our folder
        whole.write_text(
            f"include {conf}\npid_filename {folder}/pid\naccess_log none\n"
            f"cache_log {folder}/log\ncoredump_dir none\nshutdown_lifetime 0 seconds\n"
        )
        (folder / "cache").mkdir()
        (folder / "cache").chmod(0o777)
        run([squid, "-N", "-z", "-f", whole])
        with running([squid, "-N", "-f", whole], port):
            url = f"http://127.0.0.1:{stratum}/cvmfs/x/data/ab"
            assert [ask(port, url)[::2] for _ in range(3)] == [(200, b"hello")] * 3
            assert asked == ["/cvmfs/x/data/ab"]
            assert ask(port, url, "POST")[0] == 403
            assert ask(port, f"http://localhost:{stratum}/")[0] == 403  # not named
            assert ask(port, f"http://127.0.0.1:{port}/")[0] == 403  # nor this port
            assert asked == ["/cvmfs/x/data/ab"]


def test_nginx_sends_images_whole_and_in_part_and_nothing_else(folder: Path) -> None:
    nginx = require("nginx")
    port, name = free_port(), "0123456789abcdef" * 4
    images = folder / "images"
    images.mkdir()
    (images / f"{name}.sif").write_bytes(bytes(range(256)) * 4)
    with (images / f"{name}.tar.gz").open("wb") as big:
        big.truncate(64 << 20)  # more than the kernel buffers
    (images / "fallback.txt").write_text("not for nodes")
    conf = folder / "nginx.conf"
    conf.write_bytes(
        rendered(
            f"mirror: {{server_name: localhost, root: {images}, port: {port}, connections: 1,\n"
            "  clients: [127.0.0.0/8]}\n"
        )["mirror/nginx.conf"].content
    )
    words: list[str | Path] = [nginx, "-e", "stderr", "-c", conf]
    own = f"pid {folder}/pid; daemon off;"
    run([*words, "-t", "-g", own])
    with running([*words, "-g", own], port):
        status, headers, data = ask(port, f"/{name}.sif")
        assert (status, len(data)) == (200, 1024)
        assert headers["Accept-Ranges"] == "bytes"
        assert "Expires" in headers
        status, headers, data = ask(port, f"/{name}.sif", Range="bytes=1000-")
        assert (status, data) == (206, bytes(range(232, 256)))
        assert headers["Content-Range"] == "bytes 1000-1023/1024"
        for path in ("/", "/fallback.txt", f"/{name}.zip", f"/x/{name}.sif", "/../nginx.conf"):
            assert ask(port, path)[0] in (400, 404), path
        assert ask(port, f"/{name}.sif", "DELETE")[0] == 403
        with closing(socket.create_connection(("127.0.0.1", port))) as slow:
            slow.sendall(f"GET /{name}.tar.gz HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert slow.recv(12) == b"HTTP/1.1 200"
            status, headers, _ = ask(port, f"/{name}.sif")
            assert (status, headers.get("Retry-After")) == (503, "30")


# ---------------------------------------------------------------- node-check


@pytest.fixture(scope="module")
def node() -> Iterator[WorkerNode]:
    """A node that can run jobs, with a cache of the client that its quota does not fit."""
    with worker_node("client: {quota_mb: 100000000, cache_base: /var/tmp}\n", "apptainer") as made:
        yield made


def configure(node: WorkerNode, text: str) -> dict[str, str]:
    """Render a site of its own with ch-run, which answers at once; return what selects it."""
    out = Path(tempfile.mkdtemp(dir=node.root)) / "site"
    out.parent.chmod(0o755)
    site = f"name: other\ncvmfs: {node.root}/cvmfs\n"
    site += "" if "runtimes:" in text else "runtimes: [ch-run]\n"
    site += "" if "repositories:" in text else f"repositories: [{{name: {REPOSITORY}}}]\n"
    write_site(rendered(site + text), out)
    return {"CVMFS_RUN_CONF": str(out / "etc" / "site.conf")}


def check(
    node: WorkerNode, *words: str, env: Mapping[str, str] | None = None
) -> tuple[int, list[str]]:
    """Run node-check as the test user; return its status and its lines."""
    result = run_as_test_user([node.site / "bin/node-check", *words], env=env)
    assert result.stderr == b"", result
    return result.returncode, result.stdout.decode().splitlines()


def lines_of(lines: list[str], name: str) -> list[str]:
    return [line for line in lines if f" check={name} " in line]


def test_node_check_starts_a_job_and_tells_how_mounts_are_made(node: WorkerNode) -> None:
    status, lines = check(node, IMAGE)
    assert status == 0, lines
    assert [len(lines_of(lines, name)) for name in ("start", "layer", "cache")] == [1, 1, 1], lines
    (start,), (layer,) = lines_of(lines, "start"), lines_of(lines, "layer")
    assert start.startswith("node-check: ok ")
    assert "makes mount points (" in layer
    (cache,) = lines_of(lines, "cache")
    if not HAS_CLIENT:  # whose own configuration counts
        assert cache.startswith("node-check: warn ")
        assert "CVMFS_QUOTA_LIMIT is 100000000 MB and needs 120001000 MB" in cache
    ch_run = configure(node, "probe_timeout: 5s")
    status, lines = check(node, IMAGE, env=ch_run)
    assert status == 0, lines
    assert "only where the image has a directory" in lines_of(lines, "layer")[0]


@pytest.mark.parametrize("shell", SHELLS)
def test_node_check_says_the_same_under_every_shell(node: WorkerNode, shell: str) -> None:
    env = configure(node, "scratch: [$NOT_SET, $TMPDIR, /var/tmp]")
    # with no more of an environment than a prolog has
    words = ["env", "-i", f"CVMFS_RUN_CONF={env['CVMFS_RUN_CONF']}", "PATH=/usr/bin:/bin"]
    words += [*SHELLS[shell], str(node.site / "bin/node-check"), "--inside"]
    result = run_as_test_user(words)
    assert (result.returncode, result.stderr) == (0, b"")
    names = [line.split("check=")[1].split()[0] for line in result.stdout.decode().splitlines()]
    cache = ["cache"] if HAS_CLIENT else []
    assert names == ["configuration", "repository", *cache, "runtime", "user-namespaces", "scratch"]


def test_node_check_names_what_is_missing_with_the_status_of_the_first(node: WorkerNode) -> None:
    loop = node.root / "cvmfs" / "loop.example.org"
    empty = node.root / "cvmfs" / "empty.example.org"
    loop.symlink_to(loop.name)
    empty.mkdir()
    env = configure(
        node,
        f"repositories: [{{name: {empty.name}}}, {{name: absent.example.org}}]\n"
        f"required_repositories: [{loop.name}, {empty.name}]\n"
        "runtimes: [/nowhere/apptainer]\n"
        "binds: [{source: /does/not/exist, target: /data, required: true}]\n",
    )
    status, lines = check(node, "--quiet", env=env)
    assert status == 69
    assert [line.split("hint=")[1] for line in lines_of(lines, "repository")] == [
        f'"{empty} is an empty directory, nothing is mounted there"',
        f'"{node.root}/cvmfs/absent.example.org is not mounted or not configured"',
        '"none with images can be used on this node"',
        f'"{loop}: automount is not propagated to this namespace"',
    ]
    assert "none works of: /nowhere/apptainer" in lines_of(lines, "runtime")[0]
    assert "/does/not/exist does not exist" in lines_of(lines, "required-mount")[0]
    assert not [line for line in lines if line.startswith("node-check: ok")]
    loop.unlink()
    empty.rmdir()


def test_node_check_fails_only_for_repositories_that_jobs_cannot_do_without(
    node: WorkerNode,
) -> None:
    both = f"repositories: [{{name: absent.example.org}}, {{name: {REPOSITORY}}}]\n"
    status, lines = check(node, IMAGE, env=configure(node, both))
    assert status == 0, lines
    absent, present = lines_of(lines, "repository")
    assert absent.startswith("node-check: warn ")
    assert present.startswith("node-check: ok ")
    env = configure(node, f"{both}required_repositories: [absent.example.org]\n")
    status, lines = check(node, env=env)
    assert (status, lines_of(lines, "repository")[0][:16]) == (69, "node-check: fail")


def test_node_check_fails_only_for_the_runtime_that_jobs_are_started_with(
    node: WorkerNode,
) -> None:
    folder = node.root / "broken"
    folder.mkdir()
    for name, text in (
        ("apptainer", '[ "$1" = --version ] && echo apptainer version 1.4.0'),
        ("singularity", "echo no libraries >&2; exit 1"),
    ):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    good = require("ch-run")
    later = f"runtimes: [{good}, {folder}/apptainer, {folder}/singularity]\ngpu: none\n"
    status, lines = check(node, IMAGE, env=configure(node, later))
    assert status == 0, lines
    assert [line[12:16] for line in lines_of(lines, "start")] == ["ok c", "warn"]
    assert [line[12:16] for line in lines_of(lines, "runtime")] == ["ok c", "ok c", "warn"]
    first = f"runtimes: [{folder}/singularity, {good}]\ngpu: none\n"
    status, lines = check(node, env=configure(node, first))
    assert (status, lines_of(lines, "runtime")[0][:16]) == (71, "node-check: fail")


def test_node_check_speaks_to_htcondor(node: WorkerNode) -> None:
    status, lines = check(node, "--condor", env=configure(node, "home: host"))
    assert (status, lines[:3]) == (
        0, ["CvmfsRunOk = true", "CvmfsRunStatus = 0", 'CvmfsRunProblems = ""'],
    )  # fmt: skip
    assert lines[3].startswith('CvmfsRunRuntimes = "ch-run ')
    env = configure(node, "repositories: [{name: absent.example.org}]")
    status, lines = check(node, "--condor", env=env)
    assert (status, lines[:2]) == (69, ["CvmfsRunOk = false", "CvmfsRunStatus = 69"])


def test_node_check_compares_the_revision_with_the_one_wanted(node: WorkerNode) -> None:
    require("getfattr")
    try:
        os.setxattr(node.repository, "user.revision", b"41")
        os.setxattr(node.repository, "user.nioerr", b"3")
    except OSError:
        pytest.skip("no extended attributes here")
    wanted = configure(node, f"repositories: [{{name: {REPOSITORY}, min_revision: 42}}]")
    status, lines = check(node, env=wanted)
    assert status == 75
    assert "is at revision 41, the site wants 42" in lines_of(lines, "revision")[0]
    assert "3 I/O errors" in lines_of(lines, "io-errors")[0]
    os.setxattr(node.repository, "user.revision", b"42")
    assert check(node, env=wanted)[0] == 0
    published = b"C%s\nS43\nT%d\n--\n\xff\0signature"
    for since, said in ((1_700_000_000, "has had 43 for hours"), (2**33, "has revision 43")):
        with origin(published % (b"ab" * 20, since)) as (port, asked):
            os.setxattr(node.repository, "user.host", f"http://127.0.0.1:{port}/cvmfs/x".encode())
            _, lines = check(node, env=wanted)
        assert asked == ["/cvmfs/x/.cvmfspublished"]
        assert said in lines_of(lines, "server")[0]
    status, lines = check(node, env=wanted)  # nobody is there any more
    assert (status, "does not answer" in lines_of(lines, "server")[0]) == (0, True)
    for name in ("revision", "nioerr", "host"):
        os.removexattr(node.repository, f"user.{name}")


STAND_IN = """#!/bin/sh
case $1 in
--version) echo apptainer version 1.3.0 ;;
buildcfg) printf 'APPTAINER_CONF_FILE=%s\\nLIBEXECDIR=/nowhere\\n' "${0%/*}/apptainer.conf" ;;
esac
"""


def test_node_check_reads_the_runtimes_configuration(node: WorkerNode) -> None:
    program = node.root / "runtime" / "apptainer"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    (program.parent / "apptainer.conf").write_text(
        "allow container dir = no\nallow container dir = yes\nmount slave = no\n"
        "enable overlay = no\nenable underlay = no\nbind path = /usr, /does/not/exist:/x\n"
    )
    status, lines = check(node, env=configure(node, f"runtimes: [{program}]"))
    assert status == 77
    found = lines_of(lines, "runtime-conf")
    assert [line.split()[1] for line in found] == ["fail", "warn", "warn", "fail"]
    assert "'allow container dir = no'" in found[0]
    assert "bind path /does/not/exist does not exist" in found[3]


def test_node_check_looks_at_the_cache_of_the_fallback(node: WorkerNode) -> None:
    cache = node.root / "fallback-cache"
    text = (
        f"fallback: {{chain: [cache], cache_dir: {cache}, shared: true, cache_mb: 1, image_mb: 1}}"
    )
    env = configure(node, text)
    status, lines = check(node, env=env)
    assert (status, lines_of(lines, "fallback-cache")[0].split()[1]) == (0, "warn")
    cache.mkdir()
    cache.chmod(0o777)
    status, lines = check(node, env=env)
    assert (status, lines_of(lines, "fallback-cache")[0].split()[1]) == (77, "fail")
    if os.geteuid() == 0:
        cache.chmod(0o755)
        assert check(node, env=env)[0] == 0


def test_node_check_ends_at_its_deadline(node: WorkerNode) -> None:
    program = node.root / "hanging" / "ch-run"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    env = configure(node, f"runtimes: [{program}]\nprobe_timeout: 30s")
    status, lines = check(node, "--deadline", "1", env=env)
    assert (status, lines[-1]) == (
        75, 'node-check: fail check=deadline hint="not done within 1 s: something hangs"',
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a FUSE file system for all users")
def test_node_check_does_not_hang_with_a_repository_or_a_required_mount(node: WorkerNode) -> None:
    for name in ("mksquashfs", "squashfuse", "umount"):
        require(name)
    mount_point, archive = node.root / "cvmfs" / "sick.example.org", node.root / "sick.sqfs"
    mount_point.mkdir()
    run(["mksquashfs", node.repository, archive, "-quiet", "-no-progress"])
    env = configure(
        node,
        f"repositories: [{{name: {mount_point.name}}}]\nprobe_timeout: 1s\n"
        f"binds: [{{source: {mount_point}/docker.io, target: /data, required: true}}]",
    )
    with fuse_mount(archive, mount_point) as daemon:
        status, lines = check(node, env=env)
        assert status == 0, lines
        assert "answers (fuse" in lines_of(lines, "repository")[0]
        let_hang(daemon)
        status, lines = check(node, env=env)
        assert status == 75
        assert "hangs" in lines_of(lines, "repository")[0]
        assert "hung" in lines_of(lines, "required-mount")[0]
        daemon.kill()
        daemon.wait()
        status, lines = check(node, env=env)
        assert (status, "dead FUSE mount" in lines_of(lines, "repository")[0]) == (75, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cvmfs_site_format=(", "no file of shell assignments"),
        ("cvmfs_site_format=1", "has format 1"),
        ("cvmfs_site_format=2", "does not set cvmfs_site_name"),
    ],
)
def test_node_check_refuses_a_broken_configuration(node: WorkerNode, text: str, said: str) -> None:
    conf = node.root / "broken.conf"
    conf.write_text(text)
    result = run_as_test_user([node.site / "bin/node-check"], env={"CVMFS_RUN_CONF": str(conf)})
    assert result.returncode == 78
    assert said.replace("no file", "is not a file").encode() in result.stdout


def test_node_check_explains_itself_without_a_configuration(node: WorkerNode) -> None:
    env = {"CVMFS_RUN_CONF": "/nowhere"}
    program = node.site / "bin/node-check"
    assert b"usage: node-check" in run_as_test_user([program, "--help"], env=env, check=True).stdout
    for words in (["--nonsense"], ["a", "b"], ["--deadline", "soon"], ["--deadline"]):
        assert run_as_test_user([program, *words], env=env).returncode == 64


@pytest.mark.parametrize("path", COMPLETE)
def test_a_job_starts_with_each_complete_file(node: WorkerNode, path: str) -> None:
    apptainer = require("apptainer")
    image = node.repository / IMAGE
    words: list[str | Path] = [
        apptainer,
        "-c",
        node.site / path,
        "exec",
        image,
        "cat",
        "/etc/os-release",
    ]
    result = run_as_test_user(words, cwd="/")
    assert (result.returncode, result.stdout) == (0, b"NAME=a-job-image\n"), result.stderr
