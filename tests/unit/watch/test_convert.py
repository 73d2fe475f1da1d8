"""Lists of other publishers in the own format: the same wishes, and every remark."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.errors import InputError
from cvmfs_publish.watch.convert import convert
from cvmfs_publish.watch.selection import expand
from cvmfs_publish.watch.wishlist import Wishlist, decode, parse_wishlist
from tests.support import SHARED

LISTS = SHARED / "data" / "wishlists"
TAGS = ["latest", "v2", "v2.1", "v2.3.1", "v21", "osg1", "rhel7-m1", "x-stable", "stable", "1.0"]


def meaning(wishlist: Wishlist) -> list[list[str]]:
    """Return which images each wish means while its repository has some tags."""
    return [[str(reference) for reference in expand(wish, TAGS)] for wish in wishlist.wishes]


def assert_same(text: str, source: str) -> str:
    converted = convert(text, source).text
    read = parse_wishlist(converted, "own.yaml")
    assert read.errors == []
    assert meaning(read) == meaning(parse_wishlist(text, source))
    return converted


def test_osgs_list_means_the_same_in_the_own_format() -> None:
    text = decode((LISTS / "osg-docker_images.txt").read_bytes())
    converted = assert_same(text, "osg-docker_images.txt")
    remarks = [line.strip() for line in text.splitlines() if line.strip().startswith("#")]
    assert [line.strip() for line in converted.splitlines()[1:] if "#" in line] == remarks


def test_the_recipe_of_unpacked_means_the_same_in_the_own_format() -> None:
    converted = assert_same(decode((LISTS / "unpacked-recipe.yaml").read_bytes()), "recipe.yaml")
    for lost in ("cvmfsunpacker", "unpacked.cern.ch", "sync/$(image)", "stands in line 21 already"):
        assert f"{lost}" in converted


def test_nothing_of_a_recipe_is_lost_unseen() -> None:
    conversion = convert(
        """\
# a remark
version: 1
user: someone
input:
  # for the others
  - 'https://ghcr.io/a/b:v2.*'  # all of two
  - ubuntu:22.04
  - https://ghcr.io/a/c:*
  - http://ghcr.io/a/d@sha256:"""
        + "a" * 64
        + "\n",
        "recipe.yaml",
    )
    assert conversion.text == (
        """\
# From recipe.yaml, a recipe of DUCC.
version: 1
images:
  # line 3, for DUCC alone: user: someone
  # a remark
  # for the others
  # all of two
  - name: ghcr.io/a/b
    tags: "/v2..*/"
  # line 7 is left out: 'ubuntu:22.04': 'ubuntu:22.04' is not a registry
  #   ubuntu:22.04
  - ghcr.io/a/c:*
  # line 9: that a registry is reached without TLS is not taken from a list
  - ghcr.io/a/d@sha256:"""
        + "a" * 64
        + "\n"
    )
    assert [problem.line for problem in conversion.problems] == [7, 9]


@pytest.mark.parametrize(
    "text", ["version: 1\nimages: [a]", "version: 1", "- a", "version: 1\nx: ["]
)
def test_what_is_no_list_of_others_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        convert(text, "x")


LINES = st.sampled_from(
    ["debian", "a/b:1", "a/b:*", "a/b:v?[12]*", "ghcr.io/a/b/c:x", "# remark: \"'", "#", "", "A",
     "a b", "ghcr.io/x", "a/b:2\x00", "\udcff", "a/b:1?", " a/b:3 ", "a/c:[*"]
)  # fmt: skip


@given(st.lists(LINES, max_size=12))
def test_whatever_a_list_holds_its_wishes_stay_and_all_else_is_a_remark(lines: list[str]) -> None:
    text = "\n".join(["debian:1", *lines])
    conversion = convert(text, "list.txt")
    read = parse_wishlist(conversion.text, "own.yaml")
    assert read.problems == ()
    assert meaning(read) == meaning(parse_wishlist(text, "list.txt"))
    for problem in conversion.problems:
        assert f"# line {problem.line} is left out" in conversion.text
