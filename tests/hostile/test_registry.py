"""A registry is trusted for tags, never for bytes: lies, faults, traps, and what comes of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, PublishError, RemoteError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import (
    AccessDeniedError,
    ImageNotFoundError,
    LayerDescriptor,
    Platform,
    RateLimitedError,
    ResolvedImage,
)
from cvmfs_publish.sources.registry.answers import parse_redirect
from cvmfs_publish.sources.registry.auth import Credential
from cvmfs_publish.sources.registry.client import TOKEN_LIMIT, RegistryClient
from cvmfs_publish.sources.registry.manifest import NotAnImageError
from cvmfs_publish.sources.registry.source import RegistrySource
from tests.fakes.registry import (
    TYPES,
    Change,
    FakeRegistry,
    Reply,
    body,
    chunked,
    cut,
    delay,
    html,
    redirect,
    reset,
    stall,
    status,
    tar_of,
    with_header,
    wrong_bytes,
)

AMD64 = Platform.default()
CONTENT = bytes(range(256)) * 8192  # 2 MiB: more than one read, more than socket buffers hold
BOT = Credential("bot", "s3cret-word")


class Waits(list[float]):
    """Stands in for `time.sleep`; remembers how long nobody slept."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    """Another server, thus another host:port."""
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def client(waits: Waits) -> Iterator[RegistryClient]:
    with RegistryClient(sleep=waits, read_timeout=timedelta(seconds=5)) as opened:
        yield opened


@pytest.fixture
def source(client: RegistryClient) -> RegistrySource:
    return RegistrySource(client)


@pytest.fixture
def image(registry: FakeRegistry, source: RegistrySource) -> ResolvedImage:
    registry.add_image("a/b", [CONTENT], compress="none")
    resolved = source.resolve(Reference.parse(registry.name("a/b")), AMD64)
    registry.requests.clear()
    return resolved


def read(source: RegistrySource, image: ResolvedImage, size: int = 100_000) -> bytes:
    with source.open_layer(image.reference, image.layers[0]) as stream:
        return b"".join(iter(lambda: stream.read(size), b""))


# ------------------------------------------------------------------ blobs that are not as promised


@pytest.mark.parametrize("size", [1000, 1 << 20, 1 << 30])
@pytest.mark.parametrize("how", [None, chunked()])
def test_changed_bytes_never_come_out_whole(
    registry: FakeRegistry,
    source: RegistrySource,
    image: ResolvedImage,
    size: int,
    how: Change | None,
) -> None:
    registry.fault("GET", "/blobs/", wrong_bytes())
    if how:
        registry.fault("GET", "/blobs/", how)
    seen = 0
    with source.open_layer(image.reference, image.layers[0]) as stream:
        with pytest.raises(IntegrityError, match=str(image.layers[0].digest)):
            while data := stream.read(size):
                seen += len(data)
        with pytest.raises(IntegrityError):
            stream.read(size)
    assert seen < len(CONTENT)  # the last bytes are held back until the digest is right
    assert registry.count("GET") == 1  # a lie is not asked for again


@pytest.mark.parametrize("change", [CONTENT[:-1], CONTENT + b"x", b"", CONTENT * 2])
@pytest.mark.parametrize("announced", [True, False])
def test_another_size_is_refused_whether_announced_or_not(
    registry: FakeRegistry,
    source: RegistrySource,
    image: ResolvedImage,
    change: bytes,
    announced: bool,
) -> None:
    registry.fault("GET", "/blobs/", body(change), times=None)
    if not announced:
        registry.fault("GET", "/blobs/", chunked(), times=None)
    with pytest.raises(IntegrityError if announced else PublishError) as caught:
        read(source, image)
    assert str(len(CONTENT)) in str(caught.value)


def test_no_more_bytes_than_promised_are_handed_out(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    registry.fault("GET", "/blobs/", body(CONTENT * 2))
    registry.fault("GET", "/blobs/", chunked())
    seen = 0
    with (
        source.open_layer(image.reference, image.layers[0]) as stream,
        pytest.raises(IntegrityError, match="more bytes than the promised"),
    ):
        while data := stream.read(1 << 22):
            seen += len(data)
    assert seen == len(CONTENT)


def test_a_web_page_in_place_of_a_layer_may_pass_and_says_what_it_is(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    registry.fault("GET", "/blobs/", html(), times=None)
    with pytest.raises(RemoteError, match="web page"):
        read(source, image)


def test_a_missing_layer_does_not_mean_that_the_image_is_gone(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    del registry.blobs[str(image.layers[0].digest)]
    with pytest.raises(RemoteError, match="BLOB_UNKNOWN") as caught:
        read(source, image)
    assert not isinstance(caught.value, ImageNotFoundError)


# ------------------------------------------------------------------ connections that break


@pytest.mark.parametrize("honoured", [True, False])
@pytest.mark.parametrize(
    "breaks", [cut(0), cut(1), cut(1_234_567), cut(len(CONTENT) - 1), reset(1_500_000), reset(0)]
)
@pytest.mark.parametrize("how", [None, chunked()])
def test_a_broken_transfer_continues_where_it_broke(
    registry: FakeRegistry,
    source: RegistrySource,
    image: ResolvedImage,
    waits: Waits,
    honoured: bool,
    breaks: Change,
    how: Change | None,
) -> None:
    registry.honours_ranges = honoured
    if how:
        registry.fault("GET", "/blobs/", how, times=None)
    registry.fault("GET", "/blobs/", breaks)
    assert read(source, image) == CONTENT
    first, second = registry.find("GET", "/blobs/")
    assert "range" not in first.headers
    assert second.headers.get("range", "bytes=0-").startswith("bytes=")
    assert len(waits) == 1


def test_only_the_missing_bytes_are_asked_for(
    registry: FakeRegistry, client: RegistryClient, source: RegistrySource, image: ResolvedImage
) -> None:
    registry.fault("GET", "/blobs/", cut(1_000_000))
    before = client.bytes_received
    assert read(source, image, size=1000) == CONTENT
    assert registry.find("GET")[1].headers["range"] == "bytes=1000000-"
    assert client.bytes_received - before == len(CONTENT)


def test_a_connection_that_falls_silent_is_replaced(
    registry: FakeRegistry, image: ResolvedImage, waits: Waits
) -> None:
    registry.fault("GET", "/blobs/", stall(500_000, seconds=30))
    with RegistryClient(sleep=waits, read_timeout=timedelta(seconds=0.3)) as client:
        assert read(RegistrySource(client), image) == CONTENT
    assert registry.count("GET", "/blobs/") == 2


def test_a_slow_answer_is_waited_for(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    registry.fault("GET", "/blobs/", delay(0.3))
    assert read(source, image) == CONTENT
    assert registry.count("GET") == 1


@pytest.mark.parametrize("breaks", [cut(0), reset(0), cut(100)])
@pytest.mark.parametrize("honoured", [True, False])
def test_a_transfer_that_always_breaks_ends_as_a_remote_error(
    registry: FakeRegistry,
    source: RegistrySource,
    image: ResolvedImage,
    waits: Waits,
    breaks: Change,
    honoured: bool,
) -> None:
    registry.honours_ranges = honoured
    registry.fault("GET", "/blobs/", breaks, times=None)
    with pytest.raises(RemoteError, match="5 broken connections"):
        read(source, image)
    assert registry.count("GET") == 5
    assert waits == sorted(waits)


@pytest.mark.parametrize(
    "content_range", ["", "bytes 5-9/10", "bytes x-y/z", "bytes 0-2097151/2097152"]
)
def test_a_range_nobody_asked_for_is_not_used(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage, content_range: str
) -> None:
    def lies(reply: Reply) -> Reply:
        return Reply(206, {**reply.headers, "Content-Range": content_range}, reply.body)

    registry.fault("GET", "/blobs/", cut(1_000_000))
    registry.fault("GET", "/blobs/", lambda reply: lies(reply) if reply.status == 206 else reply, 2)
    assert read(source, image, 1000) == CONTENT
    assert registry.count("GET") == 3


def test_a_range_of_another_blob_is_noticed(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    half = len(CONTENT) // 2
    forged = Reply(206, {"Content-Range": f"bytes {half}-{2 * half - 1}/{2 * half}"}, b"x" * half)
    registry.fault("GET", "/blobs/", cut(half))
    registry.fault("GET", "/blobs/", lambda reply: forged if reply.status == 206 else reply, 2)
    with pytest.raises(IntegrityError):
        read(source, image, 4096)


def test_a_range_that_reveals_another_size_is_refused(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    registry.fault("GET", "/blobs/", cut(1_000_000))
    registry.fault("GET", "/blobs/", lambda r: Reply(416) if r.status == 206 else r, times=2)
    with pytest.raises(IntegrityError, match=f"1000000 bytes at most, promised {len(CONTENT)}"):
        read(source, image, 1000)


def test_a_range_of_something_larger_is_refused_before_it_is_read(
    registry: FakeRegistry, client: RegistryClient, source: RegistrySource, image: ResolvedImage
) -> None:
    end = len(CONTENT) - 1
    larger = with_header("Content-Range", f"bytes 1000000-{end}/{len(CONTENT) + 1}")
    registry.fault("GET", "/blobs/", cut(1_000_000))
    registry.fault("GET", "/blobs/", lambda r: larger(r) if r.status == 206 else r, times=2)
    before = client.bytes_received
    with pytest.raises(IntegrityError, match=f"has {len(CONTENT) + 1} bytes"):
        read(source, image, 1000)
    assert client.bytes_received - before == 1_000_000


@pytest.mark.parametrize("breaks", [cut(10), reset(10)])
def test_a_broken_manifest_is_fetched_again(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage, breaks: Change
) -> None:
    registry.fault("GET", "/manifests/", breaks, times=2)
    assert source.resolve(image.reference, AMD64) == image
    assert registry.count("GET", "/manifests/") == 3


# ------------------------------------------------------------------ servers in trouble


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_storm_of_errors_is_sat_out_with_growing_waits(
    registry: FakeRegistry,
    source: RegistrySource,
    image: ResolvedImage,
    waits: Waits,
    code: int,
) -> None:
    registry.fault("GET", "/blobs/", status(code), times=4)
    assert read(source, image) == CONTENT
    assert len(waits) == 4
    for number, wait in enumerate(waits):
        assert 0.25 * 2**number <= wait <= 0.5 * 2**number


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_storm_without_end_is_a_remote_error_after_five_attempts(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage, method: str
) -> None:
    registry.fault(method, "", status(503), times=None)
    with pytest.raises(RemoteError, match="503"):
        source.head(image.reference) if method == "HEAD" else read(source, image)
    assert registry.count(method) == 5


def test_a_wait_the_server_asks_for_is_kept(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage, waits: Waits
) -> None:
    registry.fault("HEAD", "", status(429, retry_after="7"))
    source.head(image.reference)
    assert waits == [7.0]


def test_a_wait_of_hours_is_left_to_the_caller(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage, waits: Waits
) -> None:
    registry.fault("HEAD", "", status(429, retry_after="21600"), times=None)
    with pytest.raises(RateLimitedError, match="too many requests") as caught:
        source.head(image.reference)
    assert caught.value.retry_after == timedelta(hours=6)
    assert "6:00:00" in caught.value.hint
    assert (waits, registry.count("HEAD")) == ([], 1)


def test_other_refusals_are_not_repeated(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    registry.fault("GET", "", status(418), times=None)
    with pytest.raises(RemoteError, match="418"):
        read(source, image)
    assert registry.count("GET") == 1


def test_nobody_at_home_is_a_remote_error_after_all_attempts(waits: Waits) -> None:
    with FakeRegistry() as gone:
        reference = Reference.parse(gone.name("a/b"))
    with (
        RegistryClient(sleep=waits) as client,
        pytest.raises(RemoteError, match="refused") as caught,
    ):
        RegistrySource(client).head(reference)
    assert gone.host in str(caught.value)
    assert len(waits) == 4


def test_attempts_are_not_multiplied_by_the_layers_of_the_client(waits: Waits) -> None:
    with FakeRegistry() as gone:
        reference = Reference.parse(gone.name("a/b"))
    layer = LayerDescriptor(Digest.of(CONTENT), len(CONTENT), "", None)
    with RegistryClient(sleep=waits) as client:
        source = RegistrySource(client)
        with pytest.raises(RemoteError):
            source.resolve(reference, AMD64)
        assert dict(client.requests_made) == {"GET": 5}
        with source.open_layer(reference, layer) as stream, pytest.raises(RemoteError):
            stream.read(1)
        assert dict(client.requests_made) == {"GET": 10}


def test_an_unknown_host_is_a_remote_error(waits: Waits) -> None:
    with (
        RegistryClient(sleep=waits) as client,
        pytest.raises(RemoteError, match=r"registry\.invalid"),
    ):
        RegistrySource(client).head(Reference.parse("registry.invalid/a/b"))


def test_speaking_tls_to_a_plain_server_is_explained(registry: FakeRegistry, waits: Waits) -> None:
    client = RegistryClient(sleep=waits)
    client._is_plain = lambda _: False  # type: ignore[assignment,method-assign]
    with client, pytest.raises(RemoteError) as caught:
        RegistrySource(client).head(Reference.parse(registry.name("a/b")))
    assert "plain HTTP" in caught.value.hint
    assert waits == []


# ------------------------------------------------------------------ redirects


def test_a_layer_may_come_from_a_content_server(
    registry: FakeRegistry, other: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    other.files["/cdn"] = CONTENT
    registry.fault("GET", "/blobs/", redirect(f"{other.url}/cdn?signature=x"), times=None)
    other.fault("GET", "/cdn", cut(1_000_000))
    assert read(source, image, 1000) == CONTENT
    assert [r.headers.get("range") for r in other.requests] == [None, "bytes=1000000-"]
    assert registry.count("GET") == 2  # a signed address is asked for anew, it may have expired


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_credentials_are_never_sent_to_another_host(
    registry: FakeRegistry, other: FakeRegistry, waits: Waits, name: str
) -> None:
    target = other if name == "127.0.0.1" else registry
    port = target.host.rpartition(":")[2]
    registry.require_bearer("bot", "s3cret-word")
    registry.add_image("a/b", [CONTENT], compress="none")
    target.files["/cdn"] = CONTENT
    registry.fault("GET", "/blobs/.*", redirect(f"http://{name}:{port}/cdn"), times=None)
    with RegistryClient(credentials={registry.host: BOT}, sleep=waits) as client:
        source = RegistrySource(client)
        source.head(Reference.parse(registry.name("a/b")))
        layer = LayerDescriptor(Digest.of(CONTENT), len(CONTENT), "", None)
        with source.open_layer(Reference.parse(registry.name("a/b")), layer) as stream:
            while stream.read(1 << 20):
                pass
    redirected = target.find("GET", "/cdn")
    assert len(redirected) == 1
    assert "authorization" not in redirected[0].headers
    assert "authorization" in registry.find("GET", "/blobs/")[-1].headers


def test_a_redirect_within_the_registry_keeps_the_authorization(
    registry: FakeRegistry, waits: Waits
) -> None:
    registry.require_basic("bot", "s3cret-word")
    digest = registry.add_image("a/b", [CONTENT])
    registry.fault("HEAD", "/a/old/", redirect("/v2/a/b/manifests/latest"), times=None)
    with RegistryClient(credentials={registry.host: BOT}, sleep=waits) as client:
        source = RegistrySource(client)
        source.head(Reference.parse(registry.name("a/b")))
        assert source.head(Reference.parse(registry.name("a/old"))) == digest


def test_a_host_that_only_looks_similar_gets_no_credentials(
    registry: FakeRegistry, waits: Waits
) -> None:
    registry.require_basic("bot", "s3cret-word")
    registry.add_image("a/b", [CONTENT])
    port = registry.host.rpartition(":")[2]
    near = {f"127.0.0.1:{port[:-1]}": BOT, "127.0.0.1": BOT, f"localhost:{port}": BOT}
    with (
        RegistryClient(credentials=near, sleep=waits) as client,
        pytest.raises(AccessDeniedError, match="without credentials"),
    ):
        RegistrySource(client).head(Reference.parse(registry.name("a/b")))
    assert not any("authorization" in request.headers for request in registry.requests)


@pytest.mark.parametrize(
    "location",
    [
        *("", "file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/", "data:,x"),
        *("http://[::1/", "http://127.0.0.1:99999/", "http://evil.example\\@127.0.0.1/"),
    ],
)
def test_a_redirect_out_of_the_web_is_refused(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage, location: str
) -> None:
    registry.fault("GET", "/blobs/", redirect(location), times=None)
    with pytest.raises(RemoteError, match="redirects to"):
        read(source, image)
    assert registry.count("GET") == 1


def test_a_file_redirect_reads_no_file(
    registry: FakeRegistry, source: RegistrySource, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    reference = Reference.parse(registry.name("a/b"))
    registry.fault("GET", "/blobs/", redirect(f"file://{secret}"), times=None)
    layer = LayerDescriptor(Digest.of(CONTENT), len(CONTENT), "", None)
    with source.open_layer(reference, layer) as stream, pytest.raises(RemoteError):
        stream.read(10)


def test_the_body_of_a_redirect_is_not_waited_for(
    registry: FakeRegistry, other: FakeRegistry, image: ResolvedImage, waits: Waits
) -> None:
    other.files["/cdn"] = CONTENT
    endless = Reply(307, {"Location": f"{other.url}/cdn"}, b" " * (8 << 20), cut_at=10, stall=30)
    registry.fault("GET", "/blobs/", lambda _: endless)
    with RegistryClient(sleep=waits, read_timeout=timedelta(seconds=0.3)) as client:
        assert read(RegistrySource(client), image) == CONTENT
    assert registry.count("GET", "/blobs/") == 1
    assert waits == []


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_redirect_loop_ends(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage, method: str
) -> None:
    registry.fault(method, "", redirect("/again"), times=None)
    with pytest.raises(RemoteError, match="more than 5 redirects"):
        source.head(image.reference) if method == "HEAD" else read(source, image)
    assert registry.count(method) == 6


# ------------------------------------------------------------------ authentication


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_a_token_is_fetched_once_with_the_quoted_scope(
    registry: FakeRegistry, waits: Waits, field: str
) -> None:
    registry.require_bearer("bot", "s3cret-word", service='a "quoted", service'.replace('"', ""))
    registry.token_field = field
    registry.add_image("a/b", [CONTENT])
    reference = Reference.parse(registry.name("a/b"))
    with RegistryClient(credentials={registry.host: BOT}, sleep=waits) as client:
        source = RegistrySource(client)
        source.head(reference)
        source.resolve(reference, AMD64)
        source.head(reference)
        assert dict(client.requests_made) == {"HEAD": 3, "GET": 3}
    (asked,) = registry.find("GET", "/token")
    assert "scope=repository%3Aa%2Fb%3Apull%2Cpush" in asked.path
    assert "service=a+quoted%2C+service" in asked.path


def test_a_token_that_expired_is_renewed_once_per_refusal(
    registry: FakeRegistry, waits: Waits
) -> None:
    registry.require_bearer()
    digest = registry.add_image("a/b", [CONTENT])
    reference = Reference.parse(registry.name("a/b"))
    with RegistryClient(sleep=waits) as client:
        source = RegistrySource(client)
        source.head(reference)
        registry.tokens.clear()
        assert source.head(reference) == digest
        assert registry.count("GET", "/token") == 2
        registry.before("HEAD", "", registry.tokens.clear)  # now no token is ever good enough
        with pytest.raises(AccessDeniedError):
            source.head(reference)
        assert registry.count("GET", "/token") == 3


def test_a_token_that_expires_within_a_layer_is_renewed_where_the_layer_goes_on(
    registry: FakeRegistry, waits: Waits
) -> None:
    registry.require_bearer()
    registry.add_image("a/b", [CONTENT], compress="none")
    with RegistryClient(sleep=waits) as client:
        source = RegistrySource(client)
        image = source.resolve(Reference.parse(registry.name("a/b")), AMD64)
        registry.fault("GET", str(image.layers[0].digest), cut(1_000_000))
        with source.open_layer(image.reference, image.layers[0]) as stream:
            first = stream.read(1000)
            registry.tokens.clear()
            rest = b"".join(iter(lambda: stream.read(100_000), b""))
    assert first + rest == CONTENT
    assert registry.count("GET", "/token") == 2
    assert registry.find("GET", "/blobs/")[-1].headers["range"] == "bytes=1000000-"


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
@pytest.mark.parametrize("given", [None, Credential("bot", "wr0ng")])
def test_refused_access_names_the_user_and_no_secret(
    registry: FakeRegistry, waits: Waits, scheme: str, given: Credential | None
) -> None:
    if scheme == "basic":
        registry.require_basic("bot", "s3cret-word")
    else:
        registry.require_bearer("bot", "s3cret-word")
    registry.add_image("a/b", [CONTENT])
    credentials = {registry.host: given} if given else {}
    with (
        RegistryClient(credentials=credentials, sleep=waits) as client,
        pytest.raises(AccessDeniedError) as caught,
    ):
        RegistrySource(client).head(Reference.parse(registry.name("a/b")))
    said = str(caught.value) + caught.value.hint
    assert ("user 'bot'" if given else "without credentials") in said
    assert "wr0ng" not in said
    assert registry.name("a/b") in said
    assert waits == []


def test_the_netrc_of_the_account_is_not_used(
    registry: FakeRegistry, source: RegistrySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login bot password s3cret-word\n", "utf-8")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    registry.require_basic("bot", "s3cret-word")
    with pytest.raises(AccessDeniedError, match="without credentials"):
        source.head(Reference.parse(registry.name("a/b")))
    assert not any("authorization" in request.headers for request in registry.requests)


def test_a_token_server_without_tls_elsewhere_gets_no_password(
    registry: FakeRegistry, waits: Waits
) -> None:
    registry.require_bearer("bot", "s3cret-word", realm="http://tokens.example/token")
    with (
        RegistryClient(credentials={registry.host: BOT}, sleep=waits) as client,
        pytest.raises(RemoteError, match="without TLS"),
    ):
        RegistrySource(client).head(Reference.parse(registry.name("a/b")))


def test_a_token_server_that_redirects_elsewhere_does_not_pass_the_password_on(
    registry: FakeRegistry, other: FakeRegistry, waits: Waits
) -> None:
    registry.require_bearer("bot", "s3cret-word")
    registry.fault("GET", "/token", redirect(f"{other.url}/token"), times=None)
    other.require_bearer("bot", "s3cret-word")
    with (
        RegistryClient(credentials={registry.host: BOT}, sleep=waits) as client,
        pytest.raises(AccessDeniedError),
    ):
        RegistrySource(client).head(Reference.parse(registry.name("a/b")))
    assert len(other.requests) == 1
    assert "authorization" not in other.requests[0].headers


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_token_server_in_trouble_is_waited_for_and_then_an_error(
    registry: FakeRegistry, waits: Waits, code: int
) -> None:
    registry.require_bearer()
    digest = registry.add_image("a/b", [CONTENT])
    reference = Reference.parse(registry.name("a/b"))
    registry.fault("GET", "/token", status(code), times=2)
    with RegistryClient(sleep=waits) as client:
        assert RegistrySource(client).head(reference) == digest
        assert len(waits) == 2
        registry.tokens.clear()
        registry.fault("GET", "/token", status(code), times=None)
        with pytest.raises(RemoteError, match=str(code)):
            RegistrySource(client).head(reference)
    assert registry.count("GET", "/token") == 3 + 5


def test_a_broken_answer_of_the_token_server_is_asked_for_again(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.require_bearer()
    digest = registry.add_image("a/b", [CONTENT])
    registry.fault("GET", "/token", cut(5))
    assert source.head(Reference.parse(registry.name("a/b"))) == digest


def test_an_endless_answer_of_the_token_server_is_not_read_to_its_end(
    registry: FakeRegistry, client: RegistryClient
) -> None:
    registry.require_bearer()
    registry.fault("GET", "/token", body(b" " * (TOKEN_LIMIT + 5_000_000)), times=None)
    with pytest.raises(IntegrityError, match=f"larger than {TOKEN_LIMIT}"):
        RegistrySource(client).head(Reference.parse(registry.name("a/b")))
    assert client.bytes_received < TOKEN_LIMIT + 100_000


def test_a_redirect_out_of_tls_is_not_followed() -> None:
    with pytest.raises(RemoteError, match="from TLS to plain HTTP"):
        parse_redirect("https://registry.example.org/v2/", "http://registry.example.org/", "x")


def test_a_refused_login_is_never_tried_again_as_nobody(
    registry: FakeRegistry, waits: Waits
) -> None:
    registry.require_bearer("bot", "s3cret-word")
    registry.add_image("a/b", [CONTENT])
    wrong = {registry.host: Credential("bot", "wr0ng")}
    with RegistryClient(credentials=wrong, sleep=waits) as client:
        for _ in range(2):
            with pytest.raises(AccessDeniedError):
                RegistrySource(client).head(Reference.parse(registry.name("a/b")))
    assert all("authorization" in r.headers for r in registry.find("GET", "/token"))


def test_cookies_are_not_kept(registry: FakeRegistry, source: RegistrySource) -> None:
    registry.add_image("a/b", [CONTENT])
    registry.fault("HEAD", "", with_header("Set-Cookie", "track=me"), times=None)
    for _ in range(2):
        source.head(Reference.parse(registry.name("a/b")))
    assert not any("cookie" in request.headers for request in registry.requests)


def test_many_threads_share_one_new_token(registry: FakeRegistry, waits: Waits) -> None:
    registry.require_bearer()
    digest = registry.add_image("a/b", [CONTENT])
    reference = Reference.parse(registry.name("a/b"))
    together = threading.Barrier(4)
    with RegistryClient(sleep=waits) as client, ThreadPoolExecutor(4) as pool:

        def head(_: int) -> Digest:
            together.wait(10)
            return RegistrySource(client).head(reference)

        assert set(pool.map(head, range(4))) == {digest}
    assert registry.count("GET", "/token") == 1


# ------------------------------------------------------------------ manifests that lie


def test_a_tag_that_moves_after_the_head_cannot_mix_two_images(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    first = registry.add_image("a/b", [tar_of({"first": b"1"})])
    moved: list[Digest] = []
    registry.before(
        "GET", "/manifests/", lambda: moved.append(registry.add_image("a/b", [CONTENT]))
    )
    reference = Reference.parse(registry.name("a/b"))
    digest = source.head(reference)
    image = source.resolve(reference, AMD64, digest)
    assert image.digest == first == Digest.of(image.manifest)
    assert image.layers[0].diff_id == Digest.of(tar_of({"first": b"1"}))
    assert moved
    assert source.head(reference) == moved[-1] != first


def test_a_manifest_with_other_bytes_than_its_digest_is_refused(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    changed = image.manifest.replace(b'"size": ', b'"size":  ', 1)
    for digest in (None, image.digest):
        registry.fault("GET", "/manifests/", body(changed))
        with pytest.raises(IntegrityError, match=str(Digest.of(changed))) as caught:
            source.resolve(image.reference, AMD64, digest)
        assert str(image.digest) in str(caught.value)
    assert registry.count("GET") == 2


@pytest.mark.parametrize("stated", ["sha256:1", "md5:123", "\x1b[31m", "sha256:" + "Z" * 64])
def test_a_nonsense_digest_header_is_refused(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage, stated: str
) -> None:
    for method in ("HEAD", "GET"):
        registry.fault(method, "", with_header("Docker-Content-Digest", stated))
    with pytest.raises(IntegrityError, match="Docker-Content-Digest") as caught:
        source.head(image.reference)
    assert "\x1b" not in str(caught.value)
    with pytest.raises(IntegrityError):
        source.resolve(image.reference, AMD64)


def test_an_endless_manifest_is_not_read_to_its_end(
    registry: FakeRegistry, client: RegistryClient, source: RegistrySource, image: ResolvedImage
) -> None:
    registry.fault("GET", "/manifests/", body(b" " * (32 << 20)))
    before = client.bytes_received
    with pytest.raises(IntegrityError, match="more than 4194304 bytes"):
        source.resolve(image.reference, AMD64)
    assert client.bytes_received - before <= (4 << 20) + 1


def test_a_web_page_in_place_of_a_manifest_is_the_servers_fault(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    registry.fault("HEAD", "", html(), times=None)
    registry.fault("GET", "", html(), times=None)
    for action in (
        lambda: source.head(image.reference),
        lambda: source.resolve(image.reference, AMD64),
        lambda: source.resolve(image.reference, AMD64, image.digest),
    ):
        with pytest.raises(RemoteError, match="web page"):
            action()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda m: {**m, "config": {**m["config"], "size": -1}}, IntegrityError),
        (
            lambda m: {**m, "config": {**m["config"], "size": m["config"]["size"] + 1}},
            IntegrityError,
        ),
        (
            lambda m: {**m, "config": {**m["config"], "size": m["config"]["size"] - 1}},
            IntegrityError,
        ),
        (lambda m: {**m, "config": {**m["config"], "size": 1 << 40}}, IntegrityError),
        (lambda m: {**m, "config": m["layers"][0]}, NotAnImageError),
        (lambda m: {**m, "layers": []}, IntegrityError),
        (lambda m: {**m, "layers": m["layers"] * 2}, IntegrityError),
        (lambda m: {**m, "manifests": []}, IntegrityError),
        (lambda m: {**m, "mediaType": TYPES["oci"]["index"]}, IntegrityError),
        (lambda m: {"schemaVersion": 1, "fsLayers": [], "history": []}, NotAnImageError),
        (lambda m: [], IntegrityError),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    registry: FakeRegistry,
    source: RegistrySource,
    image: ResolvedImage,
    change: Callable[[dict[str, Any]], Any],
    error: type[PublishError],
) -> None:
    document = json.dumps(change(json.loads(image.manifest))).encode()
    registry.add_manifest("a/b", document, TYPES["oci"]["manifest"], tag="forged")
    with pytest.raises(error, match="a/b:forged"):
        source.resolve(Reference.parse(registry.name("a/b", "forged")), AMD64)


def test_an_index_entry_with_another_size_or_type_is_refused(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    platform = {"platform": {"os": "linux", "architecture": "amd64"}}
    honest = registry.describe("a/b", image.digest)
    for number, lie in enumerate(
        ({"size": honest["size"] + 1}, {"mediaType": TYPES["docker"]["manifest"]})
    ):
        registry.add_index("a/b", {}, tag=f"lie{number}", extra=[{**honest, **platform, **lie}])
        with pytest.raises(IntegrityError):
            source.resolve(Reference.parse(registry.name("a/b", f"lie{number}")), AMD64)


def test_an_index_in_an_index_is_refused(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    inner = registry.add_index("a/b", {"linux/amd64": image.digest}, tag="")
    registry.add_index("a/b", {"linux/amd64": inner}, tag="nested")
    with pytest.raises(NotAnImageError, match="index inside an index"):
        source.resolve(Reference.parse(registry.name("a/b", "nested")), AMD64)


def test_words_of_a_server_cannot_steer_the_terminal(
    registry: FakeRegistry, source: RegistrySource, image: ResolvedImage
) -> None:
    said = json.dumps({"errors": [{"code": "DENIED", "message": "\x1b]0;owned\x07\nroot#"}]})
    registry.fault("GET", "", lambda _: Reply(403, {}, said.encode()))
    with pytest.raises(AccessDeniedError, match="DENIED") as caught:
        source.resolve(image.reference, AMD64)
    assert str(caught.value).isprintable()
