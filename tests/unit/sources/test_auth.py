"""Authentication: challenges as servers really write them, and the exchange with a token server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.errors import InputError, PublishError, RemoteError
from cvmfs_publish.sources.base import AccessDeniedError
from cvmfs_publish.sources.registry.auth import (
    Challenge,
    Credential,
    Grant,
    Request,
    Response,
    authorise,
    is_web_address,
    parse_challenges,
)

BOT = Credential("bot", "s3cret")
HUB = (
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
    'scope="repository:library/debian:pull"'
)


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ("", []),
        ("Basic", [Challenge("basic")]),
        ("basic realm=simple", [Challenge("basic", {"realm": "simple"})]),
        (
            'Bearer realm="https://a/t",service="Docker registry",scope="repository:a:pull,push"',
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://a/t",
                        "service": "Docker registry",
                        "scope": "repository:a:pull,push",
                    },
                )
            ],
        ),
        (
            'Basic realm="a, b=c", Bearer realm="x" , service=y',
            [
                Challenge("basic", {"realm": "a, b=c"}),
                Challenge("bearer", {"realm": "x", "service": "y"}),
            ],
        ),
        (r'Basic realm="say \"hi\" \\ "', [Challenge("basic", {"realm": 'say "hi" \\ '})]),
        (
            'Negotiate YWJj==, Basic Realm = "x"',
            [Challenge("negotiate"), Challenge("basic", {"realm": "x"})],
        ),
        ('BEARER REALM="x"', [Challenge("bearer", {"realm": "x"})]),
        (', ,Basic realm="x",,', [Challenge("basic", {"realm": "x"})]),
        ('Bearer realm="a",realm="b"', [Challenge("bearer", {"realm": "a"})]),
        ('Bearer realm=""', [Challenge("bearer", {"realm": ""})]),
    ],
)
def test_challenges_are_read_with_quotes_commas_and_blanks(
    header: str, challenges: list[Challenge]
) -> None:
    assert parse_challenges(header) == challenges


@pytest.mark.parametrize("header", ['realm="x"', '"Bearer"', "Bearer ()", 'Basic realm="open'])
def test_a_malformed_challenge_is_a_remote_error(header: str) -> None:
    with pytest.raises(RemoteError):
        list(authorise(header, "s", None, "a/b:1"))


@given(st.text(alphabet='Bearl \t,="\\', max_size=40) | st.text(max_size=40))
def test_any_header_is_challenges_or_a_remote_error(header: str) -> None:
    with contextlib.suppress(RemoteError):
        parse_challenges(header)


def play(
    flow: Generator[Request, Response, Grant], *responses: Response
) -> tuple[list[Request], Grant]:
    asked: list[Request] = []
    left = iter(responses)
    try:
        asked.append(next(flow))
        while True:
            asked.append(flow.send(next(left)))
    except StopIteration as stop:
        return asked, stop.value


def token(**fields: object) -> Response:
    return Response(200, json.dumps(fields).encode())


def test_a_token_is_asked_for_with_service_scope_and_password() -> None:
    asked, grant = play(authorise(HUB, "unused", BOT, "x"), token(token="t0k"))
    assert grant.authorization == "Bearer t0k"
    assert [request.method for request in asked] == ["GET"]
    parts = urlsplit(asked[0].url)
    assert (parts.scheme, parts.netloc, parts.path) == ("https", "auth.docker.io", "/token")
    assert parse_qs(parts.query) == {
        "service": ["registry.docker.io"],
        "scope": ["repository:library/debian:pull"],
    }
    assert asked[0].headers == {"Authorization": BOT.basic}


def test_an_anonymous_token_is_asked_for_without_authorization() -> None:
    asked, grant = play(authorise(HUB, "", None, "x"), token(access_token="t0k"))
    assert grant.authorization == "Bearer t0k"
    assert asked[0].headers == {}


def test_several_scopes_and_the_query_of_the_realm_are_kept() -> None:
    header = (
        'Bearer realm="https://a/t?x=1&service=old",scope="repository:a:pull repository:b:pull"'
    )
    asked, _ = play(authorise(header, "", None, "x"), token(token="t"))
    assert parse_qs(urlsplit(asked[0].url).query) == {
        "x": ["1"],
        "service": ["old"],
        "scope": ["repository:a:pull", "repository:b:pull"],
    }


def test_the_scope_of_the_repository_is_asked_for_where_the_challenge_is_silent() -> None:
    asked, _ = play(
        authorise('Bearer realm="https://a/t"', "repository:a/b:pull", None, "x"), token(token="t")
    )
    assert parse_qs(urlsplit(asked[0].url).query) == {"scope": ["repository:a/b:pull"]}


def test_an_identity_token_is_exchanged_by_post_and_never_stands_in_a_url() -> None:
    credential = Credential(identity_token="refresh-me")
    asked, _ = play(authorise(HUB, "", credential, "x"), token(access_token="t"))
    assert asked[0].method == "POST"
    assert "refresh-me" not in asked[0].url
    assert parse_qs(asked[0].body.decode())["refresh_token"] == ["refresh-me"]


def test_bearer_is_preferred_and_basic_understood() -> None:
    asked, grant = play(authorise(f'Basic realm="x", {HUB}', "", BOT, "x"), token(token="t"))
    assert grant.authorization == "Bearer t"
    assert len(asked) == 1
    assert play(authorise('Basic realm="x"', "", BOT, "x")) == ([], Grant(BOT.basic))


@pytest.mark.parametrize(
    ("stated", "seconds"),
    [
        ({"expires_in": 300}, 240),
        ({"expires_in": 300.5}, 240.4),
        ({}, 48),
        ({"expires_in": "soon"}, 48),
        ({"expires_in": True}, 48),
        ({"expires_in": None}, 48),
        ({"expires_in": -5}, 8),
        ({"expires_in": 0}, 8),
        ({"expires_in": float("nan")}, 8),
        ({"expires_in": float("inf")}, 69120),
        ({"expires_in": 10**400}, 69120),
    ],
)
def test_a_token_is_used_for_most_of_its_life(stated: dict[str, object], seconds: float) -> None:
    _, grant = play(authorise(HUB, "", None, "x"), token(token="t", **stated))
    assert grant.life == timedelta(seconds=seconds)


@pytest.mark.parametrize("status", [400, 401, 403])
def test_refused_credentials_are_an_error_that_names_the_user_only(status: int) -> None:
    with pytest.raises(AccessDeniedError) as caught:
        play(authorise(HUB, "", BOT, "docker.io/a:1"), Response(status))
    assert "user 'bot'" in str(caught.value)
    assert "docker.io/a:1" in str(caught.value)
    assert "s3cret" not in str(caught.value) + caught.value.hint


def test_without_credentials_the_hint_says_where_to_give_them() -> None:
    for header in (HUB, 'Basic realm="x"'):
        with pytest.raises(AccessDeniedError, match="without credentials") as caught:
            play(authorise(header, "", None, "x"), Response(401))
        assert "password_file" in caught.value.hint


@pytest.mark.parametrize(
    "response",
    [
        Response(500),
        Response(429),
        Response(404),
        Response(200, b""),
        Response(200, b"<html>"),
        Response(200, b"[]"),
        Response(200, b"[" * 100_000),
        token(),
        token(token=""),
        token(token=5),
        token(token="two words"),
        token(token="line\r\nX-Injected: 1"),
        token(token="ü"),
    ],
)
def test_a_token_server_in_trouble_never_means_going_on_as_nobody(response: Response) -> None:
    with pytest.raises(RemoteError):
        play(authorise(HUB, "", BOT, "x"), response)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://a/t",
        "file:///etc/passwd",
        "//a/t",
        "https://",
        "https:///t",
        "https://user@a/t",
        "https://user:pw@a/t",
        "https://evil.example\\@a/t",
        "https://a\\@evil.example/t",
        "https://a/t\r\nX: 1",
        "https://a b/t",
        "https://a:99999/t",
        "https://a:0/t",
        "https://[::1/t",
        "https://[::zz]/t",
        "https://ä/t",
        "javascript:alert(1)",
    ],
)
def test_addresses_that_two_parsers_could_read_differently_are_not_asked(url: str) -> None:
    assert not is_web_address(url)
    with pytest.raises(PublishError):
        list(authorise(f'Bearer realm="{url}"', "", BOT, "x"))


@pytest.mark.parametrize("url", ["https://a", "http://a:5000/t?x=y#z", "https://[::1]:5/t"])
def test_ordinary_addresses_are_fine(url: str) -> None:
    assert is_web_address(url)


def test_schemes_nobody_here_speaks_are_named() -> None:
    with pytest.raises(AccessDeniedError, match="negotiate"):
        play(authorise("Negotiate", "", BOT, "x"))


def test_a_credential_never_shows_its_secret() -> None:
    credential = Credential("bot", "s3cret", "t0k")
    assert "s3cret" not in f"{credential} {credential!r}"
    assert "t0k" not in f"{credential} {credential!r}"
    request = Request("GET", "https://a", {"Authorization": credential.basic}, b"t0k")
    assert "Basic" not in repr(request)
    assert "t0k" not in repr(request)


@pytest.mark.parametrize("username", ["a:b", "a\nb"])
def test_a_user_name_that_would_change_the_password_is_refused(username: str) -> None:
    with pytest.raises(InputError):
        Credential(username, "x")
