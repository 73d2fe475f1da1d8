"""A worker node for batch systems: a mounted repository with one image, and a rendered site.

The image is a static busybox; the repository is an ordinary folder where the site says CernVM-FS
is mounted.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cvmfs_publish.sandbox.roots import STANDARD_ROOTS
from cvmfs_publish.settings import parse
from cvmfs_publish.sites.data import templates_dir
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.render import render_site
from cvmfs_publish.sites.writing import write_site
from tests.parts import require

REPOSITORY = "images.example.org"
IMAGE = "docker.io/example/job:1"
INSIDE = "NAME=a-job-image\n"  # /etc/os-release of the image
APPLETS = (
    *("sh", "env", "cat", "echo", "ls", "sleep", "kill", "pwd", "id", "test", "true", "false"),
    *("touch", "mkdir", "printf", "wc", "stat", "readlink", "grep"),
)
SITE = """\
name: batch
cvmfs: {root}/cvmfs
repositories: [{{name: {repository}}}]
images: {{cpu: "{image}"}}
runtimes: ["{runtime}"]
install_dir: {root}/site
"""


@dataclass(frozen=True)
class WorkerNode:
    """A folder everybody can enter."""

    root: Path

    @property
    def site(self) -> Path:
        """The rendered folder, where the site says it lies on nodes."""
        return self.root / "site"

    @property
    def repository(self) -> Path:
        return self.root / "cvmfs" / REPOSITORY

    @contextmanager
    def without_repository(self) -> Iterator[None]:
        """Take the repository away for a while, as on a node where it is not mounted."""
        aside = self.repository.with_name("aside")
        self.repository.rename(aside)
        try:
            yield
        finally:
            aside.rename(self.repository)


@contextmanager
def worker_node(text: str, runtime: str = "apptainer") -> Iterator[WorkerNode]:
    """Make a node whose site has `text` in addition to what every node here has.

    `ROOT` in it stands for the node's folder.
    """
    program = require(runtime)
    require("busybox")
    with tempfile.TemporaryDirectory(prefix="node-", dir="/var/tmp") as folder:
        root = Path(folder)
        root.chmod(0o755)
        node = WorkerNode(root)
        build_image(node.repository / IMAGE)
        whole = SITE.format(root=root, repository=REPOSITORY, image=IMAGE, runtime=program)
        site = parse(Site, whole + text.replace("ROOT", str(root)), "batch.yaml")
        write_site(render_site(site, templates_dir()), node.site)
        yield node


@contextmanager
def fuse_mount(archive: Path, mount_point: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Mount a squashfs archive for all users; yield the daemon, to be stopped or killed."""
    with subprocess.Popen(
        ["squashfuse", "-f", "-o", "allow_other", archive, mount_point],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as daemon:
        try:
            deadline = time.monotonic() + 10
            while not os.path.ismount(mount_point) and time.monotonic() < deadline:
                time.sleep(0.02)
            yield daemon
        finally:
            daemon.kill()
            subprocess.run(["umount", "-l", mount_point], check=False, capture_output=True)


def let_hang(daemon: subprocess.Popen[bytes]) -> None:
    """Stop the daemon of a mount, so that whoever looks at it waits."""
    daemon.send_signal(signal.SIGSTOP)
    time.sleep(1.1)  # the kernel remembers attributes for a second


def build_image(image: Path) -> None:
    """Make a small image with what a published sandbox has, around a static busybox."""
    for root in (*STANDARD_ROOTS, "/dev", "/proc", "/sys", "/tmp", "/var/tmp", "/etc", "/usr/bin"):
        (image / root[1:]).mkdir(parents=True, exist_ok=True)
    for name in ("hosts", "resolv.conf", "localtime", "passwd", "group"):
        (image / "etc" / name).touch()
    (image / "etc" / "os-release").write_text(INSIDE)
    (image / "bin").mkdir()
    shutil.copy(require("busybox"), image / "bin" / "busybox")
    for applet in APPLETS:
        (image / "bin" / applet).symlink_to("/bin/busybox")  # absolute, as Alpine has them
    environment = image / ".singularity.d" / "env"
    environment.mkdir(parents=True)
    (image / ".singularity.d" / "libs").mkdir()
    (environment / "10-docker2singularity.sh").write_text(
        'export PATH="/opt/image/bin:/usr/bin:/bin"\nexport IMAGE_SAYS="${IMAGE_SAYS:-"a b"}"\n'
    )
    (environment / "99-base.sh").write_text(
        'LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"\n'
        "export LD_LIBRARY_PATH\n"
    )
    (image / "ch").mkdir()
    (image / "ch" / "environment").write_text("PATH=/opt/image/bin:/usr/bin:/bin\nIMAGE_SAYS=a b\n")
    (image / "marker").write_text("inside\n")
