"""A repository over HTTP: exactly its own files, with the headers clients and proxies expect."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.web.server import create_server
from cvmfs_publish.web.static import Span, file_routes, parse_range, read_manifest

SHARED = Path(__file__).parents[4] / "shared"
VECTORS = SHARED / "vectors" / "vectors.example.org"
NAME = "vectors.example.org"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with things beside it, and in it, that must stay private."""
    folder = tmp_path_factory.mktemp("served") / "repository"
    shutil.copytree(VECTORS / "repo", folder)
    for directory, _, _ in os.walk(folder):
        os.chmod(directory, 0o755)
    secret = folder.parent / "secret"
    secret.write_text("secret")
    (folder / "data" / "txn").mkdir(exist_ok=True)
    (folder / "data" / "txn" / ("a" * 38)).write_text("secret")
    (folder / "data" / "00").mkdir(exist_ok=True)
    (folder / "data" / "00" / ("b" * 38)).symlink_to(secret)
    (folder / "data" / "00" / ("c" * 38)).mkdir()
    os.mkfifo(folder / "data" / "00" / ("d" * 38))
    (folder / "data" / "00" / ("e" * 38)).write_bytes(b"")
    (folder / "data" / "01").symlink_to(folder / "data" / "txn")
    (folder / "data" / "00" / ("f" * 38)).write_bytes(big_content())
    (folder / ".cvmfs_keys").write_text("secret")
    (folder / "keys").mkdir()
    (folder / "keys" / f"{NAME}.key").write_text("secret")
    (folder / ".cvmfs_last_snapshot").symlink_to(secret)
    return folder


def big_content() -> bytes:
    """Several pieces, none like another, the last one short."""
    return b"".join(hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(30_001))


BIG = "data/00/" + "f" * 38
EMPTY = "data/00/" + "e" * 38


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = Starlette(routes=file_routes(NAME, folder))
        app.router.redirect_slashes = False  # as `create_app` has it
        server = create_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        host, port = listener.getsockname()
        while not server.started:
            time.sleep(0.01)
        yield host, port
        server.should_exit = True
        thread.join()


class Answer:
    """What came back: status, headers in lower case, body."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()


class Client:
    """Sends paths as they are: nothing is normalised on the way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=20)

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        self._connection.putrequest(method, path, skip_host=False)
        for name, value in headers.items():
            self._connection.putheader(name.replace("_", "-"), value)
        self._connection.endheaders()
        return Answer(self._connection.getresponse())

    def file(self, path: str, method: str = "GET", **headers: str) -> Answer:
        return self.ask(f"/cvmfs/{NAME}/{path}", method, **headers)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def client(address: tuple[str, int]) -> Iterator[Client]:
    client = Client(address)
    yield client
    client.close()


META = [".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog", ".cvmfs_master_replica"]


@pytest.mark.parametrize("name", [*META, ".cvmfs_status.json"])
def test_what_changes_is_cached_for_a_minute(client: Client, name: str) -> None:
    answer = client.file(name)
    assert answer.status == 200
    assert answer.body == (VECTORS / "repo" / name).read_bytes()
    assert answer.headers["content-type"] == "application/x-cvmfs"
    assert answer.headers["cache-control"] == "max-age=61"


def test_every_object_is_served_as_it_is_and_cached_for_days(client: Client) -> None:
    objects = [path for path in sorted((VECTORS / "repo" / "data").rglob("*")) if path.is_file()]
    assert len(objects) > 20
    for path in objects:
        answer = client.file(str(path.relative_to(VECTORS / "repo")))
        assert (answer.status, answer.body) == (200, path.read_bytes())
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["cache-control"] == "max-age=259200"


def test_nothing_invites_comparing_times_or_tags(client: Client) -> None:
    for path in [".cvmfspublished", BIG]:
        headers = client.file(path).headers
        assert not {"last-modified", "etag", "content-encoding", "server"} & headers.keys()
        conditional = client.file(path, If_Modified_Since="Fri, 31 Dec 2100 23:59:59 GMT")
        assert conditional.status == 200
        assert client.file(path, If_None_Match="*").status == 200


def test_head_says_the_size_and_sends_nothing(client: Client) -> None:
    for path in [".cvmfspublished", BIG, EMPTY]:
        whole, head = client.file(path), client.file(path, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.body))
        assert {k: v for k, v in head.headers.items() if k != "date"} == {
            k: v for k, v in whole.headers.items() if k != "date"
        }
    assert client.file("data/00/" + "0" * 38, "HEAD").status == 404


def test_large_and_empty_objects_arrive_whole(client: Client) -> None:
    assert client.file(BIG).body == big_content()
    assert client.file(EMPTY).body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
def test_nothing_can_be_changed(client: Client, method: str) -> None:
    assert client.file(".cvmfspublished", method).status == 405


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "data",
        "data/",
        "data/00",
        "data/00/",
        "data/txn/" + "a" * 38,
        "data/01/" + "a" * 38,  # through a linked folder
        "data/00/" + "b" * 38,  # a link
        "data/00/" + "c" * 38,  # a folder
        "data/00/" + "d" * 38,  # a FIFO
        "data/00/" + "9" * 38,  # absent
        "data/00/" + "9" * 300,
        "data/00/" + "e" * 38 + "/",
        "data/00/" + "e" * 38 + "%0a",
        "data/00/" + "e" * 38 + "%00",
        "data/00/" + "E" * 38,
        "data/00/" + "e" * 38 + "Z",
        "/data/00/" + "e" * 38,
        "data//00/" + "e" * 38,
        "data/../.cvmfspublished",
        "%2e%2e/secret",
        "..%2fsecret",
        "../secret",
        "data/../../secret",
        "keys/" + NAME + ".key",
        ".cvmfs_keys",
        ".cvmfs_last_snapshot",
        ".cvmfspublished/",
        ".cvmfspublished%20",
        ".CVMFSPUBLISHED",
        "%ff%fe",
    ],
)
def test_everything_else_is_absent(client: Client, path: str) -> None:
    for method in ("GET", "HEAD"):
        answer = client.file(path, method)
        assert answer.status == 404, path
        assert b"secret" not in answer.body
        assert "location" not in answer.headers


@pytest.mark.parametrize(
    "path",
    ["/cvmfs/other.example.org/.cvmfspublished", "/.cvmfspublished", "/cvmfs", "/etc/passwd"],
)
def test_only_this_repository_is_there(client: Client, path: str) -> None:
    assert client.ask(path).status == 404


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=100-", 100, 960_032),
        ("bytes=-7", 960_025, 960_032),
        ("bytes=-99999999", 0, 960_032),
        ("bytes=5-99999999", 5, 960_032),
        ("bytes=0-700000", 0, 700_001),
    ],
)
def test_a_range_is_answered_with_that_part(
    client: Client, asked: str, start: int, stop: int
) -> None:
    answer = client.file(BIG, Range=asked)
    assert answer.status == 206
    assert answer.body == big_content()[start:stop]
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/960032"
    assert answer.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize("asked", ["bytes=960032-", "bytes=999999999-9999999999", "bytes=-0"])
def test_a_range_outside_the_file_is_refused(client: Client, asked: str) -> None:
    answer = client.file(BIG, Range=asked)
    assert answer.status == 416
    assert answer.headers["content-range"] == "bytes */960032"


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "bytes=7-3", "items=0-1", "bytes=-", "bytes=x"])
def test_ranges_that_need_not_be_understood_are_ignored(client: Client, asked: str) -> None:
    answer = client.file(BIG, Range=asked)
    assert (answer.status, len(answer.body)) == (200, 960_032)


def test_a_conditional_range_never_matches_since_there_are_no_validators(client: Client) -> None:
    assert client.file(BIG, Range="bytes=0-1", If_Range='"x"').status == 200


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 1000))
def test_a_range_is_never_larger_than_the_file(first: int, last: int, size: int) -> None:
    for text in (f"bytes={first}-{last}", f"bytes={first}-", f"bytes=-{last}"):
        span = parse_range(text, size)
        if span is not None and span.size:
            assert 0 <= span.start < span.stop <= size
    assert parse_range(f"bytes={first}-{first}", first + 1) == Span(first, first + 1)


def test_many_clients_are_answered_at_once(address: tuple[str, int]) -> None:
    answers: list[bytes] = []

    def fetch() -> None:
        client = Client(address)
        answers.append(client.file(BIG).body)
        client.close()

    threads = [threading.Thread(target=fetch) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [big_content()] * 20


def test_a_client_that_hangs_up_costs_nothing_but_its_own_answer(
    address: tuple[str, int], client: Client
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with socket.create_connection(address) as connection:
            connection.sendall(f"GET /cvmfs/{NAME}/{BIG} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            connection.recv(10)
    assert client.file(".cvmfspublished").status == 200
    deadline = time.monotonic() + 20
    while len(os.listdir("/proc/self/fd")) > before + 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_manifest_that_is_none_is_told(folder: Path) -> None:
    manifest = folder / ".cvmfspublished"
    content = manifest.read_bytes()
    manifest.unlink()
    try:
        with pytest.raises(RepositoryError, match="cannot be read: No such file"):
            read_manifest(NAME, folder)
        manifest.write_bytes(b"Cnonsense\n")
        with pytest.raises(RepositoryError):
            read_manifest(NAME, folder)
    finally:
        manifest.write_bytes(content)
    assert read_manifest(NAME, folder).revision == 3


def test_another_repositorys_folder_is_refused(folder: Path) -> None:
    with pytest.raises(RepositoryError, match=r"belongs to 'vectors\.example\.org', expected 'x'"):
        read_manifest("x", folder)


@pytest.mark.slow
def test_the_independent_checker_accepts_what_is_served(address: tuple[str, int]) -> None:
    host, port = address
    process = subprocess.run(
        [
            sys.executable,
            str(SHARED / "tools" / "cvmfs_check.py"),
            "--public-key",
            str(VECTORS / "keys" / f"{NAME}.pub"),
            f"http://{host}:{port}/cvmfs/{NAME}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "0 errors, 0 warnings" in process.stdout
