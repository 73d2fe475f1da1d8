"""Real jobs through `cvmfs-run`, as an unprivileged user, with a real Apptainer and a real ch-run.

A comment `g.7-N` marks the acceptance test N of the launcher facts, in whichever file: 8 is in
`test_fetch.py`, 13 in `test_node_conf.py`; 14 is measured by `benchmarks/launch.py`.

The image is a small tree around a static busybox, with what a published sandbox has: standard
roots, `.singularity.d`, `/ch/environment`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cvmfs_publish.settings import parse
from cvmfs_publish.sites.data import load_site, templates_dir
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.render import render_site
from cvmfs_publish.sites.writing import write_site
from tests.parts import popen_as_test_user, require, run_as_test_user, test_user
from tests.worker_node import APPLETS, build_image, fuse_mount, let_hang

pytestmark = pytest.mark.parts

RUNTIMES = ["apptainer", "ch-run"]
MODES = ["exec", "supervise"]
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "ash"]}
MESSAGE = re.compile(r'cvmfs-run: class=(\S+) code=(\d+) step=(\S+) cause=(\S+) hint="[^"]*"')


@dataclass(frozen=True)
class Node:
    """A worker node: a folder everybody can enter, with the rendered site and an image in it."""

    root: Path
    runtime: str = ""

    @property
    def image(self) -> Path:
        return self.root / "image"

    @property
    def launcher(self) -> Path:
        return self.root / "site" / "bin" / "cvmfs-run"

    def configure(self, text: str) -> Mapping[str, str]:
        """Render a site of its own; return the environment that selects it."""
        out = Path(tempfile.mkdtemp(dir=self.root)) / "site"
        out.parent.chmod(0o755)
        site = parse(Site, f"name: test\n{text}", "test.yaml")
        write_site(render_site(site, templates_dir()), out)
        return {"CVMFS_RUN_CONF": str(out / "etc" / "site.conf")}

    def words(self, *words: str | Path, shell: Sequence[str] = ()) -> list[str]:
        runtime = ["--runtime", self.runtime] if self.runtime else []
        return [*shell, str(self.launcher), *runtime, *map(str, words)]

    def run(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        shell: Sequence[str] = (),
        input: bytes | None = None,  # noqa: A002  # as subprocess names it
    ) -> subprocess.CompletedProcess[bytes]:
        return run_as_test_user(
            self.words(*words, shell=shell), env=env, cwd=cwd or self.root, input=input
        )

    def output(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        """Run a job that must succeed without a word on stderr; return its output."""
        result = self.run(*words, env=env, cwd=cwd)
        assert (result.returncode, result.stderr) == (0, b""), result
        return result.stdout.decode()

    def folder(self, name: str) -> Path:
        """Make a folder of the test user."""
        path = self.root / name
        path.mkdir(parents=True)
        os.chown(path, test_user().uid, test_user().gid)
        return path


@contextmanager
def generic_node(runtime: str = "") -> Iterator[Node]:
    """Make a node of the generic site, with an image."""
    require("busybox")
    with tempfile.TemporaryDirectory(prefix="launcher-", dir="/var/tmp") as folder:
        root = Path(folder)
        root.chmod(0o755)
        node = Node(root, runtime)
        build_image(node.image)
        write_site(render_site(load_site("generic"), templates_dir()), root / "site")
        yield node


@pytest.fixture(scope="module")
def bare_node() -> Iterator[Node]:
    with generic_node() as node:
        yield node


@pytest.fixture(params=RUNTIMES)
def node(request: pytest.FixtureRequest, bare_node: Node) -> Node:
    return Node(bare_node.root, str(require(request.param)))


def failure(result: subprocess.CompletedProcess[bytes]) -> tuple[int, str, str, str]:
    """Return status, class, step and cause of a job that was not started."""
    lines = result.stderr.decode().splitlines()
    messages = [match for match in map(MESSAGE.fullmatch, lines) if match]
    assert len(messages) == 1, result
    assert messages[0][2] == str(result.returncode), result
    return result.returncode, messages[0][1], messages[0][3], messages[0][4]


def status(returncode: int) -> int:
    """Return the status as a shell reports it."""
    return returncode if returncode >= 0 else 128 - returncode


# ---------------------------------------------------------------- the job's own status


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 7", 7),
        ("exit 255", 255),
        ("exit 66", 66),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("exec no-such-command", 127),
        ("exec /marker", 126),
    ],
)
def test_the_status_is_the_jobs_own(
    node: Node, mode: str, script: str, expected: int
) -> None:  # g.7-1
    result = node.run("--mode", mode, node.image, "--", "sh", "-c", script)
    assert status(result.returncode) == expected
    assert b"cvmfs-run: class" not in result.stderr


@pytest.mark.parametrize("mode", MODES)
def test_a_command_that_does_not_exist_is_127(node: Node, mode: str) -> None:  # g.7-1
    assert node.run("--mode", mode, node.image, "no-such-command").returncode == 127


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["TERM", "INT", "USR1", "USR2", "HUP"])
def test_signals_reach_the_job_and_its_status_comes_back(
    node: Node, mode: str, name: str
) -> None:  # g.7-2
    script = f"trap 'echo got {name}; exit 42' {name}; echo ready; while :; do sleep 0.05; done"
    with popen_as_test_user(
        node.words("--mode", mode, node.image, "sh", "-c", script),
        cwd=node.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"ready\n"
        job.send_signal(getattr(signal, f"SIG{name}"))
        assert job.stdout.read() == f"got {name}\n".encode()
        assert job.wait(30) == 42


@pytest.mark.parametrize("mode", MODES)
def test_a_job_without_a_handler_dies_of_term(node: Node, mode: str) -> None:
    with popen_as_test_user(
        node.words("--mode", mode, node.image, "sh", "-c", "echo ready; exec sleep 60"),
        cwd=node.root,
        stdout=subprocess.PIPE,
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"ready\n"
        job.terminate()
        assert status(job.wait(30)) == 143


def test_a_contained_job_leaves_no_process_when_the_launcher_is_killed(
    bare_node: Node,
) -> None:  # g.7-3
    node = Node(bare_node.root, str(require("apptainer")))
    flag = node.folder("kill") / "alive"
    script = 'while :; do echo x >>"$1"; sleep 0.05; done & echo ready; wait'
    with popen_as_test_user(
        node.words("--contain", "--bind", f"{flag.parent}:/nfs", node.image, "sh", "-c", script,
                   "sh", "/nfs/alive"),
        cwd=node.root,
        stdout=subprocess.PIPE,
    ) as job:  # fmt: skip
        assert job.stdout is not None
        assert job.stdout.readline() == b"ready\n"
        job.kill()
        assert job.stdout.read() == b""  # ends when the last process closes it
        job.wait(30)
    written = flag.stat().st_size
    time.sleep(0.5)
    assert flag.stat().st_size == written
    shutil.rmtree(flag.parent)


@pytest.mark.parametrize("mode", MODES)
def test_stdin_arguments_and_stdout_are_untouched(node: Node, mode: str) -> None:
    words = ["a b", "", "*", "$HOME", "it's", '"', "new\nline", "--bind", "--"]
    result = node.run(
        "--mode", mode, node.image, "--", "sh", "-c", 'cat; printf "[%s]" "$@"', "sh", *words,
        input=b"from stdin\0\n",
    )  # fmt: skip
    assert result.stdout.decode() == "from stdin\0\n" + "".join(f"[{word}]" for word in words)


# ---------------------------------------------------------------- mounts


def test_nfs_is_bound_from_the_host(node: Node) -> None:
    source = node.folder("export")
    (source / "data").write_text("from the host\n")
    assert node.output("--bind", f"{source}:/nfs", node.image, "cat", "/nfs/data") == (
        "from the host\n"
    )
    node.output("--bind", f"{source}:/nfs", node.image, "touch", "/nfs/written")
    assert (source / "written").exists()
    shutil.rmtree(source)


def test_a_root_of_the_site_is_bound_when_the_host_has_it(node: Node) -> None:
    source = node.folder("root")
    (source / "data").write_text("root\n")
    target = node.image / str(source)[1:]
    target.mkdir(parents=True)
    env = node.configure(f"roots: [{source}, /does/not/exist]")
    assert node.output(node.image, "cat", f"{source}/data", env=env, cwd=Path("/")) == "root\n"
    node.output("--contain", node.image, "pwd", env=env)  # below a directory the image has
    shutil.rmtree(node.image / "var" / "tmp")
    (node.image / "var" / "tmp").mkdir()
    shutil.rmtree(source)


def test_a_root_where_the_image_has_files_is_left_to_the_image(node: Node) -> None:
    env = node.configure("roots: [/bin]")
    assert node.output(node.image, "cat", "/marker", env=env) == "inside\n"


def test_required_and_optional_mounts_of_the_site(node: Node) -> None:  # g.7-5
    source = node.folder("software")
    (source / "version").write_text("1\n")
    env = node.configure(
        f"binds:\n- {{source: {source}, target: /software, required: true}}\n"
        "- {source: /does/not/exist, target: /data}\n"
        f"config_mounts:\n- {{source: {source}/version, target: /etc/hosts,"
        " environment: {WALLET: /etc/hosts}}\n"
        "- {source: /nope, target: /etc/group, environment: {ABSENT: x}}\n"
    )
    script = 'cat /software/version "$WALLET"; echo "${ABSENT-unset}"'
    assert node.output(node.image, "sh", "-c", script, env=env) == "1\n1\nunset\n"
    shutil.rmtree(source)
    assert failure(node.run(node.image, "true", env=env)) == (72, "bind", "bind", "missing-source")


@pytest.mark.parametrize(
    "name", ["a b", "c,d", "e:f", 'g"h', "i'j", "k\\l", "$(id)", "*", "-n", "mn;o"]
)
def test_odd_paths_work_as_bind_working_directory_and_image(node: Node, name: str) -> None:  # g.7-4
    folder = node.folder(f"odd/{name}")
    (folder / "data").write_text("odd\n")
    image = folder / "image"
    image.symlink_to(node.image)
    spec = str(folder).replace(":", "\\:") + ":/nfs"
    try:
        assert node.output("--bind", spec, image, "cat", "/nfs/data") == "odd\n"
        assert node.output(image, "pwd", cwd=folder) == f"{folder}\n"
    finally:
        shutil.rmtree(node.root / "odd")


def test_a_missing_source_of_the_user_is_72(node: Node) -> None:
    assert failure(node.run("--bind", "/does/not/exist:/nfs", node.image, "true")) == (
        72, "bind", "bind", "missing-source",
    )  # fmt: skip


@pytest.mark.parametrize("spec", ["/usr:nfs", "/usr:/nfs:rx", "/usr:", "/usr:/nfs:ro:ro"])
def test_a_mount_that_cannot_be_understood_is_64(node: Node, spec: str) -> None:
    assert failure(node.run("--bind", spec, node.image, "true")) == (
        64, "usage", "bind", "bad-option",
    )  # fmt: skip


def test_a_file_is_not_mounted_onto_a_directory_nor_the_other_way_round(node: Node) -> None:
    words: list[str | Path] = ["--bind", "/etc/passwd:/nfs", node.image, "true"]
    assert failure(node.run(*words))[0::3] == (72, "is-a-directory")
    words[1] = "/usr:/etc/hosts"
    assert failure(node.run(*words))[0::3] == (72, "not-a-directory")


def test_a_relative_source_is_mounted_at_its_own_path(node: Node) -> None:
    source = node.folder("relative source")
    (source / "data").write_text("relative\n")
    words: list[str | Path] = ["--bind", "relative source", node.image, "cat", f"{source}/data"]
    assert node.output(*words) == "relative\n"
    shutil.rmtree(source)


def test_the_user_cannot_replace_a_required_mount(node: Node) -> None:
    env = node.configure("binds: [{source: /usr, target: /software, required: true}]")
    for target in ("/software", "//software/", "/nfs/.././software/."):
        result = node.run("--bind", f"/etc:{target}", node.image, "true", env=env)
        assert failure(result) == (77, "noperm", "bind", "conflict")


def test_read_only_is_read_only_or_refused(node: Node) -> None:
    source = node.folder("readonly")
    result = node.run("--bind", f"{source}:/nfs:ro", node.image, "touch", "/nfs/x")
    shutil.rmtree(source)
    if node.runtime.endswith("ch-run"):
        assert failure(result) == (72, "bind", "bind", "read-only-unsupported")
    else:
        assert result.returncode == 1
        assert b"Read-only file system" in result.stderr


def test_a_nested_mount_does_not_create_directories_on_the_host(node: Node) -> None:
    outer, inner = node.folder("outer"), node.folder("inner")
    binds = ["--bind", f"{inner}:/nfs/sub", "--bind", f"{outer}:/nfs"]
    result = node.run(*binds, node.image, "true")
    assert failure(result) == (72, "bind", "bind", "missing-mount-point")
    assert list(outer.iterdir()) == []
    (outer / "sub").mkdir()
    (inner / "deep").touch()
    assert node.output(*binds, node.image, "ls", "/nfs/sub") == "deep\n"
    shutil.rmtree(outer)
    shutil.rmtree(inner)


def test_ch_run_needs_the_mount_point_in_the_image_and_apptainer_does_not(node: Node) -> None:
    source = node.folder("anywhere")
    result = node.run(
        "--bind", f"{source}:/not/in/image", node.image, "test", "-d", "/not/in/image"
    )
    source.rmdir()
    if node.runtime.endswith("ch-run"):
        assert failure(result) == (72, "bind", "bind", "missing-mount-point")
    else:
        assert (result.returncode, result.stderr) == (0, b"")


# ---------------------------------------------------------------- directories, environment


def test_the_working_directory_is_kept(node: Node) -> None:
    folder = node.folder("work")
    node.output(node.image, "touch", "here", cwd=folder)
    assert (folder / "here").exists()
    shutil.rmtree(folder)


def test_a_working_directory_that_cannot_be_shown_ends_the_job(node: Node) -> None:  # g.7-9
    assert failure(node.run(node.image, "true", cwd=Path("/usr/share"))) == (
        72, "bind", "cwd", "missing-in-image",
    )  # fmt: skip


def test_the_home_of_the_host_is_there(node: Node) -> None:  # g.7-9
    home = node.folder("home of user")
    (home / "file").write_text("mine\n")
    script = 'echo "$HOME"; cat "$HOME/file"'
    env = {"HOME": str(home)}
    assert node.output(node.image, "sh", "-c", script, env=env) == f"{home}\nmine\n"
    home.chmod(0o555)
    os.chown(home, 0, 0)
    assert node.output(node.image, "sh", "-c", script, env=env) == f"{home}\nmine\n"
    shutil.rmtree(home)


@pytest.mark.parametrize("home", ["/does/not/exist", "", "/", "relative"])
def test_a_home_that_cannot_be_used_becomes_an_empty_one(node: Node, home: str) -> None:  # g.7-9
    scratch = node.folder("scratch")
    script = 'cd "$HOME" && ls -A && touch x && stat -c %a .'
    env = {"HOME": home, "TMPDIR": str(scratch)}
    assert node.output("--mode", "supervise", node.image, "sh", "-c", script, env=env) == "700\n"
    assert list(scratch.iterdir()) == []  # removed after the job
    shutil.rmtree(scratch)


def test_home_none_shows_no_home(node: Node) -> None:
    env = node.configure("home: none")
    home = node.folder("hidden")
    (home / "secret").touch()
    script = 'test ! -e "$HOME/secret"'
    node.output(node.image, "sh", "-c", script, env={**env, "HOME": "/home/nobody-here"})
    shutil.rmtree(home)


def test_a_usable_tmpdir_is_kept_and_a_bad_one_replaced(node: Node) -> None:
    scratch = node.folder("tmp of job")
    script = 'touch "$TMPDIR/x"; echo "$TMPDIR"'
    assert node.output(node.image, "sh", "-c", script, env={"TMPDIR": str(scratch)}) == (
        f"{scratch}\n"
    )
    assert (scratch / "x").exists()
    env = {**node.configure(f"scratch: ['{scratch}']"), "TMPDIR": "/does/not/exist"}
    given = node.output("--mode", "supervise", node.image, "sh", "-c", script, env=env)
    assert given.startswith(f"{scratch}/cvmfs-run.")
    shutil.rmtree(scratch)


def test_contain_hides_tmp_and_home(node: Node) -> None:
    scratch, home = node.folder("contained"), node.folder("visible")
    (home / "secret").touch()
    script = 'ls -A "$HOME"; test -w /tmp && test ! -e "$1" && ls -A /tmp/*.x; touch /tmp/mine'
    with tempfile.NamedTemporaryFile(dir="/tmp", suffix=".x") as outside:
        result = node.run(
            "--contain", "--mode", "supervise", node.image, "sh", "-c", script, "sh", outside.name,
            env={"HOME": str(home), "TMPDIR": str(scratch)},
        )  # fmt: skip
        assert (result.returncode, result.stdout) == (0, b"")
        given = node.output(
            "--contain", "--mode", "supervise", node.image, "sh", "-c", 'pwd; test ! -e "$1"', "sh",
            outside.name, cwd=Path("/tmp"),
        )  # fmt: skip
        assert given == "/tmp\n"
    assert not Path("/tmp/mine").exists()
    assert list(scratch.iterdir()) == []
    shutil.rmtree(scratch)
    shutil.rmtree(home)


def test_the_environment_arrives_and_the_images_own_is_applied(node: Node) -> None:  # g.7-10
    script = 'echo "$ODD"; echo "$PATH"; echo "$IMAGE_SAYS"; echo "${PYTHONPATH-unset}"'
    odd = "$(id) `id` 'q' = \"x\"\nsecond line"
    lines = node.output(
        node.image, "sh", "-c", script, env={"ODD": odd, "PYTHONPATH": "/nope"}
    )  # fmt: skip
    said, path, image_says, dropped = lines.rsplit("\n", 4)[:4]
    assert said == odd
    assert path.startswith("/opt/image/bin:/usr/bin:/bin")
    assert (image_says, dropped) == ("a b", "unset")


def test_a_thousand_variables_arrive(node: Node) -> None:  # g.7-10
    env = {f"MANY_{number}": f"value {number}" for number in range(1000)}
    output = node.output(node.image, "env", env=env)
    assert {f"{name}={value}" for name, value in env.items()} <= set(output.splitlines())


def test_the_launcher_adds_no_variables_of_its_own(node: Node) -> None:
    names = {line.split("=")[0] for line in node.output(node.image, "env").splitlines()}
    assert not {name for name in names if name.startswith(("cr_", "cvmfs_site_"))}
    assert {"CVMFS_RUN_IMAGE_NAME", "CVMFS_RUN_IMAGE_PATH"} <= names


def test_an_empty_user_name_is_filled_in(node: Node) -> None:
    env = {"USER": "", "LOGNAME": ""}
    assert node.output(node.image, "pwd", env=env) == f"{node.root}\n"


# ---------------------------------------------------------------- images by name, CVMFS


def test_an_image_is_found_by_name_and_resolved_once(node: Node) -> None:  # g.7-6
    base = node.folder("cvmfs")
    real = base / "c.example.org" / ".flat" / "ab" / "abc"
    real.parent.mkdir(parents=True)
    real.symlink_to(node.image)
    link = base / "c.example.org" / "docker.io" / "library" / "debian:12"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../.flat/ab/abc")
    env = node.configure(f"cvmfs: {base}\nrepositories: [{{name: c.example.org}}]")
    for name in ("debian:12", "docker.io/library/debian:12", "docker://index.docker.io/debian:12"):
        assert node.output(name, "cat", "/marker", env=env) == "inside\n"
    for name in ("debian:13", "ghcr.io/library/debian:12", "debian"):
        assert failure(node.run(name, "true", env=env)) == (
            66, "noimage", "resolve", "no-such-image",
        )  # fmt: skip
    missing = node.configure(f"cvmfs: {base}\nrepositories: [{{name: other.example.org}}]")
    assert failure(node.run("debian:12", "true", env=missing)) == (
        69, "noservice", "probe", "not-mounted",
    )  # fmt: skip
    (base / "other.example.org").mkdir()  # a mount point without its mount
    assert node.run("debian:12", "true", env=missing).returncode == 69
    shutil.rmtree(base)


def test_a_loop_of_links_is_temporary(node: Node) -> None:  # g.7-7
    base = node.folder("cvmfs")
    (base / "c.example.org").symlink_to("c.example.org")
    env = node.configure(f"cvmfs: {base}\nrepositories: [{{name: c.example.org}}]")
    assert failure(node.run("a/b:1", "true", env=env)) == (
        75, "tempfail", "probe", "autofs-not-propagated",
    )  # fmt: skip
    shutil.rmtree(base)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a FUSE file system for all users")
def test_a_hung_repository_is_75_in_time_and_so_is_a_dead_one(bare_node: Node) -> None:  # g.7-7
    for program in ("mksquashfs", "squashfuse", "umount"):
        require(program)
    node = bare_node
    base = node.folder("cvmfs")
    mount_point, archive = base / "c.example.org", node.root / "repository.sqfs"
    tree = node.folder("tree")
    (tree / "ghcr.io" / "a").mkdir(parents=True)
    (tree / "ghcr.io" / "a" / "b:1").mkdir()
    mount_point.mkdir()
    subprocess.run(
        ["mksquashfs", tree, archive, "-quiet", "-no-progress"], check=True, capture_output=True
    )
    env = node.configure(
        f"cvmfs: {base}\nrepositories: [{{name: c.example.org}}]\nprobe_timeout: 1s\n"
        f"runtimes: [{mount_point}/apptainer]"
    )
    hung = (75, "tempfail", "probe", "hung")
    with fuse_mount(archive, mount_point) as daemon:
        assert failure(node.run("ghcr.io/a/x:1", "true", env=env))[0] == 66
        for shell in SHELLS.values():
            assert (mount_point / "ghcr.io" / "a" / "b:1").is_dir()
            daemon.send_signal(signal.SIGSTOP)  # and the kernel still knows the directory
            began = time.monotonic()
            result = node.run("ghcr.io/a/b:1", "true", env=env, shell=shell)
            assert failure(result) == hung
            assert result.stderr.count(b"\n") == 1  # nothing of the shell's own
            assert time.monotonic() - began < 1 + 2
            daemon.send_signal(signal.SIGCONT)
        let_hang(daemon)
        assert failure(node.run("ghcr.io/a/b:1", "true", env=env)) == hung
        assert failure(node.run(node.image, "true", env=env)) == (75, "tempfail", "runtime", "hung")
        daemon.kill()
        daemon.wait()
        assert failure(node.run("ghcr.io/a/b:1", "true", env=env)) == (
            75, "tempfail", "probe", "endpoint-dead",
        )  # fmt: skip
    shutil.rmtree(base)
    shutil.rmtree(tree)
    archive.unlink()


# ---------------------------------------------------------------- refusals


def test_a_missing_image_is_66_and_a_file_is_no_image(bare_node: Node) -> None:
    assert failure(bare_node.run("/does/not/exist", "true"))[0] == 66
    assert failure(bare_node.run(bare_node.launcher, "true"))[3] == "not-a-directory"


def test_no_runtime_is_69(bare_node: Node) -> None:
    env = bare_node.configure("runtimes: [/opt/nowhere/apptainer, /opt/nowhere/ch-run]")
    assert failure(bare_node.run(bare_node.image, "true", env=env)) == (
        69, "noservice", "runtime", "no-runtime",
    )  # fmt: skip


def test_an_image_outside_the_permitted_paths_is_77(bare_node: Node) -> None:
    env = bare_node.configure("images: {allowed: [/cvmfs/x.example.org]}")
    assert failure(bare_node.run(bare_node.image, "true", env=env)) == (
        77, "noperm", "image", "not-allowed",
    )  # fmt: skip


@pytest.mark.parametrize("device", ["nv", "rocm"])
def test_a_gpu_that_is_not_there_is_76(bare_node: Node, device: str) -> None:  # g.7-11
    if Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists():
        pytest.skip("this machine has a GPU")
    assert failure(bare_node.run(f"--gpu={device}", bare_node.image, "true")) == (
        76, "gpu", "gpu", "no-driver",
    )  # fmt: skip
    assert failure(bare_node.run("--gpu", bare_node.image, "true"))[0] == 76
    env = {"CUDA_VISIBLE_DEVICES": "0"}
    assert bare_node.run("--gpu=auto", bare_node.image, "true", env=env).returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["/image"],
        ["--nonsense", "/image", "true"],
        ["--gpu=maybe", "/image", "true"],
        ["--mode"],
        ["--mode=fork", "/image", "true"],
        ["--runtime", "/bin/true", "/image", "true"],
        ["--bind", "", "/image", "true"],
        ["--bind", ":/nfs", "/image", "true"],
        ["--", "true"],
        ["a/../image", "true"],
        ["debian@sha256:12", "true"],
        ["--exit-map", "69=300", "/image", "true"],
        ["--exit-map", "69", "/image", "true"],
        ["--min-revision", "x", "/image", "true"],
        ["--before", "relative", "/image", "true"],
        ["a b", "true"],
    ],
)
def test_wrong_usage_is_64(bare_node: Node, words: list[str]) -> None:
    assert failure(bare_node.run(*words))[:2] == (64, "usage")


@pytest.mark.parametrize(
    "text", ["cvmfs_site_format=(", "cvmfs_site_format=99", "", "cvmfs_site_format=1"]
)
@pytest.mark.parametrize("shell", SHELLS)
def test_a_broken_configuration_is_78(bare_node: Node, text: str, shell: str) -> None:
    conf = bare_node.root / "broken.conf"
    conf.write_text(text)
    env = {"CVMFS_RUN_CONF": str(conf)}
    result = bare_node.run(bare_node.image, "true", env=env, shell=SHELLS[shell])
    assert result.returncode == 78
    assert b"class=config code=78 step=config" in result.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_a_bug_in_the_launcher_is_70_and_not_mistaken_for_the_jobs_status(
    bare_node: Node, shell: str
) -> None:
    program = bare_node.launcher.read_text()
    broken = bare_node.launcher.parent / "cvmfs-run-broken"
    broken.write_text(program.replace("cr_choose_gpu ||", 'cr_choose_gpu "$cr_undefined" ||'))
    words = [*SHELLS[shell], str(broken), str(bare_node.image), "true"]
    result = run_as_test_user(words, cwd=bare_node.root)
    broken.unlink()
    assert result.returncode == 70
    assert b"class=internal code=70" in result.stderr


def test_a_runtime_that_cannot_start_is_71_in_mode_supervise(node: Node) -> None:
    broken = node.folder("runtime") / Path(node.runtime).name
    broken.write_text("#!/bin/sh\nexit 255\n")
    broken.chmod(0o755)
    words: list[str | Path] = ["--runtime", broken, "--mode", "supervise", node.image, "true"]
    assert failure(Node(node.root).run(*words)) == (71, "oserr", "start", "runtime-failed")
    shutil.rmtree(broken.parent)


# ---------------------------------------------------------------- fallback, nesting, metrics


def test_the_host_is_used_only_where_the_site_says_so(bare_node: Node) -> None:
    env = bare_node.configure("runtimes: [/opt/nowhere/apptainer]\nfallback: {chain: [host]}")
    result = bare_node.run(bare_node.image, "sh", "-c", "test ! -e /marker; exit 5", env=env)
    assert result.returncode == 5
    assert b"class=fallback" in result.stderr
    assert bare_node.run("--no-fallback", bare_node.image, "true", env=env).returncode == 69
    assert bare_node.run("/does/not/exist", "true", env=env).returncode == 66


def test_a_batch_job_on_a_sick_node_waits_before_it_fails(bare_node: Node) -> None:
    env = bare_node.configure("runtimes: [/opt/nowhere/apptainer]\nfail_delay: 2s")
    began = time.monotonic()
    assert bare_node.run(bare_node.image, "true", env=env).returncode == 69
    assert time.monotonic() - began < 2  # nobody's batch job
    began = time.monotonic()
    env = {**env, "SLURM_JOB_ID": "1"}
    assert bare_node.run(bare_node.image, "true", env=env).returncode == 69
    assert time.monotonic() - began >= 2


def test_inside_a_container_the_sites_policy_counts(bare_node: Node) -> None:
    inside = {"APPTAINER_CONTAINER": "/x"}
    refuse = {**bare_node.configure("nested: refuse"), **inside}
    assert failure(bare_node.run(bare_node.image, "true", env=refuse)) == (
        77, "noperm", "nested", "inside-a-container",
    )  # fmt: skip
    direct = {**bare_node.configure("nested: direct"), **inside}
    result = bare_node.run(bare_node.image, "sh", "-c", "test ! -e /marker; exit 6", env=direct)
    assert result.returncode == 6


def test_default_images_are_used_when_none_is_named(bare_node: Node) -> None:
    env = bare_node.configure(f"images: {{cpu: {bare_node.image}}}")
    assert bare_node.output("--", "cat", "/marker", env=env) == "inside\n"
    plain = bare_node.configure("home: host")
    chosen = {**plain, "CVMFS_RUN_IMAGE": str(bare_node.image)}
    assert bare_node.output("--", "cat", "/marker", env=chosen) == "inside\n"


def test_every_start_leaves_one_line_of_metrics(node: Node) -> None:
    metrics = node.folder("metrics")
    env = node.configure(f"metrics_dir: {metrics}")
    node.run("--mode", "supervise", node.image, "sh", "-c", "exit 3", env=env)
    node.run("/does/not/exist", "true", env=env)
    (log,) = metrics.iterdir()
    first, second = log.read_text().splitlines()
    assert "class=job code=3 source=path" in first
    assert "class=noimage code=66" in second
    shutil.rmtree(metrics)


# ---------------------------------------------------------------- the program itself


@pytest.mark.parametrize("shell", SHELLS)
def test_the_launcher_runs_under_every_posix_shell(node: Node, shell: str) -> None:  # g.7-12
    require(SHELLS[shell][0])
    source = node.folder("shells")
    (source / "x,y z").touch()
    result = node.run(
        "-v", "--bind", f"{source}:/nfs", node.image, "sh", "-c", "ls /nfs; exit 9",
        shell=SHELLS[shell],
    )  # fmt: skip
    shutil.rmtree(source)
    assert (result.returncode, result.stdout) == (9, b"x,y z\n")
    for mode in MODES:
        words: list[str | Path] = ["--mode", mode, node.image, "sh", "-c", "kill -9 $$"]
        assert status(node.run(*words, shell=SHELLS[shell]).returncode) == 137


def test_the_dry_run_prints_a_command_that_does_the_same(node: Node) -> None:
    source = node.folder("dry run: it's")
    (source / "data").write_text("dry\n")
    spec = str(source).replace(":", "\\:") + ":/nfs"
    words: list[str | Path] = [
        "--bind",
        spec,
        node.image,
        "sh",
        "-c",
        'cat /nfs/data; echo "$1" "$TMPDIR"',
        "sh",
    ]
    env = {"TMPDIR": str(source)}
    printed = node.run("--dry-run", *words, "it's $HOME", env=env, cwd=source)
    assert sorted(path.name for path in source.iterdir()) == ["data"]  # nothing was done
    pasted = run_as_test_user(["sh"], input=printed.stdout, env=env)
    assert pasted.stdout == node.run(*words, "it's $HOME", env=env, cwd=source).stdout
    assert (pasted.returncode, pasted.stderr) == (0, b"")
    shutil.rmtree(source)


def test_a_link_to_the_program_finds_its_configuration(bare_node: Node) -> None:
    link = bare_node.root / "link-to-launcher"
    link.symlink_to(bare_node.launcher)
    result = run_as_test_user([link, bare_node.image, "cat", "/marker"], cwd=bare_node.root)
    assert result.stdout == b"inside\n"
    link.unlink()


def test_help_and_version_need_no_configuration(bare_node: Node) -> None:
    env = {"CVMFS_RUN_CONF": "/does/not/exist"}
    assert b"usage: cvmfs-run" in bare_node.run("--help", env=env).stdout
    assert bare_node.run("--version", env=env).stdout.startswith(b"cvmfs-run ")


def test_the_image_may_have_no_shell(node: Node) -> None:
    image = node.root / "distroless"
    shutil.copytree(node.image, image, symlinks=True)
    for applet in APPLETS:
        (image / "bin" / applet).unlink()
    assert "IMAGE_SAYS=a b" in node.output(image, "/bin/busybox", "env").splitlines()
    assert node.run("--mode", "supervise", image, "/bin/busybox", "false").returncode == 1
    shutil.rmtree(image)
