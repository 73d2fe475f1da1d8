"""Values of image authors in scripts: executed by real shells, never evaluated by them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from cvmfs_publish.sandbox.runtime_files import (
    ENVIRONMENT,
    ENVIRONMENT_IF_ABSENT,
    ImageConfig,
    charliecloud_environment,
    environment_script,
    labels_document,
    quote,
    runscript,
    runtime_files,
    split_environment,
)

NASTY = [
    "", " ", "a b", "'", "''", "a'b'c", '"', "$HOME", "${HOME}", "$(touch evil)", "`touch evil`",
    "\\", "\\'", "\\n", "a\nb", "\n", "\t", "*", "~", "!", "!!", "#x", "; touch evil",
    "& touch evil", "| touch evil", "> evil", "-n", "--", "%s", "é", "\udcff\udcfe",
    "'; touch evil; '",
    "'\"'\"'; touch evil; '", "$'\\n'", "\x01\x7f", "{a,b}", "[a]", "=", "x" * 70_000,
]  # fmt: skip
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]
SHOW = "import os,sys; os.write(1, b'\\0'.join(map(os.fsencode, sys.argv[1:])))"


def start(shell: str) -> list[str]:
    program = shutil.which(shell) or shell
    return [program, "sh"] if shell == "busybox" else [program]


def run(
    shell: str, script: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> bytes:
    path = cwd / "script"
    path.write_bytes(os.fsencode(script))
    result = subprocess.run(
        [*start(shell), str(path), *arguments], cwd=cwd, env=env or {}, capture_output=True,
        check=False, timeout=30,
    )  # fmt: skip
    assert result.stderr == b""
    assert result.returncode == 0
    assert [p.name for p in cwd.iterdir()] == ["script"], "something in a value was executed"
    return result.stdout


def environment_after(
    shell: str, values: Mapping[str, str], cwd: Path, env: Mapping[str, str] | None = None
) -> dict[str, str]:
    code = 'import os; os.write(1, b"\\0".join(b"=".join(pair) for pair in os.environb.items()))'
    show = f"{quote(sys.executable)} -c {quote(code)}"
    output = run(shell, environment_script(values) + show + "\n", cwd=cwd, env=env)
    pairs = (os.fsdecode(item).partition("=") for item in output.split(b"\0"))
    return {name: value for name, _, value in pairs}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_value_reaches_the_environment_as_it_is(shell: str, tmp_path: Path) -> None:
    values = {f"V{number}": value for number, value in enumerate(NASTY)}
    found = environment_after(shell, values, tmp_path)
    assert {name: found[name] for name in values} == values


@pytest.mark.parametrize("shell", SHELLS)
def test_the_caller_overrides_everything_but_the_path(shell: str, tmp_path: Path) -> None:
    values = {"PATH": "/image/bin:'$x'", "LANG": "C", "EMPTY": "image", "OTHER": "image"}
    env = {"PATH": "/host/bin", "LANG": "de_DE", "EMPTY": ""}
    found = environment_after(shell, values, tmp_path, env)
    assert {name: found[name] for name in values} == {
        "PATH": "/image/bin:'$x'", "LANG": "de_DE", "EMPTY": "image", "OTHER": "image"
    }  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
def test_names_a_shell_keeps_for_itself_do_no_harm(shell: str, tmp_path: Path) -> None:
    names = ["UID", "EUID", "PPID", "BASHOPTS", "SHELLOPTS", "BASH_VERSINFO", "RANDOM", "LINENO",
             "PWD", "_", "OPTIND", "PS4", "BASH_ENV", "ENV", "HOME", "SECONDS"]  # fmt: skip
    values = {**dict.fromkeys(names, "1"), "IFS": "x", "AFTER": "reached"}
    assert environment_after(shell, values, tmp_path)["AFTER"] == "reached"


@pytest.mark.parametrize("shell", SHELLS)
def test_entrypoint_and_command_start_word_by_word(shell: str, tmp_path: Path) -> None:
    entrypoint = [sys.executable, "-c", SHOW, *NASTY[:-1]]
    script = runscript(entrypoint, ["default", "it's", "$HOME"])

    def words(*arguments: str) -> list[str]:
        output = run(shell, script, *arguments, cwd=tmp_path)
        return [os.fsdecode(word) for word in output.split(b"\0")]

    assert words() == [*NASTY[:-1], "default", "it's", "$HOME"]
    assert words("mine", "a b", "") == [*NASTY[:-1], "mine", "a b", ""]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_command_alone_is_replaced_by_arguments(shell: str, tmp_path: Path) -> None:
    script = runscript([], [sys.executable, "-c", SHOW, "a'b"])
    assert run(shell, script, cwd=tmp_path) == b"a'b"
    assert run(shell, script, sys.executable, "-c", SHOW, "x y", cwd=tmp_path) == b"x y"


@pytest.mark.parametrize("shell", SHELLS)
def test_without_both_a_shell_starts(shell: str, tmp_path: Path) -> None:
    script = runscript([], [])
    assert run(shell, script, "/bin/sh", "-c", "echo here", cwd=tmp_path) == b"here\n"
    assert run(shell, script, cwd=tmp_path) == b""  # standard input is at its end


@pytest.mark.parametrize("shell", SHELLS)
def test_an_entrypoint_alone_gets_the_arguments(shell: str, tmp_path: Path) -> None:
    script = runscript([sys.executable, "-c", SHOW], [])
    assert run(shell, script, cwd=tmp_path) == b""
    assert run(shell, script, "-x", "'", cwd=tmp_path) == b"-x\0'"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_quoted_text_is_one_word(shell: str, tmp_path: Path) -> None:
    for text in NASTY[:-1]:
        assert os.fsdecode(run(shell, f"printf %s {quote(text)}\n", cwd=tmp_path)) == text


@pytest.mark.parametrize("shell", SHELLS)
def test_every_script_is_one_the_shell_can_parse(shell: str, tmp_path: Path) -> None:
    config = ImageConfig({"config": {"Env": ["A='"], "Entrypoint": ["'"], "Cmd": ["'", "\n"]}})
    always, if_absent, _ = runtime_files(config, b"{}")
    scripts = {path: data for path, (data, mode) in always.items() if mode & 0o100} | if_absent
    assert len(scripts) == 5 + len(ENVIRONMENT) + len(ENVIRONMENT_IF_ABSENT) + 3
    for data in scripts.values():
        path = tmp_path / "script"
        path.write_bytes(data)
        result = subprocess.run([*start(shell), "-n", str(path)], capture_output=True, check=False)
        assert (result.returncode, result.stderr) == (0, b"")


def test_the_last_value_of_a_name_wins_and_impossible_names_are_reported() -> None:
    values, findings = split_environment(
        [
            "A=1",
            "B=2",
            "A=3=4",
            "C=",
            "D",
            "",
            "=x",
            "1A=x",
            "A-B=x",
            "A B=x",
            "É=x",
            "N=a\0b",
            "A\n=x",
        ]
    )
    assert list(values.items()) == [("B", "2"), ("A", "3=4"), ("C", ""), ("D", "")]
    assert len(findings) == 8
    assert all("dropped" in finding.what for finding in findings)


def test_charliecloud_gets_one_line_per_variable() -> None:
    values = {"A": "x y", "Q": "'kept'", "ONE": "'", "N": "a\nb", "E": "", "EQ": "a=b"}
    assert charliecloud_environment(values) == ("A=x y\nQ=''kept''\nONE='\nE=\nEQ=a=b\n")


def test_labels_are_json_without_anything_that_varies() -> None:
    config = ImageConfig(
        {"architecture": "arm64", "config": {"Labels": {"b": 'q"\n', "a": "é", "n": 1}}}
    )
    document = json.loads(labels_document(config))
    assert document["b"] == 'q"\n'
    assert document["a"] == "é"
    assert document["n"] == "1"
    assert document["org.label-schema.build-arch"] == "arm64"
    assert labels_document(config) == labels_document(config)
    assert list(document) == sorted(document)
