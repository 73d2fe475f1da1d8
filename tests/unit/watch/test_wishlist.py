"""Wishlists in three formats: what lines mean, and that a wrong one stops no other."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish import settings
from cvmfs_publish.settings import MAX_FILE_BYTES
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.watch.own_format import Entry, Head
from cvmfs_publish.watch.wishlist import (
    Owner,
    Problem,
    SandboxWish,
    Terms,
    Wish,
    Wishlist,
    decode,
    parse_wishlist,
)
from tests.support import SHARED

LISTS = SHARED / "data" / "wishlists"
DIGEST = f"sha256:{'a' * 64}"


def real(name: str) -> Wishlist:
    return parse_wishlist(decode((LISTS / name).read_bytes()), name)


def own(images: str) -> Wishlist:
    """Read the items of `images`, the first of them in line 3."""
    return parse_wishlist(f"version: 1\nimages:\n{images}", "own.yaml")


def ducc(entry: str) -> Wishlist:
    return parse_wishlist(f"version: 1\ncvmfs_repo: x\ninput:\n  - '{entry}'\n", "recipe.yaml")


def the_wish(wishlist: Wishlist) -> Wish:
    assert wishlist.errors == []
    assert len(wishlist.wishes) == 1
    return wishlist.wishes[0]


def the_problem(wishlist: Wishlist) -> Problem:
    assert wishlist.wishes == ()
    assert len(wishlist.problems) == 1
    return wishlist.problems[0]


# ---------------------------------------------------------------- the two lists in use


def test_osgs_list_is_read_completely() -> None:
    osg = real("osg-docker_images.txt")
    assert osg.problems == ()
    assert len(osg.wishes) == 562
    assert Counter(wish.registry for wish in osg.wishes) == {
        "docker.io": 432,
        "containers.ligo.org": 58,
        "ghcr.io": 51,
        "hub.opensciencegrid.org": 20,
        "docker.opencarp.org": 1,
    }
    rules = Counter(str(wish.rule) for wish in osg.wishes if wish.rule)
    assert (rules.total(), rules["*"], rules["v*"], rules["*-stable"]) == (113, 103, 2, 1)
    assert sum(wish.repository.startswith("library/") for wish in osg.wishes) == 14
    assert sum(wish.tag == "latest" for wish in osg.wishes) == 143 + 65
    lines = decode((LISTS / "osg-docker_images.txt").read_bytes()).splitlines()
    assert all(lines[wish.line - 1] == wish.text for wish in osg.wishes)


def test_the_recipe_of_unpacked_is_read_completely() -> None:
    recipe = real("unpacked-recipe.yaml")
    assert len(recipe.wishes) == 46
    assert [(p.line, p.is_error, p.message) for p in recipe.problems] == [
        (22, False, "docker.io/stimela/pybdsf:1.6.6 stands in line 21 already")
    ]
    assert Counter(wish.registry for wish in recipe.wishes) == {
        "docker.io": 22,
        "gitlab-p4n.aip.de:5005": 12,
        "quay.io": 9,
        "ghcr.io": 2,
        "nvcr.io": 1,
    }
    assert [str(wish.rule) for wish in recipe.wishes if wish.rule] == ["*"]
    assert "ghcr.io/dluitz/bonn-comp-phys-c--dev:main" in [wish.name for wish in recipe.wishes]
    lines = decode((LISTS / "unpacked-recipe.yaml").read_bytes()).splitlines()
    assert all(wish.text in lines[wish.line - 1] for wish in recipe.wishes)


# ---------------------------------------------------------------- OSG


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("a/b", "docker.io/a/b:latest"),
        ("a/b:1", "docker.io/a/b:1"),
        ("a/b:*", "docker.io/a/b (*)"),
        ("a/b:v?.[12]*", "docker.io/a/b (v?.[12]*)"),
        ("ghcr.io/a/b/c/d:1", "ghcr.io/a/b/c/d:1"),
        ("docker.io/a/b:1", "docker.io/a/b:1"),
        ("host.example.org:5000/a/b", "host.example.org:5000/a/b:latest"),
        ("  a/b:1 \r", "docker.io/a/b:1"),
        (f"a/b@{DIGEST}", f"docker.io/a/b@{DIGEST}"),
    ],
)
def test_a_line_of_osg_means(line: str, name: str) -> None:
    assert the_wish(parse_wishlist(f"# list\n\n{line}\n", "osg.txt")).name == name


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("ghcr.io/tool", "a name of two parts is on Docker Hub", "wishlist import"),
        ("a/b/c:1", "'a' is none", "has a dot or a port"),
        ("amnh/docker pull amnh/osgimages:x", "has no blanks", "one name in a line"),
        ("debian:12 # stable", "has no blanks", "a remark needs a line of its own"),
        ("JeffersonLab/x:1", "is not a repository", "lower case: jeffersonlab/x"),
        ("poldracklab/fmriprep/", "'poldracklab' is none", ""),
        ("ghcr.io/a/b/:1", "is not a repository", "slash"),
        ("a/b:1:2", "'1:2' is not a tag", ""),
        ("a/b:1?", "'1?' is not a tag", ""),
        ("a/../b:1", "'a' is none", ""),
        ("docker.io/../b:1", "'../b' is not a repository", ""),
        ("/etc/passwd", "'' is none", ""),
        ("a\tb", "has no blanks", ""),
        ("a\x00b:1", "plain ASCII", ""),
        ("á/b", "plain ASCII", ""),
        ("a" * 5000, "is too long", ""),
    ],
)
def test_a_wrong_line_of_osg_is_told_and_the_others_count(
    line: str, message: str, hint: str
) -> None:
    read = parse_wishlist(f"debian:11\n{line}\ndebian:12", "osg.txt")
    assert [wish.name.rpartition(":")[2] for wish in read.wishes] == ["11", "12"]
    (problem,) = read.problems
    assert (problem.line, problem.is_error) == (2, True)
    assert message in problem.message
    assert hint in problem.hint
    assert problem.text.isprintable()
    assert len(problem.text) <= 201


# ---------------------------------------------------------------- DUCC


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("https://registry.hub.docker.com/library/a:centos7", "docker.io/library/a:centos7"),
        ("https://ghcr.io/a/b", "ghcr.io/a/b:latest"),  # DUCC ends here
        ("ghcr.io/a/b:1", "ghcr.io/a/b:1"),
        ("host.example.org:5000/a/b:1", "host.example.org:5000/a/b:1"),
        ("127.0.0.1:5000/a/b:1", "127.0.0.1:5000/a/b:1"),
        ("https://ghcr.io//a/b/:1", "ghcr.io/a/b:1"),
        (f"https://ghcr.io/a/b:1@{DIGEST}", f"ghcr.io/a/b:1@{DIGEST}"),
        (f"https://ghcr.io/a/b@{DIGEST}", f"ghcr.io/a/b@{DIGEST}"),
        ("https://ghcr.io/a/b:v2.*", "ghcr.io/a/b (v2.*)"),
        ("docker://ghcr.io/a/b:1", "ghcr.io/a/b:1"),
    ],
)  # fmt: skip
def test_an_input_of_a_recipe_means(entry: str, name: str) -> None:
    assert the_wish(ducc(entry)).name == name


@pytest.mark.parametrize(
    ("entry", "message", "hint"),
    [
        ("ubuntu:22.04", "'ubuntu:22.04' is not a registry", ""),
        ("ubuntu", "'ubuntu' is not a registry", "https://docker.io/library/ubuntu"),
        ("library/ubuntu:22.04", "'library' is not a registry", "docker.io/library/ubuntu:22.04"),
        ("https://registry/a/b:1", "'registry' is not a registry", "registry:443"),
        ("https://ghcr.io", "names no repository", ""),
        ("https://ghcr.io/", "names no repository", ""),
        ("https://ghcr.io/a:1:2", "too many colons", ""),
        (f"https://ghcr.io/a:*@{DIGEST}", "a digest is one image", ""),
        ("https://ghcr.io/a:1@b@c", "is not a digest", ""),
        ("ftp://ghcr.io/a:1", "the scheme ftp://", ""),
        ("https://user:secret@ghcr.io/a:1", "a list holds no logins", "`registries`"),
        ("https://ghcr.io/a:1*?x", "the name ends before ? and #", ""),
        ("https://ghcr.io/A:1", "is not a repository", "lower case"),
        ("https://ghcr.io/../../etc:1", "is not a repository", ""),
        ("https://ghcr.io/a:(*", "is not a regular expression", ""),
        ("", "'' is not a registry", ""),
    ],
)
def test_a_wrong_input_of_a_recipe_is_told(entry: str, message: str, hint: str) -> None:
    problem = the_problem(ducc(entry))
    assert problem.line == 4
    assert message in problem.message
    assert hint in problem.hint
    assert "secret" not in repr(problem)


def test_a_recipe_that_wants_no_tls_is_told_where_that_is_said() -> None:
    read = ducc("http://127.0.0.1:5000/a/b:1")
    assert the_wish(read).name == "127.0.0.1:5000/a/b:1"
    assert [problem.is_error for problem in read.problems] == [False]
    assert "registries.127.0.0.1:5000" in read.problems[0].hint


def test_what_a_recipe_says_beside_its_images_is_told_if_it_means_nothing() -> None:
    text = "version: 2\nuser: u\ncvmfs_repo: r\noutput_format: f\ninput: [ghcr.io/a/b:1]\n"
    read = parse_wishlist(f"{text}ignoreErrors: [x]\ncolour: red\n", "recipe.yaml")
    assert [problem.line for problem in read.problems] == [1, 6, 7]
    assert read.errors == []
    assert len(read.wishes) == 1


@pytest.mark.parametrize("value", ["{a: b}", "text"])
def test_the_input_of_a_recipe_is_a_list(value: str) -> None:
    problem = the_problem(parse_wishlist(f"cvmfs_repo: r\ninput: {value}\n", "recipe.yaml"))
    assert (problem.line, problem.message) == (2, "input: wants a list of images")


def test_an_input_that_is_no_text_is_told() -> None:
    read = parse_wishlist("cvmfs_repo: r\ninput:\n- ghcr.io/a: 1\n- ghcr.io/b:1\n", "r")
    assert [problem.line for problem in read.problems] == [3]
    assert len(read.wishes) == 1


# ---------------------------------------------------------------- the own format


def test_the_format_of_the_documentation_is_read() -> None:
    read = own("""\
  - ghcr.io/a/b:1.0
  - name: docker.io/atlas/analysisbase
    tags: {match: "24.2.*", exclude: "*-dev", newest: 5, order: semver}
    platforms: [linux/amd64, linux/arm64]
    owner: someone@example.org
    keep_replaced: 60d
    priority: 3
    sandbox: {permissions: strict}
""")
    assert read.problems == ()
    plain, full = read.wishes
    assert plain.name == "ghcr.io/a/b:1.0"
    assert plain.platforms == (Platform("linux", "amd64"),)
    assert (plain.owner, plain.keep_replaced, plain.priority) == ("", None, 0)
    assert full.reference is None
    assert full.repository == "atlas/analysisbase"
    assert str(full.rule) == "24.2.*, not *-dev, the newest 5 by semver"
    assert full.platforms == (Platform("linux", "amd64"), Platform("linux", "arm64"))
    assert full.owner == "someone@example.org"
    assert full.keep_replaced == timedelta(days=60)
    assert full.priority == 3
    assert full.sandbox == SandboxWish(permissions="strict")
    assert (plain.place, full.place) == ("own.yaml:3", "own.yaml:4")


def test_what_an_entry_leaves_open_the_list_says_and_then_the_configuration() -> None:
    text = "version: 1\nowner: list\npriority: 0\nimages:\n- {name: a, owner: entry}\n- b\n"
    terms = Terms(owner=Owner("config"), priority=5, keep_replaced=timedelta(days=1))
    first, second = parse_wishlist(text, "x", terms=terms).wishes
    assert (first.owner, first.priority, first.keep_replaced) == ("entry", 0, timedelta(days=1))
    assert second.owner == "list"


@pytest.mark.parametrize(
    ("item", "message", "hint"),
    [
        ("ghcr.io/a/b: 1.0", "are apart", "write ghcr.io/a/b:1.0"),
        ("{name: a, tagz: x}", "unknown key 'tagz'; did you mean 'tags'?", "known: "),
        ("{tags: x}", "required key 'name' missing", ""),
        ("{name: 'a:1', tags: x}", "names a tag or digest, and `tags` says", "name: docker.io"),
        ("{name: 'a:1*', tags: x}", "names a tag or digest", ""),
        (f"{{name: 'a@{DIGEST}', tags: x}}", "names a tag or digest", ""),
        ("{name: a, tags: {order: name}}", "there is no `newest`", ""),
        ("{name: a, tags: {newest: 0}}", "newest: wants 1 to", ""),
        ("{name: a, tags: {newest: -1}}", "newest: wants 1 to", ""),
        ("{name: a, tags: {match: '/(/'}}", "a `)` is missing", ""),
        ("{name: a, tags: {semver: latest}}", "is not a range of versions", ""),
        ("{name: a, platforms: [amd64]}", "'amd64' is not a platform", ""),
        ("{name: a, platforms: []}", "wants at least one", ""),
        ("{name: a, platforms: [linux/amd64, linux/x86_64]}", "each only once", ""),
        ("{name: a, keep_replaced: 60}", "wants a duration", ""),
        ("{name: a, priority: 10}", "wants a number from -9 to 9", ""),
        ("{name: a, owner: 'x@'}", "is not an address", ""),
        ('{name: a, owner: "x\\nBcc: y"}', "is not a name or an address", ""),
        ("{name: a, sandbox: {setuid: keep}}", "unknown key 'setuid'", ""),
        ("{name: a, name: b}", "is given twice", ""),
        ("[a, b]", "found a list", ""),
        ("", "the image reference is empty", ""),
        ("../x", "is not a registry", ""),
        ("https://ghcr.io/a/b:1", "is a URL", ""),
        ("'a b'", "has no blanks", ""),
        ('"a\\0"', "plain ASCII", ""),
        ("!!python/object/apply:os.system [id]", "found a list", ""),
        ("{name: !!binary YQ==}", "is not understood here", ""),
    ],
)
def test_a_wrong_entry_is_told_and_the_others_count(item: str, message: str, hint: str) -> None:
    read = own(f"  - debian:11\n  - {item}\n  - debian:12\n")
    assert [wish.name.rpartition(":")[2] for wish in read.wishes] == ["11", "12"]
    assert {problem.line for problem in read.problems} == {4}
    assert message in read.problems[0].message
    assert hint in read.problems[0].hint
    assert read.problems[0].source == "own.yaml"


def test_all_mistakes_of_an_entry_are_told_with_their_lines_to_its_owner() -> None:
    read = own("  - name: a\n    owner: me\n    tagz: x\n    priority: high\n  - b\n")
    assert [(p.line, p.owner) for p in read.problems] == [(5, "me"), (6, "me")]
    assert len(read.wishes) == 1


def test_the_second_of_two_lines_that_say_the_same_is_told_and_changes_nothing() -> None:
    read = own("  - a/b:1\n  - docker.io/a/b:1\n  - {name: 'a/b:1'}\n")
    assert len(read.wishes) == 1
    assert [(p.line, p.is_error) for p in read.problems] == [(4, False), (5, False)]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ("{name: 'a/b:1', owner: me}", "owner"),
        ("{name: 'a/b:1', priority: 1, keep_replaced: 1d}", "keep_replaced and priority"),
        (f"a/b:1@{DIGEST}", "digest"),  # the published name is the same
    ],
)
def test_two_lines_that_want_different_things_of_one_image_are_an_error(
    other: str, what: str
) -> None:
    read = own(f"  - a/b:1\n  - {other}\n")
    assert [wish.line for wish in read.wishes] == [3]
    assert [(p.line, p.is_error) for p in read.problems] == [(4, True)]
    assert f"stands in line 3 already, with another {what}" in read.problems[0].message


def test_a_tag_beside_a_rule_for_it_is_no_conflict() -> None:
    assert own("  - a/b:1.0\n  - a/b:1.*\n  - {name: a/b, tags: ['2.*']}\n").problems == ()


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("images: [a]", 1, "required key 'version' missing"),
        ("version: 2\nimages: [a]", 1, "version: wants one of 1, found '2'"),
        ("version: 1", 1, "the key 'images' is missing"),
        ("version: 1\nimages: {a: b}", 2, "images: wants a list"),
        ("version: 1\nimages: [a", 2, "not valid YAML"),
        ("- a\n- b", 0, "this is not a wishlist"),
        ("version: 1\nimages:\n\t- a", 3, "not valid YAML"),
        ("version: 1\nimages: [\x00]", 2, "not valid YAML"),
        ("version: 1\nimages: [\udcff]", 2, "not valid YAML"),
        ("<!DOCTYPE html>\n<html>", 0, "this is a web page"),
        ("\n  <html>", 0, "this is a web page"),
        ("version: 1\nimages: []\n---\nversion: 1", 3, "not valid YAML"),
        ("[" * 1000, 1, "nested deeper"),
        ("x" * (MAX_FILE_BYTES + 1), 0, "not a wishlist"),
        ("a\n" * 1_000_001, 0, "more than 100000 lines and commas"),
        ("version: 1\nimages: [" + "a," * 1_000_000 + "]", 0, "more than 100000 lines"),
    ],
)
def test_a_text_that_is_no_wishlist_is_one_problem(text: str, line: int, message: str) -> None:
    problem = the_problem(parse_wishlist(text, "x"))
    assert problem.line == line
    assert message in problem.message
    assert problem.text.isprintable()


def test_a_wrong_term_of_a_list_is_told_and_its_images_count() -> None:
    read = parse_wishlist("version: 1\nowner: me\nprioriti: 1\nimages: [a]\n", "x")
    assert [(p.line, p.is_error) for p in read.problems] == [(3, True)]
    assert len(read.wishes) == 1
    twice = parse_wishlist("version: 1\nimages: [a]\nimages: [b]\n", "x")
    assert [(p.line, p.is_error) for p in twice.problems] == [(3, True)]
    assert [wish.name for wish in twice.wishes] == ["docker.io/library/a:latest"]


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "version: 1\nimages:\n  # - a\n"])
def test_a_list_that_names_nothing_is_a_warning(text: str) -> None:
    problem = the_problem(parse_wishlist(text, "x"))
    assert (problem.line, problem.is_error, problem.message) == (0, False, "no image is named")


def test_an_alias_is_refused_where_it_is_used_so_that_no_list_explodes() -> None:
    lines = ["version: 1", "images:", "- &a {name: x}", "- *a", "- y"]
    read = parse_wishlist("\n".join(lines), "x")
    assert [wish.name.partition(":")[0][-1] for wish in read.wishes] == ["x", "y"]
    assert "are not understood in a wishlist" in read.problems[0].message


def test_a_billion_laughs_are_one_problem() -> None:
    bomb = "a: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )
    read = parse_wishlist(f"{bomb}version: 1\nimages: [*a9]\n", "x")
    assert read.wishes == ()
    assert len(read.problems) == 1


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks_of_other_systems_are_no_mistake(
    ending: str, mark: str
) -> None:
    text = "version: 1\nimages:\n- a/b:1\n- A\n".replace("\n", ending)
    read = parse_wishlist(decode(f"{mark}{text}".encode()), "x")
    assert [(wish.name, wish.line) for wish in read.wishes] == [("docker.io/a/b:1", 3)]
    assert [(problem.line, problem.text) for problem in read.problems] == [(4, "A")]


def test_bytes_that_are_no_text_make_only_their_own_line_wrong() -> None:
    read = parse_wishlist(decode(b"debian:11\n\xff\xfe\ndebian:12\n"), "x")
    assert [wish.line for wish in read.wishes] == [1, 3]
    assert read.problems[0].text.isprintable()


def test_the_problems_of_a_list_are_bounded_and_the_rest_is_counted() -> None:
    read = parse_wishlist("debian:12\n" + "A\n" * 3000, "x")
    assert len(read.wishes) == 1
    assert len(read.problems) == 1001
    assert read.problems[-1].message == "2000 more problems are not shown"


def test_json_is_yaml() -> None:
    assert the_wish(parse_wishlist('{"version": 1, "images": ["a/b:1"]}', "x")).tag == "1"


def test_a_problem_is_the_same_where_its_line_has_moved() -> None:
    first = the_problem(parse_wishlist("A/b\n", "x"))
    moved = the_problem(parse_wishlist("\n\nA/b\n", "x"))
    assert first != moved
    assert first.identity == moved.identity


@given(st.text(alphabet="version: 1\nimagesa/b-{}[]&*#'\"\t,?|>!%@<\x00\ufeff", max_size=60))
def test_no_text_at_all_raises(text: str) -> None:
    for start in ("", "version: 1\nimages:\n- ", "input:\n- "):
        read = parse_wishlist(start + text, "x")
        assert read.wishes or read.problems
        for problem in read.problems:
            assert problem.text.isprintable()
            assert problem.message.isprintable()


def test_every_key_of_the_own_format_is_explained() -> None:
    page = (Path(__file__).parents[3] / "docs" / "wishlists.md").read_text("utf-8")
    for section in (Head, Entry):
        for key in settings.iter_keys(section):
            assert f"`{key.path.rpartition('.')[2]}`" in page, key.path
            assert key.doc, key.path
