"""Jobs of PBS and LSF through the rendered starters, called as their daemons do, in an image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from cvmfs_publish.settings import parse
from cvmfs_publish.sites.data import templates_dir
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.render import render_site
from cvmfs_publish.sites.writing import write_site
from tests.parts import require, run, run_as_test_user, test_user
from tests.unit.sites.test_pbs import FAKE_PBS
from tests.worker_node import build_image

pytestmark = pytest.mark.parts

# Two sites whose files differ wherever a template asks a question.
VARIANTS = {
    "plain": "",
    "cached": (
        "home: none\nimages: {cpu: 'debian:12', gpu: 'debian:13'}\n"
        "repositories: [{name: a.example.org}]\n"
        "fallback: {chain: [mirror], mirrors: ['http://m.example.org/x'], shared: true}\n"
    ),
}
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "ash"]}


@dataclass(frozen=True)
class Node:
    """A worker node with a rendered site and an image."""

    root: Path

    @property
    def image(self) -> Path:
        return self.root / "image"

    def folder(self) -> Path:
        """Make a folder of the test user."""
        path = Path(tempfile.mkdtemp(dir=self.root))
        os.chown(path, test_user().uid, test_user().gid)
        return path

    def job(
        self,
        starter: str,
        *words: str,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        shell: str = "dash",
    ) -> subprocess.CompletedProcess[bytes]:
        return run_as_test_user(
            [*SHELLS[shell], str(self.root / "site" / starter), *words],
            cwd=self.root,
            env={"CVMFS_RUN_IMAGE": str(self.image), **(env or {})},
            input=stdin,
        )

    def pbs(
        self, script: str, *, line: str, shell: str = "dash", **env: str
    ) -> tuple[Path, subprocess.CompletedProcess[bytes]]:
        """Start a batch job as pbs_mom does: its shell reads the path of the script from a pipe."""
        spool, scratch = self.folder(), self.folder()
        path = spool / "12[3].server.SC"
        path.write_text(script)
        path.chmod(0o700)
        os.chown(path, test_user().uid, test_user().gid)
        escaped = str(path).replace("[", "\\[").replace("]", "\\]")
        environment = {
            "PBS_ENVIRONMENT": "PBS_BATCH",
            "PBS_TASKNUM": "1",
            "TMPDIR": str(scratch),
            **env,
        }
        told = line.format(path=escaped, dir=spool).encode()
        result = self.job("pbs/job_starter", "/bin/sh", env=environment, stdin=told, shell=shell)
        return scratch, result


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    runtime = require("ch-run")
    with tempfile.TemporaryDirectory(prefix="starters-", dir="/var/tmp") as folder:
        root = Path(folder)
        root.chmod(0o755)
        build_image(root / "image")
        text = (
            f"name: test\ninstall_dir: {root}/site\nruntimes: [{runtime}]\nhome: scratch\n"
            "batch: {systems: [pbs, lsf]}\n"
        )
        write_site(render_site(parse(Site, text, "test.yaml"), templates_dir()), root / "site")
        yield Node(root)


@pytest.mark.parametrize("variant", VARIANTS)
def test_shellcheck_has_nothing_to_say(tmp_path: Path, variant: str) -> None:
    text = (
        f"name: test\nbatch: {{systems: [pbs, lsf, kubernetes]}}\n{VARIANTS[variant]}"
        "software: [{name: a, version: '1', image: 'a/b:1', commands: [x]}]\n"
    )
    write_site(render_site(parse(Site, text, "test.yaml"), templates_dir()), tmp_path / "site")
    folders = ("pbs", "lsf", "kubernetes", "software")
    paths = [path for folder in folders for path in (tmp_path / "site" / folder).rglob("*")]
    programs = [
        path for path in paths if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh\n")
    ]
    assert len(programs) == 10
    run([require("shellcheck"), "-s", "sh", *programs])


def test_what_the_hook_of_openpbs_puts_together_runs_in_the_image(node: Node) -> None:
    folder, spool = node.folder(), node.folder()
    (folder / "pbs.py").write_text(FAKE_PBS)
    script = spool / "12.server.SC"
    script.write_text("#!/bin/sh\ncat /marker; exit 6\n")
    script.chmod(0o755)
    env = {"CVMFS_RUN_IMAGE": str(node.image), "PBS_ENVIRONMENT": "PBS_BATCH", "A": "x,y z"}
    env["TMPDIR"] = str(folder)
    job = folder / "job.json"
    job.write_text(json.dumps({"progname": "/bin/sh", "argv": ["-sh"], "env": env}))
    hook = node.root / "site" / "pbs" / "execjob_launch.py"
    run([sys.executable, "-B", hook, job], env={"PYTHONPATH": str(folder)})
    launched = json.loads(job.read_text())
    # pbs_mom executes progname with argv, in env, and writes the script's path to a pipe.
    result = run_as_test_user(
        launched["argv"],
        executable=launched["progname"],
        env=launched["env"],
        cwd=node.root,
        input=f"{script}\n".encode(),
    )
    assert (result.returncode, result.stdout, result.stderr) == (6, b"inside\n", b"")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_batch_script_of_pbs_runs_in_the_image(node: Node, shell: str) -> None:
    script = '#!/bin/sh\ncat /marker; echo "$0:$#"; cat; exit 7\n'
    scratch, result = node.pbs(script, line="{path}\n", shell=shell)
    (copy,) = scratch.glob("cvmfs-run.*/12*.SC")
    assert copy.parent.stat().st_mode & 0o777 == 0o700
    assert result.stdout.decode().splitlines() == ["inside", f"{copy}:0"]
    assert (result.returncode, result.stderr) == (7, b"")


def test_a_job_with_a_private_directory_begins_in_it(node: Node) -> None:
    _, result = node.pbs("#!/bin/sh\npwd; cat /marker\n", line="cd {dir};{path}\n")
    place, marker = result.stdout.decode().splitlines()
    assert (Path(place).parent, marker) == (node.root, "inside")


def test_a_batch_script_without_an_image_runs_from_the_spool_on_the_host(node: Node) -> None:
    scratch, result = node.pbs('echo "$0"\n', line="{path}\n", CVMFS_RUN_IMAGE="none")
    assert result.returncode == 0
    assert Path(result.stdout.decode().strip()).parent.parent == node.root
    assert not list(scratch.iterdir())


def test_a_line_that_names_no_script_reaches_the_shell_as_it_is(node: Node) -> None:
    _, result = node.pbs("", line="cat /marker # {path}\n")
    assert result.stdout == b"inside\n"


def test_a_program_of_pbs_and_its_other_tasks_keep_their_stdin(node: Node) -> None:
    result = node.job("pbs/job_starter", "cat", "/marker")
    assert result.stdout == b"inside\n"
    env = {"PBS_ENVIRONMENT": "PBS_BATCH", "PBS_TASKNUM": "2"}
    result = node.job("pbs/job_starter", "cat", "-", "/marker", env=env, stdin=b"a \\b\nc")
    assert result.stdout == b"a \\b\ncinside\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_command_line_of_lsf_runs_in_the_image_as_a_whole(node: Node, shell: str) -> None:
    words = 'cat /marker | cat; echo "a  b"; exit 9'
    result = node.job("lsf/job_starter", words, shell=shell)
    assert (result.returncode, result.stdout, result.stderr) == (9, b"inside\na  b\n", b"")


def test_a_script_in_lsfs_spool_is_visible_though_the_home_is_not(node: Node) -> None:
    home = node.folder()
    spool = home / ".lsbatch"
    spool.mkdir()
    script = spool / "1690.shell"
    script.write_text('#!/bin/sh\ncat /marker; echo "$LSB_JOBFILENAME"\n')
    script.chmod(0o755)
    job_file = str(spool / "1690")
    env = {"HOME": str(home), "LSB_JOBFILENAME": job_file}
    result = node.job("lsf/job_starter", str(script), env=env)
    assert result.stdout.decode().splitlines() == ["inside", job_file]


def test_a_job_of_lsf_without_an_image_runs_on_the_host(node: Node) -> None:
    result = node.job(
        "lsf/job_starter", "test -e /marker || echo outside", env={"CVMFS_RUN_IMAGE": "none"}
    )
    assert (result.returncode, result.stdout) == (0, b"outside\n")


def test_a_job_that_names_a_missing_image_is_not_started_and_keeps_the_launchers_status(
    node: Node,
) -> None:
    env = {"CVMFS_RUN_IMAGE": "/nowhere"}
    assert node.job("lsf/job_starter", "true", env=env).returncode == 66
    assert node.job("pbs/job_starter", "true", env=env).returncode == 66
    pre_exec = node.job("lsf/pre_exec", env=env)
    assert (pre_exec.returncode, pre_exec.stdout) == (0, b"")  # no fault of the node


@pytest.mark.parametrize(
    ("status", "expected"), [(0, 0), (66, 0), (72, 0), (69, 75), (71, 75), (75, 75)]
)
def test_a_sick_node_gives_a_job_of_lsf_back_before_it_starts(
    node: Node, status: int, expected: int
) -> None:
    folder = node.folder()
    (folder / "bin").mkdir()
    launcher = folder / "bin" / "cvmfs-run"
    launcher.write_text(
        f'#!/bin/sh\n[ "$*" = "--wrap --dry-run -- true" ] || exit 1\nexit {status}\n'
    )
    launcher.chmod(0o755)
    text = f"name: test\ninstall_dir: {folder}\nbatch: {{systems: [lsf]}}"
    pre_exec = render_site(parse(Site, text, "test.yaml"), templates_dir())["lsf/pre_exec"]
    result = run_as_test_user(
        ["sh", "-s"], input=pre_exec.content, env={"CVMFS_RUN_IMAGE": "a/b:1"}
    )
    assert (result.returncode, result.stdout, result.stderr) == (expected, b"", b"")


def test_nothing_of_lsfs_pre_execution_is_done_as_root(node: Node) -> None:
    pre_exec = (node.root / "site" / "lsf" / "pre_exec").read_text()
    before, probe = pre_exec.split("case $(/usr/bin/id -u) in\n0) exit 0 ;;\nesac\n")
    assert "cvmfs-run --wrap" in probe
    assert "cvmfs-run" not in "".join(
        line for line in before.splitlines() if not line.startswith(("#", "/usr/bin/test -x "))
    )
