"""What tests need of `systemctl`: start a unit as it says, wait until it is ready, stop it.

`python -m tests.systemctl ROOT COMMAND [UNIT]`: units are in ROOT/etc/systemd/system; paths in them
are below ROOT; what a unit says goes to ROOT/run/log.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

READY_SECONDS = 60.0


def read_unit(path: Path) -> dict[str, str]:
    """Return the settings of a unit; of several with one name the last."""
    pairs = re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE)
    return dict(pairs)


def start(root: Path, unit: str) -> None:
    settings = read_unit(root / "etc/systemd/system" / unit)
    below = re.compile(r"(?<![\w.])/(?=(?:etc|var|srv|usr/bin)/)")
    command = shlex.split(below.sub(f"{root}/", settings["ExecStart"]))
    command[0] = command[0].replace("/usr/bin/", "/bin/")
    name, _, value = below.sub(f"{root}/", settings["Environment"]).partition("=")
    address = root / "run" / "notify"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(address))
        channel.settimeout(READY_SECONDS)
        with (root / "run" / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=below.sub(f"{root}/", settings["WorkingDirectory"]),
                env={**os.environ, name: value, "NOTIFY_SOCKET": str(address)},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        (root / "run" / unit).write_text(str(process.pid))
        while b"READY=1" not in channel.recv(4096):
            pass


def pid_of(root: Path, unit: str) -> int | None:
    """Return the process of a unit; None if it is none of the living."""
    try:
        pid = int((root / "run" / unit).read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return pid if state != "Z" else None


def stop(root: Path, unit: str) -> None:
    pid = pid_of(root, unit)
    if pid is None:
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + READY_SECONDS
    while pid_of(root, unit) is not None:
        if time.monotonic() > deadline:
            sys.exit(f"{unit} does not end")
        time.sleep(0.05)


def main(root: Path, words: list[str]) -> None:
    command, *rest = [word for word in words if word != "--now"]
    unit = rest[0] if rest else ""
    if command == "daemon-reload" or unit.endswith(".timer"):
        found = sorted((root / "etc/systemd/system").iterdir())
        if not found or (unit and root / "etc/systemd/system" / unit not in found):
            sys.exit(f"there is no unit {unit}")
    elif command in ("enable", "start", "restart"):
        if command == "restart":
            stop(root, unit)
        start(root, unit)
    elif command == "stop":
        stop(root, unit)
    elif command == "reload":
        pid = pid_of(root, unit)
        if pid is None:
            sys.exit(f"{unit} is not active")
        os.kill(pid, signal.SIGHUP)
    elif command == "is-active":
        sys.stdout.write("active\n" if pid_of(root, unit) else "inactive\n")
    else:
        sys.exit(f"unknown: {command}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
