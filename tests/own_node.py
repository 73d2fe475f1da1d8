"""A node of its own within this machine: mounts, processes and a host name apart from it.

Daemons of batch systems run there.  Whatever this machine is called, its name need not resolve; no
job outlives the node; and the node ends with the process that made it, even if that is killed.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parts import User, missing, require

HOST = "localhost"
READY = b"ready\n"


@dataclass(frozen=True)
class OwnNode:
    """A running node; `pid` is the process it ends with."""

    pid: int

    def inside(self, folder: Path, *words: str | Path, user: User | None = None) -> list[str]:
        """Return the command that runs `words` on the node, in `folder` and by default as root."""
        numbers = [f"--setgid={user.gid}", f"--setuid={user.uid}"] if user else []
        spaces = f"/proc/{self.pid}/ns"
        enter = [f"--mount={spaces}/mnt", f"--uts={spaces}/uts", f"--pid={spaces}/pid_for_children"]
        start = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(folder)]
        return [str(require("nsenter")), *enter, *numbers, "--", *start, *map(str, words)]


@contextmanager
def own_node(usr: Path | None = None) -> Iterator[OwnNode]:
    """Make a node; `usr`: what is there in the place of this machine's /usr.

    Skips the test unless root runs it, and ends it as `missing` does where root may make none.
    """
    if os.geteuid() != 0:
        pytest.skip("starting jobs of other users takes root")
    script = f"echo {HOST} >/proc/sys/kernel/hostname"
    if usr is not None:
        script += f" && mount --bind {shlex.quote(str(usr))} /usr"
    # The shell is process 1.  It waits, also for those whose parents have ended, until nobody holds
    # the other end of its stdin; the kernel then kills what is left.
    script += " && echo ready && exec 3<&0 && { cat <&3 >/dev/null & wait; }"
    options = ["--uts", "--mount-proc", "--propagation", "private", "--pid", "--kill-child"]
    with subprocess.Popen(
        [require("unshare"), *options, "/bin/sh", "-c", script],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = process.stdout.readline()
        if said != READY:
            missing(
                "the right to make namespaces", f"in a container it takes --privileged: {said!r}"
            )
        try:
            yield OwnNode(process.pid)
        finally:
            process.stdin.close()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that for a minute only those get who ask for them by number.

    The kernel gives no port away that a connection had a moment ago; servers, which set
    SO_REUSEADDR, may have it.
    """
    ports = []
    with ExitStack() as stack:
        for _ in range(count):
            server = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
            address = server.getsockname()
            client = stack.enter_context(closing(socket.create_connection(address)))
            connection, _ = server.accept()
            connection.close()  # whoever closes first keeps the port
            client.recv(1)
            ports.append(address[1])
    return ports
