"""The shell around all commands: options, errors, exit codes, one JSON document."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import pytest
from typer.main import get_command

import cvmfs_publish
from cvmfs_publish.cli.app import Commands
from tests.unit.cli.support import Shell

HEAVY = (
    "cryptography",
    "jinja2",
    "pydantic",
    "requests",
    "rich",
    "sqlite3",
    "starlette",
    "uvicorn",
)


def modules_after(shell: Shell, *arguments: str) -> set[str]:
    """Return the top-level modules that a run has imported."""
    code = (
        "import sys; from cvmfs_publish.cli.app import main\n"
        f"sys.argv[1:] = {list(arguments)!r}\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=shell.cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(ran.stderr.splitlines()[-1].split())


def test_the_version_is_printed_without_loading_anything_heavy(shell: Shell) -> None:
    ran = shell.run("--version")
    assert (ran.code, ran.out) == (0, f"cvmfs-publish {cvmfs_publish.__version__}\n")
    assert shell.json("--version") == {"version": cvmfs_publish.__version__}
    assert not modules_after(shell, "--version") & set(HEAVY)
    assert not modules_after(shell, "--help") & set(HEAVY)


def test_a_command_loads_only_what_it_needs(shell: Shell) -> None:
    loaded = modules_after(shell, "publish", "--help")
    assert "requests" in loaded
    assert not loaded & {"jinja2", "rich", "starlette", "uvicorn"}


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_command_with_its_line(shell: Shell, option: str) -> None:
    ran = shell.run(option)
    assert (ran.code, ran.err) == (0, "")
    for name, lazy in Commands.table.items():
        assert f"  {name} " in ran.out
        assert lazy.help in ran.out


@pytest.mark.parametrize("name", Commands.table)
def test_every_command_has_a_short_and_a_long_help(shell: Shell, name: str) -> None:
    lazy = Commands.table[name]
    command = get_command(import_module(lazy.module).app)
    documented = command if lazy.is_group else getattr(command, "commands", {name: command})[name]
    assert str(documented.help).splitlines()[0] == lazy.help
    ran = shell.run(name, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert lazy.help in ran.out
    assert "--json" in ran.out
    commands = getattr(documented, "commands", {name: documented})
    assert all("Example: cvmfs-publish " in c.help for c in commands.values())


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (
            ["publsh", "x"],
            "no such command: publsh; did you mean 'publish'?",
            "cvmfs-publish --help",
        ),
        (["qqqqq"], "no such command: qqqqq", "cvmfs-publish --help"),
        (["site", "rendr"], "no such command: rendr; did you mean 'render'?", "cvmfs-publish site"),
        ([], "no command given", "cvmfs-publish --help"),
        (["--vrsion"], "no such option: --vrsion", "cvmfs-publish --help"),
        (["publish", "x", "--forse"], "no such option: --forse", "cvmfs-publish publish --help"),
        (["publish"], "missing argument 'IMAGE'", "cvmfs-publish publish --help"),
        (["list", "more"], "unexpected extra argument", "cvmfs-publish list --help"),
        (["init", "x.example.org", "--hash", "md5"], "'md5' is not one of", "init --help"),
        (["--config"], "option '--config' requires an argument", "cvmfs-publish --help"),
    ],
)
def test_wrong_usage_is_explained(
    shell: Shell, arguments: list[str], message: str, hint: str
) -> None:
    ran = shell.run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    first, second = ran.err.splitlines()
    assert first.startswith("cvmfs-publish: error: ")
    assert message in first.lower().replace("'image'", "'IMAGE'")
    assert second.startswith("hint: ")
    assert hint in second
    error = shell.json(*arguments, code=2)["error"]
    assert error.keys() == {"kind", "message", "hint"}
    assert error["message"] in first
    assert error["hint"] in second


def test_json_may_be_asked_for_anywhere_even_after_the_mistake(shell: Shell) -> None:
    for arguments in (["--json", "nonsense"], ["nonsense", "--json"], ["list", "--x", "--json"]):
        ran = shell.run(*arguments)
        assert (ran.code, ran.err) == (2, "")
        assert ran.document["error"]["message"]
    assert shell.run("publish", "--", "--json").err.startswith("cvmfs-publish: error:")


def test_global_options_are_understood_before_and_after_the_command(home: Shell) -> None:
    assert home.json("list")["images"] == []
    assert home.run("list", "--json").document == home.json("list")
    elsewhere = home.cwd / "elsewhere.yaml"
    (home.cwd / "cvmfs-publish.yaml").rename(elsewhere)
    assert home.run("list").code == 2
    assert home.run("--config", str(elsewhere), "list").code == 0
    assert home.run("list", "--config", str(elsewhere)).code == 0
    home.environ["CVMFS_PUBLISH_CONFIG"] = str(elsewhere)
    assert home.run("list").code == 0


def test_a_missing_configuration_says_how_to_get_one(shell: Shell) -> None:
    ran = shell.run("list")
    assert ran.code == 2
    assert f"no configuration: neither {shell.cwd}/cvmfs-publish.yaml nor " in ran.err
    assert "hint: `cvmfs-publish init NAME`" in ran.err


def test_a_mistake_in_the_configuration_names_file_and_line(home: Shell) -> None:
    path = home.cwd / "cvmfs-publish.yaml"
    path.write_text(path.read_text() + "\ntrsut: []\n")
    line = len(path.read_text().splitlines())
    ran = home.run("list")
    assert ran.code == 2
    assert f"{path}:{line}: unknown key 'trsut'" in ran.err


def test_quiet_says_results_and_errors_only(home: Shell) -> None:
    assert "has no images yet" in home.run("list").err
    assert home.run("-q", "list").err == ""
    assert home.run("-q", "info").out
    assert home.run("-q", "show", "nothing").err


class Broken(Mapping[str, str]):
    """An environment that cannot be read: stands for any bug."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getitem__(self, name: str) -> str:
        if name.startswith("_"):
            raise KeyError(name)
        raise self._error

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_a_bug_is_one_line_and_its_trace_only_on_demand(shell: Shell) -> None:
    shell.environ = Broken(ValueError("what nobody\nthought of"))  # type: ignore[assignment]
    ran = shell.run("list")
    assert ran.code == 1
    assert ran.err.startswith("cvmfs-publish: error: ValueError: what nobody")
    assert "Traceback" not in ran.err
    assert "-v" in ran.err.splitlines()[-1]
    assert "Traceback" in shell.run("-v", "list").err
    assert shell.json("list", code=1)["error"]["kind"] == "bug"


def test_a_failure_of_the_system_is_named_with_its_file(shell: Shell) -> None:
    shell.environ = Broken(OSError(28, "No space left on device", "/some/file"))  # type: ignore[assignment]
    ran = shell.run("list")
    assert ran.code == 1
    assert ran.err.startswith("cvmfs-publish: error: /some/file: No space left on device\n")


def test_a_closed_pipe_ends_the_program_quietly(home: Shell) -> None:
    read, write = os.pipe()
    os.close(read)
    with home.spawn("info", stdout=write) as process:
        os.close(write)
        _, err = process.communicate()
    assert (process.returncode, err) == (141, "")


@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"], ["nonsense", "--json"]])
def test_a_result_that_cannot_be_written_is_a_failure(home: Shell, arguments: list[str]) -> None:
    with open("/dev/full", "w") as full, home.spawn(*arguments, stdout=full) as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert err == ("cvmfs-publish: error: the result cannot be written: No space left on device\n")


def test_a_folder_that_is_gone_is_named(shell: Shell) -> None:
    gone = shell.cwd / "gone"
    gone.mkdir()
    code = "import os; os.rmdir(os.getcwd()); from cvmfs_publish.cli.app import main; main()"
    ran = subprocess.run([sys.executable, "-c", code], cwd=gone, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("cvmfs-publish: error: the current folder cannot be used: ")


def test_an_interrupt_ends_with_130_and_no_trace(home: Shell) -> None:
    with home.spawn("serve", "--listen", "127.0.0.1:0") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "cvmfs-publish: error: interrupted"
    assert "Traceback" not in err


def test_running_the_package_is_running_the_program(shell: Shell) -> None:
    ran = shell.process("--json", "nonsense")
    assert (ran.code, ran.err) == (2, "")
    assert json.loads(ran.out)["error"]["kind"] == "input"
    installed = Path(sys.executable).with_name("cvmfs-publish")
    version = subprocess.run([installed, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == shell.process("--version").out


def test_names_that_are_not_utf_8_do_not_stop_the_program(shell: Shell) -> None:
    folder = shell.cwd / os.fsdecode(b"f\xff")
    folder.mkdir()
    ran = Shell(folder).process("list")
    assert ran.code == 2
    assert "\\udcff" in ran.err


def test_shells_complete_commands_and_options(shell: Shell) -> None:
    def complete(words: str) -> list[str]:
        environ = {
            "_CVMFS_PUBLISH_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        ran = Shell(shell.cwd, environ).process()
        assert ran.err == ""
        return ran.out.split()

    assert complete("cvmfs-publish pub") == ["publish"]
    assert complete("cvmfs-publish publish --for") == ["--force"]
    assert complete("cvmfs-publish site ren") == ["render"]
