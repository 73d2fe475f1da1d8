"""When the client asks and when it does not: lives of tokens, budgets, private authorities."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import certifi
import pytest

from cvmfs_publish.errors import InputError, RemoteError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import Platform, RateLimitedError
from cvmfs_publish.sources.registry.auth import Credential
from cvmfs_publish.sources.registry.budget import BLIND_PAUSE, Allowance, Budgets
from cvmfs_publish.sources.registry.budget_file import add_spent, read_spent
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.source import RegistrySource
from tests.fakes.registry import FakeRegistry, redirect, status, tar_of, with_header

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
MINUTE = int(NOW.timestamp()) // 60


class Clock:
    """A clock that goes on only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = NOW
        self.slept: list[float] = []

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.add_image("a/b", [tar_of({"a": b"1"})])
        yield fake


def open_client(clock: Clock, budgets: Budgets | None = None) -> RegistryClient:
    return RegistryClient(
        sleep=clock.sleep, clock=clock, budgets=budgets, read_timeout=timedelta(seconds=5)
    )


# ------------------------------------------------------------------ tokens


def test_a_token_is_renewed_before_it_expires_and_not_sooner(
    registry: FakeRegistry, clock: Clock
) -> None:
    registry.require_bearer()
    reference = Reference.parse(registry.name("a/b"))
    with open_client(clock) as client:
        source = RegistrySource(client)
        source.head(reference)
        clock.now += timedelta(seconds=239)  # of 300
        source.head(reference)
        assert registry.count("GET", "/token") == 1
        clock.now += timedelta(seconds=1)
        source.head(reference)
        assert registry.count("GET", "/token") == 2
    refused = [r for r in registry.find("HEAD") if "authorization" not in r.headers]
    assert len(refused) == 1  # the first request alone went without
    sent = [r.headers["authorization"] for r in registry.find("HEAD")[1:]]
    assert sent == ["Bearer token-1", "Bearer token-1", "Bearer token-2"]


def test_a_password_does_not_expire(registry: FakeRegistry, clock: Clock) -> None:
    registry.require_basic("bot", "s3cret")
    reference = Reference.parse(registry.name("a/b"))
    credentials = {registry.host: Credential("bot", "s3cret")}
    with RegistryClient(credentials=credentials, clock=clock, sleep=clock.sleep) as client:
        RegistrySource(client).head(reference)
        clock.now += timedelta(days=2)
        RegistrySource(client).head(reference)
    assert registry.count("HEAD") == 3


# ------------------------------------------------------------------ budgets


def test_a_short_wait_is_slept_and_a_long_one_is_left_to_the_caller(
    registry: FakeRegistry, clock: Clock
) -> None:
    reference = Reference.parse(registry.name("a/b"))
    budgets = Budgets({registry.host: Allowance(pulls_per_hour=1)})
    with open_client(clock, budgets) as client:
        source = RegistrySource(client)
        source.resolve(reference, Platform.default())
        with pytest.raises(RateLimitedError, match="1 of 1 pulls") as caught:
            source.resolve(reference, Platform.default())
        assert caught.value.retry_after == timedelta(minutes=61)
        assert f"registries.{registry.host}.pulls_per_hour" in caught.value.hint
        assert registry.count("GET", "/manifests/") == 1
        assert clock.slept == []
        clock.now += timedelta(minutes=60, seconds=30)
        source.resolve(reference, Platform.default())
        assert clock.slept == [30.0]
        assert registry.count("GET", "/manifests/") == 2


def test_what_is_asked_elsewhere_costs_the_registry_nothing(
    registry: FakeRegistry, clock: Clock
) -> None:
    """Token servers and content servers have hosts, and limits, of their own."""
    reference = Reference.parse(registry.name("a/b"))
    with FakeRegistry() as other, open_client(clock) as client:
        other.files |= {f"/{digest}": data for digest, data in registry.blobs.items()}
        for digest in registry.blobs:
            registry.fault("GET", digest, redirect(f"{other.url}/{digest}"), times=None)
        RegistrySource(client).resolve(reference, Platform.default())
        assert other.count("GET") == 1
        used = client.budgets.snapshots(NOW)
    assert list(used) == [registry.host]
    assert (used[registry.host].pulls, used[registry.host].requests) == (1, 2)


def test_a_repeated_attempt_is_a_request_too(registry: FakeRegistry, clock: Clock) -> None:
    registry.fault("GET", "/manifests/", status(503), times=2)
    with open_client(clock) as client:
        RegistrySource(client).resolve(Reference.parse(registry.name("a/b")), Platform.default())
        assert client.budgets.of(registry.host).snapshot(clock.now).pulls == 3


def test_a_quota_that_the_registry_states_is_kept_without_asking(
    registry: FakeRegistry, clock: Clock
) -> None:
    reference = Reference.parse(registry.name("a/b"))
    for name, value in (("Limit", "100;w=21600"), ("Remaining", "0;w=21600")):
        registry.fault("HEAD", "", with_header(f"RateLimit-{name}", value), times=None)
    with open_client(clock) as client:
        source = RegistrySource(client)
        digest = source.head(reference)
        with pytest.raises(RateLimitedError, match="0 of 100 in 6:00:00 left") as caught:
            source.resolve(reference, Platform.default(), digest)
        assert caught.value.retry_after == timedelta(seconds=216)
        assert registry.count("GET") == 0
        assert source.head(reference) == digest  # costs no pull


@pytest.mark.parametrize("says_when", [True, False])
def test_a_registry_that_has_had_enough_is_not_annoyed_by_the_other_images(
    registry: FakeRegistry, clock: Clock, says_when: bool
) -> None:
    headers = {"retry_after": "3600"} if says_when else {}
    registry.fault("HEAD", "", status(429, **headers), times=None)
    with open_client(clock) as client:
        source = RegistrySource(client)
        for name in ("a/b", "c/d", "e/f"):
            with pytest.raises(RateLimitedError) as caught:
                source.head(Reference.parse(registry.name(name)))
        assert registry.count("HEAD") == (1 if says_when else client.attempts)
        assert registry.count("HEAD", "/c/d/") == 0
        wait = timedelta(hours=1) if says_when else BLIND_PAUSE
        assert caught.value.retry_after == wait
        clock.now += wait
        with pytest.raises(RateLimitedError):
            source.head(Reference.parse(registry.name("c/d")))
        assert registry.count("HEAD", "/c/d/") > 0


def test_too_many_requests_with_a_reset_are_waited_for_until_then(
    registry: FakeRegistry, clock: Clock
) -> None:
    """GitLab's and GitHub's way: 429 without Retry-After, but with the time of the reset."""
    reset = str(int(NOW.timestamp()) + 40)
    registry.fault("HEAD", "", status(429, ratelimit_remaining="0", ratelimit_reset=reset))
    with open_client(clock) as client:
        RegistrySource(client).head(Reference.parse(registry.name("a/b")))
        assert clock.slept == [40.0]
        later = str(int(clock.now.timestamp()) + 4000)
        registry.fault("HEAD", "", status(429, ratelimit_remaining="0", ratelimit_reset=later))
        with pytest.raises(RateLimitedError) as caught:
            RegistrySource(client).head(Reference.parse(registry.name("a/b")))
    assert caught.value.retry_after == timedelta(seconds=4000)
    assert registry.count("HEAD") == 3


def test_a_registry_is_not_shut_out_for_another(registry: FakeRegistry, clock: Clock) -> None:
    with FakeRegistry() as other, open_client(clock) as client:
        other.fault("HEAD", "", status(429, retry_after="3600"), times=None)
        source = RegistrySource(client)
        with pytest.raises(RateLimitedError):
            source.head(Reference.parse(other.name("a/b")))
        source.head(Reference.parse(registry.name("a/b")))


# ------------------------------------------------------------------ what runs know of each other


def test_what_was_spent_is_kept_for_an_hour_and_added_up(tmp_path: Path) -> None:
    path = tmp_path / "state" / "registries.json"
    assert read_spent(path, NOW) == {}
    add_spent(path, {"docker.io": {"pull": {MINUTE: 2}, "request": {MINUTE: 5}}}, NOW)
    add_spent(path, {"docker.io": {"pull": {MINUTE: 1}}, "ghcr.io": {"request": {MINUTE: 7}}}, NOW)
    assert read_spent(path, NOW) == {
        "docker.io": {"pull": {MINUTE: 3}, "request": {MINUTE: 5}},
        "ghcr.io": {"pull": {}, "request": {MINUTE: 7}},
    }
    later = read_spent(path, NOW + timedelta(minutes=62))
    assert not any(minutes for spent in later.values() for minutes in spent.values())


def test_nothing_spent_writes_nothing(tmp_path: Path) -> None:
    add_spent(tmp_path / "x" / "registries.json", {"docker.io": {"pull": {}}}, NOW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "null", '{"docker.io": 7}', '{"docker.io": {"pull": 7}}'),
        *(
            '{"docker.io": {"pull": {"x": 1}}}',
            '{"docker.io": {"pull": {"1": "y"}}}',
            "[" * 100_000,
        ),
    ],
)
def test_a_file_that_is_damaged_counts_as_empty_and_is_written_anew(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "registries.json"
    path.write_text(text)
    assert read_spent(path, NOW) == {}
    add_spent(path, {"docker.io": {"pull": {MINUTE: 1}}}, NOW)
    assert read_spent(path, NOW)["docker.io"] == {"pull": {MINUTE: 1}, "request": {}}


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "registries.json"
    path.mkdir()
    with pytest.raises(InputError, match=r"registries\.json: cannot be read"):
        read_spent(path, NOW)
    with pytest.raises(InputError, match=r"registries\.json"):
        add_spent(path, {"docker.io": {"pull": {MINUTE: 1}}}, NOW)


# ------------------------------------------------------------------ loopback, with and without TLS


def test_a_registry_here_speaks_tls_if_an_authority_is_given_for_it(
    registry: FakeRegistry, clock: Clock
) -> None:
    ca_files = {registry.host: Path(certifi.where())}
    with (
        RegistryClient(ca_files=ca_files, clock=clock, sleep=clock.sleep) as client,
        pytest.raises(RemoteError, match="SSL"),
    ):
        RegistrySource(client).head(Reference.parse(registry.name("a/b")))
    assert registry.requests == []
