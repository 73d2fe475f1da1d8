"""What OpenPBS and Torque get: the hook against the documented API, the starter's own decisions."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvmfs_publish.settings import parse
from cvmfs_publish.sites.data import templates_dir
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import RenderedFile
from cvmfs_publish.sites.render import render_site

# The part of OpenPBS' Python interface that pbs_module(7B) and its source describe for
# execjob_launch: program, words and environment may be set, accept and reject end the hook.
FAKE_PBS = """
import json
import sys

LOG_DEBUG, LOG_WARNING, LOG_ERROR = 7, 4, 3
_job = json.load(open(sys.argv[1]))


class EventIncompatibleError(AttributeError):
    pass


class _Job(object):
    id = "12.server"

    def rerun(self):
        _job["rerun"] = True


class _Event(object):
    def __init__(self):
        self.__dict__["_param"] = dict((name, _job[name]) for name in ("progname", "argv", "env"))
        self.__dict__["job"] = _Job()

    def __getattr__(self, name):
        try:
            return self._param[name]
        except KeyError:
            raise EventIncompatibleError(name)

    def __setattr__(self, name, value):
        if name not in self._param:
            raise AttributeError("event attribute %r not found" % name)
        self._param[name] = value

    def _end(self, **result):
        _job.update(self._param)
        _job.update(result)
        json.dump(_job, open(sys.argv[1], "w"))
        raise SystemExit(0)

    def accept(self):
        self._end(accepted=True)

    def reject(self, message="", code=255):
        self._end(accepted=False, message=message)


_event = _Event()


def event():
    return _event


def logmsg(level, message):
    _job.setdefault("log", []).append([level, message])
"""


def rendered(text: str = "") -> dict[str, RenderedFile]:
    site = parse(Site, f"name: test\nbatch: {{systems: [pbs]}}\n{text}", "test.yaml")
    return render_site(site, templates_dir())


class Hook:
    """The rendered hook, its starter installed where the site says."""

    def __init__(self, folder: Path, text: str = "") -> None:
        self.folder = folder
        self.starter = folder / "site" / "pbs" / "job_starter"
        files = rendered(f"install_dir: {folder}/site\n{text}")
        self.starter.parent.mkdir(parents=True)
        self.starter.write_bytes(files["pbs/job_starter"].content)
        self.starter.chmod(0o755)
        self.path = folder / "hook.py"
        self.path.write_bytes(files["pbs/execjob_launch.py"].content)
        (folder / "pbs.py").write_text(FAKE_PBS)

    def launch(self, env: object, *, argv: object = ("-bash",)) -> dict[str, object]:
        job = self.folder / "job.json"
        job.write_text(json.dumps({"progname": "/bin/bash", "argv": argv, "env": env}))
        subprocess.run(
            [sys.executable, self.path, job],
            env={"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"},
            check=True,
            capture_output=True,
        )
        result: dict[str, object] = json.loads(job.read_text())
        return result


def test_a_job_that_names_an_image_is_started_by_the_starter(tmp_path: Path) -> None:
    hook = Hook(tmp_path)
    env = {"CVMFS_RUN_IMAGE": "debian:12", "A": "x,y"}
    result = hook.launch(env)
    assert result["progname"] == str(hook.starter)
    assert result["argv"] == [str(hook.starter), "/bin/bash"]
    assert (result["env"], result["accepted"]) == (env, True)


@pytest.mark.parametrize("argv", [[], ["/bin/prog"], ["/bin/prog", "a b", ""]])
def test_the_words_of_a_job_are_kept(tmp_path: Path, argv: list[str]) -> None:
    hook = Hook(tmp_path)
    result = hook.launch({"CVMFS_RUN_IMAGE": "debian:12"}, argv=argv)
    assert result["argv"] == [str(hook.starter), "/bin/bash", *argv[1:]]


@pytest.mark.parametrize(
    ("text", "env", "wrapped"),
    [
        ("", {}, False),
        ("", {"CVMFS_RUN_IMAGE": ""}, False),
        ("images: {cpu: 'debian:12'}", {}, True),
        ("images: {cpu: 'debian:12'}", {"CVMFS_RUN_IMAGE": "none"}, False),
        ("", {"CVMFS_RUN_IMAGE": "none"}, False),
    ],
)
def test_a_job_without_an_image_is_not_touched(
    tmp_path: Path, text: str, env: dict[str, str], wrapped: bool
) -> None:
    hook = Hook(tmp_path, text)
    result = hook.launch(env)
    assert result["accepted"] is True
    expected = str(hook.starter) if wrapped else "/bin/bash"
    assert result["progname"] == expected


def test_a_node_without_the_starter_gives_the_job_back(tmp_path: Path) -> None:
    hook = Hook(tmp_path)
    hook.starter.unlink()
    result = hook.launch({"CVMFS_RUN_IMAGE": "debian:12"})
    assert (result["accepted"], result["rerun"]) == (False, True)
    assert f"{hook.starter} is missing" in str(result["message"])
    assert hook.launch({})["accepted"] is True


def test_an_error_of_the_hook_itself_leaves_the_job_as_it_is(tmp_path: Path) -> None:
    hook = Hook(tmp_path)
    result = hook.launch(None)  # an environment that is none
    assert (result["accepted"], result["progname"]) == (True, "/bin/bash")
    assert "AttributeError" in str(result["log"])
    half = hook.launch({"CVMFS_RUN_IMAGE": "debian:12"}, argv=None)
    assert (half["accepted"], half["progname"], half["argv"]) == (True, "/bin/bash", None)


def test_the_hook_has_only_syntax_that_python_2_knows_as_well() -> None:
    tree = ast.parse(rendered()["pbs/execjob_launch.py"].content)
    newer = (ast.JoinedStr, ast.NamedExpr, ast.AnnAssign, ast.Nonlocal, ast.AsyncFunctionDef)
    assert not [node for node in ast.walk(tree) if isinstance(node, newer)]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert [node.returns, node.args.kwonlyargs, node.args.posonlyargs] == [None, [], []]
        if isinstance(node, ast.Call):
            assert not any(isinstance(word, ast.Starred) for word in node.args)


def test_qmgr_is_told_event_and_file_of_the_hook() -> None:
    lines = rendered("install_dir: /opt/x")["pbs/hook.qmgr"].content.decode().splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands[0] == "create hook cvmfs_run"
    assert "set hook cvmfs_run event = execjob_launch" in commands
    assert (
        "import hook cvmfs_run application/x-python default /opt/x/pbs/execjob_launch.py"
        in commands
    )


def test_options_become_directives_of_the_submit_template() -> None:
    text = "batch: {systems: [pbs], options: {pbs: ['-l walltime=1:00:00', '-q short']}}"
    site = parse(Site, f"name: test\n{text}", "test.yaml")
    lines = render_site(site, templates_dir())["pbs/submit.pbs"].content.decode().splitlines()
    assert lines[0] == "#!/bin/sh"
    directives = [line for line in lines if line.startswith("#PBS ")]
    assert directives[-2:] == ["#PBS -l walltime=1:00:00", "#PBS -q short"]
    # qsub stops to look for directives at the first command.
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert first > max(n for n, line in enumerate(lines) if line.startswith("#PBS"))


@pytest.mark.parametrize("shared", [True, False])
def test_the_prologue_fills_the_cache_only_where_root_owns_it_and_never_fails(
    tmp_path: Path, shared: bool
) -> None:
    text = (
        f"cvmfs: {tmp_path}/none\nrepositories: [{{name: a.example.org}}]\n"
        f"install_dir: {tmp_path}\n"
        f"fallback: {{chain: [mirror], mirrors: ['http://m/x'], shared: {str(shared).lower()}}}"
    )
    prologue = rendered(text)["pbs/prologue"].content
    assert (f"{tmp_path}/bin/cvmfs-fetch --prefill &\n".encode() in prologue) == shared
    assert f"{tmp_path}/bin/cvmfs-fetch --refresh\n".encode() in prologue
    result = subprocess.run(["sh", "-s"], input=prologue, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_the_starter_hands_a_job_without_image_over_as_it_is(tmp_path: Path) -> None:
    hook = Hook(tmp_path)
    words = ["-c", 'echo "$0:$#:$1:$CVMFS_RUN_IMAGE"; exit 3', "zero", "a  *"]
    result = subprocess.run(
        [hook.starter, "/bin/sh", *words],
        env={**os.environ, "CVMFS_RUN_IMAGE": "none"},
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (3, b"zero:1:a  *:none\n")
