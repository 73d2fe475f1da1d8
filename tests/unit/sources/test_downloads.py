"""Files of unknown digest from servers that break, lie or have changed their minds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, PublishError, RemoteError, RepositoryError
from cvmfs_publish.sources.base import AccessDeniedError, ImageNotFoundError, RateLimitedError
from cvmfs_publish.sources.downloads import Downloads
from cvmfs_publish.sources.held import HeldFile
from cvmfs_publish.sources.registry.auth import Request
from cvmfs_publish.sources.registry.client import RegistryClient
from tests.fakes.places import FakePlaces
from tests.fakes.registry import (
    Change,
    Reply,
    chunked,
    cut,
    html,
    redirect,
    reset,
    status,
    with_header,
    without_header,
)

DATA = bytes(range(256)) * 2000
OTHER = DATA[::-1]


@pytest.fixture
def places() -> Iterator[FakePlaces]:
    with FakePlaces() as running:
        running.images["image"] = DATA
        yield running


@pytest.fixture
def downloads(tmp_path: Path) -> Iterator[Downloads]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with RegistryClient(attempts=3, sleep=lambda _: None) as client, ExitStack() as stack:
        yield Downloads(client, stack, scratch, 1 << 30)
    assert list(scratch.iterdir()) == []


def fetch(downloads: Downloads, places: FakePlaces, name: str = "image") -> HeldFile:
    return downloads.fetch(lambda method: Request(method, places.url_of(name)), name)


def bytes_of(held: HeldFile) -> bytes:
    with held.reader() as one, held.reader() as other:
        assert one.read(10) == other.read(10)  # each has a position of its own
        one.seek(0)
        return one.read()


def asked(places: FakePlaces) -> list[str]:
    return [request.headers.get("range", "") for request in places.find("GET", "/files/")]


def test_what_comes_is_kept_with_its_digest(downloads: Downloads, places: FakePlaces) -> None:
    held = fetch(downloads, places)
    assert (held.digest, held.size, held.top) == (Digest.of(DATA), len(DATA), Digest.of(DATA))
    assert bytes_of(held) == DATA


BREAKS = {"cut": cut(100_000), "reset": reset(100_000)}


@pytest.mark.parametrize("how", sorted(BREAKS))
def test_a_broken_connection_is_continued(
    downloads: Downloads, places: FakePlaces, how: str
) -> None:
    breaks = BREAKS[how]
    places.fault("GET", "/files/", breaks, times=1)
    assert bytes_of(fetch(downloads, places)) == DATA
    first, second = places.find("GET", "/files/")
    assert "range" not in first.headers
    if second.headers.get("range"):  # a reset may take everything away that had come
        assert second.headers["if-range"].startswith('"')
    else:
        assert breaks is not BREAKS["cut"]


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(
    downloads: Downloads, places: FakePlaces
) -> None:
    places.fault("GET", "/files/", cut(100_000), times=1)
    count = iter(range(9))

    def change() -> None:
        if next(count) == 1:
            places.images["image"] = OTHER

    places.before("GET", "/files/", change)
    assert bytes_of(fetch(downloads, places)) == OTHER


def test_without_a_validator_nothing_is_continued(downloads: Downloads, places: FakePlaces) -> None:
    places.with_validators = False
    places.fault("GET", "/files/", cut(100_000), times=1)
    assert bytes_of(fetch(downloads, places)) == DATA
    assert asked(places) == ["", ""]


def test_a_server_that_ignores_ranges_sends_everything_again(
    downloads: Downloads, places: FakePlaces
) -> None:
    places.honours_ranges = False
    places.fault("GET", "/files/", cut(100_000), times=1)
    assert bytes_of(fetch(downloads, places)) == DATA


def test_a_server_that_answers_from_elsewhere_is_not_believed(
    downloads: Downloads, places: FakePlaces
) -> None:
    places.fault("GET", "/files/", cut(100_000), times=1)

    def shifted(reply: Reply) -> Reply:
        return Reply(206, {**reply.headers, "Content-Range": "bytes 5-9/512000"}, b"12345")

    places.fault("GET", "/files/", lambda r: shifted(r) if r.status == 206 else r, times=None)
    with pytest.raises(RemoteError, match="asked from byte"):
        fetch(downloads, places)


def test_a_file_that_became_shorter_is_fetched_anew(
    downloads: Downloads, places: FakePlaces
) -> None:
    places.fault("GET", "/files/", cut(400_000), times=1)
    places.fault("GET", "/files/", lambda r: Reply(416) if r.status == 206 else r, times=2)
    assert bytes_of(fetch(downloads, places)) == DATA
    assert asked(places)[-1] == ""


def test_a_server_that_always_breaks_is_given_up(downloads: Downloads, places: FakePlaces) -> None:
    places.fault("GET", "/files/", cut(10), times=None)
    with pytest.raises(RemoteError, match=r"broken connections\)"):
        fetch(downloads, places)


def test_a_body_of_unknown_length_is_taken_to_its_end(
    downloads: Downloads, places: FakePlaces
) -> None:
    places.fault("GET", "/files/", chunked(), times=None)
    assert bytes_of(fetch(downloads, places)) == DATA


@pytest.mark.parametrize("change", [None, chunked()], ids=["promised", "endless"])
def test_more_bytes_than_allowed_are_refused(
    tmp_path: Path, places: FakePlaces, change: Change | None
) -> None:
    if change is not None:
        places.fault("GET", "/files/", change, times=None)
    with RegistryClient(attempts=2, sleep=lambda _: None) as client, ExitStack() as stack:
        downloads = Downloads(client, stack, tmp_path, 1000)
        with pytest.raises(IntegrityError, match="more than 1000 bytes") as caught:
            fetch(downloads, places)
    assert "limits.layer_bytes" in caught.value.hint


ANSWERS: dict[str, tuple[Change, type[PublishError], str]] = {
    "404": (status(404), ImageNotFoundError, "answered 404"),
    "410": (status(410), ImageNotFoundError, "answered 410"),
    "401": (status(401), AccessDeniedError, "answered 401"),
    "403": (status(403), AccessDeniedError, "answered 403"),
    "429": (status(429, retry_after="100"), RateLimitedError, "too many requests"),
    "500": (status(500), RemoteError, "answered 500"),
    "a web page": (html(), RemoteError, "web page"),
    "a file": (redirect("file:///etc/passwd"), RemoteError, "no web address"),
    "a circle": (redirect("/files/image"), RemoteError, "redirects"),
}


@pytest.mark.parametrize("answer", sorted(ANSWERS))
def test_what_a_server_answers_is_told(
    downloads: Downloads, places: FakePlaces, answer: str
) -> None:
    change, error, message = ANSWERS[answer]
    places.fault("GET", "/files/", change, times=None)
    with pytest.raises(error, match=message):
        fetch(downloads, places)


def test_no_host_is_asked_without_tls_unless_it_is_this_one(downloads: Downloads) -> None:
    with pytest.raises(RemoteError, match="without TLS") as caught:
        downloads.fetch(lambda method: Request(method, "http://images.example.org/a.sif"), "it")
    assert "plain_http" in caught.value.hint


def test_what_proves_who_asks_does_not_follow_to_another_host(
    downloads: Downloads, places: FakePlaces
) -> None:
    secrets = {"Authorization": "Basic x", "X-Auth-Token": "t", "X-Auth-Key": "k"}
    with FakePlaces() as other:
        other.images["image"] = DATA
        places.fault("GET", "/files/", redirect(other.url_of("image")), times=None)
        downloads.fetch(lambda method: Request(method, places.url_of("image"), secrets), "it")
        (there,) = other.requests
        assert not {"authorization", "x-auth-token", "x-auth-key"} & there.headers.keys()
    assert places.requests[0].headers["x-auth-token"] == "t"


@pytest.mark.parametrize(
    ("change", "known"),
    [
        (lambda reply: reply, True),
        (with_header("ETag", 'W/"weak"'), False),
        (without_header("ETag"), False),
        (status(405), False),
        (status(403), False),
    ],
)
def test_the_state_is_what_a_validator_says(
    downloads: Downloads, places: FakePlaces, change: Change, known: bool
) -> None:
    places.fault("HEAD", "/files/", change, times=None)
    make: Callable[[str], Request] = lambda method: Request(method, places.url_of("image"))  # noqa: E731
    state = downloads.state(make, "it")
    assert bool(state) == known
    places.images["image"] = OTHER
    assert not known or downloads.state(make, "it") != state


def test_a_file_is_fetched_once_as_long_as_it_is_the_same(
    downloads: Downloads, places: FakePlaces
) -> None:
    def hold(state: str, top: Digest | None = None) -> HeldFile:
        return downloads.hold(
            "key", state, lambda method: Request(method, places.url_of("image")), "it", top
        )

    first = hold("1")
    assert hold("1") is first
    assert hold("", first.top) is first
    assert len(asked(places)) == 1
    assert hold("2") is not first
    assert hold("") is not first  # nothing says that it is the same
    assert len(asked(places)) == 3


def test_a_disk_of_ours_that_is_full_is_told_as_such(tmp_path: Path, places: FakePlaces) -> None:
    with RegistryClient(attempts=2, sleep=lambda _: None) as client, ExitStack() as stack:
        downloads = Downloads(client, stack, tmp_path / "none", 1 << 30)
        with pytest.raises(RepositoryError, match="cannot be kept there"):
            fetch(downloads, places)
