"""What of an image may be published, entry by entry."""

from __future__ import annotations

import os
import stat

import pytest

from cvmfs_publish.findings import Finding
from cvmfs_publish.layers.tree import Directory, Node, Tree, empty_tree, node_of
from cvmfs_publish.sandbox.policy import (
    FINDINGS_OF_A_KIND,
    RESERVED_NAMES,
    SandboxPolicy,
    apply_policy,
    summarise,
)

READABLE = SandboxPolicy()
STRICT = SandboxPolicy(permissions="strict")
KEEP = SandboxPolicy(permissions="strict", setuid="keep")


def tree_with(name: str, entry: Directory | Node) -> Tree:
    tree = empty_tree()
    tree.root.children["d"] = Directory(Node(stat.S_IFDIR | 0o755), {name: entry})
    return tree


def judged(node: Node, policy: SandboxPolicy) -> tuple[Node | None, list[Finding]]:
    entry: Directory | Node = Directory(node) if node.is_dir else node
    tree = tree_with("x", entry)
    findings = apply_policy(tree, policy)
    found = tree.find("d/x")
    return None if found is None else node_of(found), findings


MODES = {
    # kind, mode in the image: (readable + strip, strict + strip, strict + keep)
    (stat.S_IFREG, 0o000): (0o644, 0o000, 0o000),
    (stat.S_IFREG, 0o400): (0o644, 0o400, 0o400),
    (stat.S_IFREG, 0o640): (0o644, 0o640, 0o640),
    (stat.S_IFREG, 0o700): (0o755, 0o700, 0o700),
    (stat.S_IFREG, 0o010): (0o755, 0o010, 0o010),
    (stat.S_IFREG, 0o555): (0o755, 0o555, 0o555),
    (stat.S_IFREG, 0o666): (0o666, 0o666, 0o666),
    (stat.S_IFREG, 0o777): (0o777, 0o777, 0o777),
    (stat.S_IFREG, 0o4755): (0o755, 0o755, 0o4755),
    (stat.S_IFREG, 0o2711): (0o755, 0o711, 0o2711),
    (stat.S_IFREG, 0o6000): (0o644, 0o000, 0o6000),
    (stat.S_IFREG, 0o1644): (0o1644, 0o1644, 0o1644),
    (stat.S_IFDIR, 0o000): (0o755, 0o000, 0o000),
    (stat.S_IFDIR, 0o700): (0o755, 0o700, 0o700),
    (stat.S_IFDIR, 0o1777): (0o1777, 0o1777, 0o1777),
    (stat.S_IFDIR, 0o2770): (0o775, 0o770, 0o2770),
    (stat.S_IFIFO, 0o600): (0o644, 0o600, 0o600),
    (stat.S_IFLNK, 0o777): (0o777, 0o777, 0o777),
}


@pytest.mark.parametrize("case", MODES, ids=lambda case: f"{case[0]:o}-{case[1]:04o}")
def test_permissions(case: tuple[int, int]) -> None:
    kind, mode = case
    for policy, wanted in zip((READABLE, STRICT, KEEP), MODES[case], strict=True):
        before = Node(kind | mode, uid=1, target="t" * (kind == stat.S_IFLNK))
        after, findings = judged(before, policy)
        assert after == before._replace(mode=kind | wanted)
        assert (findings != []) == (wanted != mode)
        assert all(f.path == "d/x" and f"(was {mode:04o})" in f.what for f in findings)


def test_the_root_is_judged_as_well() -> None:
    tree = empty_tree(0o2700)
    findings = apply_policy(tree, READABLE)
    assert stat.S_IMODE(tree.root.node.mode) == 0o755
    assert {finding.path for finding in findings} == {""}


def test_both_bits_are_named_in_one_finding() -> None:
    _, findings = judged(Node(stat.S_IFREG | 0o6755), STRICT)
    assert findings == [Finding("d/x", "setuid and setgid dropped (was 6755)")]


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
@pytest.mark.parametrize("policy", [READABLE, KEEP], ids=["readable", "keep"])
def test_devices_are_dropped_whatever_the_policy(kind: int, policy: SandboxPolicy) -> None:
    after, findings = judged(Node(kind | 0o666, device=os.makedev(1, 3)), policy)
    assert after is None
    assert len(findings) == 1
    assert "device 1:3 dropped" in findings[0].what


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
@pytest.mark.parametrize(
    "entry",
    [
        Node(stat.S_IFREG | 0o644),
        Node(stat.S_IFLNK | 0o777, target="x"),
        Directory(Node(stat.S_IFDIR | 0o755), {"below": Node(stat.S_IFREG)}),
    ],
    ids=["file", "link", "directory"],
)
def test_names_that_steer_cvmfs_are_dropped_whatever_they_are(
    name: str, entry: Directory | Node
) -> None:
    tree = tree_with(name, entry)
    findings = apply_policy(tree, READABLE)
    assert [path for path, _ in tree.walk()] == ["d"]
    assert [finding.path for finding in findings] == [f"d/{name}"]


def test_only_attributes_of_users_that_fit_are_kept() -> None:
    kept = (("user.a", b""), ("user." + "n" * 250, b"v" * 255))
    dropped = (
        ("security.capability", b"x"),
        ("security.selinux", b"x"),
        ("trusted.overlay.opaque", b"y"),
        ("system.posix_acl_access", b"x"),
        ("user.big", b"v" * 256),
        ("user." + "n" * 251, b""),
        ("user." + "é" * 126, b""),
        ("username", b""),
    )
    node = Node(stat.S_IFREG | 0o644, xattrs=tuple(sorted(kept + dropped)))
    after, findings = judged(node, READABLE)
    assert after is not None
    assert after.xattrs == tuple(sorted(kept))
    assert sorted(f.what for f in findings) == sorted(
        f"extended attribute {name} dropped" for name, _ in dropped
    )


def test_more_attributes_than_a_catalog_holds_are_cut_and_reported() -> None:
    xattrs = tuple((f"user.{number:03}", b"") for number in range(260))
    after, findings = judged(Node(stat.S_IFREG | 0o644, xattrs=xattrs), READABLE)
    assert after is not None
    assert (len(after.xattrs), len(findings)) == (255, 5)


@pytest.mark.parametrize(
    ("target", "told"),
    [("lib/$(ARCH)/x", 1), ("$(X:-/usr)", 1), ("$()", 1), ("$(open", 0), ("${HOME}", 0), ("$", 0)],
)
def test_targets_that_clients_change_are_told(target: str, told: int) -> None:
    node = Node(stat.S_IFLNK | 0o777, target=target)
    after, findings = judged(node, READABLE)
    assert (after, len(findings)) == (node, told)


def test_a_harmless_tree_is_left_as_it_is_without_a_word() -> None:
    tree = tree_with("x", Node(stat.S_IFREG | 0o644, uid=0, gid=4294967294, mtime=-1))
    before = [(path, node_of(entry)) for path, entry in tree.walk()]
    assert apply_policy(tree, READABLE) == []
    assert [(path, node_of(entry)) for path, entry in tree.walk()] == before


def test_many_findings_of_a_kind_are_counted() -> None:
    count = FINDINGS_OF_A_KIND
    many = [Finding(f"s{n}", f"setuid dropped (was {n:04o})") for n in range(count + 5)]
    few = [Finding("d", "character device 1:3 dropped")]
    exactly = [Finding(f"r{n}", "dropped: the name is reserved by CernVM-FS") for n in range(count)]
    kept = summarise(many + few + exactly)
    assert kept[-1] == Finding("", "5 more: setuid dropped")
    assert kept[:-1] == many[:count] + few + exactly
    assert summarise(kept[:-1]) == kept[:-1]
    assert summarise([]) == []
