"""Site configurations: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from cvmfs_publish.cli.publishing import publish_settings
from cvmfs_publish.config import (
    Config,
    RepositoryConfig,
    RepositoryName,
    RootPath,
    SandboxConfig,
    SiteName,
)
from cvmfs_publish.errors import InputError
from cvmfs_publish.sandbox.roots import STANDARD_ROOTS
from cvmfs_publish.settings import iter_keys, parse, read_text
from cvmfs_publish.sites.binds import WELL_KNOWN_ROOTS, plan_binds, plan_roots, plan_targets
from cvmfs_publish.sites.data import find_data, list_sites, load_site, templates_dir
from cvmfs_publish.sites.describe import effective_values
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.remarks import check_site
from cvmfs_publish.sites.runtimes import RUNTIMES


def site(text: str) -> Site:
    return parse(Site, f"name: test\n{text}", "test.yaml")


def test_a_name_is_enough_for_a_site() -> None:
    assert parse(Site, "name: test", "test.yaml").cvmfs == "/cvmfs"


def test_the_generic_site_is_found_by_name_and_the_example_is_not_a_site() -> None:
    assert "generic" in list_sites()
    assert "example" not in list_sites()
    assert load_site("generic").name == "generic"


@pytest.mark.parametrize("name", list_sites())
def test_every_site_that_comes_along_is_free_of_remarks(name: str) -> None:
    assert check_site(load_site(name)) == []


def test_a_site_is_loaded_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nhome: none\n")
    assert load_site(str(path)).home == "none"


def test_an_unknown_site_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"no site 'generik'; did you mean 'generic'"):
        load_site("generik")


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 5000 + ".yaml"])
def test_a_name_that_no_file_can_have_is_an_unknown_site(name: str) -> None:
    with pytest.raises(InputError, match=r"no site 'aaa|cannot be read: File name too long"):
        load_site(name)


def test_a_file_whose_name_differs_from_the_sites_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: b\n")
    with pytest.raises(InputError, match=r"name is 'b', the file's is 'a'"):
        load_site("a", tmp_path)


def test_an_unknown_key_names_file_line_key_and_nearest_key() -> None:
    with pytest.raises(InputError, match=r"test\.yaml:3: unknown key 'prob_timeout'.*probe_timeo"):
        site("home: host\nprob_timeout: 5s")


def test_a_wrong_type_names_what_is_wanted_and_what_was_found() -> None:
    with pytest.raises(InputError, match=r"roots: wants a list.*found '/nfs'"):
        site("roots: /nfs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cvmfs: cvmfs", "is not an absolute path"),
        ("cvmfs: /cvmfs/", "is not a normalised path"),
        ("roots: [/a/../b]", "is not a normalised path"),
        ('roots: ["/a\\nb"]', "is not an absolute path"),
        ("runtimes: [docker]", "is not a runtime"),
        ("runtimes: [bin/apptainer]", "is not a runtime"),
        ("runtimes: []", "runtimes: is empty: no job could start"),
        ("cvmfs: /" + "a" * 1000, "at most 1000 are possible"),
        ("environment: {set: {A: " + "x" * 4001 + "}}", "at most 4000 are possible"),
        ("scratch: [$1]", "cannot be used as the name of a variable"),
        ("scratch: [tmp]", "is not an absolute path"),
        ("environment: {drop: [A-B]}", "cannot be used as the name of a variable"),
        ('environment: {set: {A: "x\\ny"}}', "has a line break"),
        ("environment: {set: {cr_x: y}}", "cannot be used as the name of a variable"),
        ("probe_timeout: 0s", "probe_timeout: 0s is not between 1s and 1h"),
        ("fail_delay: 2h", "fail_delay: 2h is not between 0s and 1h"),
        ("fallback: {chain: [http]}", "wants one of cache"),
        ("images: {cpu: ../x}", "is not an image name"),
        ("runtime_conf: {bind_paths: ['/a,b']}", "cannot express commas"),
        ("runtime_conf: {limit_container_paths: ['/a ']}", "cannot express commas"),
        ("runtime_conf: {session_dir_mib: 0}", "session_dir_mib: 0 MiB is not between 1 and"),
        ("repositories: [{name: a.org, min_revision: -1}]", "min_revision: -1 is not between 0"),
        (
            "repositories: [{name: a.org}, {name: a.org}]",
            r"repositories\[1\]: a.org is given twice",
        ),
        ("required_repositories: [a.org, a.org]", "a.org is given twice"),
        ("fallback: {chain: [mirror]}", "chain has mirror, and mirrors is empty"),
        ("fallback: {chain: [host, cache]}", "host before another way"),
        ("fallback: {chain: [cache, cache]}", "names a way twice"),
        ("fallback: {cache_mb: -1}", "cache_mb: -1 MB is not between 1 and"),
        ("fallback: {image_mb: 0}", "image_mb: 0 MB is not between 1 and"),
        ("fallback: {cache_mb: 10}", "an image of 20000 MB does not fit the cache of 10 MB"),
        ("fallback: {lock_wait: 0s}", "lock_wait: 0s is not between 1s and 1d"),
        ("fallback: {download_timeout: 2d}", "download_timeout: 2d is not between 1s and 1d"),
        ("fallback: {retry_after: 4w}", "retry_after: 28d is not between 0s and 1d"),
        (
            "fallback: {jitter: 11m, lock_wait: 10m}",
            "jitter: 660 s is longer than lock_wait, 600 s",
        ),
        ("fallback: {mirrors: ['http://user:pass@a.org/x']}", "is not an address"),
        ("fallback: {mirrors: ['ftp://a.org/x']}", "is not an address"),
        ("fallback: {mirrors: ['http://a.org/a b']}", "is not an address"),
        ("hooks: {before: check.sh}", "is not an absolute path"),
        ("install_dir: /opt/my tools", "cannot be written in every file"),
        ("mpi: {binds: [{source: /a}, {source: /b, target: /a}]}", "both mounted at /a"),
        ("batch: {options: {slurm: [-x]}}", "options are given for slurm, which is not in systems"),
        (
            "batch: {systems: [slurm], options: {slurm: [time=1]}}",
            r"options.slurm\[0\]: 'time=1' is not an option of slurm",
        ),
        ("batch: {systems: [htcondor], options: {htcondor: [x]}}", "not a line of a submit file"),
        ("batch: {systems: [lsf, lsf]}", "names a batch system twice"),
        ("batch: {kubernetes: {namespace: My_Jobs}}", "cannot name an object"),
        ("batch: {kubernetes: {image: /cvmfs/a}}", "the pod's image is pulled from a registry"),
        ("software: [{name: a, version: '1', image: x:1, commands: []}]", "offers no commands"),
        ("software: [{name: a, version: '1', image: x:1, commands: [b, b]}]", "a command twice"),
        ("software: [{name: a b, version: '1', image: x:1, commands: [b]}]", "as a file name"),
        ("client: {partition_mb: 5}", "partition_mb: 5 MB is not between 1000 and"),
        ("client: {http_proxy: squid.a.org:3128}", "'squid.a.org:3128' is not a proxy"),
        ("client: {http_proxy: 'http://a:1 http://b:1'}", "is not a proxy"),
        ("client: {repositories: {a.org: {X: y}}}", "a.org.X: X does not start with CVMFS_"),
        ("client: {cache_base: /a b}", "cannot be written in every file"),
        ("client: {quota_mb: -1}", "needs at least 1000"),
        ("squid: {clients: []}", "nobody could use the proxy"),
        ("squid: {clients: [10.0.0.1/8]}", "is not a network"),
        ("squid: {clients: [10.0.0.0/8], port: 65536}", "port: 65536 is not between 1 and 65535"),
        ("squid: {clients: [10.0.0.0/8], cache_mb: 0}", "cache_mb: 0 MB is not between"),
        ("squid: {clients: [10.0.0.0/8], servers: [a_b]}", "is not a host name"),
        ("squid: {clients: [10.0.0.0/8], cache_dir: '/a;b'}", "cannot be written in every file"),
        ("mirror: {server_name: a.org, root: /x, connections: 0}", "connections: 0 is not between"),
        ("mirror: {server_name: a.org, root: '/x$y'}", "cannot be written in every file"),
        ("mirror: {server_name: a.org, root: /x, port: 0}", "port: 0 is not between"),
        ("client: {quota_mb: 4}", "needs at least 1000"),
        ("client: {parameters: {HTTP_PROXY: x}}", "does not start with CVMFS_"),
        ("client: {parameters: {CVMFS_HTTP_PROXY: x}}", "has a key of its own"),
        ("binds: [{source: /a, target: /x}, {source: /b, target: /x}]", "both mounted at /x"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_a_remedy(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        site(text)
    assert refused.value.hint or "wants one of" in str(refused.value)


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        ("{servers: [], public_keys: {}}", "at least one server"),
        ("{servers: [s1.example.org], public_keys: {a.pub: x}}", "not the address of a Stratum 1"),
        ("{servers: ['http://s/cvmfs'], public_keys: {a.pub: x}}", "does not contain @fqrn@"),
        ("{servers: ['http://s/@fqrn@'], public_keys: {../a.pub: x}}", "not a file name"),
        ("{servers: ['http://s/@fqrn@'], public_keys: {a.pub: x}}", "not a public key"),
    ],
)
def test_a_domain_that_cannot_work_is_refused(domain: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        site(f"client: {{domains: {{example.org: {domain}}}}}")
    assert refused.value.hint


def test_the_example_explains_every_key_right_above_it() -> None:
    lines = read_text(find_data("site-configs") / "example.yaml").splitlines()
    for key in iter_keys(Site):
        name = key.path.split(".")[-1]
        places = [
            number for number, line in enumerate(lines) if line.lstrip(" -").startswith(f"{name}:")
        ]
        assert places, f"{key.path} is missing from example.yaml"
        commented = any(lines[number - 1].lstrip().startswith("#") for number in places)
        if name not in ("images", "environment") and key.path not in (
            "config_mounts[].source",  # explained at binds
        ):
            assert commented, f"{key.path} has no comment above it in example.yaml"


def test_the_example_is_a_valid_site_that_sets_every_key() -> None:
    example = load_site("example")
    unset = [entry.name for entry in dataclasses.fields(Site) if not getattr(example, entry.name)]
    assert unset == ["inherits"]  # so that its values are its own


def test_the_manual_names_every_key_and_every_site_and_its_example_is_one(tmp_path: Path) -> None:
    page = read_text(Path(__file__).parents[3] / "docs" / "site-config.md")
    sections, sites = page.split("## The sections")[1].split("## Sites that came along")
    named = {word.split(".")[0] for word in re.findall(r"`([a-z_.]+)`", sections)}
    assert {entry.name for entry in dataclasses.fields(Site)} <= named
    assert re.findall(r"^\| `([a-z0-9]+)` \|", sites, re.MULTILINE) != []
    assert set(re.findall(r"^\| `([a-z0-9]+)` \|", sites, re.MULTILINE)) == set(list_sites())
    example = page.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "mysite.yaml").write_text(example)
    assert check_site(load_site(str(tmp_path / "mysite.yaml"))) == []


def test_every_key_has_a_sentence_of_documentation() -> None:
    assert [key.path for key in iter_keys(Site) if not key.doc] == []


def test_published_images_have_every_standard_root_as_a_mount_point() -> None:
    assert {root.path for root in WELL_KNOWN_ROOTS} - set(STANDARD_ROOTS) == set()


def test_every_root_has_evidence() -> None:
    assert [root.path for root in WELL_KNOWN_ROOTS if not root.evidence] == []
    assert len({root.path for root in WELL_KNOWN_ROOTS}) == len(WELL_KNOWN_ROOTS)


def test_standard_stands_for_the_built_in_list_and_roots_are_listed_once() -> None:
    roots = plan_roots(site("roots: [/mine, standard, /nfs]"))
    assert roots[0] == "/mine"
    assert roots.count("/nfs") == 1
    assert len(roots) == len(WELL_KNOWN_ROOTS) + 1


def test_an_explicit_mount_takes_the_place_of_a_root() -> None:
    mounted = site("binds: [{source: /export, target: /nfs}]")
    assert "/nfs" not in plan_roots(mounted)
    assert "/nfs" in plan_targets(mounted)


def test_cvmfs_is_mounted_at_cvmfs_wherever_the_node_has_it() -> None:
    (own,) = plan_binds(site("cvmfs: /opt/cvmfs"))
    assert (own.source, own.destination, own.required) == ("/opt/cvmfs", "/cvmfs", False)
    (replaced,) = plan_binds(site("binds: [{source: /other, target: /cvmfs, required: true}]"))
    assert replaced.source == "/other"


def test_publishers_learn_of_every_folder_mounted_at_but_not_of_files() -> None:
    targets = plan_targets(
        site(
            "roots: [/data]\nbinds: [{source: /a, target: /b}]\n"
            "mpi: {binds: [{source: /opt/mpi}]}\n"
            "config_mounts: [{source: /etc/x/a.conf}, {source: /b.conf}, {source: /etc/grid,"
            " directory: true}]"
        )
    )
    assert targets == ("/data", "/cvmfs", "/b", "/etc/x", "/etc/grid", "/opt/mpi")


@pytest.mark.parametrize("name", list_sites())
def test_a_publisher_can_prepare_images_for_every_site(name: str) -> None:
    config = Config(repository=RepositoryConfig(name=RepositoryName("a.org")))
    sites = SandboxConfig(sites=(SiteName(name),))
    roots = publish_settings(dataclasses.replace(config, sandbox=sites)).policy.roots
    assert [RootPath.parse(root) for root in roots] == list(roots)
    assert set(plan_targets(load_site(name))) <= set(roots)


def test_effective_values_are_plain_data_with_defaults_and_expanded_roots() -> None:
    values = effective_values(site("probe_timeout: 1m"))
    assert values["probe_timeout"] == "60s"
    assert values["home"] == "host"
    assert values["roots"] == [root.path for root in WELL_KNOWN_ROOTS]
    assert values["client"] is None


def test_the_launcher_knows_the_runtimes_of_the_model() -> None:
    program = (templates_dir() / "launcher" / "cvmfs-run").read_text()
    assert " | ".join(RUNTIMES) in program
