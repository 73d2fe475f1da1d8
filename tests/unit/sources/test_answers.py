"""What HTTP answers mean: waits, redirects, error documents; and errors of the HTTP library."""

from __future__ import annotations

import http.client
import inspect
import ssl
from collections.abc import Callable
from datetime import timedelta

import pytest
import requests
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.errors import RemoteError
from cvmfs_publish.sources.registry.answers import (
    is_loopback,
    origin,
    parse_errors,
    parse_redirect,
    parse_retry_after,
    plan_backoff,
)
from cvmfs_publish.sources.registry.client import FOREIGN, TransferError, translate


def headers(**values: str) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in values.items()}


@pytest.mark.parametrize(
    ("values", "wait"),
    [
        ({}, None),
        ({"Retry_After": "5"}, timedelta(seconds=5)),
        ({"Retry_After": " 0 "}, timedelta()),
        ({"Retry_After": "-5"}, None),
        ({"Retry_After": "soon"}, None),
        ({"Retry_After": "²"}, None),
        ({"Retry_After": "9" * 400}, timedelta(seconds=10**8)),
        (
            {
                "Retry_After": "Fri, 20 Nov 2026 10:00:30 GMT",
                "Date": "Fri, 20 Nov 2026 10:00:00 GMT",
            },
            timedelta(seconds=30),
        ),
        (
            {
                "Retry_After": "Fri, 20 Nov 2026 10:00:00 GMT",
                "Date": "Fri, 20 Nov 2026 10:00:30 GMT",
            },
            timedelta(),
        ),
        ({"Retry_After": "Fri, 20 Nov 2026 10:00:30 GMT"}, None),
        (
            {"X_Retry_After": "1795255230", "Date": "Sat, 21 Nov 2026 10:00:00 GMT"},
            timedelta(seconds=30),
        ),
        ({"X_Retry_After": "1795255230"}, None),
        (
            {
                "Retry_After": "Fri, 20 Nov 2026 10:00:30 -0000",
                "Date": "Fri, 20 Nov 2026 10:00:00 GMT",
            },
            None,
        ),
    ],
)
def test_the_wait_a_server_asks_for(values: dict[str, str], wait: timedelta | None) -> None:
    found = headers(**values)
    assert parse_retry_after(lambda name: found.get(name, "")) == wait


def test_waits_double_are_spread_and_bounded() -> None:
    assert [plan_backoff(n, 1.0) for n in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]
    assert plan_backoff(1, 0.0) == 0.25
    assert plan_backoff(50, 1.0) == 30.0


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://cdn.example/x?sig=1", "https://cdn.example/x?sig=1"),
        ("/other", "https://r.example/other"),
        ("//cdn.example/x", "https://cdn.example/x"),
    ],
)
def test_a_redirect_leads_to_an_absolute_address(location: str, target: str) -> None:
    assert parse_redirect("https://r.example/v2/a", location, "a") == target


@pytest.mark.parametrize(
    "location",
    [
        "",
        "file:///etc/passwd",
        "ftp://a/b",
        "gopher://a",
        "data:,x",
        "http://r.example/v2/a",
        "http://127.0.0.1/",
        "https://evil.example\\@r.example/x",
        "https://user:pw@r.example/x",
        "https://[::1/",
        "https://r.example:99999/",
        "https://r.example/\x00",
    ],
)
def test_a_redirect_never_leads_to_files_other_schemes_or_out_of_tls(location: str) -> None:
    with pytest.raises(RemoteError, match="redirects"):
        parse_redirect("https://r.example/v2/a", location, "a")


def test_a_refused_redirect_is_shown_without_its_query() -> None:
    with pytest.raises(RemoteError) as caught:
        parse_redirect("https://r.example/", "http://cdn.example/x?signature=s3cret", "a")
    assert "cdn.example" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@given(st.text(max_size=30) | st.text(alphabet="htps:/\\@[]?#.a1", max_size=30))
def test_any_location_is_a_web_address_or_a_remote_error(location: str) -> None:
    try:
        target = parse_redirect("https://r.example/v2/a", location, "a")
    except RemoteError:
        return
    assert target.startswith("https://")
    assert urllib3.util.parse_url(target).host == origin(target)[1]


def test_origins_differ_by_scheme_host_and_port() -> None:
    assert origin("https://a/x") == origin("https://A:443/y")
    different = {origin(url) for url in ("https://a", "http://a", "https://a:5", "https://b")}
    assert len(different) == 4


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:5000", "127.0.0.1:1", "127.9.9.9", "[::1]:5"]
)
def test_loopback_cannot_leave_the_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["localhost.evil.example", "127.0.0.1.evil.example", "ghcr.io", ""]
)
def test_names_that_only_look_like_loopback_are_not(host: str) -> None:
    assert not is_loopback(host)


def test_error_documents_give_code_and_harmless_text() -> None:
    body = b'{"errors": [{"code": "DENIED", "message": "no\\u001b[31m way"}, {"code": "X"}]}'
    code, said = parse_errors(body)
    assert code == "DENIED"
    assert said == "DENIED: no [31m way; X:"


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"errors": 5}', b'{"errors": [5]}', b"[" * 99999]
)
def test_other_error_bodies_say_nothing(body: bytes) -> None:
    assert parse_errors(body) == ("", "")


def _exceptions_of(*modules: object) -> list[type[Exception]]:
    return sorted(
        {
            found
            for module in modules
            for _, found in inspect.getmembers(module, inspect.isclass)
            if issubclass(found, Exception)
            and not issubclass(found, Warning)
            and found.__module__.startswith(("requests.", "urllib3.", "http."))
        },
        key=str,
    )


LIBRARY = _exceptions_of(requests.exceptions, urllib3.exceptions, http.client)


# The others say something sensible even when their constructor, all differ, was not called
CONSTRUCTORS: dict[type[Exception], Callable[[], Exception]] = {
    http.client.IncompleteRead: lambda: http.client.IncompleteRead(b"", 5),
    urllib3.exceptions.IncompleteRead: lambda: urllib3.exceptions.IncompleteRead(1, 2),
    urllib3.exceptions.InvalidChunkLength: lambda: urllib3.exceptions.InvalidChunkLength(
        urllib3.HTTPResponse(), b"x"
    ),
}


def test_the_list_of_library_exceptions_is_not_empty() -> None:
    assert {requests.ConnectionError, urllib3.exceptions.ProtocolError} <= set(LIBRARY)
    assert len(LIBRARY) > 40


@pytest.mark.parametrize("kind", LIBRARY, ids=str)
def test_every_exception_of_the_http_library_is_caught_and_translated(
    kind: type[Exception],
) -> None:
    assert issubclass(kind, FOREIGN)
    make = CONSTRUCTORS.get(kind, lambda: kind.__new__(kind))
    error = make()
    assert isinstance(translate(error, "a/b:1"), RemoteError)


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (requests.ConnectionError("x"), True),
        (requests.ConnectTimeout("x"), True),
        (requests.ReadTimeout("x"), True),
        (requests.exceptions.ChunkedEncodingError("x"), True),
        (urllib3.exceptions.IncompleteRead(1, 2), True),
        (urllib3.exceptions.ProtocolError("x"), True),
        (ConnectionResetError("x"), True),
        (requests.exceptions.InvalidURL("x"), False),
        (requests.exceptions.InvalidSchema("x"), False),
        (OSError("could not find a suitable TLS CA certificate bundle"), False),
        (requests.exceptions.SSLError(ssl.SSLEOFError(8, "EOF occurred")), True),
        (
            requests.exceptions.SSLError(
                urllib3.exceptions.MaxRetryError(
                    None,  # type: ignore[arg-type]
                    "/",
                    urllib3.exceptions.SSLError(ssl.SSLCertVerificationError(1, "self-signed")),
                )
            ),
            False,
        ),
    ],
)
def test_only_failures_that_may_pass_are_tried_again(error: Exception, passing: bool) -> None:
    translated = translate(error, "a/b:1")
    assert isinstance(translated, TransferError)
    assert translated.passing is passing
    assert "a/b:1" in str(translated)


def test_a_refused_certificate_comes_with_a_hint() -> None:
    error = requests.exceptions.SSLError(ssl.SSLCertVerificationError(1, "self-signed"))
    assert "REQUESTS_CA_BUNDLE" in translate(error, "a").hint
