"""Patterns of image names: what they fit, and which of several decides."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.errors import InputError
from cvmfs_publish.origin import Origin
from cvmfs_publish.patterns import ELSEWHERE, ImageName, ImagePattern, choose
from cvmfs_publish.reference import Reference

DIGEST = f"sha256:{'1' * 64}"


def name(text: str) -> ImageName:
    return ImageName.of(Reference.parse(text))


@dataclass(frozen=True)
class Rule:
    match: ImagePattern


def rules(*texts: str) -> list[Rule]:
    return [Rule(ImagePattern.parse(text)) for text in texts]


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("*", ["debian:12", "ghcr.io/a/b", f"ghcr.io/a/b@{DIGEST}"], []),
        ("ghcr.io/*", ["ghcr.io/a/b:1", "ghcr.io/a"], ["ghcr.io.example.org/a/b", "debian"]),
        ("ghcr.io/", ["ghcr.io/a/b:1"], ["quay.io/a/b"]),
        ("ghcr.io/*", ["ghcr.io:443/a/b", "ghcr.io:0443/a/b"], ["ghcr.io:80/a/b"]),
        ("ghcr.io:443/*", ["ghcr.io/a/b"], ["ghcr.io:5000/a/b"]),
        ("docker.io/*", ["index.docker.io:443/a/b", "docker.io:443/a/b"], []),
        ("[::1]:5000/*", ["[::1]:5000/a/b", "[::1]:05000/a/b"], ["[::1]/a/b"]),
        ("ghcr.io/a/", ["ghcr.io/a/b:1", "ghcr.io/a/b/c"], ["ghcr.io/ab/c", "ghcr.io/a"]),
        ("ghcr.io/a/b", ["ghcr.io/a/b", f"ghcr.io/a/b@{DIGEST}"], ["ghcr.io/a/b/c"]),
        ("ghcr.io/a/b:*", ["ghcr.io/a/b:1", f"ghcr.io/a/b@{DIGEST}"], ["ghcr.io/a/bc:1"]),
        ("ghcr.io/a/b:1.*", ["ghcr.io/a/b:1.0"], ["ghcr.io/a/b:1", f"ghcr.io/a/b@{DIGEST}"]),
        ("ghcr.io/a/b:1", [f"ghcr.io/a/b:1@{DIGEST}"], ["ghcr.io/a/b:12", "ghcr.io/a/b:latest"]),
        ("ghcr.io/*/b", ["ghcr.io/a/b", "ghcr.io/a/x/b"], ["ghcr.io/b", "ghcr.io/a/bb"]),
        ("ghcr.io/a*a", ["ghcr.io/aa", "ghcr.io/aba"], ["ghcr.io/a"]),
        ("ghcr.io/*ab*ab*", ["ghcr.io/xabab", "ghcr.io/abyab"], ["ghcr.io/aab", "ghcr.io/abxa"]),
        ("*.example.org/a", ["r.example.org/a"], ["example.org/a", "r.example.org:5000/a"]),
        ("localhost:5000/a", ["localhost:5000/a:1"], ["localhost/a:1", "localhost:50000/a"]),
        ("[::1]:5000/a", ["[::1]:5000/a"], ["localhost:5000/a"]),
        ("index.docker.io/library/debian", ["debian:12", "docker.io/debian"], ["docker.io/x/y"]),
        ("docker://GHCR.io/a/b", ["ghcr.io/a/b"], ["debian"]),
        ("sif:/data/*", [], ["ghcr.io/data/x"]),
        ("library://", [], ["debian"]),
    ],
)
def test_a_pattern_fits_these_and_not_those(
    pattern: str, fitting: list[str], others: list[str]
) -> None:
    parsed = ImagePattern.parse(pattern)
    assert [text for text in fitting if not parsed.fits(name(text))] == []
    assert [text for text in others if parsed.fits(name(text))] == []


def test_what_is_in_no_registry_has_patterns_of_its_own() -> None:
    assert ImagePattern.parse("sif:/data/*").fits(ImageName("sif:", "/data/a.sif", ""))
    assert ImagePattern.parse("oras://ghcr.io/a/").fits(ImageName("oras://", "ghcr.io/a/b:1", ""))
    for text in ("ghcr.io/*", "*/*", "*/ghcr.io/*"):
        assert not ImagePattern.parse(text).fits(ImageName("oras://", "ghcr.io/a/b:1", ""))
    assert ImagePattern.parse("*").fits(ImageName("s3://", "bucket/key", ""))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "debian",
            "debian:12",
            "debian:bookworm",
            "ghcr.io",
            "ghcr.io/A/b",
            "ghcr.io/a b",
        ),
        *("ghcr.io/a/?", f"ghcr.io/a@{DIGEST}", "ghcr.io/a:", "ghcr.io/a:b:c", "ghcr.io/a:b/c"),
        *(
            "/a",
            "ghcr.io:99999/a",
            "ghcr.io/a:[0-9]",
            "ghcr.io/ä",
            "ghcr.io/a\n",
            "x" * 2000 + "/a",
        ),
        *("_.io/a", "oras:ghcr.io/a", "ftp://ghcr.io/a"),
    ],
)
def test_what_can_fit_no_image_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InputError) as caught:
        ImagePattern.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("image", "ascending"),
    [
        (
            "ghcr.io/team/tool:1.2",
            [
                *("*", "*/*", "*.io/*", "gh*/*", "ghcr.*/*", "ghcr.io/*", "ghcr.io/*l"),
                *("ghcr.io/*/tool", "ghcr.io/t*", "ghcr.io/t*l", "ghcr.io/team/*"),
                *("ghcr.io/team/t*", "ghcr.io/team/tool", "ghcr.io/team/tool:*2"),
                *("ghcr.io/team/tool:1*", "ghcr.io/team/tool:1*2", "ghcr.io/team/tool:1.*"),
                "ghcr.io/team/tool:1.2",
            ],
        ),
        # the registry weighs more than the repository, and that more than the tag
        ("ghcr.io/a/b:1", ["*/a/b:1", "ghcr.io/*:1", "ghcr.io/a/*", "ghcr.io/a/b"]),
        ("ghcr.io/abc", ["ghcr.io/a*b*c", "ghcr.io/a*bc"]),
    ],
)
def test_the_narrower_pattern_decides(image: str, ascending: list[str]) -> None:
    for number in range(len(ascending)):
        for order in (1, -1):
            chosen = choose(rules(*ascending[: number + 1][::order]), name(image))
            assert chosen is not None
            assert chosen.match.text == ascending[number]


def test_of_equally_narrow_patterns_the_first_decides() -> None:
    pair = rules("ghcr.io/*bc*", "ghcr.io/*cd*")
    assert choose(pair, name("ghcr.io/abcd")) is pair[0]
    assert choose(pair[::-1], name("ghcr.io/abcd")) is pair[1]


def test_without_a_fitting_pattern_nothing_decides() -> None:
    assert choose(rules("ghcr.io/*", "sif:/*"), name("debian")) is None


def test_two_spellings_of_one_pattern_are_equal() -> None:
    for one, other in [
        ("ghcr.io/", "ghcr.io/**"),
        ("docker.io/a/b", "docker://Index.docker.io/a/b:*"),
        ("***", "*"),
    ]:
        assert ImagePattern.parse(one).key == ImagePattern.parse(other).key


PARTS = st.text("ab*", min_size=1, max_size=5)
TEXTS = st.text("ab", min_size=1, max_size=6)


@given(PARTS, PARTS, PARTS, TEXTS, TEXTS, TEXTS, st.randoms(use_true_random=False))
def test_what_fits_a_part_of_what_another_fits_is_narrower(
    place: str, path: str, tag: str, a: str, b: str, c: str, random: object
) -> None:
    """Replace stars by texts and see that the narrowed pattern always wins."""
    wide = ImagePattern.parse(f"{place}/{path}:{tag}")
    image = ImageName(f"{a}/", b, c)
    narrow = ImagePattern.parse(f"{a}/{path}:{tag}")
    narrower = ImagePattern.parse(f"{a}/{b}:{tag}")
    narrowest = ImagePattern.parse(f"{a}/{b}:{c}")
    if wide.fits(image):
        fitting = [wide, narrow, narrower, narrowest]
        assert all(pattern.fits(image) for pattern in fitting)
        assert [pattern.rank for pattern in fitting] == sorted(p.rank for p in fitting)
    assert narrowest.fits(image)


@given(st.text("ab*", min_size=1, max_size=6), st.text("ab*", max_size=4), TEXTS)
def test_a_star_that_becomes_something_makes_a_pattern_narrower(
    path: str, filling: str, text: str
) -> None:
    wide = ImagePattern.parse(f"a/{path}")
    narrow = ImagePattern.parse(f"a/{path.replace('*', filling, 1) or 'a'}")
    image = ImageName("a/", text, "")
    if "*" in path and wide.key != narrow.key and path.replace("*", filling, 1):
        assert wide.rank < narrow.rank
        assert not narrow.fits(image) or wide.fits(image)


@given(st.lists(st.tuples(PARTS, PARTS), min_size=1, max_size=6), TEXTS, TEXTS)
def test_the_order_of_rules_matters_only_among_equally_narrow_ones(
    parts: list[tuple[str, str]], a: str, b: str
) -> None:
    image = ImageName(f"{a}/", b, "")
    given_rules = rules(*(f"{place}/{path}" for place, path in parts))
    one, other = choose(given_rules, image), choose(given_rules[::-1], image)
    assert (one is None) == (other is None)
    assert one is None or other is None or one.match.rank == other.match.rank


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_stars_stand_for_what_regular_expressions_say(glob: str, text: str) -> None:
    expression = ".*".join(map(re.escape, glob.split("*")))
    pattern = ImagePattern.parse(f"a/x{glob}")
    assert pattern.fits(ImageName("a/", f"x{text}", "")) == bool(re.fullmatch(expression, text))


def test_every_place_but_registries_is_known_by_its_beginning() -> None:
    for place in ELSEWHERE:
        assert ImagePattern.parse(f"{place}x").place == place


def test_hosts_are_compared_in_lower_case_wherever_the_image_is() -> None:
    for pattern, image in (
        ("https://E.org/Team/*", "https://e.ORG:443/Team/a.sif"),
        ("https://e.org/team/*", "https://e.org./%74eam/a.sif"),
        ("oras://GHCR.io/team/*", "oras://ghcr.io/team/a:1"),
        ("oras://ghcr.io/team/*", "oras://GHCR.IO/team/a:1"),
        ("library://Library.org/Me/*", "library://LIBRARY.org/Me/b/c:1"),
        ("library://Me/*", "library://Me/b/c:1"),
    ):
        origin = Origin.parse(image)
        assert origin is not None
        assert ImagePattern.parse(pattern).fits(ImageName.of_origin(origin)), (pattern, image)
