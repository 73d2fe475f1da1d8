"""The whole path: a registry image becomes a sandbox, and unprivileged jobs run from it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import images, parts
from tests.support import NAME, keys_of_this_run

pytestmark = pytest.mark.parts
RUNTIMES = ["apptainer", "ch-run"]


@dataclass(frozen=True)
class Exported:
    """A published image as a directory, and the rendered launcher beside it."""

    sandbox: Path
    launcher: Path
    folder: Path

    def command(self, runtime: str, *words: str | Path) -> list[str]:
        program = parts.require(runtime)
        return [str(self.launcher), "--runtime", str(program), *map(str, words)]


@pytest.fixture(scope="module")
def exported(
    tmp_path_factory: pytest.TempPathFactory, registry: parts.RegistryServer
) -> Iterator[Exported]:
    """Everything by the commands a user types."""
    folder = Path(tempfile.mkdtemp(prefix="cvmfs-publish-job-", dir="/tmp"))
    folder.chmod(0o755)
    layout = tmp_path_factory.mktemp("job") / "layout"
    images.debian_image(layout)
    reference = f"{registry.host}/job/debian:1"
    images.push(layout, reference)
    shutil.copytree(keys_of_this_run(), folder / "keys")

    def run(*words: str) -> None:
        command = [sys.executable, "-m", "cvmfs_publish", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    run("init", NAME)
    run("publish", reference)
    run("export", reference, "sandbox")
    run("site", "render", "generic", "--out", "site")
    yield Exported(folder / "sandbox", folder / "site" / "bin" / "cvmfs-run", folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_job_runs_in_the_exported_tree(exported: Exported, runtime: str) -> None:
    script = '. /etc/os-release; echo "$ID"; id -u; exit 42'
    command = exported.command(runtime, exported.sandbox, "--", "/bin/sh", "-c", script)
    done = parts.run_as_test_user(command, cwd=Path("/tmp"))
    user = parts.test_user()
    assert (done.returncode, done.stdout.split()) == (42, [b"debian", str(user.uid).encode()])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nfs_is_bound_from_the_host(exported: Exported, runtime: str) -> None:
    """The image has no /nfs of its own: the publisher made it."""
    shared = exported.folder / "shared"
    shared.mkdir(exist_ok=True)
    (shared / "data").write_text("on the host\n")
    command = exported.command(
        runtime, "--bind", f"{shared}:/nfs", exported.sandbox, "--", "cat", "/nfs/data"
    )
    done = parts.run_as_test_user(command, cwd=Path("/tmp"))
    assert (done.returncode, done.stdout) == (0, b"on the host\n"), done.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_variables_of_the_image_arrive_unharmed(exported: Exported, runtime: str) -> None:
    names = [name for name in images.NASTY_ENV if name != "PATH"]
    script = "; ".join(f'printf "%s\\0" "${name}"' for name in names)
    command = exported.command(runtime, exported.sandbox, "--", "/bin/sh", "-c", script)
    done = parts.run_as_test_user(command, cwd=Path("/tmp"))
    assert done.returncode == 0, done.stderr
    values = dict(zip(names, done.stdout.split(b"\0"), strict=False))
    assert values == {name: images.NASTY_ENV[name].encode() for name in names}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_term_reaches_the_job(exported: Exported, runtime: str) -> None:
    script = "trap 'echo caught; exit 33' TERM; echo ready; while :; do sleep 0.1; done"
    command = exported.command(runtime, exported.sandbox, "--", "/bin/sh", "-c", script)
    process = parts.popen_as_test_user(command, stdout=subprocess.PIPE, cwd=Path("/tmp"))
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGTERM)
        rest = process.stdout.read()
    assert (process.returncode, rest) == (33, b"caught\n")


def test_the_runscript_starts_what_the_image_starts(exported: Exported) -> None:
    apptainer = parts.require("apptainer")
    done = parts.run_as_test_user([str(apptainer), "-q", "run", str(exported.sandbox), "a b", "$x"])
    assert (done.returncode, done.stdout) == (0, b"[a b][$x]\n"), done.stderr
