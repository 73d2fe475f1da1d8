"""Every tag of a repository is listed, however its registry writes the link to the next page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.errors import IntegrityError, PublishError, RemoteError
from cvmfs_publish.sources.base import (
    AccessDeniedError,
    ImageNotFoundError,
    RateLimitedError,
    TagLister,
)
from cvmfs_publish.sources.registry.auth import Credential
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.source import RegistrySource
from cvmfs_publish.sources.registry.tag_list import (
    PAGE_LIMIT,
    parse_etag,
    parse_next,
    parse_tags,
)
from tests.fakes.registry import (
    Change,
    FakeRegistry,
    Reply,
    body,
    cut,
    html,
    status,
    with_header,
)

URL = "https://registry.example.org/v2/a/b/tags/list?n=1000"
TAGS = [f"v{number}" for number in range(7)]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        for tag in TAGS:
            fake.add_image("a/b", tag=tag)
        fake.page_size = 3
        yield fake


@pytest.fixture
def source() -> Iterator[RegistrySource]:
    with RegistryClient(sleep=lambda _: None, read_timeout=timedelta(seconds=5)) as client:
        yield RegistrySource(client)


def link(write: Callable[[str], str]) -> Change:
    """Replace the fake's `</v2/a/b/tags/list?n=…&last=…>; rel="next"` by what `write` makes of it.

    `write` is given the address between the angle brackets.
    """

    def change(reply: Reply) -> Reply:
        honest = reply.headers.get("Link", "")
        if not honest:
            return reply
        return with_header("Link", write(honest[1 : honest.index(">")]))(reply)

    return change


# ------------------------------------------------------------------ honest registries, their habits


def test_all_pages_are_read_in_the_order_of_the_registry(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    lister: TagLister = source
    assert lister.tags(registry.host, "a/b") == tuple(TAGS)
    assert registry.count("GET", "/tags/list") == len(registry.requests) == 3


def test_a_list_on_one_page_costs_one_request(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.page_size = 100
    assert source.tags(registry.host, "a/b") == tuple(TAGS)
    assert [request.path for request in registry.requests] == ["/v2/a/b/tags/list?n=1000"]


def test_a_list_that_is_as_it_was_is_not_sent_again(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.page_size, registry.tells_etags = 100, True
    found = source.list_tags(registry.host, "a/b")
    assert found is not None
    assert found.tags == tuple(TAGS)
    assert source.list_tags(registry.host, "a/b", found.etag) is None
    registry.add_image("a/b", tag="w1")
    changed = source.list_tags(registry.host, "a/b", found.etag)
    assert changed is not None
    assert changed.tags == (*TAGS, "w1")
    assert registry.count("GET", "/tags/list") == 3


def test_the_first_of_several_pages_says_nothing_about_the_others(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.tells_etags = True
    found = source.list_tags(registry.host, "a/b")
    assert found is not None
    assert (found.tags, found.etag) == (tuple(TAGS), "")


def test_a_list_that_has_got_several_pages_is_read_to_its_end(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.page_size, registry.tells_etags = 100, True
    before = source.list_tags(registry.host, "a/b")
    registry.page_size = 3
    assert before is not None
    after = source.list_tags(registry.host, "a/b", before.etag)
    assert after is not None
    assert (after.tags, after.etag) == (tuple(TAGS), "")


def test_not_modified_is_no_answer_to_a_question_without_a_condition(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.fault("GET", "/tags/list", status(304))
    with pytest.raises(RemoteError, match="304"):
        source.list_tags(registry.host, "a/b")


@pytest.mark.parametrize("header", ["", "unquoted", '"a\r\nX: y"', f'"{"x" * 300}"', '"ä"'])
def test_an_etag_that_is_none_is_not_used(header: str) -> None:
    assert parse_etag(header) == ""
    assert parse_etag('W/"1-a"') == 'W/"1-a"'


HABITS: dict[str, Callable[[FakeRegistry], Callable[[str], str]]] = {
    "absolute": lambda registry: lambda path: f'<{registry.url}{path}>; rel="next"',
    "another scheme, as behind a proxy": lambda registry: (
        lambda path: f'<https://{registry.host}{path}>; rel="next"'
    ),
    "without scheme": lambda registry: lambda path: f'<//{registry.host}{path}>; rel="next"',
    "relative to the folder": lambda _: lambda path: f"<list?{path.partition('?')[2]}>; rel=next",
    "only the query": lambda _: lambda path: f'<?{path.partition("?")[2]}>; rel="next"',
    "below another path": lambda _: lambda path: f'</artifactory/api/docker/x{path}>; rel="next"',
    "without quotes": lambda _: lambda path: f"<{path}>; rel=next",
    "without the closing quote": lambda _: lambda path: f'<{path}>; rel="next',
    "without blank": lambda _: lambda path: f'<{path}>;rel="next"',
    "in capitals": lambda _: lambda path: f'<{path}>; REL="NEXT"',
    "without relation": lambda _: lambda path: f"<{path}>",
    "several relations": lambda _: lambda path: f'<{path}>; rel="last next"; title="a, b; c"',
    "beside others": lambda _: (
        lambda path: f'</v2/a/b/tags/list?n=3>; rel="first", <{path}>; rel="next"'
    ),
    "its own place repeated": lambda _: (
        lambda path: f'<{path.replace("last=", "last=v0&last=")}>; rel="next"'
    ),
    "a page size of 0": lambda _: lambda path: f'<{path.replace("n=3", "n=0")}>; rel="next"',
    "a fragment": lambda _: lambda path: f'<{path}#top>; rel="next"',
}


@pytest.mark.parametrize("habit", HABITS)
def test_a_known_way_to_write_the_next_page_is_understood(
    registry: FakeRegistry, source: RegistrySource, habit: str
) -> None:
    registry.fault("GET", "/tags/", link(HABITS[habit](registry)), times=None)
    assert source.tags(registry.host, "a/b") == tuple(TAGS)


def test_a_cursor_is_handed_back_as_it_came() -> None:
    """Amazon's ECR and Quay hand out opaque places, with all that base64 has."""
    query = parse_next('</v2/a/b/tags/list?last=a%2Bb%2F%3D%3D&n=2>; rel="next"', URL, "x")
    assert query is not None
    assert parse_qs(query) == {"last": ["a+b/=="], "n": ["2"]}


def test_an_empty_page_in_between_is_not_the_end(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.fault("GET", "last=v2$", body(b'{"name": "a/b", "tags": []}'))
    assert source.tags(registry.host, "a/b") == ("v0", "v1", "v2", "v6")
    assert registry.count("GET", "/tags/") == 3


def test_pages_that_overlap_list_each_tag_once(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    repeated = json.dumps({"tags": ["v1", "v2", "v3"]}).encode()
    registry.fault("GET", "last=v2$", body(repeated))
    assert source.tags(registry.host, "a/b") == ("v0", "v1", "v2", "v3", "v6")


@pytest.mark.parametrize("tags", [b"null", b"[]"])
def test_a_repository_without_tags_has_none(
    registry: FakeRegistry, source: RegistrySource, tags: bytes
) -> None:
    registry.page_size = 100
    registry.fault("GET", "/tags/", body(b'{"name": "a/b", "tags": %s}' % tags))
    assert source.tags(registry.host, "a/b") == ()


def test_what_is_no_tag_is_left_out() -> None:
    listed = ["1.0", "", "a b", "../x", "-x", 7, None, ["y"], "é", "x" * 129, "2.0\n", "v_1"]
    assert parse_tags(json.dumps({"tags": listed}).encode(), "", "x") == ["1.0", "v_1"]


def test_a_token_is_fetched_once_for_all_pages_and_renewed_when_it_expires(
    registry: FakeRegistry,
) -> None:
    registry.require_bearer("bot", "s3cret")

    def expire_once() -> None:
        if registry.count("GET", "last=v5$") == 1:
            registry.tokens.clear()

    registry.before("GET", "last=v5$", expire_once)
    with RegistryClient(credentials={registry.host: Credential("bot", "s3cret")}) as client:
        assert RegistrySource(client).tags(registry.host, "a/b") == tuple(TAGS)
    assert registry.count("GET", "/token") == 2


def test_a_page_whose_connection_breaks_is_asked_for_again(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.fault("GET", "last=v2$", cut(5), times=2)
    assert source.tags(registry.host, "a/b") == tuple(TAGS)
    assert registry.count("GET", "/tags/") == 5


# ------------------------------------------------------------------ what is no complete list


@pytest.mark.parametrize(
    "target",
    [
        "http://evil.example.org/v2/a/b/tags/list?last=v2",
        "//evil.example.org/v2/a/b/tags/list?last=v2",
        "https://127.0.0.1/v2/a/b/tags/list?last=v2",
        "https://127.0.0.1:1/v2/a/b/tags/list?last=v2",
        "https://user@evil.example.org/?last=v2",
    ],
)
def test_the_next_page_of_another_host_is_refused_and_nobody_is_asked(
    registry: FakeRegistry, source: RegistrySource, target: str
) -> None:
    registry.fault("GET", "/tags/", link(lambda _: f'<{target}>; rel="next"'))
    with pytest.raises(RemoteError, match=r"said to be at .*, not at 127\.0\.0\.1") as caught:
        source.tags(registry.host, "a/b")
    assert "administrator" in caught.value.hint
    assert len(registry.requests) == 1


@pytest.mark.parametrize("query", ["n=1000", "n=3&last=v2", "last=v2"])
def test_a_list_that_leads_round_in_a_circle_ends_as_an_error(
    registry: FakeRegistry, source: RegistrySource, query: str
) -> None:
    """Not as a list: whoever compares it with what is published would remove the rest."""
    registry.fault("GET", "/tags/", with_header("Link", f'<?{query}>; rel="next"'), times=None)
    with pytest.raises(RemoteError, match="round in a circle after"):
        source.tags(registry.host, "a/b")
    assert len(registry.requests) <= 3


def test_a_list_without_end_is_given_up(
    registry: FakeRegistry, source: RegistrySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvmfs_publish.sources.registry.source.MAX_PAGES", 10)

    def grow(reply: Reply) -> Reply:
        return with_header("Link", f'<?last=x{len(registry.requests)}>; rel="next"')(reply)

    registry.fault("GET", "/tags/", grow, times=None)
    with pytest.raises(RemoteError, match="has no end"):
        source.tags(registry.host, "a/b")
    assert len(registry.requests) == 11


@pytest.mark.parametrize(
    "header",
    ["nonsense", "<", "<a", "a>; rel=next", "<?last=1>; rel=prev, junk", '"', "<a>; rel=prev, <b"],
)
def test_a_link_nobody_understands_is_not_taken_for_the_end(header: str) -> None:
    with pytest.raises(RemoteError, match=r"Link .* cannot be understood"):
        parse_next(header, URL, "x")


@pytest.mark.parametrize(
    "header", ['</v2/a/b/tags/list>; rel="next"', "<>; rel=next", f"<?last={'x' * 5000}>"]
)
def test_a_link_that_says_no_place_in_the_list_is_an_error(header: str) -> None:
    with pytest.raises(RemoteError, match="no usable place"):
        parse_next(header, URL, "x")


@pytest.mark.parametrize("header", ["http://[::1?last=1", "http://x:port/?last=1"])
def test_a_link_that_is_no_address_is_an_error(header: str) -> None:
    with pytest.raises(RemoteError, match="no address"):
        parse_next(f"<{header}>; rel=next", URL, "x")


@pytest.mark.parametrize("header", ["", " ", ",", '<?last=1>; rel="prev"', "<?a>; rel=first"])
def test_no_link_to_a_next_page_is_the_end(header: str) -> None:
    assert parse_next(header, URL, "x") is None


@pytest.mark.parametrize(
    "page", [b"", b"[]", b"{}", b'{"tags": {}}', b'{"tags": "v1"}', b"\xff", b"[" * 100_000]
)
def test_an_answer_that_is_no_page_of_tags_is_the_fault_of_the_server(page: bytes) -> None:
    with pytest.raises(RemoteError):
        parse_tags(page, "application/json", "x")


def test_a_web_page_is_no_list_of_tags(registry: FakeRegistry, source: RegistrySource) -> None:
    registry.fault("GET", "/tags/", html())
    with pytest.raises(RemoteError, match="web page"):
        source.tags(registry.host, "a/b")


def test_a_page_without_end_is_not_read_to_its_end(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.fault("GET", "/tags/", body(b" " * (PAGE_LIMIT + 5_000_000)))
    with pytest.raises(IntegrityError, match=f"larger than {PAGE_LIMIT}"):
        source.tags(registry.host, "a/b")
    assert source.client.bytes_received <= PAGE_LIMIT + 1


def test_an_unknown_repository_is_not_found_and_a_refused_one_is_denied(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    with pytest.raises(ImageNotFoundError, match=f"{registry.host}/no/such is not in") as caught:
        source.tags(registry.host, "no/such")
    assert caught.value.code == "NAME_UNKNOWN"
    registry.require_basic("bot", "s3cret")
    with pytest.raises(AccessDeniedError):
        source.tags(registry.host, "a/b")


def test_a_registry_that_has_had_enough_says_so(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.fault("GET", "last=v2$", status(429, retry_after="3600"))
    with pytest.raises(RateLimitedError) as caught:
        source.tags(registry.host, "a/b")
    assert caught.value.retry_after == timedelta(hours=1)


@given(st.text(alphabet='<>;,"= \\?&/:@[]%relnxtas01\n', max_size=60) | st.text(max_size=40))
def test_any_link_header_is_a_query_none_or_one_of_our_errors(header: str) -> None:
    try:
        query = parse_next(header, URL, "x")
    except PublishError:
        return
    assert query is None or (query.isascii() and query.isprintable() and " " not in query)


def test_a_query_never_leaves_the_list_of_tags() -> None:
    query = parse_next("<?last=a%0d%0aHost:+evil%23%26/../..>", URL, "x")
    assert query is not None
    parts = urlsplit(f"https://registry.example.org/v2/a/b/tags/list?{query}")
    assert (parts.path, parts.fragment) == ("/v2/a/b/tags/list", "")
    assert "\r" not in query
