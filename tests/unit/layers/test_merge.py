"""Merging: the cases a generator seldom finds, and what a message says.

The rest is in `tests/property/test_merge_oracle.py`.
"""

from __future__ import annotations

import stat

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.findings import Finding
from cvmfs_publish.layers import merge as merging
from cvmfs_publish.layers.merge import merge
from cvmfs_publish.layers.record import LayerEntry, LayerRecord
from cvmfs_publish.layers.tree import Node, Tree, node_of
from cvmfs_publish.layers.whiteouts import Change

DIGEST = Digest.of(b"a layer")


def directory(path: str, mode: int = 0o755) -> LayerEntry:
    return LayerEntry(Change.PUT, path, Node(stat.S_IFDIR | mode))


def file(path: str, uid: int = 0) -> LayerEntry:
    return LayerEntry(Change.PUT, path, Node(stat.S_IFREG | 0o644, uid=uid))


def symlink(path: str, target: str) -> LayerEntry:
    return LayerEntry(Change.PUT, path, Node(stat.S_IFLNK | 0o777, target=target))


def whiteout(path: str) -> LayerEntry:
    return LayerEntry(Change.WHITEOUT, path)


def opaque(path: str) -> LayerEntry:
    return LayerEntry(Change.OPAQUE, path)


def link(path: str, target: str) -> LayerEntry:
    return LayerEntry(Change.LINK, path, None, target)


def layer(*entries: LayerEntry) -> LayerRecord:
    return LayerRecord(DIGEST, DIGEST, 0, 0, entries)


def stacked(*layers: LayerRecord, keep_dirlinks: bool = False) -> Tree:
    return merge(list(layers), keep_dirlinks=keep_dirlinks)[0]


def paths(tree: Tree) -> list[str]:
    return sorted(path for path, _ in tree.walk())


def test_no_layers_give_an_empty_root() -> None:
    assert paths(stacked()) == []


def test_a_whiteout_works_through_a_link_of_a_lower_layer() -> None:
    lower = layer(directory("usr/lib"), file("usr/lib/old"), symlink("lib", "usr/lib"))
    assert paths(stacked(lower, layer(whiteout("lib/old")))) == ["lib", "usr", "usr/lib"]


def test_an_opaque_directory_that_replaced_a_link_does_not_empty_what_the_link_led_to() -> None:
    """Overlay file systems write this for `rm /var/run && mkdir /var/run`."""
    lower = layer(directory("run"), file("run/precious"), symlink("var/run", "/run"))
    upper = layer(directory("var"), directory("var/run"), opaque("var/run"), file("var/run/new"))
    assert paths(stacked(lower, upper)) == ["run", "run/precious", "var", "var/run", "var/run/new"]


def test_a_link_that_is_hidden_between_two_entries_is_not_followed_by_the_second() -> None:
    lower = layer(directory("ab"), symlink("a", "ab"))
    upper = layer(file("a/one"), whiteout("a"), file("a/two"))
    assert paths(stacked(lower, upper)) == ["a", "a/two", "ab", "ab/one"]


def test_usrmerge_a_file_below_a_link_lands_where_the_link_leads() -> None:
    lower = layer(directory("usr/lib"), symlink("lib", "usr/lib"))
    assert paths(stacked(lower, layer(file("lib/new")))) == ["lib", "usr", "usr/lib", "usr/lib/new"]


def test_usrmerge_a_directory_entry_replaces_the_link_unless_told_otherwise() -> None:
    lower = layer(directory("usr/lib"), file("usr/lib/libc"), symlink("lib", "usr/lib"))
    upper = layer(directory("lib"), file("lib/new"))
    assert paths(stacked(lower, upper)) == ["lib", "lib/new", "usr", "usr/lib", "usr/lib/libc"]
    tree, findings = merge([lower, upper], keep_dirlinks=True)
    assert paths(tree) == ["lib", "usr", "usr/lib", "usr/lib/libc", "usr/lib/new"]
    assert [finding.path for finding in findings] == ["lib"]
    assert "kept" in findings[0].what


def test_a_link_to_nothing_gives_way_to_a_directory_even_where_links_are_kept() -> None:
    tree = stacked(layer(symlink("a", "nowhere")), layer(directory("a")), keep_dirlinks=True)
    entry = tree.find("a")
    assert entry is not None
    assert node_of(entry).is_dir


def test_a_hard_link_to_a_lower_layer_is_the_same_file() -> None:
    lower = layer(file("d/target", uid=7), symlink("e", "d"))
    tree = stacked(lower, layer(link("copy", "e/target")))
    entry = tree.find("copy")
    assert entry is not None
    assert node_of(entry).uid == 7


def test_a_hard_link_keeps_what_it_linked_to_when_that_is_replaced_later() -> None:
    tree = stacked(layer(file("a", uid=1), link("b", "a"), file("a", uid=2)))
    assert {path: node_of(entry).uid for path, entry in tree.walk()} == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([link("x", "gone")], "does not exist"),
        ([directory("d"), link("x", "d")], "is a directory"),
        ([link("x", "")], "does not exist"),
        ([symlink("l", "l"), link("x", "l/y")], "does not exist"),
    ],
)
def test_a_hard_link_to_no_file_is_refused_in_words(entries: list[LayerEntry], found: str) -> None:
    with pytest.raises(IntegrityError, match=found) as caught:
        stacked(layer(*entries))
    assert "'x'" in str(caught.value)
    assert "rebuild" in caught.value.hint


def test_a_hard_link_at_the_root_changes_nothing() -> None:
    assert paths(stacked(layer(file("a"), link("", "a")))) == ["a"]


@pytest.mark.parametrize(
    "entries",
    [
        [file("a"), file("a/b")],
        [symlink("a", "a"), file("a/b")],
        [file("")],
        [symlink("", "/etc")],
    ],
    ids=["below a file", "below a loop", "root is a file", "root is a link"],
)
def test_what_cannot_exist_is_refused(entries: list[LayerEntry]) -> None:
    with pytest.raises(IntegrityError, match=str(DIGEST)):
        stacked(layer(*entries))


@pytest.mark.parametrize(
    "entry",
    [whiteout("a"), whiteout("a/b/c"), whiteout("f/x"), whiteout("l/x"), opaque("f"), opaque("l"),
     opaque("gone")],
    ids=str,
)  # fmt: skip
def test_hiding_what_is_not_there_does_nothing(entry: LayerEntry) -> None:
    lower = layer(file("f"), symlink("l", "l"))
    assert paths(stacked(lower, layer(entry))) == ["f", "l"]


def test_an_opaque_root_hides_all_below_and_nothing_of_its_own_layer() -> None:
    lower = layer(file("old/file"), file("both/old"))
    tree = stacked(lower, layer(file("both/new"), opaque("")))
    assert paths(tree) == ["both", "both/new"]


def test_a_whiteout_spares_names_that_begin_alike() -> None:
    lower = layer(file("a/x"), file("ab/x"), file("a.b"))
    assert paths(stacked(lower, layer(whiteout("a")))) == ["a.b", "ab", "ab/x"]


def test_a_whiteout_of_a_very_deep_tree_needs_no_deep_stack() -> None:
    deep = "/".join(["d"] * 2000)
    tree = stacked(layer(file(f"{deep}/old")), layer(file(f"{deep}/new"), whiteout("d")))
    assert tree.find(f"{deep}/old") is None
    assert tree.find(f"{deep}/new") is not None


def test_an_implied_parent_has_the_time_of_what_implies_it() -> None:
    node = Node(stat.S_IFREG | 0o600, uid=5, mtime=1234)
    entry = stacked(layer(LayerEntry(Change.PUT, "p/f", node))).find("p")
    assert entry is not None
    assert node_of(entry) == Node(stat.S_IFDIR | 0o755, mtime=1234)


def test_a_directory_is_as_the_layer_said_that_had_it_whatever_is_put_into_it() -> None:
    """Modes, owners and times of parents are not those of the last who wrote below (E-17, E-19)."""
    node = Node(stat.S_IFDIR | 0o1777, uid=7, gid=8, mtime=99, xattrs=(("user.a", b"b"),))
    lower = layer(LayerEntry(Change.PUT, "tmp", node), file("tmp/old"))
    entry = stacked(lower, layer(file("tmp/new"), whiteout("tmp/old"))).find("tmp")
    assert entry is not None
    assert node_of(entry) == node


def test_a_single_directory_at_the_top_stays_where_it_is() -> None:
    """Other tools take it for a wrapping to be thrown away (E-26)."""
    assert paths(stacked(layer(file("only/a"), file("only/b")))) == ["only", "only/a", "only/b"]


def test_findings_of_the_layers_are_kept() -> None:
    finding = Finding("x", "noted")
    record = LayerRecord(DIGEST, DIGEST, 0, 0, (), (finding,))
    assert merge([record])[1] == [finding]


def test_a_link_that_replaces_itself_under_way_is_followed_anew() -> None:
    lower = layer(symlink("a", "."), directory("ab"))
    upper = layer(file("a/x"), symlink("a/a", "ab"), file("a/y"))
    assert paths(stacked(lower, upper)) == ["a", "ab", "ab/y", "x"]


def test_a_directory_that_replaces_the_link_it_came_through_holds_what_follows() -> None:
    lower = layer(symlink("a", "."))
    upper = layer(file("a/x"), directory("a/a"), file("a/y"))
    assert paths(stacked(lower, upper)) == ["a", "a/y", "x"]


@pytest.mark.parametrize("hiding", [whiteout("d"), opaque("d"), opaque("")])
def test_hiding_again_and_again_what_the_layer_itself_wrote_is_no_work(hiding: LayerEntry) -> None:
    """It took time by the square of their number: half a million entries held the lock for days."""
    count = 20_000
    files = [file(f"d/{number}") for number in range(count)]
    tree = stacked(layer(directory("d"), file("d/old")), layer(*files, *[hiding] * count))
    assert len(paths(tree)) == count + 1


def test_what_was_hidden_once_is_hidden_whatever_came_between() -> None:
    lower = layer(file("d/e/old"), file("d/old"))
    upper = layer(file("d/e/new"), opaque("d"), file("d/e/f/newer"), whiteout("d/e"), opaque(""))
    assert paths(stacked(lower, upper)) == ["d", "d/e", "d/e/f", "d/e/f/newer", "d/e/new"]
    further = layer(whiteout("d/e"), file("d/last"))
    assert paths(stacked(lower, upper, further)) == ["d", "d/last"]


def test_links_that_are_made_to_take_long_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    winding = [symlink(f"l{number}", f"{'d/../' * 100}l{number + 1}") for number in range(30)]
    entries = [file(("l0/" if number % 2 else "d/") + str(number)) for number in range(40)]
    attack = layer(directory("d"), directory("l30"), *winding, *entries)
    monkeypatch.setattr(merging, "MAX_DETOURS", 60_000)
    with pytest.raises(IntegrityError, match="links of more than 60000 components") as caught:
        stacked(attack)
    assert caught.value.hint
    monkeypatch.setattr(merging, "MAX_DETOURS", 10**9)
    assert len(paths(stacked(attack))) == 72
