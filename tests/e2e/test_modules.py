"""Software out of images: `module load` with a real Lmod, and commands that run in the image."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
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
from tests.parts import missing, popen_as_test_user, require, run_as_test_user
from tests.worker_node import build_image

pytestmark = pytest.mark.parts

SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "ash"]}
LMOD = Path("/usr/share/lmod/lmod/init/sh")
HOSTILE = """it's "q" $HOME ${x} [exit 3] ]] { }} \\n \\ `id` %d #c ; --"""
SITE = """
name: test
runtimes: [{runtime}]
software:
  - name: tools
    version: "1.0"
    image: {image}
    commands: [printf, cat, sh]
    description: {text}
    environment: {{TOOLS_TEXT: {text}}}
  - {{name: tools, version: "2.0", image: {image}, commands: [printf]}}
"""


@dataclass(frozen=True)
class Software:
    """A rendered folder, at a place that its configuration does not know."""

    root: Path

    @property
    def site(self) -> Path:
        return self.root / "elsewhere"  # Lmod hands Tcl no path with a blank

    def command(self, name: str) -> Path:
        return self.site / "software" / "tools" / "1.0" / "bin" / name

    def run(
        self, *words: str | Path, env: Mapping[str, str] | None = None, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return run_as_test_user([str(word) for word in words], cwd=self.root, env=env, input=stdin)

    def modules(self, folder: str, script: str) -> list[str]:
        """Run a script of a user who has Lmod, and return its lines."""
        if not LMOD.is_file():
            missing("lmod")
        begin = f". {LMOD}; module use {shlex.quote(str(self.site / folder))}; "
        result = self.run("sh", "-c", begin + script)
        assert result.returncode == 0, result
        return result.stdout.decode().splitlines()


@pytest.fixture(scope="module", params=["ch-run", "apptainer"])
def software(request: pytest.FixtureRequest) -> Iterator[Software]:
    runtime = require(request.param)
    with tempfile.TemporaryDirectory(prefix="modules-", dir="/var/tmp") as folder:
        root = Path(folder)
        root.chmod(0o755)
        build_image(root / "image")
        text = SITE.format(runtime=runtime, image=root / "image", text=json.dumps(HOSTILE))
        made = Software(root)
        write_site(render_site(parse(Site, text, "test.yaml"), templates_dir()), made.site)
        yield made


@pytest.mark.parametrize("folder", ["modules", "modules-tcl"])
def test_a_loaded_module_offers_the_commands_of_the_image(software: Software, folder: str) -> None:
    found = software.modules(
        folder,
        'module load tools/1.0 && command -v cat && cat /marker && printf "%s\\n" "$TOOLS_TEXT";'
        "module unload tools; command -v tools-exec || echo gone",
    )
    # `printf` is the shell's own; `cat` is the image's, whose marker no node has.
    assert found == [str(software.command("cat")), "inside", HOSTILE, "gone"]


@pytest.mark.parametrize("folder", ["modules", "modules-tcl"])
def test_versions_of_a_module_take_each_others_place(software: Software, folder: str) -> None:
    (path,) = software.modules(
        folder,
        "module load tools/1.0; module load tools/2.0 >/dev/null 2>&1;"
        'echo "$PATH:${TOOLS_TEXT-unset}"',
    )
    assert f"{software.site}/software/tools/2.0/bin" in path
    assert "tools/1.0" not in path
    assert path.endswith(":unset")


def test_module_help_and_whatis_say_what_the_entry_says(software: Software) -> None:
    text = "\n".join(
        software.modules("modules", "module whatis tools/1.0 2>&1; module help tools/1.0 2>&1")
    )
    assert f"Description: {HOSTILE}" in text
    assert f"tools 1.0, commands of the image {software.root}/image:" in text
    assert "tools-shell is a shell in the image" in text


def test_words_arrive_as_they_were_given(software: Software) -> None:
    words = ["<%s>", "a  b", "", "*", "$HOME", "-x", "--", "it's", "line\nline"]
    result = software.run(software.command("printf"), *words)
    assert result.stdout.decode() == "".join(f"<{word}>" for word in words[1:])
    assert (result.returncode, result.stderr) == (0, b"")


def test_stdin_and_status_are_the_commands_own(software: Software) -> None:
    data = bytes(range(256)) * 1000
    result = software.run(software.command("cat"), stdin=data)
    assert (result.returncode, result.stdout) == (0, data)
    assert software.run(software.command("sh"), "-c", "exit 42").returncode == 42


def test_a_signal_reaches_the_command(software: Software) -> None:
    script = "trap 'echo got it; exit 43' TERM; echo ready; while :; do sleep 0.05; done"
    with popen_as_test_user(
        [software.command("sh"), "-c", script],
        cwd=software.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"ready\n"
        job.send_signal(signal.SIGTERM)
        assert job.stdout.read() == b"got it\n"
        assert job.wait(30) == 43


@pytest.mark.parametrize("shell", SHELLS)
def test_a_command_runs_under_every_shell(software: Software, shell: str) -> None:
    result = software.run(*SHELLS[shell], software.command("cat"), "/marker")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"inside\n", b"")


def test_a_command_is_found_through_links(software: Software) -> None:
    linked = Path(tempfile.mkdtemp(dir=software.root))
    linked.chmod(0o755)
    (linked / "read").symlink_to(software.command("cat"))
    (linked / "bin").symlink_to(software.command("cat").parent)
    for path in (linked / "read", linked / "bin" / "cat"):
        assert software.run(path, "/marker").stdout == b"inside\n"
    found = software.run("sh", "-c", "cat /marker", env={"PATH": f"{linked}/bin:/usr/bin:/bin"})
    assert found.stdout == b"inside\n"


def test_the_folder_may_be_moved(software: Software) -> None:
    moved = software.root / "a 'new' place"
    shutil.copytree(software.site, moved)
    command = moved / software.command("cat").relative_to(software.site)
    assert software.run(command, "/marker").stdout == b"inside\n"


def test_helpers_run_any_command_and_a_shell(software: Software) -> None:
    result = software.run(software.command("tools-exec"), "printf", "%s", "a  b")
    assert result.stdout == b"a  b"
    result = software.run(software.command("tools-shell"), stdin=b"cat /marker; exit 5")
    assert (result.returncode, result.stdout) == (5, b"inside\n")


def test_the_users_own_choice_of_image_does_not_change_a_command(software: Software) -> None:
    for image in ("none", "/nowhere"):
        result = software.run(software.command("cat"), "/marker", env={"CVMFS_RUN_IMAGE": image})
        assert result.stdout == b"inside\n"
