"""Site configurations: what is accepted, what is refused, and with which words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cvmfs_publish.errors import InputError
from cvmfs_publish.sandbox.roots import STANDARD_ROOTS
from cvmfs_publish.settings import iter_keys, parse, read_text
from cvmfs_publish.sites.binds import WELL_KNOWN_ROOTS, plan_binds, plan_roots, plan_targets
from cvmfs_publish.sites.data import find_data, list_sites, load_site, templates_dir
from cvmfs_publish.sites.describe import check_site, effective_values
from cvmfs_publish.sites.model import Site
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
        ("runtimes: []", "no job could start"),
        ("scratch: [$1]", "cannot be used as the name of a variable"),
        ("scratch: [tmp]", "is not an absolute path"),
        ("environment: {drop: [A-B]}", "cannot be used as the name of a variable"),
        ('environment: {set: {A: "x\\ny"}}', "has a line break"),
        ("environment: {set: {cr_x: y}}", "cannot be used as the name of a variable"),
        ("probe_timeout: 0s", "not between 1 s and 1 h"),
        ("fail_delay: 2h", "longer than 1 h"),
        ("fallback: {chain: [http]}", "wants one of cache"),
        ("images: {cpu: ../x}", "is not an image name"),
        ("runtime_conf: {bind_paths: ['/a,b']}", "cannot express commas"),
        ("runtime_conf: {session_dir_mib: 0}", "not a possible size"),
        ("client: {quota_mb: 4}", "needs at least 1000"),
        ("client: {parameters: {HTTP_PROXY: x}}", "does not start with CVMFS_"),
        ("client: {parameters: {CVMFS_HTTP_PROXY: x}}", "has a key of its own"),
        ("binds: [{source: /a, target: /x}, {source: /b, target: /x}]", "both mounted at /x"),
    ],
)
def test_a_value_that_cannot_work_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        site(text)


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
    with pytest.raises(InputError, match=message):
        site(f"client: {{domains: {{example.org: {domain}}}}}")


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
    unset = [
        entry.name
        for entry in dataclasses.fields(Site)
        if not getattr(example, entry.name)
    ]
    assert unset == []


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


def test_effective_values_are_plain_data_with_defaults_and_expanded_roots() -> None:
    values = effective_values(site("probe_timeout: 1m"))
    assert values["probe_timeout"] == "60s"
    assert values["home"] == "host"
    assert values["roots"] == [root.path for root in WELL_KNOWN_ROOTS]
    assert values["client"] is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("home: host", "repositories"),
        ("images: {gpu: a/b:1}", "images.cpu"),
        ("repositories: [{name: a.org}]\nimages: {allowed: [/cvmfs/b.org]}", "images.allowed"),
        ("binds: [{source: /a, read_only: true}]", "binds"),
        ("binds: [{source: /a, target: '/b:c'}]", "binds"),
        ("fallback: {chain: [host]}", "fallback.chain"),
        ("runtime_conf: {bind_paths: [/nfs]}", "runtime_conf.bind_paths"),
    ],
)
def test_what_is_probably_not_meant_gets_a_remark(text: str, key: str) -> None:
    assert key in [finding.path for finding in check_site(site(text))]


def test_the_launcher_knows_the_runtimes_of_the_model() -> None:
    program = (templates_dir() / "launcher" / "cvmfs-run").read_text()
    assert " | ".join(RUNTIMES) in program
