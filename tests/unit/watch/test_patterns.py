"""Globs and expressions over tags: the same answers as Python's own, and never a hang."""

from __future__ import annotations

import re
import warnings
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.errors import InputError
from cvmfs_publish.watch.patterns import MAX_PATTERN, Pattern

TAGS = st.text(alphabet="ab1.-_A]^!", max_size=8)


@given(st.text(alphabet="ab1.-*?[]!^\\A", min_size=1, max_size=8), TAGS)
def test_a_glob_means_what_it_means_to_fnmatch(glob: str, tag: str) -> None:
    assert Pattern.glob(glob).matches(tag) == fnmatchcase(tag, glob)


ATOMS = st.sampled_from(
    ["a", "b", ".", r"\.", "[ab]", "[^a]", "[a-b1]", r"\d", r"\w", r"[\d-]", "[]a]", "[^]]"]
)
REPEATS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,}", "{0,2}", "*?"])


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, REPEATS).map(lambda both: f"(?:{both[0]}){both[1]}"),
    )


EXPRESSIONS = st.recursive(st.tuples(ATOMS, REPEATS).map("".join), larger, max_leaves=6).filter(
    lambda text: len(text) <= MAX_PATTERN
)


@given(EXPRESSIONS, TAGS)
def test_an_expression_means_what_it_means_to_python(expression: str, tag: str) -> None:
    assert Pattern.expression("", expression).matches(tag) == bool(re.fullmatch(expression, tag))


@given(st.text(alphabet="ab.*+?{}[]()|\\^$1,-:=", max_size=12), TAGS)
def test_any_text_is_refused_or_means_what_it_means_to_python(text: str, tag: str) -> None:
    try:
        pattern = Pattern.expression("", text)
    except InputError:
        return
    with warnings.catch_warnings(action="ignore"):  # of what may mean more one day: `[[`
        assert pattern.matches(tag) == bool(re.fullmatch(text, tag))


@pytest.mark.parametrize(
    ("text", "tag", "matches"),
    [
        ("24.2.*", "24.2.1", True),
        ("24.2.*", "24x2x1", False),  # a dot is a dot, unlike DUCC's
        ("*", "", True),
        ("[0-9]*", "8-base", True),
        ("[!v]*", "v1", False),
        ("[", "[", True),
        ("/v[0-9]+(\\.[0-9]+)?/", "v24.2", True),
        ("/v[0-9]+/", "v24.2", False),  # the whole tag
        ("/^v1$/", "v1", True),
        ("/", "/", True),  # a glob of one character
        ("/a|b/", "b", True),
        ("//", "", True),
    ],
)
def test_a_pattern_is_a_glob_or_an_expression_between_slashes(
    text: str, tag: str, matches: bool
) -> None:
    try:
        assert Pattern.parse(text).matches(tag) is matches
    except InputError:
        assert text == "//"  # says nothing


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("(a", "a `)` is missing"),
        ("a)", "the `)` belongs to no `(`"),
        ("[a", "a `]` is missing"),
        ("*a", "there is nothing that * could repeat"),
        ("a**", "a repeat is repeated"),
        ("a{2", "{n}, {n,} or {n,m} is expected"),
        ("a{1000}", "{n}, {n,} or {n,m} is expected"),
        ("a{3,2}", "the wrong way round"),
        ("[b-a]", "the wrong way round"),
        (r"(a)\1", r"\1 is not known"),
        (r"a\b", r"\b is not known"),
        ("a\\", "\\ is not known"),
        ("(?=a)", "only (?: is possible"),
        ("(?i)a", "only (?: is possible"),
        ("a^b", "anchors stand at the very start and end only"),
        ("[[:alpha:]]", "classes with names are not known"),
        ("(((((((((((((((((((((a)))))))))))))))))))))", "nested deeper"),
        ("(.{99}){99}", "more than 2000 parts"),
        ("((((a{99}){99}){99}){99}){99}", "more than 2000 parts"),
        ("a" * 201, "201 characters, 200 are possible"),
        ("ä", "printable ASCII"),
        ("a\n", "printable ASCII"),
        ("", "the pattern is empty"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_reason(expression: str, why: str) -> None:
    with pytest.raises(InputError) as caught:
        Pattern.expression(expression, expression)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "expression",
    ["(a*)*b", "(a|a)*b", "(a|aa)+b", "a*a*a*a*a*a*a*a*b", "((a?){50}a{50})*b", "(.*)*x"],
)
def test_an_expression_that_hangs_others_costs_what_its_states_cost(expression: str) -> None:
    pattern = Pattern.expression(expression, expression)
    assert not pattern.matches("a" * 128)
    # every character of a tag leads from one set of states to one other
    assert len(pattern._automaton.steps) <= 128


def test_what_is_remembered_is_bounded() -> None:
    pattern = Pattern.expression("", "(a|b)*a(a|b){12}")  # 2 to the 13th sets of states
    for number in range(3000):
        pattern.matches(f"{number:013b}".replace("0", "a").replace("1", "b"))
    assert len(pattern._automaton.steps) <= 1000


def test_patterns_are_equal_if_they_are_written_alike() -> None:
    assert Pattern.parse("a*") == Pattern.parse("a*")
    assert Pattern.parse("a*") != Pattern.parse("/a*/")
    assert str(Pattern.parse("/a*/")) == "/a*/"
