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


def test_a_small_tree_is_one_catalog() -> None:
    tree = tree_of({"": 5, "a": 5, "a/b": 5})
    assert catalog_sizes(tree, set()) == {"": 19}
    assert choose_nested(tree, 19) == set()
    assert choose_nested(tree, 18) != set()
    assert choose_nested(empty_tree(), 1) == set()


def test_the_largest_part_is_cut_first_and_no_more_than_needed() -> None:
    tree = tree_of({"small": 10, "large": 50, "middle": 30})
    assert choose_nested(tree, 60) == {"large"}
    assert choose_nested(tree, 20) == {"large", "middle"}


def test_a_large_part_is_divided_where_it_is_large() -> None:
    tree = tree_of({"usr/lib/x": 100, "usr/lib/y": 90, "usr/share": 20, "etc": 5})
    assert choose_nested(tree, 150) == {"usr/lib/x"}


def test_one_directory_beyond_the_limit_stays_one_catalog() -> None:
    tree = tree_of({"a/huge": 100})
    assert choose_nested(tree, 50) == {"a/huge"}
    assert choose_nested(tree_of({"": 100}), 50) == set()


def test_crumbs_are_not_worth_a_catalog() -> None:
    tree = tree_of({f"d{number}": 0 for number in range(100)})
    assert choose_nested(tree, 10) == set()
    tree = tree_of({f"d{number}": 1 for number in range(100)})
    assert choose_nested(tree, 10) == set()


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
        # Too large only where its own directory is and nothing below is worth a cut.
        for name, child in directory.children.items() if size > limit else ():
            place = f"{path}/{name}" if path else name
            if isinstance(child, Directory) and place not in nested:
                assert len(child.children) <= 1


def test_a_deep_tree_needs_no_deep_stack() -> None:
    tree = tree_of({"/".join(["d"] * 1500): 10})
    nested = choose_nested(tree, 1000)
    assert max(catalog_sizes(tree, nested).values()) <= 1000
