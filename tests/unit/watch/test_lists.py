"""Wishlists from files, folders and web servers: what is read, what is kept, what is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cvmfs_publish import settings
from cvmfs_publish.config import Config
from cvmfs_publish.settings import MAX_FILE_BYTES
from cvmfs_publish.watch.lists import Loaded, Place, WishlistLoader, configured_places
from cvmfs_publish.watch.outbound import Outbound
from cvmfs_publish.watch.wishlist import Owner, Terms
from tests.fakes.web_server import WebServer, web_server

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LIST = b"version: 1\nimages: [debian:11, debian:12]\n"


@pytest.fixture
def outbound() -> Iterator[Outbound]:
    second = timedelta(seconds=1)
    with Outbound(read_timeout=second / 5, total_timeout=second / 2) as created:
        yield created


@pytest.fixture
def server() -> Iterator[WebServer]:
    with web_server() as running:
        running.body = LIST
        yield running


def loader(where: str | Path, tmp_path: Path, outbound: Outbound) -> WishlistLoader:
    return WishlistLoader([Place(where)], tmp_path / "state", outbound)


def one(loaded: list[Loaded]) -> Loaded:
    assert len(loaded) == 1
    return loaded[0]


def wished(loaded: Loaded) -> list[str]:
    assert loaded.wishlist is not None
    return [wish.tag for wish in loaded.wishlist.wishes]


# ---------------------------------------------------------------- files and folders


def test_a_file_is_read_with_the_terms_of_the_configuration(
    tmp_path: Path, outbound: Outbound
) -> None:
    path = tmp_path / "list.txt"
    path.write_text("debian:12\n")
    place = Place(path, Terms(owner=Owner("me"), priority=2))
    loaded = one(WishlistLoader([place], tmp_path / "state", outbound).load(NOW))
    assert (loaded.name, loaded.read_at, loaded.error) == (str(path), NOW, None)
    assert loaded.text == "debian:12\n"
    assert loaded.wishlist is not None
    (wish,) = loaded.wishlist.wishes
    assert (wish.place, wish.owner, wish.priority) == (f"{path}:1", "me", 2)


def test_the_places_of_a_configuration_are_paths_and_urls_with_their_terms() -> None:
    items = "[a.yaml, 'https://x/b', {from: c, owner: me, format: osg}]"
    text = f"repository: {{name: a.example.org}}\nwishlists: {items}"
    config = settings.parse(Config, text, "x")
    assert configured_places(config) == [
        Place(Path("a.yaml")),
        Place("https://x/b"),
        Place(Path("c"), Terms(owner=Owner("me")), "osg"),
    ]


def test_a_file_that_vanishes_counts_as_it_was_also_after_a_restart(
    tmp_path: Path, outbound: Outbound
) -> None:
    path = tmp_path / "list.yaml"
    path.write_bytes(LIST)
    assert wished(one(loader(path, tmp_path, outbound).load(NOW))) == ["11", "12"]
    path.unlink()
    loaded = one(loader(path, tmp_path, outbound).load(NOW + MINUTE))
    assert wished(loaded) == ["11", "12"]
    assert loaded.read_at == NOW
    assert "No such file" in str(loaded.error)
    path.write_bytes(LIST)
    loaded = one(loader(path, tmp_path, outbound).load(NOW + MINUTE))
    assert (loaded.read_at, loaded.error) == (NOW + MINUTE, None)


def test_a_file_that_was_never_there_is_an_error(tmp_path: Path, outbound: Outbound) -> None:
    loaded = one(loader(tmp_path / "no.yaml", tmp_path, outbound).load(NOW))
    assert (loaded.wishlist, loaded.read_at) == (None, None)
    assert loaded.error is not None
    assert loaded.error.exit_code == 2


def test_what_is_no_plain_file_is_an_error_and_not_waited_for(
    tmp_path: Path, outbound: Outbound
) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    loaded = one(loader(tmp_path / "pipe.txt", tmp_path, outbound).load(NOW))
    assert "is no plain file" in str(loaded.error)


def test_a_file_that_is_too_large_is_an_error(tmp_path: Path, outbound: Outbound) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    assert "larger than" in str(one(loader(path, tmp_path, outbound).load(NOW)).error)


def test_the_lists_of_a_folder_are_read_and_nothing_else_in_it(
    tmp_path: Path, outbound: Outbound
) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "b.yaml").write_bytes(LIST)
    (folder / "a.txt").write_text("debian:10\n")
    for other in (".hidden.yaml", "README.md", "a.txt~", "~a.txt", "#a.txt"):
        (folder / other).write_text("A\n")
    (folder / "sub.yaml").mkdir()
    os.mkfifo(folder / "pipe.yaml")
    loaded = loader(folder, tmp_path, outbound).load(NOW)
    assert [each.name for each in loaded] == [str(folder / "a.txt"), str(folder / "b.yaml")]
    assert [wished(each) for each in loaded] == [["10"], ["11", "12"]]


def test_a_folder_that_is_empty_for_once_takes_no_wish_away(
    tmp_path: Path, outbound: Outbound
) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "a.yaml").write_bytes(LIST)
    reader = loader(folder, tmp_path, outbound)
    reader.load(NOW)
    (folder / "a.yaml").unlink()
    loaded = one(reader.load(NOW))
    assert (loaded.name, wished(loaded)) == (str(folder / "a.yaml"), ["11", "12"])
    assert "there is no wishlist in this folder" in str(loaded.error)


def test_one_place_that_fails_does_not_stop_the_others(tmp_path: Path, outbound: Outbound) -> None:
    path = tmp_path / "list.yaml"
    path.write_bytes(LIST)
    places = [Place("http://127.0.0.1:1/x"), Place(tmp_path / "no.yaml"), Place(path)]
    loaded = WishlistLoader(places, tmp_path / "state", outbound).load(NOW)
    assert [each.error is None for each in loaded] == [False, False, True]
    assert wished(loaded[2]) == ["11", "12"]


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"{\xff", b"[" * 100_000])
def test_a_damaged_copy_is_read_anew(tmp_path: Path, outbound: Outbound, damage: bytes) -> None:
    path = tmp_path / "list.yaml"
    path.write_bytes(LIST)
    loader(path, tmp_path, outbound).load(NOW)
    (copy,) = (tmp_path / "state").glob("*.json")
    copy.write_bytes(damage)
    assert one(loader(path, tmp_path, outbound).load(NOW)).error is None


def test_a_full_disk_costs_only_the_copy(
    tmp_path: Path, outbound: Outbound, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "list.yaml"
    path.write_bytes(LIST)
    (tmp_path / "state").write_text("a file where the folder should be")
    loaded = one(loader(path, tmp_path, outbound).load(NOW))
    assert wished(loaded) == ["11", "12"]
    assert "cannot be kept" in caplog.text


def test_bytes_that_are_no_text_survive_the_copy(tmp_path: Path, outbound: Outbound) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"debian:11\n\xff\n")
    first = one(loader(path, tmp_path, outbound).load(NOW))
    path.unlink()
    assert one(loader(path, tmp_path, outbound).load(NOW)).wishlist == first.wishlist


# ---------------------------------------------------------------- web servers


@pytest.mark.slow
def test_a_list_on_a_web_server_is_fetched_only_if_it_has_changed(
    tmp_path: Path, outbound: Outbound, server: WebServer
) -> None:
    server.etag = '"one"'
    url = f"{server.url}/list.yaml?ref=main"
    assert wished(one(loader(url, tmp_path, outbound).load(NOW))) == ["11", "12"]
    again = one(loader(url, tmp_path, outbound).load(NOW + MINUTE))
    assert (wished(again), again.read_at, again.error) == (["11", "12"], NOW + MINUTE, None)
    assert [asked.headers.get("if-none-match") for asked in server.asked] == [None, '"one"']
    assert {asked.path for asked in server.asked} == {"/list.yaml?ref=main"}
    server.etag, server.body = '"two"', b"version: 1\nimages: [debian:13]\n"
    assert wished(one(loader(url, tmp_path, outbound).load(NOW))) == ["13"]


@pytest.mark.slow
def test_a_server_without_etag_is_asked_by_date(
    tmp_path: Path, outbound: Outbound, server: WebServer
) -> None:
    server.headers["Last-Modified"] = "Sun, 29 Nov 2026 10:00:00 GMT"
    reader = loader(server.url, tmp_path, outbound)
    reader.load(NOW)
    reader.load(NOW)
    assert server.asked[1].headers["if-modified-since"] == "Sun, 29 Nov 2026 10:00:00 GMT"


@pytest.mark.slow
def test_no_login_is_sent_to_anybody(
    tmp_path: Path, outbound: Outbound, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.headers["Set-Cookie"] = "session=secret"
    reader = loader(server.url, tmp_path, outbound)
    reader.load(NOW)
    reader.load(NOW)
    assert not any("secret" in str(asked.headers) for asked in server.asked)


FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"status": 404}, "answered 404"),
    "server error": ({"status": 500}, "answered 500"),
    "nothing new for whom it is new": ({"status": 304}, "answered 304"),
    "web page": ({"headers": {"Content-Type": "text/html; charset=utf-8"}}, "is a web page"),
    "web page as text": ({"body": b"<!DOCTYPE html><html></html>"}, "is a web page"),
    "nothing": ({"body": b""}, "no image is named any more"),
    "half a list": ({"body": b"version: 1\nimages: [debian:11, deb"}, "not valid YAML"),
    "too much": ({"body": b"a" * (MAX_FILE_BYTES + 1)}, "has more than"),
    "cut short": ({"claim": 10}, "IncompleteRead"),
    "packed": ({"headers": {"Content-Encoding": "gzip"}}, "which was not asked for"),
    "hangs": ({"pause": 5.0}, "timed out"),
    "trickles": ({"piece": 1, "pause": 0.05}, "is not read within"),
    "to a file": ({"status": 302, "headers": {"Location": "file:///etc/passwd"}}, "no web address"),
    "to itself": ({"status": 302, "headers": {"Location": "/x"}}, "more than 5 redirects"),
    "to nowhere": ({"status": 302}, "no web address"),
}


@pytest.mark.slow
@pytest.mark.parametrize("failure", FAILURES)
def test_a_web_server_that_fails_takes_no_wish_away(
    tmp_path: Path, outbound: Outbound, server: WebServer, failure: str
) -> None:
    reader = loader(server.url, tmp_path, outbound)
    assert one(reader.load(NOW)).error is None
    changes, message = FAILURES[failure]
    for name, value in changes.items():
        setattr(server, name, value)
    loaded = one(reader.load(NOW + MINUTE))
    assert wished(loaded) == ["11", "12"]
    assert loaded.read_at == NOW
    assert message in str(loaded.error)
    # and nothing of it is remembered
    server.__dict__.update(WebServer(url=server.url, body=LIST, asked=server.asked).__dict__)
    loaded = one(loader(server.url, tmp_path, outbound).load(NOW + 2 * MINUTE))
    assert (wished(loaded), loaded.error) == (["11", "12"], None)


@pytest.mark.slow
@pytest.mark.parametrize("failure", sorted(FAILURES.keys() - {"nothing"}))
def test_a_web_server_that_fails_from_the_start_is_an_error(
    tmp_path: Path, outbound: Outbound, server: WebServer, failure: str
) -> None:
    changes, message = FAILURES[failure]
    for name, value in changes.items():
        setattr(server, name, value)
    loaded = one(loader(server.url, tmp_path, outbound).load(NOW))
    assert message in str(loaded.error)
    assert loaded.wishlist is None or loaded.wishlist.wishes == ()


@pytest.mark.slow
def test_a_redirect_is_followed(tmp_path: Path, outbound: Outbound, server: WebServer) -> None:
    with web_server() as other:
        other.status, other.headers = 301, {"Location": f"{server.url}/moved"}
        assert wished(one(loader(other.url, tmp_path, outbound).load(NOW))) == ["11", "12"]


@pytest.mark.slow
def test_a_list_that_loses_more_than_half_is_held_also_across_restarts(
    tmp_path: Path, outbound: Outbound, server: WebServer
) -> None:
    server.etag, server.body = '"a"', b"".join(b"a/b%d:1\n" % number for number in range(20))
    loader(server.url, tmp_path, outbound).load(NOW)
    server.etag, server.body = '"b"', b"a/b0:1\na/new:1\n"
    for hours in (1, 12, 24):
        loaded = one(loader(server.url, tmp_path, outbound).load(NOW + timedelta(hours=hours)))
        assert len(wished(loaded)) == 21
        assert "19 of 20 images are gone" in str(loaded.error)
    loaded = one(loader(server.url, tmp_path, outbound).load(NOW + timedelta(hours=25)))
    assert (len(wished(loaded)), loaded.error) == (2, None)
    server.asked.clear()
    loader(server.url, tmp_path, outbound).load(NOW + timedelta(hours=26))
    assert server.asked[0].headers["if-none-match"] == '"b"'
