"""What a plain tree does beyond the contract: sharing, foreign files, faults, several writers."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import IntegrityError, LockedError, RepositoryError
from cvmfs_publish.layers.tree import Directory, Node, Tree, empty_tree
from cvmfs_publish.layers.treedigest import summarise_tree
from cvmfs_publish.repository import directory, folder_write
from cvmfs_publish.repository.base import Transaction
from cvmfs_publish.repository.directory import DirectoryOptions, DirectoryRepository
from cvmfs_publish.repository.folder import WORK
from cvmfs_publish.repository.folder_write import Share
from cvmfs_publish.repository.foreign import find_foreign
from cvmfs_publish.repository.records import iter_publications
from cvmfs_publish.repository.reflink import clone
from cvmfs_publish.repository.tree_check import check_tree
from tests import versions
from tests.support import NAME
from tests.versions import at, leads_to, sandbox

IMAGE = "ghcr.io/a/b:1"
NOBODY = 65534


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here loses power."""
    monkeypatch.setattr(directory, "sync_file_system", lambda _: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def repository(tmp_path: Path) -> DirectoryRepository:
    created = open_at(tmp_path)
    created.create(at(0))
    return created


def open_at(base: Path, options: DirectoryOptions | None = None) -> DirectoryRepository:
    return DirectoryRepository(NAME, base / "repository", LocalStore(base / "spool"), options)


def publish(
    repository: DirectoryRepository, version: str, name: str = IMAGE, day: float = 1
) -> None:
    with repository.transaction(int(at(day).timestamp())) as transaction:
        versions.put(transaction, name, version, at(day))


def file_of(transaction: Transaction, data: bytes, **values: int) -> Node:
    values = {"mode": stat.S_IFREG | 0o644, "uid": os.getuid(), "gid": os.getgid(), **values}
    return Node(
        values["mode"],
        values["uid"],
        values["gid"],
        values.get("mtime", 0),
        size=len(data),
        content=transaction.store(data),
    )


def put_files(repository: DirectoryRepository, path: str, **files: Node) -> None:
    with repository.transaction(int(at(1).timestamp())) as transaction:
        tree = empty_tree()
        tree.root.children.update(files)
        transaction.put_tree(path, tree)
        assert transaction.tree_difference(path, tree, summarise_tree(tree).digest) == ""


def nodes(repository: DirectoryRepository, **contents: bytes) -> dict[str, Node]:
    with repository.transaction(int(at(0).timestamp())) as transaction:
        return {name: file_of(transaction, data) for name, data in contents.items()}


# sharing


def test_equal_files_are_one_file_in_and_between_images(
    repository: DirectoryRepository,
) -> None:
    files = nodes(repository, a=b"equal", b=b"equal", c=b"other")
    put_files(repository, "one", **files)
    put_files(repository, "two", **files)
    found = {f"{t}/{n}": (repository.root / t / n).stat() for t in ("one", "two") for n in "abc"}
    assert len({found[name].st_ino for name in ("one/a", "one/b", "two/a", "two/b")}) == 1
    assert found["one/a"].st_nlink == 5  # and the one that is shared
    assert found["one/c"].st_ino == found["two/c"].st_ino != found["one/a"].st_ino


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node._replace(mode=stat.S_IFREG | 0o755),
        lambda node: node._replace(mtime=1),
        lambda node: node._replace(mtime_ns=1),
    ],
)
def test_files_that_differ_in_anything_are_not_shared(
    repository: DirectoryRepository, change: Callable[[Node], Node]
) -> None:
    node = nodes(repository, a=b"equal")["a"]
    put_files(repository, "one", a=node, b=change(node))
    a, b = (repository.root / "one" / name for name in "ab")
    assert a.stat().st_ino != b.stat().st_ino
    assert a.read_bytes() == b.read_bytes()


def test_a_shared_file_that_somebody_has_changed_is_not_shared_any_more(
    repository: DirectoryRepository,
) -> None:
    files = nodes(repository, a=b"equal")
    put_files(repository, "one", **files)
    (repository.root / "one" / "a").write_bytes(b"changed")
    put_files(repository, "two", **files)
    put_files(repository, "three", **files)
    assert (repository.root / "two" / "a").read_bytes() == b"equal"
    assert (repository.root / "two" / "a").samefile(repository.root / "three" / "a")


@pytest.mark.parametrize("code", [errno.EMLINK, errno.EPERM, errno.ENOTSUP])
def test_where_links_are_not_possible_files_are_written(
    repository: DirectoryRepository, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    link = os.link
    refused = []

    def refuse(source: object, target: object, **options: object) -> None:
        if isinstance(source, bytes) and len(source) == 81:  # a shared file
            refused.append(source)
            raise OSError(code, os.strerror(code))
        link(source, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", refuse)
    put_files(repository, "one", **nodes(repository, a=b"equal", b=b"equal"))
    assert (repository.root / "one" / "b").read_bytes() == b"equal"
    assert refused


class Clones:
    """Stands for the one system call: a file system with reflinks, or one without."""

    def __init__(self) -> None:
        self.is_able = True
        self.count = 0

    def clone(self, source: int, target: int) -> bool:
        if self.is_able:
            self.count += 1
            os.write(target, os.pread(source, 1000, 0))
        return self.is_able


@pytest.fixture
def clones(monkeypatch: pytest.MonkeyPatch) -> Clones:
    made = Clones()
    monkeypatch.setattr(folder_write, "clone", made.clone)
    monkeypatch.setattr(directory, "clone", made.clone)
    return made


def alike(repository: DirectoryRepository) -> dict[str, Node]:
    """Return two files that are equal in everything, and one of another time and mode."""
    node = nodes(repository, a=b"equal")["a"]
    return {"a": node, "b": node, "c": node._replace(mtime=1, mode=stat.S_IFREG | 0o755)}


@pytest.mark.parametrize(
    ("share", "has_reflinks", "inodes", "cloned"),
    [
        ("auto", True, 2, 1),
        ("auto", False, 2, 0),
        ("hardlink", True, 2, 0),
        ("reflink", True, 3, 2),
        (None, True, 3, 0),
    ],
)
def test_contents_are_shared_as_the_configuration_says(
    tmp_path: Path,
    clones: Clones,
    share: Share | None,
    has_reflinks: bool,
    inodes: int,
    cloned: int,
) -> None:
    clones.is_able = has_reflinks
    repository = open_at(tmp_path, DirectoryOptions(share=share))
    repository.create(at(0))
    wanted = alike(repository)
    put_files(repository, "none")  # with the first sandbox it is tried what is possible
    clones.count = 0
    put_files(repository, "one", **wanted)
    found = {name: (repository.root / "one" / name).stat() for name in wanted}
    assert len({each.st_ino for each in found.values()}) == inodes
    assert clones.count == cloned
    for name, node in wanted.items():
        assert (repository.root / "one" / name).read_bytes() == b"equal"
        assert (found[name].st_mode, int(found[name].st_mtime)) == (node.mode, node.mtime)
    with repository.transaction(int(at(2).timestamp())) as transaction:
        assert transaction.tree_digest("one") is not None


def test_nothing_is_cloned_from_a_file_that_somebody_has_changed(
    tmp_path: Path, clones: Clones
) -> None:
    repository = open_at(tmp_path, DirectoryOptions(share="reflink"))
    repository.create(at(0))
    wanted = alike(repository)
    put_files(repository, "one", a=wanted["a"])
    (repository.root / "one" / "a").write_bytes(b"other")
    put_files(repository, "two", a=wanted["a"])
    put_files(repository, "three", c=wanted["c"])
    assert (repository.root / "two" / "a").read_bytes() == b"equal"
    assert (repository.root / "three" / "c").read_bytes() == b"equal"
    assert (repository.root / "one" / "a").read_bytes() == b"other"


def test_what_files_were_cloned_from_goes_with_its_sandbox(tmp_path: Path, clones: Clones) -> None:
    repository = open_at(tmp_path, DirectoryOptions(share="reflink"))
    repository.create(at(0))
    publish(repository, "A", day=1)
    publish(repository, "B", day=2)
    kept = list((repository.root / WORK / "files").rglob("*-*"))
    repository.collect(at(20), timedelta(days=5))
    left = list((repository.root / WORK / "files").rglob("*-*"))
    assert 0 < len(left) < len(kept)
    assert all(path.stat().st_nlink == 2 for path in left)


def test_reflinks_that_are_asked_for_and_impossible_are_refused(
    tmp_path: Path, clones: Clones
) -> None:
    clones.is_able = False
    repository = open_at(tmp_path, DirectoryOptions(share="reflink"))
    repository.create(at(0))
    with pytest.raises(RepositoryError, match="has no reflinks") as caught:
        put_files(repository, "one", **nodes(repository, a=b"equal"))
    assert "share: auto" in caught.value.hint
    assert repository.abilities().reflinks is False


def test_the_system_call_tells_what_cannot_be_shared_from_what_is_wrong(tmp_path: Path) -> None:
    source, target = tmp_path / "source", Path("/dev/shm") / f"cvmfs-publish-{os.getpid()}"
    source.write_bytes(b"content")
    try:
        with source.open("rb") as read, target.open("wb") as write:
            assert clone(read.fileno(), write.fileno()) is False  # two file systems
            with pytest.raises(OSError, match="Bad file descriptor"):
                clone(read.fileno(), read.fileno() + 1000)
    finally:
        target.unlink()


def test_sharing_can_be_left_out(tmp_path: Path) -> None:
    repository = open_at(tmp_path, DirectoryOptions(share=None))
    repository.create(at(0))
    put_files(repository, "one", **nodes(repository, a=b"equal", b=b"equal"))
    assert (repository.root / "one" / "a").stat().st_nlink == 1


# who writes


def test_whoever_is_not_root_publishes_too_and_owners_are_what_they_can_be(
    shared_tmp: Path,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    base = shared_tmp / "base"
    base.mkdir()
    base.chmod(0o777)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            repository = open_at(base)
            repository.create(at(0))
            with repository.transaction(int(at(1).timestamp())) as transaction:
                tree = empty_tree(0o555)
                closed = Directory(Node(stat.S_IFDIR | 0o500, uid=7, gid=8))
                closed.children["f"] = file_of(transaction, b"f", uid=7, gid=8, mode=0o100000)
                tree.root.children["d"] = closed
                transaction.make_directories("a")
                transaction.put_tree("a/t", tree)
                digest = summarise_tree(tree).digest
                assert transaction.tree_difference("a/t", tree, digest) == ""
            with repository.transaction(int(at(2).timestamp())) as transaction:
                assert transaction.tree_digest("a/t") == digest
                transaction.remove("a/t")
            assert not (base / "repository/a/t").exists()
            assert list((base / "repository" / WORK / "trash").iterdir()) == []
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_writer_that_lost_its_lock_publishes_nothing(repository: DirectoryRepository) -> None:
    before = repository.revision()
    with (
        pytest.raises(LockedError, match="was lost"),
        repository.transaction(int(at(1).timestamp())) as transaction,
    ):
        transaction.put_file("f", b"1")
        (repository.root / WORK / "lock").unlink()
    assert repository.revision() == before
    publish(repository, "A")


def test_a_writer_that_was_overtaken_publishes_nothing(
    repository: DirectoryRepository, tmp_path: Path
) -> None:
    """Somebody took it for dead; it wakes up after it looked at its lock for the last time."""
    other = DirectoryRepository(NAME, repository.root, LocalStore(tmp_path / "another spool"))

    def overtake(stage: str) -> None:
        if stage == "switch":
            (repository.root / WORK / "lock").unlink()
            publish(other, "B", day=1)
            # the sandbox of a dead one is swept, but this one is not dead

    with (
        pytest.raises(RepositoryError),
        repository.transaction(int(at(1).timestamp()), overtake) as transaction,
    ):
        transaction.put_file("f", b"1")
    with repository.open() as view:
        assert leads_to(view, IMAGE) == sandbox("B")
        assert view.read_file("f") is None
    assert repository.revision().number == 2
    publish(repository, "C", day=2)


@pytest.mark.slow
def test_two_publishers_interleave_two_hundred_publishes_and_nothing_is_lost_or_double(
    repository: DirectoryRepository, tmp_path: Path
) -> None:
    count = 100
    options = DirectoryOptions(lock_wait=timedelta(seconds=120))
    children = []
    for writer in "ab":
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                own = DirectoryRepository(
                    NAME, repository.root, LocalStore(tmp_path / writer), options
                )
                for number in range(count):
                    name = f"ghcr.io/{writer}/{number % 7}:{number}"
                    publish(own, f"{writer}{number}", name, day=1)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    assert repository.revision().number == 1 + 2 * count
    with repository.open() as view:
        records = list(iter_publications(view))
        assert len(records) == 2 * count
        assert sorted(record.revision for record in records) == list(range(2, 2 + 2 * count))
        writers = [r.reference[8] for r in sorted(records, key=lambda r: r.revision)]
        assert len({tuple(writers[:count]), ("a",) * count, ("b",) * count}) == 3  # interleaved
        for record in records:
            assert leads_to(view, record.path[1:]) == record.sandbox[1:]
    report = check_tree(repository)
    assert report.problems == []
    assert report.counts["sandboxes"] == 2 * count


# what others put there


def test_no_link_in_the_tree_leads_anything_outside(
    repository: DirectoryRepository, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "publication.json").write_text("{}")
    for name in ("ghcr.io", ".flat", ".metadata"):
        (repository.root / name).symlink_to(outside)
        with pytest.raises(RepositoryError, match="in the way"):
            publish(repository, "A")
        with repository.open() as view:
            assert view.read_file(f"{name}/publication.json") is None
            assert view.list_names(name) == []
            assert list(iter_publications(view)) == []
        (repository.root / name).unlink()
    assert [path.name for path in outside.iterdir()] == ["publication.json"]
    publish(repository, "A")


@pytest.mark.parametrize("name", ["..", ".", "a/b", ""])
def test_a_name_that_is_none_is_refused_whoever_made_the_tree(
    repository: DirectoryRepository, name: str
) -> None:
    files = nodes(repository, a=b"1")
    with pytest.raises((RepositoryError, IntegrityError)):
        put_files(repository, "one", **{name: files["a"]})
    assert not (repository.root / "a").exists()


def ducc_tree(root: Path) -> None:
    flat = root / ".flat/ab" / ("ab" + "0" * 62)
    flat.mkdir(parents=True)
    (flat / "version").write_text("by DUCC")
    (root / "docker.io/library").mkdir(parents=True)
    (root / "docker.io/library/debian:12").symlink_to(f"../../.flat/ab/{flat.name}")
    record = root / ".metadata/docker.io/library/debian:12"
    record.mkdir(parents=True)
    (record / "manifest.json").write_text("{}")


def sync_tree(root: Path) -> None:
    image = root / ".images/ab/cdef"
    image.mkdir(parents=True)
    (root / "library").mkdir()
    here = "/cvmfs/singularity.opensciencegrid.org"
    (root / "library/debian:12").symlink_to(f"{here}/.images/ab/cdef")
    (root / "library/gone:1").symlink_to(f"{here}/.images/ab/gone")
    (root / ".missing_links.json").write_text("{}")


@pytest.mark.parametrize(
    ("make", "program", "name"),
    [
        (ducc_tree, "DUCC", "docker.io/library/debian:12"),
        (sync_tree, "cvmfs-singularity-sync", "library/debian:12"),
    ],
)
def test_what_another_program_published_is_listed_and_stays(
    tmp_path: Path, make: Callable[[Path], None], program: str, name: str
) -> None:
    root = tmp_path / "repository"
    make(root)
    before = {str(p.relative_to(root)): p.lstat().st_ino for p in sorted(root.rglob("*"))}
    repository = open_at(tmp_path)
    repository.create(at(0))
    publish(repository, "A", day=1)
    publish(repository, "B", day=2)
    repository.collect(at(1000), timedelta(days=1))
    with repository.open() as view:
        found = {foreign.path: foreign for foreign in find_foreign(view)}
        assert found[name].program == program
        assert found[name].is_there
        assert IMAGE not in found
        if program != "DUCC":
            assert not found["library/gone:1"].is_there
        assert not view.is_directory(sandbox("A"))
    for path, inode in before.items():
        assert (root / path).lstat().st_ino == inode, path


# faults


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["write", "link", "mkdir", "rename"])
def test_a_file_system_that_refuses_leaves_the_old_state_and_says_what_to_do(
    repository: DirectoryRepository, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    publish(repository, "A")
    before = repository.revision()
    for allowed in (0, 2, 5):
        with monkeypatch.context() as patch:
            real, left = getattr(os, call), allowed

            def fail(*arguments: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    raise OSError(code, os.strerror(code))
                return real(*arguments, **options)  # noqa: B023

            patch.setattr(os, call, fail)
            with suppress(RepositoryError), telling(code):
                publish(repository, f"B{allowed}", day=2)
        after = repository.revision()
        with repository.open() as view:
            ends = leads_to(view, IMAGE)
        assert (after, ends) == (before, sandbox("A")) or after.number == before.number + 1
        publish(repository, f"C{allowed}", day=2)
        before = repository.revision()
        publish(repository, "A", day=2)
        before = repository.revision()


@contextmanager
def telling(code: int) -> Iterator[None]:
    """What fails, says so; whether it fails depends on how many calls there are."""
    try:
        yield
    except RepositoryError as error:
        told = str(error)
        if os.strerror(code) not in told and not isinstance(error, LockedError):
            pytest.fail(told)
        raise


def test_damaged_files_of_its_own_are_told_from_damaged_images(
    repository: DirectoryRepository,
) -> None:
    publish(repository, "A")
    state = repository.root / WORK / "repository.json"
    good = state.read_bytes()
    document = json.loads(good)
    for bad in (b"", b"{}", b"[1]", json.dumps(document | {"revision": "1"}).encode()):
        state.write_bytes(bad)
        with pytest.raises(RepositoryError, match=r"repository\.json"):
            repository.revision()
    state.write_bytes(json.dumps(document | {"format": 2}).encode())
    with pytest.raises(RepositoryError, match="this version knows 1") as caught:
        publish(repository, "B", day=2)
    assert caught.value.hint == "update cvmfs-publish"
    state.write_bytes(good)
    journal = repository.root / WORK / "journal.json"
    journal.write_bytes(b'{"format": 1}')
    with pytest.raises(RepositoryError, match=r"journal\.json"):
        publish(repository, "B", day=2)
    journal.unlink()
    publish(repository, "B", day=2)


def test_another_repository_is_not_written(tmp_path: Path, repository: DirectoryRepository) -> None:
    other = DirectoryRepository("other.example.org", repository.root, LocalStore(tmp_path / "s"))
    with pytest.raises(RepositoryError, match=r"holds repository 'test\.example\.org'"):
        other.revision()
    with pytest.raises(RepositoryError, match="already holds a repository"):
        other.create(at(0))
    empty = open_at(tmp_path / "none")
    with pytest.raises(RepositoryError, match="holds no repository"):
        empty.revision()


# collecting and checking


def test_what_was_replaced_stays_for_the_grace_and_is_gone_after_it(
    repository: DirectoryRepository,
) -> None:
    publish(repository, "A", day=1)
    with repository.transaction(int(at(2).timestamp())) as transaction:
        versions.put(transaction, IMAGE, "A", at(2), force=True)
    trash = repository.root / WORK / "trash"
    assert len(list(trash.iterdir())) == 1
    grace = timedelta(days=10)
    assert repository.collect(at(11), grace).trash == 0
    planned = repository.plan(at(13), grace)
    done = repository.collect(at(13), grace)
    assert done.trash == planned.trash == 1
    assert list(trash.iterdir()) == []


def test_a_plan_is_what_is_done(repository: DirectoryRepository) -> None:
    for number, version in enumerate("ABC"):
        publish(repository, version, day=1 + number)
    planned = repository.plan(at(100), timedelta(days=10))
    before = repository.revision()
    assert [removal.path for removal in planned.removals] == sorted([sandbox("A"), sandbox("B")])
    assert planned.files == 2
    assert repository.collect(at(100), timedelta(days=10)) == planned
    assert repository.revision().number == before.number + 1
    with repository.open() as view:
        assert leads_to(view, IMAGE) == sandbox("C")
    assert check_tree(repository).problems == []
    left = list((repository.root / WORK / "trees").rglob("*.zst"))
    assert [path.stem for path in left] == [sandbox("C").rpartition("/")[2]]


def test_a_check_names_what_is_not_as_it_was_written(repository: DirectoryRepository) -> None:
    publish(repository, "A")
    publish(repository, "B", "ghcr.io/a/c:1")
    publish(repository, "C", "ghcr.io/a/d:1")
    root = repository.root
    (root / sandbox("A") / "version").write_bytes(b"b")
    (root / "ghcr.io/a/c:1").unlink()
    (root / "ghcr.io/a/c:1").symlink_to("d:1")
    (root / "ghcr.io/a/d:1").unlink()
    listing = root / WORK / "trees" / f"{sandbox('C')}.zst"
    listing.write_bytes(b"damaged")
    texts = {problem.place: problem.text for problem in check_tree(repository).problems}
    assert "is not what was written: /version: " in texts[f"/{sandbox('A')}"]
    assert texts["/ghcr.io/a/c:1"].startswith("leads to d:1, its record says /.flat/")
    assert texts["/ghcr.io/a/d:1"].startswith("is no link")
    assert "malformed listing" in texts[f"/{sandbox('C')}"]


@pytest.fixture
def _few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_few_descriptors")
def test_directories_may_be_deeper_than_a_process_may_have_files_open(
    repository: DirectoryRepository,
) -> None:
    depth = 250
    leaf = nodes(repository, f=b"deep")["f"]
    tree: Tree = empty_tree()
    below = tree.root
    for _ in range(depth):
        child = Directory(Node(stat.S_IFDIR | 0o755))
        below.children["d"] = child
        below = child
    below.children["f"] = leaf
    with repository.transaction(int(at(1).timestamp())) as transaction:
        transaction.put_tree("t", tree)
        assert transaction.tree_difference("t", tree, summarise_tree(tree).digest) == ""
    with repository.transaction(int(at(2).timestamp())) as transaction:
        transaction.remove("t")
    assert list((repository.root / WORK / "trash").iterdir()) == []
