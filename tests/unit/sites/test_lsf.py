"""What LSF gets, held against the documented grammar of its configuration files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cvmfs_publish.settings import parse
from cvmfs_publish.sites.data import templates_dir
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import RenderedFile
from cvmfs_publish.sites.render import render_site

# IBM's reference: `Begin SECTION`, lines `NAME = value`, `End SECTION`; # begins a comment, the
# line after a backslash continues.  Keys a section must have, and those that may be in it here.
REQUIRED = {"Application": "NAME", "Queue": "QUEUE_NAME"}
KNOWN = {"DESCRIPTION", "JOB_STARTER", "PRE_EXEC", "PRIORITY", "REQUEUE_EXIT_VALUES"}
EXIT_VALUES = re.compile(r"(\d+ )*\d+( EXCLUDE\((\d+ )*\d+\))?")


def rendered(text: str = "") -> dict[str, RenderedFile]:
    site = parse(Site, f"name: test\nbatch: {{systems: [lsf]}}\n{text}", "test.yaml")
    return render_site(site, templates_dir())


def read_sections(text: str) -> list[tuple[str, dict[str, str]]]:
    """Read a configuration file of LSF, raising ValueError where the grammar is not kept."""
    sections: list[tuple[str, dict[str, str]]] = []
    inside = ""
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        if words[0] == "Begin" and not inside:
            (inside,) = words[1:]
            sections.append((inside, {}))
        elif words == ["End", inside]:
            inside = ""
        elif inside and (found := re.fullmatch(r"([A-Z_]+) *= *(\S.*)", line)):
            if found[1] in sections[-1][1]:
                raise ValueError(f"given twice: {line!r}")
            sections[-1][1][found[1]] = found[2]
        else:
            raise ValueError(f"not in the grammar: {line!r}")
    if inside:
        raise ValueError(f"{inside} does not end")
    return sections


@pytest.mark.parametrize("name", ["lsb.applications", "lsb.queues"])
def test_parts_of_the_configuration_keep_to_the_grammar(name: str) -> None:
    text = rendered("install_dir: /opt/x")[f"lsf/{name}"].content.decode()
    ((section, keys),) = read_sections(text)
    assert set(keys) - KNOWN == {REQUIRED[section]}
    assert keys["JOB_STARTER"] == '/opt/x/lsf/job_starter "%USRCMD"'
    assert keys["PRE_EXEC"] == "/opt/x/lsf/pre_exec"
    assert EXIT_VALUES.fullmatch(keys["REQUEUE_EXIT_VALUES"])
    assert len(keys[REQUIRED[section]]) <= 60
    assert " " not in keys[REQUIRED[section]]


def test_only_statuses_that_another_node_may_not_have_are_requeued() -> None:
    ((_, keys),) = read_sections(rendered()["lsf/lsb.queues"].content.decode())
    assert set(re.findall(r"\d+", keys["REQUEUE_EXIT_VALUES"])) == {"69", "71", "73", "75", "76"}


def test_options_become_directives_of_the_submit_template() -> None:
    text = "batch: {systems: [lsf], options: {lsf: ['-W 1:00', '-q short']}}"
    site = parse(Site, f"name: test\n{text}", "test.yaml")
    lines = render_site(site, templates_dir())["lsf/submit.lsf"].content.decode().splitlines()
    assert [line for line in lines if line.startswith("#BSUB")][-2:] == [
        "#BSUB -W 1:00",
        "#BSUB -q short",
    ]


STUB = '#!/bin/sh\nprintf "%s|" "$@"\n'


def run_starter(folder: Path, *words: str, home: str = "host", **env: str) -> list[str]:
    """Run the rendered starter with a launcher that prints its words."""
    launcher = folder / "bin" / "cvmfs-run"
    launcher.parent.mkdir(exist_ok=True)
    launcher.write_text(STUB)
    launcher.chmod(0o755)
    starter = rendered(f"install_dir: {folder}\nhome: {home}")["lsf/job_starter"].content
    result = subprocess.run(
        ["sh", "-s", "--", *words],
        input=starter,
        env={"PATH": "/usr/bin:/bin", "CVMFS_RUN_IMAGE": "a/b:1", **env},
        capture_output=True,
        check=True,
    )
    return result.stdout.decode().split("|")[:-1]


def test_one_word_is_a_command_line_and_several_are_a_command(tmp_path: Path) -> None:
    assert run_starter(tmp_path, "a; b") == ["--wrap", "--", "/bin/sh", "-c", "a; b"]
    assert run_starter(tmp_path, "a", "b  c", "") == ["--wrap", "--", "a", "b  c", ""]


@pytest.mark.parametrize(
    ("home", "place", "mounted"),
    [("host", "home/.lsbatch", False), ("scratch", "home/.lsbatch", True), ("host", "spool", True)],
)
def test_the_spool_directory_is_mounted_where_the_home_does_not_bring_it(
    tmp_path: Path, home: str, place: str, mounted: bool
) -> None:
    spool = tmp_path / place
    spool.mkdir(parents=True)
    words = run_starter(
        tmp_path, "x", home=home, HOME=str(tmp_path / "home"), LSB_JOBFILENAME=f"{spool}/1.2"
    )
    bind = ["--bind", str(spool)] if mounted else []
    assert words == ["--wrap", *bind, "--", "/bin/sh", "-c", "x"]


def test_a_site_with_a_fallback_leaves_the_decision_to_the_job(tmp_path: Path) -> None:
    launcher = tmp_path / "bin" / "cvmfs-run"
    launcher.parent.mkdir()
    launcher.write_text("#!/bin/sh\nexit 69\n")
    launcher.chmod(0o755)
    text = f"install_dir: {tmp_path}\nimages: {{cpu: a/b:1}}\nfallback: {{chain: [host]}}"
    pre_exec = rendered(text)["lsf/pre_exec"].content
    result = subprocess.run(["sh", "-s"], input=pre_exec, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("image", "default", "status"),
    [("", "", 7), ("none", "cpu: a/b:1", 7), ("", "cpu: a/b:1", 127)],
)
def test_a_job_without_an_image_does_not_need_the_launcher(
    tmp_path: Path, image: str, default: str, status: int
) -> None:
    files = rendered(f"install_dir: {tmp_path}/nowhere\nimages: {{{default}}}")

    def status_of(name: str) -> int:
        program = tmp_path / name
        program.write_bytes(files[f"lsf/{name}"].content)
        env = {"PATH": "/usr/bin:/bin", "CVMFS_RUN_IMAGE": image}
        argv = ["sh", str(program), "exit 7"]
        return subprocess.run(argv, env=env, stderr=subprocess.DEVNULL, check=False).returncode

    assert status_of("job_starter") == status
    assert status_of("pre_exec") == (0 if status == 7 else 75)  # a node without it keeps no job
