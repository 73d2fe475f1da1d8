"""Rendering: same bytes every time, values quoted, shell that every shell accepts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from cvmfs_publish.errors import InputError
from cvmfs_publish.repository.fallback import Line, format_list, parse_list
from cvmfs_publish.repository.records import Artefact
from cvmfs_publish.sites.client import render_client
from cvmfs_publish.sites.data import load_site, templates_dir
from cvmfs_publish.sites.fallback_list import FALLBACK_LIST, check_fallback_list
from cvmfs_publish.sites.launcher import PROGRAMS, conf_values
from cvmfs_publish.sites.pages import Files, Pages, RenderedFile
from cvmfs_publish.sites.render import MANIFEST, render_site
from cvmfs_publish.sites.runtime_conf import COMPLETE
from tests.site_texts import FULL, PUBLIC_KEY, SITES, parse_site

HOSTILE = "'; touch /tmp/cvmfs-publish-was-here; echo $(id) `id` \\ \" * {{ x }} {% y %}"
SHELLS = (["sh"], ["dash"], ["bash", "--posix"], ["busybox", "ash"])


def rendered(name: str) -> dict[str, RenderedFile]:
    return render_site(load_site(name), templates_dir())


@cache
def every_site() -> Mapping[str, Mapping[str, RenderedFile]]:
    """The files of every site by its name."""
    sites = [*map(load_site, SITES), parse_site(FULL)]
    return {site.name: render_site(site, templates_dir(), b"") for site in sites}


@pytest.mark.parametrize("name", SITES)
def test_rendering_twice_gives_identical_bytes(name: str) -> None:
    assert rendered(name) == rendered(name)


def test_another_process_renders_identical_bytes() -> None:
    code = (
        "from tests.site_texts import *; from cvmfs_publish.sites.data import *;"
        "from cvmfs_publish.sites.render import *;"
        f"print(render_site(parse_site(FULL), templates_dir())[{MANIFEST!r}].content.decode())"
    )
    # where sets, if any were shown, would have another order
    environment = {"PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    other = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        check=True,
    )
    manifest = render_site(parse_site(FULL), templates_dir())[MANIFEST]
    assert json.loads(other.stdout) == json.loads(manifest.content)


@pytest.mark.parametrize("name", SITES)
def test_the_promised_files_are_rendered(name: str) -> None:
    files = rendered(name)
    promised = {
        "bin/cvmfs-run",
        "bin/cvmfs-fetch",
        "bin/node-check",
        "conf/apptainer-config.sh",
        "conf/singularity-config.sh",
        "etc/site.conf",
        MANIFEST,
    }
    assert promised | {*COMPLETE} <= set(files)
    folders = {path.split("/")[0] for path in files}
    assert {*load_site(name).batch.systems} <= folders
    assert {files[path].mode for path in promised if not path.startswith("etc")} >= {0o755}
    assert {file.mode for file in files.values()} == {0o755, 0o644}
    assert all(files[path].mode == 0o755 for path in files if path.startswith("bin/"))


def test_the_manifest_has_the_digest_of_every_other_file() -> None:
    files = rendered("example")
    listed = json.loads(files[MANIFEST].content)["files"]
    assert {path: entry["sha256"] for path, entry in listed.items()} == {
        path: hashlib.sha256(file.content).hexdigest()
        for path, file in files.items()
        if path != MANIFEST
    }


# ---------------------------------------------------------------- shell


def distinct_programs() -> dict[str, bytes]:
    """The shell programs of all sites; those that differ in the site's name alone only once."""
    found: dict[bytes, tuple[str, bytes]] = {}
    seen: set[bytes] = set()
    for site, files in every_site().items():
        for path, file in files.items():
            if not file.content.startswith(b"#!/bin/sh") or file.content in seen:
                continue
            seen.add(file.content)
            plain = re.sub(rf"\b{re.escape(site)}\b".encode(), b"NAME", file.content)
            found.setdefault(plain, (f"{site}-{path.replace('/', '_')}", file.content))
    return dict(found.values())


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("programs")
    for name, content in distinct_programs().items():
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())


def test_every_program_is_correct_in_every_shell(programs: list[Path]) -> None:
    assert len(programs) > 20
    for shell in SHELLS:
        if shutil.which(shell[0]) is None:
            continue
        for program in programs:
            checked = subprocess.run([*shell, "-n", program], capture_output=True, check=False)
            assert (checked.returncode, checked.stderr) == (0, b""), (shell, program)


@pytest.mark.slow
def test_shellcheck_has_nothing_to_say_about_any_program(programs: list[Path]) -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run([shellcheck, "-s", "sh", *programs], capture_output=True, check=False)
    assert (checked.returncode, checked.stdout.decode()) == (0, "")


def test_no_program_wants_another_interpreter_than_every_node_has() -> None:
    first_lines = {
        file.content.split(b"\n", 1)[0]
        for files in every_site().values()
        for file in files.values()
        if file.content.startswith(b"#!")
    }
    assert first_lines == {b"#!/bin/sh"}


def read_by_a_shell(content: bytes, names: list[str], folder: Path) -> dict[str, str]:
    """Return the values of shell variables after a file of assignments was read."""
    conf = folder / "assignments"
    conf.write_bytes(content)
    script = f'. {conf}; printf "%s\\0" ' + " ".join(f'"${name}"' for name in names)
    found = set()
    for shell in SHELLS:
        if shutil.which(shell[0]):
            output = subprocess.run([*shell, "-c", script], capture_output=True, check=True).stdout
            found.add(output.decode())
    assert len(found) == 1
    return dict(zip(names, found.pop().split("\0"), strict=False))


def test_values_reach_the_shell_as_they_are(tmp_path: Path) -> None:
    path = f"/a b,c:d{HOSTILE.replace('/', '|')}"
    quoted = json.dumps(path)
    site = parse_site(
        f"name: test\ndescription: {json.dumps(HOSTILE)}\nroots: [{quoted}]\n"
        f"environment: {{set: {{A: {json.dumps(HOSTILE)}}}}}\n"
        f"binds: [{{source: {quoted}, target: /b, required: true}}]\n"
    )
    content = render_site(site, templates_dir())["etc/site.conf"].content
    values = {f"cvmfs_site_{name}": text for name, text in conf_values(site).items()}
    assert read_by_a_shell(content, list(values), tmp_path) == values


def test_the_programs_and_the_renderer_agree_on_the_names_in_site_conf() -> None:
    used = {
        name
        for template in PROGRAMS.values()
        for name in re.findall(
            r"cvmfs_site_([a-z_]*[a-z])", (templates_dir() / template).read_text("utf-8")
        )
    }
    assert used == set(conf_values(load_site("generic")))


def test_a_template_that_asks_for_an_unknown_value_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    shutil.copytree(templates_dir(), folder)
    (folder / "conf" / "apptainer.conf").write_text("{{ nonsense }}")
    with pytest.raises(InputError, match=r"apptainer\.conf: UndefinedError: 'nonsense'"):
        render_site(load_site("generic"), folder)


# ---------------------------------------------------------------- runtimes

# What every release of each generation knows, of what our files say: the settings in the sources of
# Apptainer 1.0 and 1.4, SingularityCE 3.9 and 4.1, Singularity 3.5.
OLD_NAMES = {
    *("allow setuid", "max loop devices", "shared loop devices", "allow pid ns"),
    *("config passwd", "config group", "config resolv_conf", "mount proc", "mount sys"),
    *("mount dev", "mount devpts", "mount home", "mount tmp", "mount hostfs", "mount slave"),
    *("bind path", "user bind control", "enable overlay", "enable underlay", "memory fs type"),
    *("sessiondir max size", "limit container paths", "allow container squashfs"),
    *("allow container extfs", "allow container dir", "always use nv"),
    "root default capabilities",
}
NEW_NAMES = OLD_NAMES | {
    *("enable fusemount", "allow container sif", "allow container encrypted"),
    *("use nvidia-container-cli", "always use rocm"),
}
KNOWN_NAMES = {
    "conf/apptainer.conf": NEW_NAMES,
    "conf/singularity-ce.conf": NEW_NAMES,
    "conf/singularity.conf": OLD_NAMES,
}


@pytest.mark.parametrize("path", COMPLETE)
def test_a_complete_file_says_each_setting_once_and_none_its_generation_does_not_know(
    path: str,
) -> None:
    site = parse_site("runtime_conf: {bind_paths: [/cvmfs], limit_container_paths: [/cvmfs/x]}")
    text = render_site(site, templates_dir())[path].content.decode()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pairs = [(line.split(" = ")[0], line.split(" = ")[1]) for line in lines]
    assert {name for name, _ in pairs} == KNOWN_NAMES[path]
    once = [name for name, _ in pairs if name not in ("bind path", "limit container paths")]
    assert len(once) == len(set(once))
    # nothing that may be absent but what the site says every node has
    paths = [value for _, value in pairs if value.startswith("/")]
    assert paths == ["/etc/localtime", "/etc/hosts", "/cvmfs", "/cvmfs/x"]
    assert not re.search(r":ro\b", "".join(lines))


# ---------------------------------------------------------------- client, proxy, mirror


def client_files(text: str) -> Files:
    return render_client(parse_site(text), Pages(templates_dir()))


def assignments(file: RenderedFile) -> list[str]:
    return [line for line in file.content.decode().splitlines() if not line.startswith("#")]


def domain_text(*servers: str) -> str:
    key = "".join(f"            {line}\n" for line in PUBLIC_KEY.splitlines())
    return (
        f"client:\n  domains:\n    example.org:\n      servers: {json.dumps(servers)}\n"
        f"      public_keys:\n          example.org.pub: |\n{key}"
    )


def test_files_of_services_are_rendered_only_when_the_site_names_them() -> None:
    assert client_files("home: host") == {}
    assert set(client_files(FULL)) == {
        "client/config.d/images.example.org.local",
        "client/default.local",
        "client/domain.d/example.org.conf",
        "client/keys/example.org/example.org.pub",
        "mirror/nginx.conf",
        "proxy/squid.conf",
    }


def test_the_client_gets_every_repository_once_and_what_the_site_says() -> None:
    files = client_files(
        "repositories: [{name: a.example.org}, {name: b.example.org}]\n"
        "required_repositories: [c.example.org, a.example.org]\n"
        "client: {quota_mb: 25000, cache_base: /srv/cache,\n"
        "  parameters: {CVMFS_STRICT_MOUNT: 'yes'},\n"
        "  repositories: {b.example.org: {CVMFS_KCACHE_TIMEOUT: '3600'}}}\n"
    )
    assert assignments(files["client/default.local"]) == [
        "CVMFS_REPOSITORIES=a.example.org,b.example.org,c.example.org",
        "CVMFS_QUOTA_LIMIT=25000",
        "CVMFS_CACHE_BASE=/srv/cache",
        "CVMFS_STRICT_MOUNT=yes",
    ]
    assert assignments(files["client/config.d/b.example.org.local"]) == [
        "CVMFS_KCACHE_TIMEOUT=3600"
    ]


def test_a_domain_gets_its_servers_and_its_keys() -> None:
    servers = ("http://near.example.org/cvmfs/@fqrn@", "http://far.example.org:8000/cvmfs/@fqrn@")
    files = client_files(domain_text(*servers))
    assert assignments(files["client/domain.d/example.org.conf"]) == [
        f"CVMFS_SERVER_URL='{';'.join(servers)}'",
        "CVMFS_KEYS_DIR=/etc/cvmfs/keys/example.org",
    ]
    assert files["client/keys/example.org/example.org.pub"].content == PUBLIC_KEY.encode()


def test_parameters_of_the_client_reach_its_shell_as_they_are(tmp_path: Path) -> None:
    hostile = json.dumps(HOSTILE)
    files = client_files(
        f"client:\n  parameters: {{CVMFS_X: {hostile}}}\n"
        f"  repositories: {{a.example.org: {{CVMFS_Y: {hostile}}}}}\n"
    )
    names = ["CVMFS_X"]
    read = read_by_a_shell(files["client/default.local"].content, names, tmp_path)
    assert read == dict.fromkeys(names, HOSTILE)
    own = files["client/config.d/a.example.org.local"].content
    assert read_by_a_shell(own, ["CVMFS_Y"], tmp_path) == {"CVMFS_Y": HOSTILE}


def test_a_proxy_serves_the_servers_of_the_domains_on_their_ports() -> None:
    text = domain_text(
        "http://b.example.org/cvmfs/@fqrn@",
        "http://a.example.org:8000/cvmfs/@fqrn@",
        "http://a.example.org:8001/cvmfs/@fqrn@",
    )
    lines = assignments(client_files(f"{text}squid: {{clients: [10.0.0.0/8]}}")["proxy/squid.conf"])
    assert [line for line in lines if line.startswith("acl")] == [
        "acl cvmfs_nodes src 10.0.0.0/8",
        "acl cvmfs_servers dstdomain -n a.example.org",
        "acl cvmfs_servers dstdomain -n b.example.org",
        "acl cvmfs_ports port 80",
        "acl cvmfs_ports port 8000",
        "acl cvmfs_ports port 8001",
        "acl cvmfs_methods method GET HEAD",
    ]
    assert [line for line in lines if line.startswith("http_access")][-1] == "http_access deny all"
    # the limit of a cache is the one in force where its line is
    assert lines.index("maximum_object_size 1024 MB") < next(
        number for number, line in enumerate(lines) if line.startswith("cache_dir")
    )
    assert "collapsed_forwarding on" in lines


def test_a_proxy_without_servers_fetches_nothing() -> None:
    lines = assignments(client_files("squid: {clients: [10.0.0.0/8]}")["proxy/squid.conf"])
    assert not [line for line in lines if "cvmfs_servers" in line]
    assert "http_access deny all" in lines


def test_a_proxy_passes_https_on_only_for_servers_that_want_it() -> None:
    text = domain_text("https://a.example.org/cvmfs/@fqrn@") + "squid: {clients: [10.0.0.0/8]}"
    lines = assignments(client_files(text)["proxy/squid.conf"])
    assert "acl cvmfs_methods method GET HEAD CONNECT" in lines
    assert "acl cvmfs_ports port 443" in lines


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("squid: {clients: [], servers: [a.example.org]}", "nobody could use the proxy"),
        ("squid: {clients: [10.0.0.0/8], servers: [a], cache_dir: /a b}", "characters that cannot"),
        ("squid: {clients: [10.0.0.0/8], servers: [a], port: 70000}", "between 1 and 65535"),
        ("squid: {clients: [10.0.0.0/8], servers: [a], cache_mb: 0}", "cache_mb: 0"),
        ("mirror: {server_name: a, root: '/a$b'}", "characters that cannot"),
        ("mirror: {server_name: a, root: /a, connections: 0}", "connections: 0"),
        ("client: {repositories: {a.example.org: {PATH: x}}}", "does not start with CVMFS_"),
    ],
)
def test_what_a_server_cannot_express_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        client_files(text)


# ---------------------------------------------------------------- the list of fallback images

ARTEFACT = "0123456789abcdef" * 4
DIGEST = f"sha256:{'ab' * 32}"


def line(listed: str, **changes: str) -> str:
    fields = {
        "name": listed, "image": DIGEST, "manifest": DIGEST, "format": "sif", "sha256": ARTEFACT,
        "size": "4096", "unpacked": "9000", "file": f"{ARTEFACT}.sif",
    }  # fmt: skip
    return " ".join((fields | changes).values()) + "\n"


def test_a_list_of_fallback_images_is_shipped_as_it_is() -> None:
    text = "# Fallback images of x\n" + line("docker.io/library/debian:12") + "\n"
    text += line(f"docker.io/library/debian@{DIGEST}")
    check_fallback_list(text.encode(), "fallback.txt")
    site = parse_site("home: host")
    files = render_site(site, templates_dir(), text.encode())
    assert files[FALLBACK_LIST].content == text.encode()
    assert FALLBACK_LIST in json.loads(files[MANIFEST].content)["files"]
    assert FALLBACK_LIST not in render_site(site, templates_dir())
    check_fallback_list(b"", "an empty list is one")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a/b:2 x"}, "9 fields, not 8"),
        ({"name": "../b:2"}, "is no name"),
        ({"image": "abc"}, "is no image id"),
        ({"manifest": "sha256:AB"}, "is no manifest digest"),
        ({"format": "zip"}, "is no format"),
        ({"sha256": "12"}, "is no SHA-256"),
        ({"size": "-1"}, "is no size"),
        ({"unpacked": "1e9"}, "is no unpacked size"),
        ({"file": f"../{ARTEFACT}.sif"}, f"not {ARTEFACT}.sif"),
        ({"format": "tar.gz"}, f"not {ARTEFACT}.tar.gz"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(changes: Mapping[str, str], said: str) -> None:
    text = "# a list\n" + line("a/b:1") + line("a/b:2", **changes)
    with pytest.raises(InputError, match=rf"list\.txt:3: .*{re.escape(said)}"):
        check_fallback_list(text.encode(), "list.txt")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (line("b/b:1").encode() + line("a/b:1").encode(), "x:2: a/b:1 after b/b:1"),
        (line("a/b:1").encode() * 2, "x:2: a/b:1 after a/b:1"),
        (line("a/b:1").encode()[:-1], "x:1: the last line is cut short"),
        (b"# \n" + line("a/b:1").encode() + b"\xff\n", "x:3: not ASCII"),
    ],
)
def test_a_list_that_nodes_would_misread_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_fallback_list(data, "x")


@pytest.mark.parametrize("path", ["slurm/prolog", "gridengine/prolog", "pbs/prologue"])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("chain: [host]", set()),
        ("chain: [cache, registry]", {"--refresh"}),
        ("chain: [cache, registry], shared: true", {"--refresh", "--prefill"}),
    ],
)
def test_root_copies_lists_for_all_caches_and_images_for_its_own(
    path: str, settings: str, words: set[str]
) -> None:
    site = parse_site(
        f"repositories: [{{name: a.org}}]\nimages: {{cpu: 'a/b:1'}}\nfallback: {{{settings}}}\n"
        f"batch: {{systems: [{path.partition('/')[0]}]}}"
    )
    text = render_site(site, templates_dir())[path].content.decode()
    code = " ".join(line for line in text.splitlines() if not line.startswith("#"))
    assert {"--refresh", "--prefill"} & set(code.split()) == words


@pytest.mark.parametrize("path", ["gridengine/prolog", "lsf/pre_exec"])
def test_root_runs_no_function_of_the_environment_of_a_job(tmp_path: Path, path: str) -> None:
    site = parse_site(
        f"cvmfs: {tmp_path}\nrepositories: [{{name: a.org}}]\nimages: {{cpu: 'a/b:1'}}\n"
        f"install_dir: {tmp_path}\nfail_delay: 0s\n"
        f"batch: {{systems: [{path.partition('/')[0]}]}}"
    )
    program = tmp_path / "sh"  # by this name bash reads what sh does
    program.symlink_to("/bin/bash")
    hook = tmp_path / "hook"
    hook.write_bytes(render_site(site, templates_dir())[path].content)
    (tmp_path / "a.org").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/cvmfs-run").symlink_to("/bin/true")
    names = ("timeout", "env", "ls", "id", "test", "[", "printf", "sleep", "exec", "exit", "cd")
    functions = {f"BASH_FUNC_{n}%%": f"() {{ echo {n} >>{tmp_path}/ran; }}" for n in names}
    env = {"PATH": "/usr/bin:/bin", **functions}
    user = {} if os.geteuid() == 0 else {"CVMFS_RUN_IMAGE": "none"}
    done = subprocess.run([program, hook], env={**env, **user}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not (tmp_path / "ran").exists()


def test_the_publishers_list_is_one_that_sites_ship() -> None:
    artefact = Artefact("tar.gz", ARTEFACT, 4096, 0)
    names = [
        "docker.io/library/debian:12",
        f"docker.io/library/debian@{DIGEST}",
        ".multiarch/arm:v7/docker.io/library/debian:12",
        "[::1]:5000/a/b:1",
    ]
    data = format_list({name: Line(DIGEST, DIGEST, artefact) for name in names})
    check_fallback_list(data, "fallback.txt")
    assert parse_list(data).keys() == {*names}


# ---------------------------------------------------------------- documentation


def test_every_rendered_file_is_documented_and_every_documented_one_rendered() -> None:
    page = (Path(__file__).parents[3] / "docs" / "site-files.md").read_text("utf-8")
    table = page.split("## The files")[1].split("##")[0]
    documented = set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))
    paths = {path for files in every_site().values() for path in files}
    forms = {name: re.compile(re.sub("[A-Z]+(?!.*json)", "[^/]+", name)) for name in documented}
    assert {path for path in paths if not any(f.fullmatch(path) for f in forms.values())} == set()
    assert {name for name, f in forms.items() if not any(map(f.fullmatch, paths))} == set()
