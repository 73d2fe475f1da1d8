"""Modules and wrappers: which files there are, and that values mean themselves in Lua and Tcl."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import parse
from cvmfs_publish.sites.data import templates_dir
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import RenderedFile, quote_json, quote_tcl
from cvmfs_publish.sites.render import render_site

ENTRY = "{name: samtools, version: '1.20', image: 'a/b:1', commands: [samtools, bgzip]%s}"
# Quotes, what Tcl and shells expand, braces that do not match, and what ends Lua's long strings.
HOSTILE = """ it's "q" $HOME ${x} [exit 3] ]] { }} \\n \\ `id` %d #c ; -- é """


def rendered(*entries: str) -> dict[str, RenderedFile]:
    text = f"name: test\nsoftware: [{', '.join(entries)}]"
    files = render_site(parse(Site, text, "test.yaml"), templates_dir())
    folders = ("modules/", "modules-tcl/", "software/")
    return {path: file for path, file in files.items() if path.startswith(folders)}


def test_an_entry_becomes_two_modules_and_a_program_for_each_command() -> None:
    files = rendered(ENTRY % "")
    commands = {path for path, file in files.items() if file.mode == 0o755}
    assert {path for path in files if path not in commands} == {
        "modules/samtools/1.20.lua",
        "modules-tcl/samtools/1.20",
    }
    folder = "software/samtools/1.20/bin"
    names = ("samtools", "bgzip", "samtools-exec", "samtools-shell")
    assert commands == {f"{folder}/{name}" for name in names}


def test_a_command_of_the_image_wins_over_a_helper_of_its_name() -> None:
    entry = "{name: a, version: '1', image: 'a/b:1', commands: [a-shell]}"
    text = rendered(entry)["software/a/1/bin/a-shell"].content.decode()
    assert "a/b:1 -- a-shell " in text
    assert '/bin/sh "$@"' not in text


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((ENTRY % "", ENTRY % ""), "samtools/1.20 is given twice"),
        (("{name: a, version: '1', image: 'a/b:1', commands: [x, x]}",), "a command twice"),
        (("{name: a, version: '1', image: 'a/b:1', commands: []}",), "offers no commands"),
        (("{name: a/b, version: '1', image: 'a/b:1', commands: [x]}",), "cannot be used as a file"),
        (("{name: a, version: '1', image: 'a/b:1', commands: ['x y']}",), "cannot be used as a"),
    ],
)
def test_entries_that_cannot_be_modules_are_refused(entries: tuple[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rendered(*entries)


def test_whatis_and_help_say_what_is_known() -> None:
    plain = rendered(ENTRY % "")["modules/samtools/1.20.lua"].content.decode()
    assert "Description:" not in plain
    assert "URL:" not in plain
    more = ", description: 'reads reads', url: 'https://x.org'"
    for path in ("modules/samtools/1.20.lua", "modules-tcl/samtools/1.20"):
        text = rendered(ENTRY % more)[path].content.decode()
        assert '"Description: reads reads"' in text
        assert '"URL: https://x.org"' in text
        assert "bgzip" in text


@pytest.mark.skipif(shutil.which("tclsh") is None, reason="tclsh is not installed")
def test_a_value_in_tcl_is_the_value_also_inside_braces(tmp_path: Path) -> None:
    script = tmp_path / "x.tcl"
    word = quote_tcl(HOSTILE)
    body = f"proc show {{ }} {{ puts -nonewline {word} }}\nshow\nputs -nonewline {word}\n"
    script.write_text(f"fconfigure stdout -encoding utf-8\n{body}", "utf-8")
    result = subprocess.run(
        ["tclsh", "-encoding", "utf-8", script], capture_output=True, check=True
    )
    assert result.stdout.decode() == HOSTILE * 2


@pytest.mark.skipif(shutil.which("lua5.3") is None, reason="lua5.3 is not installed")
def test_a_value_in_lua_is_the_value(tmp_path: Path) -> None:
    script = tmp_path / "x.lua"
    script.write_text(f"io.write({quote_json(HOSTILE)})", "utf-8")
    result = subprocess.run(["lua5.3", script], capture_output=True, check=True)
    assert result.stdout.decode() == HOSTILE


# What Environment Modules brings to a Tcl modulefile, as far as ours uses it: each prints.
TCL_MODULES = """
foreach name {conflict module-whatis prepend-path setenv} {
    proc $name {args} "puts \\[join \\[linsert \\$args 0 $name\\] |\\]"
}
set ModulesCurrentModulefile [lindex $argv 0]
source -encoding utf-8 $ModulesCurrentModulefile
ModulesHelp
"""


@pytest.mark.skipif(shutil.which("tclsh") is None, reason="tclsh is not installed")
def test_the_tcl_module_sets_what_the_entry_says(tmp_path: Path) -> None:
    more = f", description: {json.dumps(HOSTILE)}, environment: {{A_B: {json.dumps(HOSTILE)}}}"
    path = tmp_path / "any where" / "modules-tcl" / "samtools" / "1.20"
    path.parent.mkdir(parents=True)
    path.write_bytes(rendered(ENTRY % more)["modules-tcl/samtools/1.20"].content)
    script = tmp_path / "modules.tcl"
    script.write_text(f"fconfigure stdout -encoding utf-8\n{TCL_MODULES}")
    result = subprocess.run(
        ["tclsh", script, path], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    lines = result.stdout.decode().splitlines()
    assert f"setenv|A_B|{HOSTILE}" in lines
    assert f"prepend-path|PATH|{tmp_path}/any where/software/samtools/1.20/bin" in lines
    assert "conflict|samtools" in lines
    assert path.read_bytes().startswith(b"#%Module1.0\n")
    assert HOSTILE in result.stderr.decode()
