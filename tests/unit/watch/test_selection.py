"""Which tags a wish selects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.watch.foreign import ducc_pattern
from cvmfs_publish.watch.selection import expand, select_tags
from cvmfs_publish.watch.wishlist import TagRule, Wish, parse_wishlist

SIGNATURE = f"sha256-{'a' * 64}.sig"
TAGS = ["latest", "24.2.9", "24.2.10", "24.2.10-dev", "24.3.0", "v2", "v2.1", SIGNATURE,
        SIGNATURE.removesuffix(".sig")]  # fmt: skip


def wish(entry: str) -> Wish:
    found = parse_wishlist(f"version: 1\nimages:\n  - {entry}\n", "list")
    assert found.problems == ()
    return found.wishes[0]


def selected(tags: str) -> list[str]:
    rule = wish(f"{{name: ghcr.io/a/b, tags: {tags}}}").rule
    assert rule is not None
    return select_tags(rule, TAGS)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ('"*"', ["latest", "24.2.9", "24.2.10", "24.2.10-dev", "24.3.0", "v2", "v2.1"]),
        ("{}", ["latest", "24.2.9", "24.2.10", "24.2.10-dev", "24.3.0", "v2", "v2.1"]),
        ('{match: "24.2.*", exclude: "*-dev"}', ["24.2.9", "24.2.10"]),
        ('{match: "24.2.*", exclude: "*-dev", newest: 1, order: semver}', ["24.2.10"]),
        ('{match: "24.2.*", newest: 2, order: name}', ["24.2.9", "24.2.10-dev"]),
        ('{match: "24.*", newest: 9}', ["24.3.0", "24.2.10", "24.2.10-dev", "24.2.9"]),
        ("{newest: 2}", ["24.3.0", "24.2.10"]),  # what is no version is not the newest
        ('{semver: "~24.2"}', ["24.2.9", "24.2.10"]),
        ('{semver: "<24", match: "v*"}', ["v2", "v2.1"]),
        ('["v2", latest, nosuch]', ["latest", "v2"]),
        ('"/v[0-9]+/"', ["v2"]),
        ('{match: [latest, "v*"], exclude: ["/.*[.]1/"]}', ["latest", "v2"]),
    ],
)
def test_a_rule_selects_tags(tags: str, found: list[str]) -> None:
    assert selected(tags) == found


def test_a_wish_becomes_images_of_its_repository() -> None:
    images = expand(wish("ghcr.io/a/b:v*"), TAGS)
    assert list(map(str, images)) == ["ghcr.io/a/b:v2", "ghcr.io/a/b:v2.1"]
    assert list(map(str, expand(wish("debian:12"), TAGS))) == ["docker.io/library/debian:12"]


def test_what_cannot_be_a_tag_is_left_out() -> None:
    tags = ["ok", "../x", "a/b", "a b", "", "-x", "x" * 129, "ok"]
    assert list(map(str, expand(wish("ghcr.io/a/b:*"), tags))) == ["ghcr.io/a/b:ok"]


@pytest.mark.parametrize(
    ("tag", "others", "found"),
    [
        # lib/image.go, filterUsingGlob: `*` becomes `.*`, all else stays an expression
        ("*", "a 1.0 latest", "a 1.0 latest"),
        ("v2.*", "v2 v2.1 v21 v2x v3.1", "v2.1 v21 v2x"),
        ("*-stable", "1-stable stable x-stable-1", "1-stable"),
        ("(1|2).*", "1.0 2.0 3.0", "1.0 2.0"),
        ("[ab]*", "a1 b c", "a1 b"),
    ],
)
def test_a_ducc_wildcard_selects_what_ducc_selects(tag: str, others: str, found: str) -> None:
    rule = TagRule(match=(ducc_pattern(tag),))
    assert select_tags(rule, others.split()) == found.split()


@given(
    st.lists(st.sampled_from(["1.0", "1.1", "2.0-rc1", "2.0", "x"]), max_size=8), st.integers(1, 5)
)
def test_the_newest_are_a_part_of_all_each_once(tags: list[str], newest: int) -> None:
    every = select_tags(TagRule(), tags)
    some = select_tags(TagRule(newest=newest, order="name"), tags)
    assert len(every) == len(set(every)) == len(set(tags))
    assert some == sorted(every, reverse=True)[:newest]
