from __future__ import annotations

import hashlib
import http.server
import json
import os
import stat
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import InputError, IntegrityError, RemoteError
from cvmfs_publish.repository.native.http_origin import open_origin
from cvmfs_publish.repository.native.origin import MissingError, read
from cvmfs_publish.repository.native.reader import (
    Snapshot,
    browse_snapshot,
    iter_object,
    open_snapshot,
    read_object,
)
from cvmfs_publish.repository.native.signing import (
    SignatureError,
    fingerprint,
    self_signed_certificate,
)
from cvmfs_publish.repository.native.whitelist import ExpiredError
from tests.unit.native.vectors import NAMES, NOW, SHA1, Damaged, at, public_key, vector

HELLO = "plain/hello.txt"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a directory quietly; some names misbehave."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path.endswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/.cvmfspublished")
            self.end_headers()
        elif self.path.endswith("/broken"):
            self.send_error(500)
        elif self.path.endswith("/cut"):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"short")
        else:
            super().do_GET()


@contextmanager
def served(directory: Path) -> Iterator[str]:
    handler = partial(Handler, directory=os.fspath(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def snapshot() -> Iterator[Snapshot]:
    with open_snapshot(vector() / "repo", [public_key()], now=NOW) as opened:
        yield opened


@pytest.mark.parametrize("over_http", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_tree_is_what_a_real_client_shows(name: str, over_http: bool) -> None:
    expected = json.loads((vector(name) / "expected-tree.json").read_text())
    directory = vector(name) / "repo"
    with served(directory) as url:
        location = open_origin(url) if over_http else directory
        with open_snapshot(location, [public_key(name)], now=NOW, name=name) as snapshot:
            assert {f"/{row.path}" for row in snapshot.walk()} == {e["path"] for e in expected}
            for entry in expected:
                row = snapshot.lookup(entry["path"][1:])
                assert row is not None
                node = row.node
                assert (oct(node.mode), node.uid, node.gid, node.mtime) == (
                    entry["mode"],
                    entry["uid"],
                    entry["gid"],
                    entry["mtime"],
                )
                if node.is_file:
                    data = snapshot.read_file(row.path)
                    assert len(data) == entry["size"]
                    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
                if node.is_symlink:
                    assert node.target == entry["target"]
                if stat.S_ISCHR(node.mode):
                    assert node.device == os.makedev(*entry["rdev"])


def test_catalogs_come_with_parents_first_and_their_hashes(snapshot: Snapshot) -> None:
    lines = (vector() / "list-catalogs.txt").read_text().splitlines()
    expected = {line.split(" ")[2]: line.split(" ")[0] for line in lines}
    found = {"/" + prefix: str(ref.hash) for prefix, ref in snapshot.catalogs()}
    assert found == expected
    assert list(found) == ["/", "/nested", "/nested/inner"]


def test_directories_are_listed_across_catalogs(snapshot: Snapshot) -> None:
    assert [row.path for row in snapshot.listdir()] == ["big", "nested", "odd", "plain"]
    assert [row.path for row in snapshot.listdir("nested/inner")] == [
        "nested/inner/.cvmfscatalog",
        "nested/inner/sub",
        "nested/inner/up",
    ]
    assert [row.path for row in snapshot.walk("nested/inner")][-1] == "nested/inner/sub/file"
    for path in (HELLO, "nowhere", "nested/nowhere/at/all"):
        with pytest.raises(InputError, match="is no directory"):
            snapshot.listdir(path)
    assert snapshot.lookup("nested/inner/nowhere") is None
    assert snapshot.lookup("plain/rel-link/x") is None


def test_links_are_followed_only_by_resolve(snapshot: Snapshot) -> None:
    link = snapshot.lookup("plain/rel-link")
    assert link is not None
    assert link.node.is_symlink
    with pytest.raises(InputError, match="is no file"):
        snapshot.read_file("plain/rel-link")
    assert snapshot.resolve("plain/rel-link") == HELLO
    assert snapshot.resolve("plain/rel-link", follow_last=False) == "plain/rel-link"
    assert snapshot.resolve("nested/inner/up") == HELLO
    assert snapshot.resolve("plain/./deep//../new") == "plain/new"
    assert snapshot.resolve("plain/dangling") == "plain/nowhere"
    assert snapshot.resolve("plain/variant-link") == "plain/amd64"
    assert snapshot.resolve("plain/variant-link", variables={"CVMFS_ARCH": "arm64"}) == (
        "plain/arm64"
    )
    assert snapshot.resolve("plain/abs-link") is None
    assert snapshot.resolve("..") is None


def test_links_into_the_repository_by_mount_path_and_loops(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)
    repository.edit_catalog(
        "",
        f"UPDATE catalog SET symlink = '/cvmfs/{SHA1}/nested/inner' WHERE {at('/plain/abs-link')};"
        f"UPDATE catalog SET symlink = 'dangling' WHERE {at('/plain/dangling')};"
        f"UPDATE catalog SET symlink = '/cvmfs/{SHA1}x/a' WHERE {at('/plain/rel-link')};",
    )
    with browse_snapshot(repository.root) as snapshot:
        assert snapshot.resolve("plain/abs-link/sub/file") == "nested/inner/sub/file"
        assert snapshot.resolve("plain/dangling") is None
        assert snapshot.resolve("plain/rel-link") is None


def test_reading_is_limited(snapshot: Snapshot) -> None:
    assert len(snapshot.read_file(HELLO, limit=12)) == 12
    with pytest.raises(InputError, match="has 12 bytes, more than 11"):
        snapshot.read_file(HELLO, limit=11)


def test_the_chain_of_trust_is_verified_in_the_order_of_clients(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)

    def opened(**options: object) -> None:
        keys = options.pop("keys", [repository.public_key])
        values = {"now": NOW, "name": SHA1, **options}
        open_snapshot(repository.root, keys, **values).close()  # type: ignore[arg-type]

    opened()
    with pytest.raises(IntegrityError, match="not of 'other'"):
        opened(name="other")
    with pytest.raises(ExpiredError):
        opened(now=datetime(2046, 11, 15, 10, 0, tzinfo=UTC))
    with pytest.raises(SignatureError, match="none of the given"):
        opened(keys=[public_key(NAMES[1])])
    with pytest.raises(SignatureError, match="none of the given"):
        opened(keys=[])
    repository.rewrite_whitelist(lambda text: text.replace(b".org\n", b".org\nWcachain\n"))
    with pytest.raises(SignatureError, match="not supported"):
        opened()
    repository.rewrite_whitelist(
        lambda text: text.replace(b"Wcachain\n", b"").replace(b"71:36", b"71:37")
    )
    with pytest.raises(SignatureError, match="not on the whitelist"):
        opened()
    repository.sign(certificate=ContentHash.parse("5" * 40))
    with pytest.raises(MissingError):
        opened()
    repository.sign(certificate=None)
    with pytest.raises(SignatureError, match="names no certificate"):
        opened()
    repository.sign(root_path_hash="0" * 32)
    with pytest.raises(IntegrityError, match="field R"):
        opened()
    repository.sign(name="")
    with pytest.raises(IntegrityError, match="of repository ''"):
        opened(name=None)


def test_a_stolen_manifest_signed_by_another_certificate_is_refused(tmp_path: Path) -> None:
    """An attacker who can write to the storage, but has no key that the whitelist trusts."""
    repository = Damaged(tmp_path)
    key = repository.keys.private_key
    certificate = self_signed_certificate(key, SHA1, NOW)
    assert fingerprint(certificate) != fingerprint(repository.keys.certificate)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    repository.sign(certificate=repository.put(zlib.compress(pem), Suffix.CERTIFICATE))
    with pytest.raises(SignatureError, match="not on the whitelist"):
        open_snapshot(repository.root, [repository.public_key], now=NOW)


def test_damaged_objects_and_wrong_lengths_are_noticed(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)
    hello = f"/{HELLO}"
    for size, text in ((11, "more than 11"), (13, "has 12 bytes, promised 13")):
        repository.edit_catalog("", f"UPDATE catalog SET size = {size} WHERE {at(hello)}")
        with (
            browse_snapshot(repository.root) as snapshot,
            pytest.raises(IntegrityError, match=text),
        ):
            snapshot.read_file(HELLO)
    path = repository.object_file(repository.row_hash(hello), Suffix.DATA)
    good = path.read_bytes()
    for stored, text in (
        (good[:-1] + b"x", "object"),
        (good[:-1], "damaged"),
        (good + b"x", "bytes after"),
        (b"", "damaged"),
        (None, "missing"),
    ):
        path.unlink()
        if stored is not None:
            path.write_bytes(stored)
        with (
            browse_snapshot(repository.root) as snapshot,
            pytest.raises(IntegrityError, match=text),
        ):
            snapshot.read_file(HELLO)
        path.write_bytes(good)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        ("UPDATE chunks SET offset = 1 WHERE offset = 0", "starts at 1"),
        ("DELETE FROM chunks WHERE offset > 0", "chunks end at"),
        ("DELETE FROM chunks", "without chunks"),
        ("UPDATE chunks SET size = 5 WHERE offset = 0", "more than 5 bytes, promised 5"),
    ],
)
def test_chunks_must_cover_the_file(tmp_path: Path, edit: str, text: str) -> None:
    repository = Damaged(tmp_path)
    repository.edit_catalog("", edit)
    with browse_snapshot(repository.root) as snapshot, pytest.raises(IntegrityError, match=text):
        snapshot.read_file("big/chunked.bin")


def test_catalogs_must_be_what_their_parent_says(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)
    repository.edit_catalog("", "UPDATE nested_catalogs SET size = 5")
    with browse_snapshot(repository.root) as snapshot, pytest.raises(IntegrityError, match="5"):
        snapshot.lookup("nested/file")
    other = repository.catalog_hash("/nested/inner")
    repository.edit_catalog("", f"UPDATE nested_catalogs SET sha1 = '{other}', size = 0")
    with (
        browse_snapshot(repository.root) as snapshot,
        pytest.raises(IntegrityError, match="catalog of /nested/inner is mounted at /nested"),
    ):
        snapshot.lookup("nested/file")


def test_a_changed_manifest_is_noticed_even_without_keys(tmp_path: Path) -> None:
    repository = Damaged(tmp_path)
    data = repository.manifest_file.read_bytes()
    repository.manifest_file.write_bytes(data.replace(b"\nD240", b"\nD241"))
    with pytest.raises(SignatureError, match="hash line"):
        browse_snapshot(repository.root)


def test_servers_that_misbehave_are_remote_errors(tmp_path: Path) -> None:
    with served(tmp_path) as url:
        origin = open_origin(url)
        try:
            for name, text in (("moved", "302"), ("broken", "500"), ("cut", "cut")):
                with pytest.raises(RemoteError, match=text):
                    read(origin, name, 1000)
            with pytest.raises(MissingError, match="404"):
                read(origin, "nowhere", 1000)
            assert origin.size("nowhere") is None
        finally:
            origin.close()
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1"):
        open_snapshot(open_origin(url), [public_key()], now=NOW)
    with pytest.raises(InputError, match="http"):
        open_origin("ftp://example.org/x")


def test_files_are_read_up_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    origin = open_origin(tmp_path)
    assert read(origin, "file", 100) == b"x" * 100
    with pytest.raises(IntegrityError, match="more than 99"):
        read(origin, "file", 99)
    os.mkfifo(tmp_path / "fifo")
    for name in (".", "fifo"):
        with pytest.raises(MissingError, match="no regular file"):
            read(origin, name, 99)
        assert origin.size(name) is None
    (tmp_path / "empty").touch()
    assert read(origin, "empty", 0) == b""
    assert origin.size("file") == 100


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_objects_are_streamed_and_verified(tmp_path: Path, algorithm: HashAlgorithm) -> None:
    content = os.urandom(1000) * 5000
    origin = open_origin(tmp_path)
    for data, compressed in ((zlib.compress(content), True), (content, False)):
        value = ContentHash.of(data, algorithm)
        path = tmp_path / value.path(Suffix.DATA)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        pieces = list(iter_object(origin, value, Suffix.DATA, compressed=compressed))
        assert b"".join(pieces) == content
        assert max(map(len, pieces)) <= 1024 * 1024
        with pytest.raises(IntegrityError, match="more than 1000 bytes"):
            read_object(origin, value, Suffix.DATA, 1000, compressed=compressed)


def test_a_stream_that_ends_early_or_goes_on_is_refused(tmp_path: Path) -> None:
    """The hash is right, what was hashed is not a whole zlib stream."""
    whole = zlib.compress(os.urandom(3_000_000))
    origin = open_origin(tmp_path)
    pad = -len(whole) % (1024 * 1024)  # so that the rest comes in a piece of its own
    for data, text in (
        (whole[:-1], "cut short"),
        (whole + b"x", "bytes after"),
        (whole + bytes(pad) + b"x", "bytes after"),
        (b"x" * 100, "not a zlib stream"),
    ):
        value = ContentHash.of(data, HashAlgorithm.SHA1)
        path = tmp_path / value.path(Suffix.DATA)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=text):
            read_object(origin, value, Suffix.DATA, 10_000_000)


def test_a_bomb_is_cut_off_at_the_limit(tmp_path: Path) -> None:
    data = zlib.compress(bytes(200_000_000), 1)
    value = ContentHash.of(data, HashAlgorithm.SHA1)
    path = tmp_path / value.path(Suffix.CATALOG)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    pieces = 0
    with pytest.raises(IntegrityError, match="more than"):
        read_object(open_origin(tmp_path), value, Suffix.CATALOG, 1_000_000)
    for piece in iter_object(open_origin(tmp_path), value, Suffix.CATALOG):
        pieces += 1
        assert len(piece) <= 1024 * 1024
    assert pieces > 100


def test_many_objects_are_read_at_the_same_time_over_http(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create()
    texts = [b"%d" % number for number in range(200)]
    objects = [(ContentHash.of(text, HashAlgorithm.SHA1), Suffix.DATA) for text in texts]
    store.put_many([(text, *each) for text, each in zip(texts, objects, strict=True)])
    with served(tmp_path) as url:
        origin = open_origin(url)
        try:
            assert list(origin.read_many(objects)) == texts
            assert next(iter(origin.read_many(objects))) == texts[0]  # whoever stops early may
            (tmp_path / objects[150][0].path(Suffix.DATA)).write_bytes(b"x")
            with pytest.raises(IntegrityError, match="its hash differs"):
                list(origin.read_many(objects))
            (tmp_path / objects[150][0].path(Suffix.DATA)).unlink()
            with pytest.raises(MissingError, match="404"):
                list(origin.read_many(objects))
        finally:
            origin.close()
