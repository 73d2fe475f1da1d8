"""Jobs that `cvmfs-run` starts with podman: the same promises as with the other runtimes.

podman keeps one process of a user alive, which holds the mounts the user's containers see.  It is
started here without the second hierarchy of control groups that some machines mount: crun refuses
to run beside it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_launcher import Node, failure, generic_node
from tests.parts import popen_as_test_user, require, run_as_test_user, test_user

pytestmark = pytest.mark.parts

HYBRID = Path("/sys/fs/cgroup/unified")
ALIVE = """
[ ! -d "$1" ] || umount "$1"
exec setpriv --reuid "$2" --regid "$3" --clear-groups env HOME="$4" PATH="$PATH" \
  podman --root "$5/root" --runroot "$5/run" --storage-driver vfs --cgroup-manager cgroupfs \
  --log-level error unshare true
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    for program in ("podman", "crun", "newuidmap"):
        require(program)
    with generic_node(str(require("podman"))) as node:
        paused = start_keeping_namespace(node)
        yield node
        if paused is not None:
            os.kill(paused, signal.SIGKILL)


def start_keeping_namespace(node: Node) -> int | None:
    """Start podman's process that stays; return its number if it was not there before."""
    user = test_user()
    marker = Path(f"/tmp/podman-run-{user.uid}/libpod/tmp/pause.pid")
    if os.geteuid() != 0 or not HYBRID.is_dir():
        return None
    marker.unlink(missing_ok=True)
    words = ["unshare", "-m", "sh", "-c", ALIVE, "sh", str(HYBRID), str(user.uid), str(user.gid)]
    subprocess.run(
        [*words, str(user.home), str(node.folder("podman"))], check=True, capture_output=True
    )
    return int(marker.read_text())


@pytest.mark.parametrize(
    ("script", "expected"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("exec nothing", 127)],
)
def test_the_status_is_the_jobs_own(node: Node, script: str, expected: int) -> None:  # g.7-1
    result = node.run(node.image, "--", "sh", "-c", script)
    assert result.returncode == expected, result
    assert b"cvmfs-run: class" not in result.stderr


@pytest.mark.parametrize("name", ["TERM"])
def test_signals_reach_the_job(node: Node, name: str) -> None:  # g.7-2
    script = (
        f"trap 'echo got {name}; exit 42' {name}; echo ready; for i in 1 2 3 4 5; do sleep 1; done"
    )
    with popen_as_test_user(
        [
            "timeout",
            "--foreground",
            "20",
            *node.words(node.image, "sh", "-c", script),
        ],
        cwd=node.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"ready\n"
        job.send_signal(getattr(signal, f"SIG{name}"))
        assert job.stdout.readline() == f"got {name}\n".encode()
        assert job.wait(30) == 42


def test_the_job_sees_what_other_runtimes_show(node: Node) -> None:
    folder = node.folder("a b,c:d")
    (folder / "data").write_text("odd\n")
    spec = str(folder).replace(":", "\\:")
    script = (
        'cat; pwd; id -u; umask; cat /nfs/data; echo "$ODD"; echo "$PATH"; echo "$IMAGE_SAYS"\n'
        'touch /nfs/new; test -w "$TMPDIR"; echo "${PYTHONPATH-unset}"; ls -d /made/here\n'
        "touch /marker 2>/dev/null || echo read-only"
    )
    odd = "$(id) 'q' \"x\"\nsecond line"
    result = node.run(
        "--bind", f"{spec}:/nfs", "--bind", "/usr/share:/made", node.image, "sh", "-c",
        script.replace("/made/here", "/made"),
        env={"ODD": odd, "PYTHONPATH": "/x"}, cwd=folder, input=b"in\n",
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, b""), result
    assert result.stdout.decode() == (
        f"in\n{folder}\n{test_user().uid}\n0022\nodd\n{odd}\n/opt/image/bin:/usr/bin:/bin\na b\n"
        "unset\n/made\nread-only\n"
    )
    assert (folder / "new").stat().st_uid == test_user().uid
    shutil.rmtree(folder)


def test_contain_and_read_only_mounts(node: Node) -> None:
    source, home = node.folder("source"), node.folder("home")
    (home / "secret").touch()
    result = node.run(
        "--contain", "--bind", f"{source}:/nfs:ro", node.image, "sh", "-c",
        'ls -A "$HOME"; ls -A /tmp | grep -v -e home -e var_tmp; touch /nfs/x',
        env={"HOME": str(home)},
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (1, b""), result
    assert b"Read-only file system" in result.stderr
    shutil.rmtree(source)
    shutil.rmtree(home)


def test_what_podman_cannot_do_is_refused(node: Node) -> None:
    result = node.run("--bind", "/usr:/opt/deep/inside", node.image, "true")
    assert failure(result) == (72, "bind", "bind", "missing-mount-point")
    broken = node.folder("bin") / "podman"
    broken.write_text("#!/bin/sh\nexit 125\n")
    broken.chmod(0o755)
    result = Node(node.root).run("--runtime", broken, node.image, "true")
    assert failure(result) == (71, "oserr", "start", "runtime-failed")
    shutil.rmtree(broken.parent)


def test_the_dry_run_prints_a_command_that_works(node: Node) -> None:
    printed = node.run("--dry-run", node.image, "cat", "/marker", "it's")
    assert b"podman" in printed.stdout
    pasted = run_as_test_user(["timeout", "30", "sh"], input=printed.stdout)
    assert pasted.stdout == b"inside\n", pasted
