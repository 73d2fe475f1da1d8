"""`site list|check|show|render`: site configurations from the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import yaml

from cvmfs_publish.sites.data import list_sites
from tests.unit.cli.support import Shell


def test_list_names_every_site_that_came_along(shell: Shell) -> None:
    names = [site["name"] for site in shell.json("site", "list")["sites"]]
    assert names == list_sites()
    assert "generic" in names
    lines = shell.run("site", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["SITE", *names]


@pytest.mark.parametrize("name", list_sites())
def test_every_site_can_be_checked_and_shown(shell: Shell, name: str) -> None:
    document = shell.json("site", "check", name)
    assert document == {
        "valid": True,
        "sites": [{"site": name, "valid": True, "errors": [], "remarks": []}],
    }
    assert shell.run("site", "check", name).out == f"{name}: valid, 0 remarks\n"
    shown = shell.json("site", "show", name)
    assert shown["values"]["name"] == name
    assert shown["values"]["runtimes"]
    assert shown["origins"]["name"].startswith(f"{name}.yaml:")
    assert f"name: {name} " in shell.run("site", "show", name).out


def test_render_writes_the_files_and_lists_them(shell: Shell) -> None:
    document = shell.json("site", "render", "generic", "--out", "rendered")
    folder = shell.cwd / "rendered"
    assert document["out"] == str(folder)
    assert "bin/cvmfs-run" in document["files"]
    assert all((folder / name).is_file() for name in document["files"])
    ran = shell.run("site", "render", "generic", "--out", "rendered")
    assert ran.code == 0
    assert ran.out == f"{folder}: {len(document['files'])} files for generic\n"


def test_render_refuses_a_folder_with_other_things_in_it(shell: Shell) -> None:
    keep = shell.cwd / "mine" / "precious"
    keep.parent.mkdir()
    keep.write_text("keep")
    ran = shell.run("site", "render", "generic", "--out", "mine")
    assert ran.code == 2
    assert keep.read_text() == "keep"


def test_a_site_of_ones_own_is_a_path(shell: Shell) -> None:
    (shell.cwd / "own.yaml").write_text("name: own\nruntmes: [apptainer]\n")
    ran = shell.run("site", "check", str(shell.cwd / "own.yaml"))
    assert ran.code == 2
    assert "own.yaml:2: unknown key 'runtmes'; did you mean 'runtimes'?" in ran.err


def test_a_site_nobody_knows_is_answered_with_the_known_ones(shell: Shell) -> None:
    ran = shell.run("site", "show", "genric")
    assert ran.code == 2
    assert "did you mean 'generic'?" in ran.err


def test_site_alone_is_wrong_usage(shell: Shell) -> None:
    ran = shell.run("site")
    assert ran.code == 2
    assert ran.err.startswith("cvmfs-publish: error: missing command\n")


def test_check_tells_every_mistake_with_file_line_key_and_remedy(shell: Shell) -> None:
    path = shell.cwd / "own.yaml"
    path.write_text("name: own\nhoem: none\nfallback:\n  cache_mb: -1\nroots: /nfs\ngpu: yes\n")
    ran = shell.run("site", "check", str(path), "generic")
    assert ran.code == 2
    told = ran.err.replace(f"cvmfs-publish: error: {path}", "own.yaml").splitlines()
    assert told[0] == "own.yaml:2: unknown key 'hoem'; did you mean 'home'?"
    assert told[1].startswith("hint: known: name, inherits,")
    assert told[2].startswith("own.yaml:4: fallback.cache_mb: -1 MB is not between 1 and ")
    assert told[3] == "hint: write a whole number in this range"
    assert told[4:6] == [
        "own.yaml:5: roots: wants a list, each item an absolute path, or the word"
        " standard, found '/nfs'",
        "hint: write [/nfs]",
    ]
    assert told[6] == "own.yaml:6: gpu: wants one of auto, nv, rocm, none, found 'yes'"
    assert ran.out == f"{path}: 4 errors\ngeneric: valid, 0 remarks\n"


def test_check_as_json_has_errors_and_remarks_of_all_sites(shell: Shell) -> None:
    (shell.cwd / "bad.yaml").write_text("name: bad\ngpu: x\n")
    (shell.cwd / "odd.yaml").write_text(
        "name: odd\ninherits: [generic]\nbinds:\n- source: /a\n  read_only: true\n"
    )
    names = [str(shell.cwd / name) for name in ("bad.yaml", "odd.yaml")]
    ran = shell.run("--json", "site", "check", *names)
    assert ran.code == 2
    bad, odd = ran.document["sites"]
    assert (ran.document["valid"], bad["valid"], odd["valid"]) == (False, False, True)
    assert "bad.yaml:2: gpu: wants one of" in bad["errors"][0]["message"]
    (remark,) = odd["remarks"]
    assert (remark["place"], remark["key"]) == (f"{names[1]}:5", "binds[0].read_only")
    assert remark["remedy"] == "remove ch-run from runtimes, or read_only here"
    assert ran.err == ""


def test_check_strict_ends_with_2_for_a_remark(shell: Shell) -> None:
    (shell.cwd / "odd.yaml").write_text("name: odd\n")
    path = str(shell.cwd / "odd.yaml")
    assert shell.run("site", "check", path).code == 0
    ran = shell.run("site", "check", "--strict", path)
    assert ran.code == 2
    assert ran.out.startswith("remark: default: repositories: none: jobs can only name images by")
    assert shell.run("site", "check", "--strict", "generic").code == 0


def test_check_finds_what_only_the_rendered_files_show(shell: Shell) -> None:
    (shell.cwd / "far.yaml").write_text(f"name: far\ninherits: [slac]\ninstall_dir: /{'x' * 300}\n")
    ran = shell.run("site", "check", str(shell.cwd / "far.yaml"))
    assert ran.code == 2
    assert "far.yaml: install_dir '/xxx" in ran.err
    assert "hint: choose a shorter path" in ran.err


def test_check_goes_on_after_a_site_that_does_not_exist(shell: Shell) -> None:
    ran = shell.run("site", "check", "nowhere", "generic")
    assert ran.code == 2
    assert "no site 'nowhere'" in ran.err
    assert ran.out == "nowhere: 1 error\ngeneric: valid, 0 remarks\n"


@pytest.mark.parametrize("name", [*list_sites(), "example"])
def test_show_is_yaml_with_an_origin_behind_every_value(shell: Shell, name: str) -> None:
    shown = shell.json("site", "show", name)
    text = shell.run("site", "show", name).out
    assert dict(_leaves(yaml.safe_load(text), "")) == dict(_leaves(shown["values"], ""))
    assert shown["origins"].keys() == dict(_leaves(shown["values"], "")).keys()
    origins = re.findall(r"  # (\S+)$", text, re.MULTILINE)
    assert sorted(origins) == sorted(shown["origins"].values())
    assert all(re.fullmatch(r"default|[a-z0-9]+\.yaml:[1-9]\d*", place) for place in origins)


def test_show_says_which_file_a_value_comes_from(shell: Shell) -> None:
    (shell.cwd / "own.yaml").write_text(
        "name: own\ninherits: [slac]\nfallback:\n  cache_mb: 30000\ndescription: '# not yaml: [x'\n"
    )
    shown = shell.json("site", "show", str(shell.cwd / "own.yaml"))
    origins = shown["origins"]
    assert origins["fallback.cache_mb"] == f"{shell.cwd}/own.yaml:4"
    assert origins["client.quota_mb"].startswith("slac.yaml:")
    assert origins["repositories[0].name"].startswith("generic.yaml:")
    assert origins["mode"] == "default"
    text = shell.run("site", "show", str(shell.cwd / "own.yaml")).out
    assert yaml.safe_load(text)["description"] == "# not yaml: [x"


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}[{number}]")
    else:
        yield path, value.strip() if isinstance(value, str) else value
