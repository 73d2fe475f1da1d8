"""`doctor` asks the real sudo whether an account may become a repository's owner."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import parts

pytestmark = pytest.mark.parts

OWNER = "daemon"
# Run as root in a mount namespace of its own, so that the host's rules stay as they are.
SCRIPT = """
set -eu
mount -t tmpfs -o mode=750 none /etc/sudoers.d
if [ -n "$RULE" ]; then
  printf '%s\\n' "$RULE" >/etc/sudoers.d/test
  chmod 440 /etc/sudoers.d/test
fi
exec "$@"
"""
# What is imported may be readable for root alone, so the account changes afterwards.
LOOK = """
import os, pathlib, sys
from cvmfs_publish.doctor.stock import Account, check_owner
from cvmfs_publish.repository.native.server_conf import read_server_conf
conf = read_server_conf(pathlib.Path(sys.argv[1]))
uid = int(sys.argv[2])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
os.chdir("/")
for each in check_owner(conf, Account(os.geteuid(), {"PATH": sys.argv[3]})):
    print(each.outcome, each.message, each.remedy, sep="|")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place that other accounts reach."""
    if os.geteuid() != 0:
        parts.missing("root, to write rules for sudo")
    parts.require("sudo")
    with tempfile.TemporaryDirectory() as made:
        path = Path(made)
        path.chmod(0o755)
        program = path / "cvmfs-publish"
        program.write_text(f"#!/bin/sh\nid -un >{path}/ran-as/user\n")
        program.chmod(0o755)
        (path / "ran-as").mkdir()
        (path / "ran-as").chmod(0o777)
        yield path


def look(folder: Path, rule: str) -> list[str]:
    """Return what the test user is told, with one rule in force."""
    conf = folder / "server.conf"
    conf.write_text(
        "CVMFS_REPOSITORY_NAME=test.example.org\nCVMFS_REPOSITORY_TYPE=stratum0\n"
        f"CVMFS_USER={OWNER}\nCVMFS_UPSTREAM_STORAGE=local,/srv/tmp,/srv/test\n"
    )
    uid = parts.test_user().uid
    path = f"{folder}:/usr/bin:/bin"
    ran = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"),
            *(sys.executable, "-c", LOOK, str(conf), str(uid), path),
        ],
        env={**os.environ, "RULE": rule},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip().split("|")


def test_with_a_rule_the_shortest_run_is_made_as_the_owner(folder: Path) -> None:
    rule = f"{parts.TEST_USER} ALL=({OWNER}) NOPASSWD: {folder}/cvmfs-publish"
    outcome, message, _ = look(folder, rule)
    assert outcome == "ok", message
    assert f"`sudo -u {OWNER} {folder}/cvmfs-publish …` publishes" in message
    assert (folder / "ran-as/user").read_text() == f"{OWNER}\n"


@pytest.mark.parametrize("rule", ["", f"{parts.TEST_USER} ALL=({OWNER}) NOPASSWD: /bin/true"])
def test_without_the_rule_it_is_told(folder: Path, rule: str) -> None:
    outcome, message, remedy = look(folder, rule)
    assert outcome == "missing"
    assert f"belongs to {OWNER}, and this is {parts.TEST_USER}, whom sudo does not let: " in message
    assert remedy.endswith(f"{parts.TEST_USER} ALL=({OWNER}) NOPASSWD: {folder}/cvmfs-publish")
    assert not (folder / "ran-as/user").exists()
