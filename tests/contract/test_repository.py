"""What every repository promises, kept by each backend; `BACKENDS` is the list.

Source: `cvmfs_publish/repository/base.py`.
"""

from __future__ import annotations

import io
import shutil
import stat
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from cvmfs_publish.config import RepositoryConfig
from cvmfs_publish.content.hashes import HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import InputError, LockedError, RepositoryError
from cvmfs_publish.layers.tree import Chunk, Content, Directory, Node, Tree, empty_tree, node_of
from cvmfs_publish.layers.treedigest import summarise_tree
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import Dated, Repository, Searchable, Transaction, Walkable
from cvmfs_publish.repository.directory import DirectoryRepository
from cvmfs_publish.repository.gateway import GatewayTransaction
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM
from cvmfs_publish.repository.names import pin, read_history, rollback, unpublish
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.repository.records import iter_publications, read_publication
from cvmfs_publish.repository.removal import apply_removals, plan_removals
from tests import versions
from tests.gateway_world import World, stand_in
from tests.stock_host import RealHost, StockHost, real_host_or_none
from tests.support import NAME, keys_of_this_run
from tests.versions import at, image_id, leads_to, sandbox

Opener = Callable[[], Repository]  # each call opens the same repository again

IMAGE = "ghcr.io/a/b:1"
REFERENCE = Reference.parse(IMAGE)
START = int(at(0).timestamp())
DAY = 86_400  # seconds


def open_native(base: Path) -> Opener:
    shutil.copytree(keys_of_this_run(), base / "keys")

    def opener() -> NativeRepository:
        return NativeRepository(NAME, LocalStore(base / "repository"), base / "keys")

    opener().create(HashAlgorithm.SHA1, at(0))
    return opener


def open_directory(base: Path) -> Opener:
    def opener() -> DirectoryRepository:
        return DirectoryRepository(NAME, base / "repository", LocalStore(base / "spool"))

    opener().create(at(0))
    return opener


def open_server(base: Path) -> Opener:
    host = StockHost(base / "host", START)
    return host.repository


def open_gateway(base: Path) -> Opener:
    host = World(base / "world", stand_in(), START).host("a")
    return host.repository


BACKENDS: dict[str, Callable[[Path], Opener]] = {
    "native": open_native,
    "directory": open_directory,
    "cvmfs_server": open_server,
}
# The same backend, where the repository is behind a gateway.
KINDS = BACKENDS | {"gateway": open_gateway}

PARAMETERS = [
    pytest.param(kind, marks=[] if kind == "directory" else pytest.mark.slow)
    for kind in sorted(KINDS)
]


@pytest.fixture(scope="module")
def real() -> Iterator[RealHost | None]:
    """The real `cvmfs_server` where it can be used: one repository, emptied for each test."""
    with real_host_or_none() as made:
        yield made


@pytest.fixture(params=PARAMETERS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    if request.param == "cvmfs_server":
        host: RealHost | None = request.getfixturevalue("real")
        if host is not None:
            return host.fresh(tmp_path / "state", START)
    return KINDS[request.param](tmp_path)


@pytest.fixture
def repository(opener: Opener) -> Repository:
    return opener()


def a_tree(transaction: Transaction, text: bytes = b"content") -> Tree:
    """Return a tree with every kind of entry an image may have."""

    def file(data: bytes, mode: int = 0o644, **values: Any) -> Node:  # noqa: ANN401
        content = transaction.store(data)
        return Node(stat.S_IFREG | mode, size=len(data), content=content, **values)

    def link(target: str) -> Node:
        return Node(stat.S_IFLNK | 0o777, mtime=5, target=target)

    tree = empty_tree()
    below = Directory(Node(stat.S_IFDIR | 0o750, uid=3, gid=4, mtime=1_000_000_000))
    below.children = {
        "program": file(text, 0o755, uid=5, gid=6, mtime=1_500_000_000, mtime_ns=123_456_789),
        "a\nb\udcff": file(b"strange name", mtime=-1),
        "pipe": Node(stat.S_IFIFO | 0o600, mtime=7),
        "empty": Directory(Node(stat.S_IFDIR | 0o755)),
    }
    tree.root.children = {
        "bin": below,
        "same": file(text, 0o755, uid=5, gid=6, mtime=1_500_000_000, mtime_ns=123_456_789),
        "other time": file(text, 0o755, uid=5, gid=6, mtime=1),
        "link": link("bin/program"),
        "out": link("/etc/passwd"),
        "up": link("../../../../../../../../etc"),
        "nothing": file(b""),
    }
    if isinstance(transaction, GatewayTransaction):  # which refuses what a gateway drops
        del below.children["pipe"]
    return tree


def put_tree(repository: Repository, path: str, text: bytes = b"content", day: float = 1) -> Tree:
    with repository.transaction(int(at(day).timestamp())) as transaction:
        tree = a_tree(transaction, text)
        transaction.make_directories(path.rpartition("/")[0])
        transaction.put_tree(path, tree)
        digest = summarise_tree(tree).digest
        assert transaction.tree_difference(path, tree, digest) == ""
        assert transaction.tree_digest(path) == digest
    return tree


def publish(repository: Repository, version: str, name: str = IMAGE, day: float = 1) -> None:
    with repository.transaction(int(at(day).timestamp())) as transaction:
        versions.put(transaction, name, version, at(day))


# revisions


def test_a_new_repository_is_at_revision_one_and_empty(repository: Repository) -> None:
    assert repository.revision().number == 1
    assert repository.revision().timestamp == START
    assert repository.algorithm() is HashAlgorithm.SHA1
    with repository.open() as view:
        assert view.list_names("") == []
        assert view.is_directory("")


def test_a_transaction_makes_all_its_changes_visible_in_one_revision(opener: Opener) -> None:
    repository = opener()
    with opener().open() as before, repository.transaction(START + 10) as transaction:
        assert transaction.revision == 2
        transaction.make_directories("a/b", ["a"])
        transaction.put_file("a/b/f", b"1")
        transaction.put_symlink("a/l", "b/f")
        assert transaction.read_file("a/b/f") == b"1"
        assert transaction.read_symlink("a/l") == "b/f"
        assert transaction.is_directory("a/b")
        assert [name for name, _ in transaction.list_names("a") if name[0] != "."] == ["b", "l"]
        assert before.read_file("a/b/f") is None
        assert opener().revision().number == 1
    found = opener().revision()
    assert (found.number, found.timestamp) == (2, START + 10)
    with opener().open() as view:
        assert view.read_file("a/b/f") == b"1"
        assert view.read_symlink("a/l") == "b/f"
        assert view.read_file("a/l") is None
        assert view.read_symlink("a/b") is None
        assert view.read_file("a/b") is None
        assert view.read_file("a/b/f/g") is None
        assert view.list_names("a/b/f") == []
        assert [each for each in view.list_names("a") if each[0][0] != "."] == [
            ("b", True),
            ("l", False),
        ]


def test_each_revision_has_another_hash(repository: Repository) -> None:
    hashes = {repository.revision().root_hash}
    for number, data in enumerate((b"1", b"2", b"1")):
        with repository.transaction(START + number) as transaction:
            transaction.put_file("f", data)
        hashes.add(repository.revision().root_hash)
    assert len(hashes) == 4


def test_a_block_that_changes_nothing_publishes_nothing(repository: Repository) -> None:
    with repository.transaction(START) as transaction:
        transaction.make_directories("a")
        transaction.put_file("a/f", b"1")
        transaction.put_symlink("a/l", "f")
    before = repository.revision()
    with repository.transaction(START + 10) as transaction:
        transaction.make_directories("a")
        transaction.put_file("a/f", b"1")
        transaction.put_symlink("a/l", "f")
        transaction.remove("a/none")
        transaction.remove("none/at/all")
    assert repository.revision() == before


def test_a_block_that_raises_changes_nothing(repository: Repository) -> None:
    put_tree(repository, "d/t")
    before = repository.revision()
    with pytest.raises(ZeroDivisionError), repository.transaction(START + DAY) as transaction:
        transaction.put_file("f", b"1")
        transaction.remove("d/t")
        transaction.put_tree("d/u", a_tree(transaction, b"another"))
        raise ZeroDivisionError
    assert repository.revision() == before
    with repository.open() as view:
        assert view.read_file("f") is None
        assert view.read_symlink("d/t/link") == "bin/program"
        assert not view.is_directory("d/u")


def test_the_stages_of_a_transaction_are_told(repository: Repository) -> None:
    told: list[str] = []
    with repository.transaction(START, told.append) as transaction:
        transaction.put_file("f", b"1")
    assert told[-1] == "done"
    assert "switch" in told


def test_a_repository_cannot_go_back_in_time(repository: Repository) -> None:
    with pytest.raises(RepositoryError, match="clock"), repository.transaction(START - 1000):
        pass


# writers


def test_one_writes_at_a_time(opener: Opener) -> None:
    with opener().transaction(START) as transaction:
        transaction.put_file("f", b"1")
        with pytest.raises(LockedError, match="locked"), opener().transaction(START):
            pass
    with opener().transaction(START) as transaction:
        assert transaction.read_file("f") == b"1"


# entries


def test_what_is_in_the_way_is_told_and_stays(repository: Repository) -> None:
    with repository.transaction(START) as transaction:
        transaction.make_directories("a/b")
        transaction.put_file("f", b"1")
    before = repository.revision()
    changes: list[Callable[[Transaction], None]] = [
        lambda t: t.make_directories("f/g"),
        lambda t: t.put_file("a/b", b"2"),
        lambda t: t.put_symlink("a", "b"),
        lambda t: t.put_file("a/none/f", b"2"),
    ]
    for change in changes:
        with pytest.raises(RepositoryError), repository.transaction(START + 1) as transaction:
            change(transaction)
    assert repository.revision() == before
    with repository.open() as view:
        assert view.read_file("f") == b"1"


def test_entries_are_replaced_and_removed_with_all_below_them(repository: Repository) -> None:
    put_tree(repository, "d/t", b"old")
    with repository.transaction(START + DAY) as transaction:
        transaction.put_file("d/f", b"1")
        transaction.put_symlink("d/l", "f")
    with repository.transaction(START + DAY + 1) as transaction:
        transaction.put_symlink("d/f", "t")  # another kind
        transaction.put_symlink("d/l", "t")
        transaction.remove("d/t")
        assert not transaction.is_directory("d/t")
        assert transaction.read_symlink("d/t/link") is None
        assert [name for name, _ in transaction.list_names("d") if name[0] != "."] == ["f", "l"]
        transaction.put_file("d/t", b"a file now")
    with repository.open() as view:
        assert view.read_symlink("d/f") == "t"
        assert view.read_symlink("d/l") == "t"
        assert view.read_file("d/t") == b"a file now"
    with repository.transaction(START + DAY + 2) as transaction:
        transaction.remove("d")
        transaction.make_directories("d/e")
    with repository.open() as view:
        assert [each for each in view.list_names("d") if each[0][0] != "."] == [("e", True)]


def test_times_of_entries_are_those_of_their_transaction(repository: Repository) -> None:
    for second, data in ((10, b"1"), (20, b"2")):
        with repository.transaction(START + second) as transaction:
            transaction.put_file("f", data)
            if data == b"1":
                transaction.put_file("g", data)
    with repository.open() as view:
        assert isinstance(view, Dated)
        assert view.modified_at("f") == START + 20
        assert view.modified_at("g") == START + 10
        assert view.modified_at("h") is None


# trees


def test_a_tree_is_read_back_as_it_was_put(repository: Repository) -> None:
    tree = put_tree(repository, ".flat/ab/abcd")
    digest = summarise_tree(tree).digest
    with repository.transaction(START + DAY) as transaction:
        assert transaction.tree_digest(".flat/ab/abcd") == digest
        assert transaction.tree_difference(".flat/ab/abcd", tree, digest) == ""
        assert transaction.tree_digest(".flat/ab") is None
        assert transaction.tree_digest("none") is None
        other = a_tree(transaction, b"CONTENT")
        different = summarise_tree(other).digest
        assert "content" in transaction.tree_difference(".flat/ab/abcd", other, different)
        fewer = a_tree(transaction)
        del fewer.root.children["link"]
        different = summarise_tree(fewer).digest
        found = transaction.tree_difference(".flat/ab/abcd", fewer, different)
        assert found == "/link is not expected"


def test_a_published_tree_can_be_walked_and_its_contents_read(repository: Repository) -> None:
    tree = put_tree(repository, "d/t")
    expected = {path: node_of(entry) for path, entry in tree.walk()}
    with repository.open() as view:
        assert isinstance(view, Walkable)
        found = dict(view.walk("d/t"))
        assert found.keys() == expected.keys()
        for path, node in found.items():
            assert node.mode == expected[path].mode, path
            assert node.target == expected[path].target
            assert node.mtime == expected[path].mtime
            assert node.mtime_ns in (0, expected[path].mtime_ns)  # a mount shows whole seconds
        for path, text in (("bin/program", b"content"), ("nothing", b"")):
            assert b"".join(view.iter_content(f"d/t/{path}", found[path])) == text
        root = view.node("d/t")
        assert root is not None
        assert root.mode == tree.root.node.mode


def test_a_tree_replaces_another(repository: Repository) -> None:
    put_tree(repository, "d/t", b"old")
    new = put_tree(repository, "d/t", b"new", day=2)
    with repository.open() as view:
        assert isinstance(view, Walkable)
        found = dict(view.walk("d/t"))
        assert b"".join(view.iter_content("d/t/same", found["same"])) == b"new"
    with repository.transaction(START + 3 * DAY) as transaction:
        assert transaction.tree_digest("d/t") == summarise_tree(new).digest


def test_an_empty_tree_can_be_put(repository: Repository) -> None:
    with repository.transaction(START) as transaction:
        transaction.put_tree("t", empty_tree(0o700))
    with repository.open() as view:
        assert view.is_directory("t")
        assert isinstance(view, Walkable)
        assert list(view.walk("t")) == []


def test_contents_that_were_stored_are_known_and_those_of_a_failure_are_not(
    repository: Repository,
) -> None:
    names = []
    with repository.transaction(START) as transaction:
        content = transaction.store(b"kept")
        names += [each.path(Suffix.DATA) for each in content.hashes()]
        node = Node(stat.S_IFREG | 0o644, size=4, content=content)
        assert b"".join(transaction.iter_content("f", node)) == b"kept"
        tree = empty_tree()
        tree.root.children["f"] = node
        transaction.put_tree("t", tree)
    assert repository.has_objects(names)
    assert not repository.has_objects([*names, "data/00/" + "0" * 38])
    assert not repository.has_objects(names, stored_bytes=10**6)
    with pytest.raises(RepositoryError), repository.transaction(START + 1) as transaction:
        lost = [each.path(Suffix.DATA) for each in transaction.store(b"lost").hashes()]
        raise RepositoryError("the disk is full")
    assert not repository.has_objects(lost)


def test_an_ingestor_stores_what_a_layer_brings(repository: Repository) -> None:
    data = b"0123456789" * 500_000  # more than one chunk
    with (
        repository.transaction(START) as transaction,
        transaction.ingestor(1) as ingestor,
    ):
        stream = ingestor.open()
        pieces = stream.add(_Reader(data), len(data))
        stream.finish()
        hashes = [piece.hash for piece in pieces if piece.hash is not None]
        assert len(hashes) == len(pieces) > 1
        chunks, offset = [], 0
        for piece, content_hash in zip(pieces, hashes, strict=True):
            chunks.append(Chunk(offset, piece.size, content_hash))
            offset += piece.size
        node = Node(
            stat.S_IFREG | 0o644,
            size=len(data),
            content=Content(None, tuple(chunks), compressed=stream.compressed),
        )
        tree = empty_tree()
        tree.root.children["large"] = node
        transaction.put_tree("t", tree)
        digest = summarise_tree(tree).digest
        assert transaction.tree_difference("t", tree, digest) == ""
    with repository.open() as view:
        assert isinstance(view, Walkable)
        (found,) = [node for _, node in view.walk("t")]
        assert b"".join(view.iter_content("t/large", found)) == data


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readinto(self, view: memoryview) -> None:
        self._file.readinto(view)


# names


def test_names_are_published_rolled_back_pinned_and_unpublished(repository: Repository) -> None:
    publish(repository, "A", day=1)
    publish(repository, "B", day=2)
    with repository.open() as view:
        assert leads_to(view, "ghcr.io/a/b:1") == sandbox("B")
        assert [each.reference for each in iter_publications(view)] == [IMAGE]
        assert isinstance(view, Searchable)
    with repository.transaction(START + 3 * DAY) as transaction:
        assert rollback(transaction, REFERENCE, DEFAULT_PLATFORM, at(3)).is_changed
    with repository.open() as view:
        assert leads_to(view, "ghcr.io/a/b:1") == sandbox("A")
        past = read_history(view, REFERENCE, DEFAULT_PLATFORM)
        assert [version.event.what for version in past.versions] == [
            "published",
            "published",
            "rolled back",
        ]
        assert all(version.is_kept for version in past.versions)
    with repository.transaction(START + 4 * DAY) as transaction:
        pin(transaction, REFERENCE, DEFAULT_PLATFORM, at(4))
    with pytest.raises(InputError, match="pinned"), repository.transaction(START + 5 * DAY) as t:
        unpublish(t, REFERENCE, DEFAULT_PLATFORM, at(5))


def test_a_sandbox_is_removed_after_its_grace_and_not_before(repository: Repository) -> None:
    publish(repository, "A", day=1)
    publish(repository, "B", day=2)
    grace = timedelta(days=10)
    with repository.transaction(START + 11 * DAY) as transaction:
        assert plan_removals(transaction, at(11), grace) == ()
    with repository.transaction(START + 13 * DAY) as transaction:
        plan = plan_removals(transaction, at(13), grace)
        assert [removal.path for removal in plan] == [sandbox("A")]
        apply_removals(transaction, plan)
    with repository.open() as view:
        assert not view.is_directory(sandbox("A"))
        assert leads_to(view, "ghcr.io/a/b:1") == sandbox("B")
        assert view.read_file(f".metadata/.images/{image_id('A').hex[:2]}") is None
        record = read_publication(view, ".metadata/ghcr.io/a/b:1/publication.json")
        assert record is not None


def test_a_sandbox_that_somebody_damaged_is_not_gone_back_to(repository: Repository) -> None:
    """Whatever a backend reads back, it is what is stored."""
    publish(repository, "A", day=1)
    publish(repository, "B", day=2)
    with repository.transaction(START + 3 * DAY) as transaction:
        transaction.put_tree(sandbox("A"), empty_tree())
    with (
        pytest.raises(RepositoryError, match="tree digest"),
        repository.transaction(START + 4 * DAY) as transaction,
    ):
        rollback(transaction, REFERENCE, DEFAULT_PLATFORM, at(4))


def test_every_backend_of_the_configuration_keeps_this_contract() -> None:
    known = get_args(get_type_hints(RepositoryConfig)["backend"])
    assert set(BACKENDS) == set(known)
