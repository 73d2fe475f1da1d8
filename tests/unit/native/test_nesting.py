"""Where a tree is divided: from the tree alone, within the limit, with few cuts."""

from __future__ import annotations

import random
import stat

from hypothesis import given, settings
from hypothesis import strategies as st

from cvmfs_publish.layers.tree import Directory, Node, Tree, empty_tree
from cvmfs_publish.repository.native.nesting import choose_nested

DIRECTORY = Node(stat.S_IFDIR | 0o755)
FILE = Node(stat.S_IFREG | 0o644)


def tree_of(sizes: dict[str, int]) -> Tree:
    """A tree with so many files in each directory."""
    tree = empty_tree()
    for path, count in sizes.items():
        here = tree.root
        for name in path.split("/") if path else ():
            child = here.children.setdefault(name, Directory(DIRECTORY))
            assert isinstance(child, Directory)
            here = child
        here.children.update({f"f{number}": FILE for number in range(count)})
    return tree


def catalog_sizes(tree: Tree, nested: set[str]) -> dict[str, int]:
    """Rows per catalog: its root and marker, and every mountpoint in the parent as well."""
    sizes = {"": 2} | dict.fromkeys(nested, 2)
    for path, _ in tree.walk():
        above = path.rpartition("/")[0]
        while above not in sizes:
            above = above.rpartition("/")[0]
        sizes[above] += 1
    return sizes


def test_a_tree_of_up_to_half_the_limit_is_one_catalog() -> None:
    tree = tree_of({"usr/share/doc": 400, "usr/bin": 595})
    assert catalog_sizes(tree, set()) == {"": 1001}
    assert choose_nested(tree, 2002) == set()
    assert choose_nested(tree, 2000) == {"usr/share/doc"}
    assert choose_nested(empty_tree(), 1) == set()


def test_what_jobs_start_with_stays_together_and_the_rest_is_cut_away() -> None:
    tree = tree_of(
        {
            "etc": 400,
            "usr/bin": 900,
            "usr/lib/x86_64-linux-gnu": 800,
            "usr/lib/x86_64-linux-gnu/perl": 550,
            "usr/lib/python3.11": 500,
            "usr/lib/python3.11/__pycache__": 400,
            "usr/lib/python3.11/json": 20,
            "usr/lib/python3.11/test": 1500,
            "usr/share/doc": 1200,
            "usr/share/man/man1": 1000,
            "usr/share/man/man3": 900,
            "usr/include": 700,
            "home/user": 50,
        }
    )
    assert choose_nested(tree, 10_000) == {
        "usr/lib/x86_64-linux-gnu/perl",
        "usr/lib/python3.11/test",
        "usr/share/doc",
        "usr/share/man",
        "usr/include",
    }


def test_packages_are_cut_from_their_neighbours_but_not_in_themselves() -> None:
    packages = "opt/conda/lib/python3.12/site-packages"
    tree = tree_of(
        {f"{packages}/p{number}": 90 for number in range(50)}
        | {f"{packages}/{name}": 60 for name in ("numpy", "scipy")}
        | {f"{packages}/{name}/core": 500 for name in ("numpy", "scipy")}
        | {f"{packages}/{name}/tests": 700 for name in ("numpy", "scipy")}
    )
    assert choose_nested(tree, 10_000) == {f"{packages}/numpy", f"{packages}/scipy"}


def test_a_piece_of_another_kind_is_divided_where_it_is_large() -> None:
    tree = tree_of(
        {"data/x/a": 2000, "data/x/b": 2900, "data/x/c": 450, "data/y": 1000, "data/z": 900}
    )
    assert choose_nested(tree, 10_000) == {"data", "data/x", "data/x/b"}


def test_the_trunk_is_divided_when_it_grows_beyond_half_the_limit() -> None:
    tree = tree_of({"usr/bin": 2000, "usr/lib": 4900, "etc": 3000})
    assert choose_nested(tree, 10_000) == {"usr"}
    tree = tree_of({"usr/bin": 2000, "usr/lib": 5100, "etc": 3000})
    assert choose_nested(tree, 10_000) == {"usr/lib"}


def test_no_catalog_exceeds_the_limit_whatever_is_in_it() -> None:
    sizes = {f"usr/bin/d{number:03}": 99 for number in range(200)}
    tree = tree_of(sizes | {"usr/bin/__pycache__": 250})
    nested = choose_nested(tree, 10_000)
    assert max(catalog_sizes(tree, nested).values()) <= 10_000
    assert len(nested) == 105  # usr/bin itself, and no more of its parts than needed
    assert "usr/bin/__pycache__" not in nested


def test_one_directory_beyond_the_limit_stays_one_catalog() -> None:
    tree = tree_of({"a/huge": 100})
    assert choose_nested(tree, 50) == {"a/huge"}
    assert choose_nested(tree_of({"": 100}), 50) == set()


def test_crumbs_are_not_worth_a_catalog() -> None:
    tree = tree_of({f"d{number}": 0 for number in range(100)})
    assert choose_nested(tree, 10) == set()
    tree = tree_of({f"d{number}": 1 for number in range(100)})
    assert choose_nested(tree, 10) == set()


def test_crumbs_are_cut_where_nothing_else_keeps_a_catalog_within_the_limit() -> None:
    tree = tree_of({f"usr/bin/d{number}": 1 for number in range(90)})
    nested = choose_nested(tree, 100)
    assert max(catalog_sizes(tree, nested).values()) <= 100
    assert "usr/bin" in nested


def test_equal_parts_are_cut_in_the_order_of_their_names() -> None:
    tree = tree_of({"c": 10, "a": 10, "b": 10})
    assert choose_nested(tree, 25) == {"a"}


TREES = st.dictionaries(
    st.lists(st.sampled_from(["a", "ab", "b", "\udcff"]), max_size=4).map("/".join),
    st.integers(0, 30),
    max_size=15,
)


@settings(max_examples=100, deadline=None)
@given(TREES, st.integers(5, 60), st.randoms(use_true_random=False))
def test_every_catalog_fits_and_the_choice_follows_from_the_tree_alone(
    sizes: dict[str, int], limit: int, numbers: random.Random
) -> None:
    tree = tree_of(sizes)
    nested = choose_nested(tree, limit)
    shuffled = list(sizes.items())
    numbers.shuffle(shuffled)
    assert choose_nested(tree_of(dict(shuffled)), limit) == nested
    assert "" not in nested
    for path, size in catalog_sizes(tree, nested).items():
        directory = tree.find(path)
        assert isinstance(directory, Directory)
        # Too large only where its own directory is, and then nothing is cut for little.
        assert size <= limit or 2 + len(directory.children) > limit
        for name, child in directory.children.items() if size > limit else ():
            place = f"{path}/{name}" if path else name
            if isinstance(child, Directory) and place not in nested:
                assert len(child.children) <= 1


def test_a_deep_tree_needs_no_deep_stack() -> None:
    tree = tree_of({"/".join(["d"] * 1500): 10})
    nested = choose_nested(tree, 1000)
    assert max(catalog_sizes(tree, nested).values()) <= 1000


def image_of(numbers: random.Random) -> dict[str, int]:
    """The files per directory of something like a Debian image with Python packages."""
    sizes = {
        "etc": 300, "usr/bin": 900, "usr/lib/x86_64-linux-gnu": 700, "usr/lib/python3.11": 400,
        "usr/lib/python3.11/__pycache__": 300, "usr/lib/python3.11/test": 900,
    }  # fmt: skip
    for name in ("doc", "locale", "perl5", "licenses", "icons"):
        for number in range(numbers.randrange(5, 120)):
            sizes[f"usr/share/{name}/{number}"] = numbers.randrange(1, 12)
    for number in range(80):
        package = f"usr/lib/python3/dist-packages/p{number}"
        sizes[package] = int(numbers.lognormvariate(3, 1.2))
        for part in range(numbers.randrange(6)):
            sizes[f"{package}/{part}"] = int(numbers.lognormvariate(3, 1.5))
    return sizes


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from(["add a package", "remove a package", "add files", "remove files"]),
    st.integers(0, 10**6),
)
def test_a_change_moves_only_cuts_around_it(seed: int, change: str, choice: int) -> None:
    sizes = image_of(random.Random(seed))
    place = sorted(sizes)[choice % len(sizes)]
    changed = dict(sizes)
    if change == "add a package":
        place = "usr/lib/python3/dist-packages/new"
        changed |= {place: 30, f"{place}/data": 600, f"{place}/tests": 200}
    elif change == "remove a package":
        place = f"usr/lib/python3/dist-packages/p{choice % 80}"
        changed = {p: n for p, n in sizes.items() if p != place and not p.startswith(place + "/")}
    else:
        changed[place] += 3 if change == "add files" else -min(3, sizes[place])
    before = choose_nested(tree_of(sizes), 10_000)
    after = choose_nested(tree_of(changed), 10_000)
    if sum(sizes.values()) > 7000:
        assert len(before) >= 3
    moved = before ^ after
    for cut in moved:
        parent = cut.rpartition("/")[0]
        beside_or_above = not parent or f"{place}/".startswith(f"{parent}/")
        assert beside_or_above or cut.startswith(f"{place}/"), f"{cut} is far from {place}"
    assert len(moved) <= 4
