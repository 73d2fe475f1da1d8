"""Bind roots and runtime files: added where nothing is, never through a link, never over a file."""

from __future__ import annotations

import json
import stat

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.layers.tree import Content, Directory, Node, Tree, empty_tree, node_of
from cvmfs_publish.layers.treedigest import summarise_tree
from cvmfs_publish.sandbox.policy import SandboxPolicy
from cvmfs_publish.sandbox.prepare import Prepared, parse_config, prepare
from cvmfs_publish.sandbox.roots import (
    RUNTIME_DIRECTORIES,
    RUNTIME_FILES,
    STANDARD_ROOTS,
    RootAdder,
    clear_directory,
)
from cvmfs_publish.sandbox.runtime_files import LINKS

FILE = Node(stat.S_IFREG | 0o644, uid=3, mtime=33, size=1)
CONFIG = json.dumps({"created": "2023-11-14T22:13:20.123456789Z", "config": {"Env": ["A=1"]}})
CREATED = 1_700_000_000


class Contents:
    """Stores by keeping."""

    def __init__(self) -> None:
        self.data: dict[Content, bytes] = {}

    def store(self, data: bytes) -> Content:
        content = Content(ContentHash.of(data, HashAlgorithm.SHA1))
        self.data[content] = data
        return content


def directory(mode: int = 0o755, **children: Directory | Node) -> Directory:
    return Directory(Node(stat.S_IFDIR | mode, uid=3, mtime=33), dict(children))


def symlink(target: str) -> Node:
    return Node(stat.S_IFLNK | 0o777, target=target)


def tree_of(**children: Directory | Node) -> Tree:
    tree = empty_tree()
    tree.root.children.update(children)
    return tree


def prepared(
    tree: Tree, config: str = CONFIG, roots: tuple[str, ...] = STANDARD_ROOTS
) -> tuple[Prepared, Contents]:
    contents = Contents()
    result = prepare(tree, config.encode(), SandboxPolicy(roots=roots), contents.store)
    return result, contents


def node(tree: Tree, path: str) -> Node:
    entry = tree.find(path)
    assert entry is not None, path
    return node_of(entry)


def test_an_empty_image_gets_everything() -> None:
    tree = empty_tree()
    result, contents = prepared(tree)
    for root in STANDARD_ROOTS:
        assert isinstance(tree.find(root.strip("/")), Directory)
        assert root in result.roots_added
    for path, mode in RUNTIME_DIRECTORIES.items():
        assert node(tree, path).mode == stat.S_IFDIR | mode
    for path in RUNTIME_FILES:
        assert contents.data[node(tree, path).content or Content(None)] == b""
    for path, target in LINKS.items():
        assert node(tree, path).target == target
        assert tree.find(tree.resolve(path) or "") is not None
    for path, entry in tree.walk():
        added = node_of(entry)
        assert (added.mtime, added.uid, added.gid) == (CREATED, 0, 0)
        if added.is_file:
            assert added.size == len(contents.data[added.content or Content(None)]), path
    assert result.findings == ()
    assert not any(root.startswith("/.singularity") for root in result.roots_added)


def test_preparing_twice_adds_nothing_more() -> None:
    tree = empty_tree()
    prepared(tree)
    digest = summarise_tree(tree).digest
    again, _ = prepared(tree)
    assert summarise_tree(tree).digest == digest
    assert again.roots_added == ()


def test_equal_images_give_equal_sandboxes() -> None:
    digests = set()
    for _ in range(2):
        tree = tree_of(etc=directory(hosts=FILE), b=FILE)
        prepared(tree)
        digests.add(summarise_tree(tree).digest)
    assert len(digests) == 1


def test_a_directory_of_the_image_is_left_alone() -> None:
    tree = tree_of(nfs=directory(0o711, data=FILE))
    result, _ = prepared(tree)
    assert node(tree, "nfs") == Node(stat.S_IFDIR | 0o755, uid=3, mtime=33)  # by the policy alone
    assert node(tree, "nfs/data") == FILE
    assert "/nfs" not in result.roots_added


@pytest.mark.parametrize(
    "entry", [FILE, symlink("/elsewhere"), symlink("nfs")], ids=["file", "link", "loop"]
)
def test_a_file_or_link_in_the_place_of_a_root_stays_and_is_reported(entry: Node) -> None:
    tree = tree_of(nfs=entry)
    result, _ = prepared(tree, roots=("/nfs",))
    assert node(tree, "nfs") == entry
    (finding,) = result.findings
    assert finding.path == "nfs"
    assert "bind root not added" in finding.what
    assert "/nfs" not in result.roots_added


def test_files_jobs_need_are_never_replaced() -> None:
    tree = tree_of(etc=directory(hosts=FILE, passwd=symlink("/run/passwd"), group=directory()))
    prepared(tree)
    assert node(tree, "etc/hosts") == FILE
    assert node(tree, "etc/passwd") == symlink("/run/passwd")
    assert node(tree, "etc/group").is_dir
    assert tree.find("run/passwd") is None


def test_parents_are_followed_through_links_inside_the_tree() -> None:
    tree = tree_of(mnt=symlink("/media"), usr=directory(), var=symlink("../../../usr"))
    result, _ = prepared(tree, roots=("/mnt/hadoop",))
    assert node(tree, "media/hadoop").is_dir
    assert node(tree, "usr/tmp").mode == stat.S_IFDIR | 0o1777
    assert "/mnt/hadoop" in result.roots_added
    assert node(tree, "mnt").target == "/media"


@pytest.mark.parametrize("entry", [symlink("mnt"), FILE], ids=["loop", "file"])
def test_a_parent_that_is_no_directory_is_reported(entry: Node) -> None:
    tree = tree_of(mnt=entry)
    result, _ = prepared(tree, roots=("/mnt/hadoop",))
    (finding,) = result.findings
    assert finding.path == "mnt/hadoop"
    assert "its parent" in finding.what
    assert node(tree, "mnt") == entry


def test_etc_as_a_link_is_followed_inside_and_as_a_file_reported() -> None:
    tree = tree_of(etc=symlink("/usr/etc"))
    prepared(tree)
    assert node(tree, "usr/etc/hosts").is_file
    tree = tree_of(etc=FILE)
    result, _ = prepared(tree)
    assert {f.path for f in result.findings} >= {"etc", *RUNTIME_FILES}


@pytest.mark.parametrize(
    "entry",
    [directory(null=FILE, shm=directory()), FILE, symlink("/etc")],
    ids=["directory", "file", "link"],
)
def test_dev_is_an_empty_directory_whatever_the_image_has(entry: Directory | Node) -> None:
    tree = tree_of(dev=entry, etc=directory(hosts=FILE))
    result, _ = prepared(tree)
    found = tree.find("dev")
    assert isinstance(found, Directory)
    assert found.children == {}
    assert any(f.path.startswith("dev") for f in result.findings)
    assert node(tree, "etc/hosts") == FILE


def test_clearing_what_is_not_there_says_nothing() -> None:
    tree, findings = empty_tree(), list[object]()
    clear_directory(tree, "dev", findings)  # type: ignore[arg-type]
    assert findings == []


@pytest.mark.parametrize("path", [".singularity.d", ".singularity.d/env", ".singularity.d/actions"])
@pytest.mark.parametrize("entry", [FILE, symlink("/etc")], ids=["file", "link"])
def test_our_directories_replace_files_and_links_of_the_image(path: str, entry: Node) -> None:
    tree = tree_of(etc=directory())
    above, _, name = path.rpartition("/")
    if above:
        tree.root.children[above] = directory()
    parent = tree.find(above)
    assert isinstance(parent, Directory)
    parent.children[name] = entry
    prepared(tree)
    assert node(tree, ".singularity.d/env/99-base.sh").is_file
    assert tree.find("etc/env") is None
    assert tree.find("etc/99-base.sh") is None


def test_what_an_image_built_for_singularity_brings_is_kept() -> None:
    mine = FILE._replace(mode=stat.S_IFREG | 0o755)
    env = directory()
    link = symlink("/etc/hosts")
    env.children = {"90-environment.sh": mine, "01-base.sh": mine, "10-docker2singularity.sh": link}
    tree = tree_of(etc=directory(hosts=FILE))
    tree.root.children[".singularity.d"] = directory(env=env, runscript=directory())
    result, contents = prepared(tree)
    assert node(tree, ".singularity.d/env/90-environment.sh") == mine
    assert node(tree, ".singularity.d/env/01-base.sh") != mine
    ours = node(tree, ".singularity.d/env/10-docker2singularity.sh")
    assert b"export A" in contents.data[ours.content or Content(None)]
    assert node(tree, "etc/hosts") == FILE
    (refused,) = [f for f in result.findings if f.path == ".singularity.d/runscript"]
    assert "not written" in refused.what


def test_a_root_named_slash_adds_nothing() -> None:
    tree = empty_tree()
    adder = RootAdder(tree, 0)
    assert adder.directory("") is tree.root
    assert tree.root.children == {}


BAD_CONFIGS = {
    "no json": "{",
    "list": "[]",
    "null": "null",
    "deep": "[" * 100_000,
    "config": '{"config": 3}',
    "labels": '{"config": {"Labels": []}}',
    "env": '{"config": {"Env": "A=1"}}',
    "env number": '{"config": {"Env": [1]}}',
    "entrypoint": '{"config": {"Entrypoint": "sh"}}',
    "surrogate env": '{"config": {"Env": ["A=\\ud800"]}}',
    "surrogate cmd": '{"config": {"Cmd": ["\\udfff"]}}',
}


@pytest.mark.parametrize("name", [name for name in BAD_CONFIGS if name != "labels"])
def test_a_malformed_configuration_is_refused(name: str) -> None:
    with pytest.raises(IntegrityError, match="image configuration"):
        prepared(empty_tree(), BAD_CONFIGS[name])


@pytest.mark.parametrize(
    "text",
    ["{}", '{"config": null}', '{"config": {"Env": null, "Cmd": null, "Labels": null}}',
     '{"config": {"Labels": {"a": 1, "b": ["c"]}}}', '{"created": 5}', '{"created": "yesterday"}',
     '{"created": "0001-01-01T00:00:00Z"}', '{"created": "9999-12-31T23:59:59-14:00"}',
     '{"created": "2023-11-14T22:13:20"}', '{"architecture": {}}'],
)  # fmt: skip
def test_a_sparse_configuration_is_enough(text: str) -> None:
    tree = empty_tree()
    prepared(tree, text)
    assert node(tree, "nfs").mtime >= 0


def test_the_time_of_the_image_is_that_of_what_is_added() -> None:
    for text, wanted in {
        "2023-11-14T22:13:20Z": CREATED,
        "2023-11-14T23:13:20.999999999+01:00": CREATED,
        "": 0,
        "1960-01-01T00:00:00Z": 0,
    }.items():
        tree = empty_tree()
        prepared(tree, json.dumps({"created": text}))
        assert node(tree, "nfs").mtime == wanted


def test_the_configuration_is_kept_byte_for_byte() -> None:
    tree = empty_tree()
    text = '{"config":  {"Env": ["A=1"]}\n, "x": "é"}'
    _, contents = prepared(tree, text)
    content = node(tree, ".singularity.d/oci-config.json").content
    assert contents.data[content or Content(None)] == text.encode()
    assert parse_config(text.encode()).environment == ["A=1"]


def test_an_image_of_apptainers_own_keeps_what_is_there() -> None:
    own = directory(runscript=FILE, env=directory())
    own.children["labels.json"] = FILE
    environment = own.children["env"]
    assert isinstance(environment, Directory)
    environment.children["99-base.sh"] = FILE
    tree = tree_of(**{".singularity.d": own})
    contents = Contents()
    prepare(tree, CONFIG.encode(), SandboxPolicy(), contents.store, keep_runtime_files=True)
    for path in ("runscript", "labels.json", "env/99-base.sh"):
        assert node(tree, f".singularity.d/{path}").content is None  # not one of ours
    assert node(tree, ".singularity.d/env/01-base.sh").content in contents.data  # was missing
    assert node(tree, ".singularity.d/actions/exec").content in contents.data
