"""Versions in tags: their order is Semantic Versioning's, their ranges are npm's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.errors import InputError
from cvmfs_publish.watch.versions import Version, VersionRange


def version(tag: str) -> Version:
    found = Version.find(tag)
    assert found is not None, tag
    return found


@pytest.mark.parametrize(
    "chain",
    [
        # the example of section 11
        ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2",
         "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0"],
        ["1.9.0", "1.10.0", "1.11.0", "2.0.0", "2.1.0", "2.1.1"],
        ["v1", "1.0.1", "v1.1", "1.2"],
        ["22.04", "22.10", "24.04"],
        ["3.0.0a1", "3.0.0b1", "3.0.0rc4", "3.0.0rc10", "3.0.0"],
        ["21.2.100.1", "21.2.100.2", "21.2.101"],
        ["8-cuda-11.0.3", "8", "9-cuda-12.6.0"],
    ],
)  # fmt: skip
def test_versions_are_in_their_order(chain: list[str]) -> None:
    keys = [version(tag).key for tag in chain]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "tag",
    ["latest", "", "v", "1.", ".1", "1..2", "7f3a9c0", "1.2.3.4.5.6.7", "1-", "x1", "1" * 19,
     "3bb70c3f6f4f5a9a2a8f5ea4e1b6f0a1a2b3c4d5", "1.2abc", "V1", "1.2.3+b"],
)  # fmt: skip
def test_other_tags_are_no_versions(tag: str) -> None:
    assert Version.find(tag) is None


TAGS = ["0.0.3", "0.0.4", "0.2.3", "0.2.9", "0.3.0", "1.1.9", "1.2", "1.2.0", "1.2.3-rc1", "1.2.3",
        "1.2.4-rc1", "1.3.0", "v1.9.9", "2.0.0-rc1", "2.0.0", "3.0.1", "latest"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (">=1.2 <2", "1.2 1.2.0 1.2.3 1.3.0 v1.9.9"),
        (">=1.2, <2", "1.2 1.2.0 1.2.3 1.3.0 v1.9.9"),
        (">= 1.2 < 1.3", "1.2 1.2.0 1.2.3"),
        (">1.2", "1.3.0 v1.9.9 2.0.0 3.0.1"),
        (">1.2.3 <2", "1.3.0 v1.9.9"),
        ("<=1.2 >1", ""),
        ("<=1.2 >=1", "1.1.9 1.2 1.2.0 1.2.3"),
        ("<=1.2.3 >=1", "1.1.9 1.2 1.2.0 1.2.3"),
        ("~1.2", "1.2 1.2.0 1.2.3"),
        ("~1.2.3", "1.2.3"),
        ("~1", "1.1.9 1.2 1.2.0 1.2.3 1.3.0 v1.9.9"),
        ("^1", "1.1.9 1.2 1.2.0 1.2.3 1.3.0 v1.9.9"),
        ("^1.2.3", "1.2.3 1.3.0 v1.9.9"),
        ("^0.2.3", "0.2.3 0.2.9"),
        ("^0.0.3", "0.0.3"),
        ("^0.0", "0.0.3 0.0.4"),
        ("1.x", "1.1.9 1.2 1.2.0 1.2.3 1.3.0 v1.9.9"),
        ("1.2.*", "1.2 1.2.0 1.2.3"),
        ("1.2", "1.2 1.2.0 1.2.3"),
        ("=1.2.3", "1.2.3"),
        ("v1.2.3", "1.2.3"),
        ("0.3 || ^2", "0.3.0 2.0.0"),
        ("*", "0.0.3 0.0.4 0.2.3 0.2.9 0.3.0 1.1.9 1.2 1.2.0 1.2.3 1.3.0 v1.9.9 2.0.0 3.0.1"),
        # a pre-release only if the range names one of the same version
        (">=1.2.3-rc0 <2", "1.2.3-rc1 1.2.3 1.3.0 v1.9.9"),
        ("<=2.0.0-rc1 >=2.0.0-a", "2.0.0-rc1"),
        ("~1.2.4-rc0", "1.2.4-rc1"),
    ],
)
def test_a_range_holds_what_npm_says(text: str, held: str) -> None:
    parsed = VersionRange.parse(text)
    found = [tag for tag in TAGS if (each := Version.find(tag)) and parsed.holds(each)]
    assert " ".join(found) == held
    assert str(parsed) == text


@pytest.mark.parametrize(
    "text",
    ["", "  ", "||", "1 ||", "latest", ">", ">=", "1.2 - 1.4", ">=1.2<2", "1.x.2", "1" * 201,
     "^*", "~>1", "==1", "1.2.3.4.5.6.7"],
)  # fmt: skip
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        VersionRange.parse(text)


NUMBERS = st.lists(st.integers(0, 3), min_size=3, max_size=3).map(tuple)


@given(NUMBERS, NUMBERS)
def test_a_caret_keeps_the_first_number_that_counts(
    base: tuple[int, ...], other: tuple[int, ...]
) -> None:
    text = ".".join(map(str, base))
    place = next((at for at, number in enumerate(base) if number), 2)
    same = other[: place + 1] == base[: place + 1]
    holds = VersionRange.parse(f"^{text}").holds(version(".".join(map(str, other))))
    assert holds == (same and other >= base)
