"""Rendering: same bytes every time, values quoted, and never half a set of files on disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import parse
from cvmfs_publish.sites.data import list_sites, load_site, templates_dir
from cvmfs_publish.sites.launcher import conf_values
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.pages import RenderedFile
from cvmfs_publish.sites.render import MANIFEST, render_site
from cvmfs_publish.sites.writing import write_site

SITES = [*list_sites(), "example"]
HOSTILE = "'; touch /tmp/cvmfs-publish-was-here; echo $(id) `id` \\ \" * {{ x }} {% y %}"


def rendered(name: str) -> dict[str, RenderedFile]:
    return render_site(load_site(name), templates_dir())


@pytest.mark.parametrize("name", SITES)
def test_rendering_twice_gives_identical_bytes(name: str) -> None:
    assert rendered(name) == rendered(name)


@pytest.mark.parametrize("name", SITES)
def test_the_promised_files_are_rendered(name: str) -> None:
    files = rendered(name)
    assert {
        "bin/cvmfs-run",
        "bin/node-check",
        "conf/apptainer-config.sh",
        "conf/apptainer.conf",
        "conf/singularity.conf",
        "etc/site.conf",
        MANIFEST,
    } <= set(files)
    programs = {path for path, file in files.items() if file.mode == 0o755}
    assert programs == {"bin/cvmfs-run", "bin/node-check", "conf/apptainer-config.sh"}


def test_client_files_are_rendered_only_when_the_site_names_them() -> None:
    assert not [path for path in rendered("generic") if path.startswith("client/")]
    assert [path for path in rendered("example") if path.startswith("client/")] == [
        "client/default.local",
        "client/domain.d/example.org.conf",
        "client/keys/example.org/example.org.pub",
    ]


def test_the_manifest_has_the_digest_of_every_other_file() -> None:
    files = rendered("example")
    listed = json.loads(files[MANIFEST].content)["files"]
    assert {path: entry["sha256"] for path, entry in listed.items()} == {
        path: hashlib.sha256(file.content).hexdigest()
        for path, file in files.items()
        if path != MANIFEST
    }


@pytest.mark.parametrize("name", SITES)
def test_rendered_programs_are_correct_shell(name: str) -> None:
    for path, file in rendered(name).items():
        if path == "etc/site.conf" or file.content.startswith(b"#!/bin/sh"):
            checked = subprocess.run(
                ["sh", "-n"], input=file.content, capture_output=True, check=False
            )
            assert (checked.returncode, checked.stderr) == (0, b""), path


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("path", ["bin/cvmfs-run", "bin/node-check", "conf/apptainer-config.sh"])
def test_shellcheck_has_nothing_to_say(path: str) -> None:
    checked = subprocess.run(
        ["shellcheck", "-s", "sh", "-"],
        input=rendered("example")[path].content,
        capture_output=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout) == (0, b"")


def test_values_reach_the_shell_as_they_are(tmp_path: Path) -> None:
    path = f"/a b,c:d{HOSTILE.replace('/', '|')}"
    quoted = json.dumps(path)
    site = parse(
        Site,
        f"name: test\ndescription: {json.dumps(HOSTILE)}\nroots: [{quoted}]\n"
        f"environment: {{set: {{A: {json.dumps(HOSTILE)}}}}}\n"
        f"binds: [{{source: {quoted}, target: /b, required: true}}]\n",
        "test.yaml",
    )
    conf = tmp_path / "site.conf"
    conf.write_bytes(render_site(site, templates_dir())["etc/site.conf"].content)
    names = list(conf_values(site))
    script = f'. {conf}; printf "%s\\0" ' + " ".join(f'"$cvmfs_site_{name}"' for name in names)
    output = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    assert dict(zip(names, output.decode().split("\0"), strict=False)) == conf_values(site)


def test_the_launcher_and_the_renderer_agree_on_the_names_in_site_conf() -> None:
    program = (templates_dir() / "launcher" / "cvmfs-run").read_text()
    body = program.replace("cr_config_defaults() {", "").split("cr_find_config", 1)[1]
    used = set(re.findall(r"cvmfs_site_([a-z_]+)", body))
    assert used == set(conf_values(load_site("generic")))


def test_a_template_that_asks_for_an_unknown_value_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    shutil.copytree(templates_dir(), folder)
    (folder / "conf" / "apptainer.conf").write_text("{{ nonsense }}")
    with pytest.raises(InputError, match=r"apptainer\.conf: UndefinedError: 'nonsense'"):
        render_site(load_site("generic"), folder)


def test_files_are_written_with_their_modes_whatever_the_umask(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    old = os.umask(0o077)
    try:
        write_site(rendered("generic"), out)
    finally:
        os.umask(old)
    modes = {
        path.relative_to(out).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in [out, *out.rglob("*")]
    }
    assert modes["."] == modes["bin"] == modes["bin/cvmfs-run"] == 0o755
    assert modes["etc/site.conf"] == 0o644


def test_writing_again_replaces_the_set_and_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_site(rendered("example"), out)
    write_site(rendered("generic"), out)
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert found == set(rendered("generic"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    write_site(rendered("generic"), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    write_site(rendered("generic"), tmp_path / "empty")
    assert (tmp_path / "empty" / MANIFEST).is_file()


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="no earlier rendering"):
        write_site(rendered("generic"), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_a_file_added_to_a_rendering_is_not_deleted_with_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_site(rendered("generic"), out)
    (out / "etc" / "mine.conf").write_text("x")
    with pytest.raises(InputError, match=r"mine\.conf: was not rendered"):
        write_site(rendered("generic"), out)
    assert (out / "etc" / "mine.conf").exists()


def test_a_link_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(InputError, match="is not a folder"):
        write_site(rendered("generic"), tmp_path / "out")


def test_a_failed_write_leaves_the_earlier_set(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_site(rendered("generic"), out)
    broken = {"a": RenderedFile(b""), "a/b": RenderedFile(b"")}  # a file cannot be a folder
    with pytest.raises(InputError, match="cannot be written"):
        write_site(broken, out)
    assert (out / "bin" / "cvmfs-run").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
