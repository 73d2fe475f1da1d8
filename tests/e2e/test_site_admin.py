"""`docs/site-admin.md` as a new admin follows it: its commands, in their order, on a node of ours.

Only places and names that this machine cannot have are replaced (`Node.here`): `/opt/cvmfs-run`,
`/etc/cvmfs`, the mounted repository, the publisher's address, the installed `apptainer.conf`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes.registry import FakeRegistry
from tests.layouts import Tar
from tests.parts import CHECKOUT, describe, find, require, run_as_test_user, test_user
from tests.slurm_cluster import JOB_SECONDS, SlurmCluster, running_slurm
from tests.unit.cli.support import Shell
from tests.worker_node import build_image

pytestmark = pytest.mark.parts

PAGE = CHECKOUT / "docs" / "site-admin.md"
JOB_PAGE = CHECKOUT / "docs" / "job-user.md"
REPOSITORY = "containers.example.org"
IMAGE = "docker.io/library/debian:12"
SYSTEM = 'PRETTY_NAME="an image of the tests"\n'
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONF = "sessiondir max size = 64\nmount home = yes\n"


def blocks(page: Path) -> list[str]:
    """Return the commands of a page, block by block."""
    return BLOCK.findall(page.read_text("utf-8"))


@dataclass
class Node:
    """A node of the admin: a folder for each place that is not ours to write to."""

    root: Path
    published: str  # how the image is called where it was published
    cluster: SlurmCluster | None = None
    said: dict[str, str] = field(default_factory=dict)  # a command's first words → its output

    @property
    def site(self) -> Path:
        return self.root / "opt" / "cvmfs-run"

    @property
    def home(self) -> Path:
        return self.root / "home"

    def here(self, text: str) -> str:
        """Return commands with the places and names of this node."""
        server = f"http://stratum1.example.org/cvmfs/{REPOSITORY}"
        for theirs, ours in (
            (f"{server} --key", f"{self.root}/publisher/repository --key"),
            ("debian:12 /var/tmp", f"{self.published} /var/tmp"),
            ("/var/tmp/debian-12", f"{self.root}/debian-12"),
            ("/opt/cvmfs-run", str(self.site)),
            ("/etc/cvmfs/", f"{self.root}/etc-cvmfs/"),
            ("/var/log/cvmfs-run", f"{self.root}/log"),
            ("conf/apptainer-config.sh", f"conf/apptainer-config.sh --config {self.root}/conf"),
            ("install_dir: ", f"cvmfs: {self.root}/cvmfs\ninstall_dir: "),
            (f"ls /cvmfs/{REPOSITORY}", f"ls {self.root}/cvmfs/{REPOSITORY}"),
        ):
            text = text.replace(theirs, ours)
        return text

    def run(self, block: str) -> str:
        """Run a block as the page says: jobs as an ordinary user, the rest as the admin."""
        script = self.here(block)
        if f"{self.site}/bin/" in script or script.startswith("sbatch"):
            environment = self.cluster.environment if self.cluster is not None else {}
            result = run_as_test_user(["bash", "-ec", script], env=environment, cwd=self.home)
        else:
            # without network: the program comes from here, apptainer from where tests have it
            folders = [Path(sys.executable).parent, require("apptainer").parent]
            path = ":".join([*map(str, folders), os.environ.get("PATH", os.defpath)])
            result = subprocess.run(
                ["bash", "-ec", script],
                cwd=self.root / "admin",
                env={"PATH": path, "HOME": str(self.root)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=120,
                check=False,
            )
        assert result.returncode == 0, describe(result)
        said = os.fsdecode(result.stdout)
        self.said[block.split("\n", 1)[0]] = said
        return said


def publish(root: Path) -> str:
    """Publish an image, and export it to where it would be mounted; return its name."""
    build_image(root / "image")
    (root / "image" / "etc" / "os-release").write_text(SYSTEM)
    layer = Tar()
    for path in sorted((root / "image").rglob("*")):
        name = str(path.relative_to(root / "image"))
        if path.is_symlink():
            layer.symlink(name, str(path.readlink()))
        elif path.is_dir():
            layer.directory(name)
        else:
            layer.file(name, path.read_bytes(), path.stat().st_mode & 0o777)
    publisher = root / "publisher"
    publisher.mkdir()
    shell = Shell(publisher)
    with FakeRegistry() as registry:
        registry.add_image("library/debian", [layer.done()], tag="12")
        name = registry.name("library/debian", "12")
        mounted = root / "cvmfs" / REPOSITORY / IMAGE
        mounted.parent.mkdir(parents=True)
        for words in (["init", REPOSITORY], ["publish", name], ["export", name, str(mounted)]):
            ran = shell.run(*words)
            assert ran.code == 0, ran.err
    return name


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    require("apptainer")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="admin-", dir="/var/tmp"))
        root = Path(folder)
        root.chmod(0o755)
        for name in ("admin", "etc-cvmfs", "home", "slurm"):
            (root / name).mkdir()
        os.chown(root / "home", test_user().uid, test_user().gid)
        node = Node(root, publish(root))
        shutil.copy(root / "publisher" / "keys" / f"{REPOSITORY}.pub", root / "admin")
        (root / "conf").write_text(CONF)
        if find("slurmctld") is not None:
            node.cluster = stack.enter_context(running_slurm(root / "slurm"))
        yield node


def first(words: str) -> str:
    """Return the one block of the page that begins with these words."""
    (block,) = (block for block in blocks(PAGE) if block.startswith(words))
    return block


def ten_commands() -> str:
    return PAGE.read_text("utf-8").partition("\n## A node without")[0]


@pytest.fixture(scope="module")
def installed(node: Node) -> Node:
    """The node after the ten commands."""
    for command in BLOCK.findall(ten_commands()):
        if node.cluster is not None or not command.startswith("sbatch"):
            node.run(command)
    return node


def test_ten_commands_lead_from_nothing_to_a_batch_job(installed: Node) -> None:
    node, text = installed, ten_commands()
    numbers = [int(n) for n in re.findall(r"\b(\d+)\.(?= [A-Z]| and \d)", text)]
    assert numbers == list(range(1, 11))
    commands = BLOCK.findall(text)
    typed = re.findall(r"^```console\n# (.*)\n```$", text, re.MULTILINE)
    assert len(commands) + len(typed) == 10
    assert "pip install ." in typed[0]
    assert "cvmfs_config" in typed[1]  # of the client: the one that cannot be run here
    assert node.said["cvmfs-publish site check --strict ./lab.yaml"] == "lab: valid, 0 remarks\n"
    key = node.root / "etc-cvmfs" / "keys" / "example.org" / f"{REPOSITORY}.pub"
    assert key.read_bytes() == (node.root / "admin" / f"{REPOSITORY}.pub").read_bytes()
    assert "\nsessiondir max size = 256\n" in (node.root / "conf").read_text()
    assert "unchanged" in node.run("/opt/cvmfs-run/conf/apptainer-config.sh 2>&1\n")
    assert "ok check=start" in node.said["/opt/cvmfs-run/bin/node-check debian:12"]
    assert node.said["/opt/cvmfs-run/bin/cvmfs-run debian:12 -- cat /etc/os-release"] == SYSTEM
    require("slurmctld")
    said = node.said["sbatch /opt/cvmfs-run/slurm/submit.sbatch"]
    assert node.cluster is not None
    shown = node.cluster.wait(said.split()[-1])
    assert (shown["JobState"], shown["ExitCode"]) == ("COMPLETED", "0:0")
    assert written(node.home / f"cvmfs-run-{shown['JobId']}.out") == SYSTEM


def written(path: Path) -> str:
    """Return a job's output, which Slurm may bring a moment after the job's end."""
    deadline = time.monotonic() + JOB_SECONDS
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.read_text()


def test_the_rest_of_the_page_follows_from_there(installed: Node) -> None:
    node = installed
    for block in blocks(PAGE)[blocks(PAGE).index(first("sbatch")) + 1 :]:
        if not block.startswith("cvmfs-publish bench"):  # tests/e2e/test_bench.py
            node.run(block)
    (changed,) = (said for words, said in node.said.items() if words.startswith("echo"))
    assert f"+cvmfs_site_metrics_dir={node.root}/log" in changed
    (line,) = node.said["/opt/cvmfs-run/bin/cvmfs-run debian:12 -- true"].splitlines()
    assert "site=lab job= class=job code=- source=cvmfs runtime=" in line
    assert line.count("=") == PAGE.read_text().split("\n2026-", 1)[1].split("\n")[0].count("=")
    assert "fail" not in node.said["/opt/cvmfs-run/bin/node-check --quiet"]


def test_a_node_without_cernvm_fs_runs_the_exported_image(node: Node) -> None:
    image = node.root / "debian-12"
    if not image.exists():
        node.run(first("cvmfs-publish export"))
    site = node.run(
        f"cat >alone.yaml <<EOF\nname: alone\ncvmfs: {node.root}/nothing\nrepositories: []\n"
        f"images: {{cpu: {image}}}\nruntimes: [apptainer]\n"
        f"EOF\ncvmfs-publish site check ./alone.yaml\n"
        f"cvmfs-publish site render ./alone.yaml --out {node.root}/alone\n"
    )
    assert "alone: valid, 2 remarks" in site
    check = [str(node.root / "alone/bin/node-check"), str(image)]
    checked = run_as_test_user(check, cwd=node.home)
    assert checked.returncode == 0, describe(checked)
    job = [str(node.root / "alone/bin/cvmfs-run"), "--", "cat", "/etc/os-release"]
    assert run_as_test_user(job, cwd=node.home, check=True).stdout == SYSTEM.encode()


def test_the_page_for_users_fits_one_page_and_names_what_there_is() -> None:
    text = JOB_PAGE.read_text("utf-8")
    assert len(text.splitlines()) <= 60
    launcher = (CHECKOUT / "templates" / "launcher" / "cvmfs-run").read_text("utf-8")
    for option in set(re.findall(r"`(--[a-z-]+)", text)):
        assert re.search(rf"^  {option}\b", launcher, re.MULTILINE), option
    for variable in set(re.findall(r"`(CVMFS_RUN_[A-Z_]+)", text)):
        assert variable in launcher, variable
    for name, code in re.findall(r"`([a-z]+)` (\d+)", text):
        assert re.search(rf"\| {code} \| {name} \|", (CHECKOUT / "docs/launcher.md").read_text())
    for block in blocks(JOB_PAGE):
        subprocess.run(["bash", "-n"], input=block.encode(), check=True)
