"""In which order clients use replicas: as one of these tells, if what it tells makes sense."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cvmfs_publish.errors import IntegrityError, RemoteError
from cvmfs_publish.replicas import Nearness, Observer, Target, ask_order, http_target, parse_order
from cvmfs_publish.repository.native.http_origin import HttpOrigin, Route
from tests.stratum1 import Stratum1, World
from tests.support import NAME

# Where servers are, on a line; whoever asks is at 0 unless the first part of the request is known.
PLACES = {"near.example.org": 1.0, "far.example.org": 9.0, "middle.example.org": 4.0}


@dataclass
class GeoServer:
    """A Stratum 1 on the web, with the service of cvmfs/webapi/cvmfs_geo.py."""

    folder: Path
    places: dict[str, float] = field(default_factory=lambda: dict(PLACES))
    answer: Callable[[str, list[str]], tuple[int, bytes]] | None = None
    asked: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/cvmfs/{NAME}"

    def sort(self, caller: str, hosts: list[str]) -> tuple[int, bytes]:
        """Sort as the service does: numbers from 1, unknown servers last, 400 if all are."""
        if self.answer is not None:
            return self.answer(caller, hosts)
        here = self.places.get(caller, 0.0)
        if not any(host in self.places for host in hosts):
            return 400, b"Bad Request: no server addr found in database\n"
        distances = [abs(self.places.get(host, float("inf")) - here) for host in hosts]
        order = sorted(range(len(hosts)), key=lambda number: distances[number])
        return 200, ",".join(str(number + 1) for number in order).encode() + b"\n"


@contextmanager
def geo_server(folder: Path) -> Iterator[GeoServer]:
    state = GeoServer(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            name = self.path.removeprefix(f"/cvmfs/{NAME}/")
            if name.startswith("api/v1.0/geo/"):
                state.asked.append(name)
                caller, _, hosts = name.removeprefix("api/v1.0/geo/").partition("/")
                code, data = state.sort(caller, hosts.split(","))
            elif (state.folder / name).is_file():
                code, data = 200, (state.folder / name).read_bytes()
            else:
                code, data = 404, b""
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def named(*hosts: str) -> list[str]:
    return [f"http://{host}:8000/cvmfs/{NAME}" for host in hosts]


ALL = named("far.example.org", "near.example.org", "middle.example.org")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GeoServer]:
    with geo_server(tmp_path) as found:
        yield found


def test_replicas_are_sorted_from_the_nearest_to_the_farthest(server: GeoServer) -> None:
    order = ask_order(http_target(server.url), ALL)
    assert order == tuple(named("near.example.org", "middle.example.org", "far.example.org"))
    assert server.asked == ["api/v1.0/geo/x/far.example.org,near.example.org,middle.example.org"]


def test_the_place_of_the_proxy_counts_if_there_is_one(server: GeoServer) -> None:
    server.places["squid.example.net"] = 9.5
    target = Target(
        server.url, lambda: HttpOrigin(server.url, Route()), None, "http://squid.example.net:3128"
    )
    assert ask_order(target, ALL)[0] == ALL[0]
    assert server.asked[0].startswith("api/v1.0/geo/squid.example.net/")


def test_a_server_that_the_service_does_not_know_comes_last(server: GeoServer) -> None:
    del server.places["near.example.org"]
    assert ask_order(http_target(server.url), ALL)[-1] == ALL[1]


@pytest.mark.parametrize(
    "data",
    [
        b"1,2",
        b"1,2,2",
        b"0,1,2",
        b"1,2,4",
        b"1,2,3,4",
        b"",
        b"1, 2,3",
        b"<html>",
        b"1;2;3",
        b"-1,2,3",
        b"1,,3",
        b"1,2,\xb3",
    ],
)
def test_what_is_no_order_is_refused(server: GeoServer, data: bytes) -> None:
    assert parse_order(data, 3) is None
    server.answer = lambda _, __: (200, data)
    with pytest.raises(IntegrityError, match="instead of an order of 3 replicas"):
        ask_order(http_target(server.url), ALL)


def test_a_long_answer_is_not_read_to_its_end(server: GeoServer) -> None:
    server.answer = lambda _, __: (200, b"1," * 10_000)
    with pytest.raises(IntegrityError, match="more than"):
        ask_order(http_target(server.url), ALL)


@pytest.mark.parametrize("code", [400, 404, 500])
def test_who_has_no_such_service_says_so(server: GeoServer, code: int) -> None:
    server.answer = lambda _, __: (code, b"<html>")
    with pytest.raises(RemoteError):
        ask_order(http_target(server.url), ALL)


# which replicas are asked


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


def observed(world: World, *servers: GeoServer, seconds: float = 20.0) -> Nearness:
    observer = world.observer()
    observer = Observer(
        observer.source, [http_target(server.url) for server in servers], seconds=seconds
    )
    return observer.sort(observer.look(world.now))


def everywhere(strata: list[Stratum1]) -> list[Path]:
    return [stratum.folder for stratum in strata]


def test_the_next_one_is_asked_when_one_answers_nonsense(world: World) -> None:
    one, two = everywhere(world.add(2))
    with geo_server(one) as first, geo_server(two) as second:
        first.answer = lambda _, __: (200, b"<html>")
        second.answer = lambda _, __: (200, b"2,1\n")
        found = observed(world, first, second)
        assert found.told_by == second.url
        assert (found.rank(first.url), found.rank(second.url)) == (2, 1)
        assert found.rank("http://other") is None


def test_one_that_cannot_be_mounted_is_not_asked(world: World) -> None:
    one, two = everywhere(world.add(2))
    (one / ".cvmfspublished").write_bytes(b"")
    with geo_server(one) as first, geo_server(two) as second:
        first.answer = second.answer = lambda _, __: (200, b"1,2\n")
        assert observed(world, first, second).told_by == second.url
        assert first.asked == []


def test_nobody_tells(world: World) -> None:
    one, two = everywhere(world.add(2))
    with geo_server(one) as first, geo_server(two) as second:
        first.answer = lambda _, __: (404, b"")
        second.answer = lambda _, __: (400, b"no server addr found in database\n")
        found = observed(world, first, second)
        assert found.urls == ()
        assert "does not sort replicas" in found.problem
        assert "server answered 400" in found.problem
    (one / ".cvmfspublished").write_bytes(b"")
    with geo_server(one) as first:
        assert observed(world, first).problem == "no replica can be mounted"


def test_one_that_never_ends_its_answer_is_left_alone(world: World) -> None:
    (folder,) = everywhere(world.add())
    release = threading.Event()

    def hang(_: str, __: list[str]) -> tuple[int, bytes]:
        release.wait()
        return 200, b"1\n"

    with geo_server(folder) as server:
        server.answer = hang
        try:
            found = observed(world, server, seconds=2.0)
        finally:
            release.set()
    assert "no whole answer within 2 seconds" in found.problem
