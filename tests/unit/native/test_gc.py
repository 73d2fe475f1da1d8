"""Garbage collection: what is kept, what goes, and what makes it refuse."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.objects import compress, decompress
from cvmfs_publish.errors import LockedError, RepositoryError
from cvmfs_publish.layers.tree import Chunk, Content, Directory, Node, Tree
from cvmfs_publish.repository.native import manifest as manifests
from cvmfs_publish.repository.native.catalog import CatalogRef
from cvmfs_publish.repository.native.gc import Collector
from cvmfs_publish.repository.native.history import TRUNK_PREVIOUS
from cvmfs_publish.repository.native.reflog import Ref, Reflog, RefType
from cvmfs_publish.repository.native.repository import NativeOptions, NativeRepository
from cvmfs_publish.repository.native.signing import load_keys
from cvmfs_publish.repository.native.spool import Spool
from tests.collecting import Timeline, timeline
from tests.stock import Stock
from tests.support import NAME, Site
from tests.unit.native import vectors
from tests.versions import sandbox

pytestmark = pytest.mark.slow

IMAGE = "ghcr.io/a/b:1"


@pytest.fixture(params=[HashAlgorithm.SHA1, HashAlgorithm.SHAKE128])
def both(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Site, Timeline]]:
    with timeline(tmp_path, request.param) as created:
        yield created


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Timeline]:
    with timeline(tmp_path) as (_, created):
        yield created


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return every file of a folder with its time: what must not change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---------------------------------------------------------------- what is kept


def test_a_revision_replaced_before_the_grace_goes_and_one_replaced_within_it_stays_readable(
    both: tuple[Site, Timeline],
) -> None:
    target, line = both
    line.put("a/f", b"1" * 1000)
    line.wait(1)
    second = line.put("a/f", b"2" * 1000)
    line.wait(3)
    third = line.put("a/f", b"3" * 1000)
    line.wait(1)
    fourth = line.put("a/f", b"4" * 1000)
    before = line.names()
    plan, names = line.collect(grace=2)
    assert {dropped.number for dropped in plan.dropped} == {1, 2}
    assert {kept.root_hash for kept in plan.kept} == {second, third, fourth}
    assert line.names() == line.needed({second, third, fourth}) | line.beside()
    assert before - line.names() == set(names)
    assert target.judge() == []
    plan, names = line.collect(grace=2)
    assert (plan.is_empty, names) == (True, [])


def test_without_grace_only_what_is_published_or_tagged_stays(
    both: tuple[Site, Timeline],
) -> None:
    target, line = both
    line.put("a/f", b"1" * 1000)
    tagged = line.put("a/f", b"2" * 1000)
    line.tag("v1")
    line.wait(0.1)
    line.put("a/f", b"3" * 1000)
    line.wait(0.1)
    previous = line.put("a/f", b"4" * 1000)
    line.wait(0.1)
    head = line.put("a/f", b"5" * 1000)
    line.collect()
    assert line.names() == line.needed({tagged, previous, head})
    assert {tag.hash for tag in line.tags()} == {tagged, previous, head}
    assert line.tags()[-2].name == TRUNK_PREVIOUS
    assert {ref.hash for ref in line.refs() if ref.type is RefType.CATALOG} == {
        tagged,
        previous,
        head,
    }
    assert target.judge() == []


@pytest.mark.parametrize("revisions", [0, 1, 3, 100])
def test_so_many_predecessors_stay_however_old_they_are(line: Timeline, revisions: int) -> None:
    roots = [line.repository.manifest().root_hash]
    for number in range(5):
        line.wait(1)
        roots.append(line.put("a/f", b"%d" % number))
    line.wait(1)
    line.collect(revisions=revisions)
    kept = set(roots[-1 - max(1, revisions) :])  # one is always trunk-previous
    assert line.names() == line.needed(kept)


def test_a_revision_stays_within_the_grace_where_the_chain_of_predecessors_is_broken(
    line: Timeline,
) -> None:
    roots = []
    for number in range(3):
        roots.append(line.put("a/f", b"%d" % number))
        line.wait(2)
    replaced = line.put("a/f", b"new")
    line.wait(0.5)
    broken = cut_chain(line)
    line.wait(0.5)
    plan, _ = line.collect(grace=2)
    kept = {kept.root_hash for kept in plan.kept}
    assert {roots[-1], replaced, broken} <= kept  # replaced when the chain was cut
    assert roots[0] not in kept
    line.consists_of(roots[-1])


def cut_chain(line: Timeline) -> ContentHash:
    """Publish revisions that do not say what was before them, until no undo tag does either."""
    for number in range(2):
        with line.transaction() as transaction:
            transaction.put_file("a/f", b"%d more" % number)
            transaction._editor._old_root = CatalogRef(ContentHash(bytes(20)), 0)
    return line.repository.manifest().root_hash


def test_chunks_and_contents_of_every_kind_are_found(both: tuple[Site, Timeline]) -> None:
    target, line = both
    algorithm = target.algorithm
    pieces = [b"a" * 100, b"b" * 50]
    chunks, position = [], 0
    for piece in pieces:
        content_hash = ContentHash.of(piece, algorithm)
        LocalStore(target.storage).put(piece, content_hash, Suffix.CHUNK)
        chunks.append(Chunk(position, len(piece), content_hash))
        position += len(piece)
    same = ContentHash.of(pieces[0], algorithm)
    LocalStore(target.storage).put(pieces[0], same, Suffix.DATA)
    file = Node(stat.S_IFREG | 0o644, size=position)
    chunked = Content(None, tuple(chunks), compressed=False)
    tree = Tree(Directory(Node(stat.S_IFDIR | 0o755)))
    tree.root.children["chunked"] = file._replace(content=chunked)
    with line.transaction() as transaction:
        transaction.make_directories("a")
        transaction.put_tree("a/t", tree)
    line.wait(1)
    line.collect()
    kept = {line.repository.manifest().root_hash} | {tag.hash for tag in line.tags()}
    assert line.names() == line.needed(kept)
    assert same.path(Suffix.CHUNK) in line.names()
    assert same.path(Suffix.DATA) not in line.names()  # equal bytes, but another object
    assert target.judge() == []


def test_old_histories_go_with_the_revisions_and_what_the_manifest_names_stays(
    line: Timeline,
) -> None:
    line.put("a/f", b"1")
    line.wait(3)
    line.tag("v1")
    line.wait(3)
    line.tag("v2")
    histories = [ref.hash for ref in line.refs() if ref.type is RefType.HISTORY]
    assert len(histories) == 4
    line.wait(1)
    plan, names = line.collect(grace=2)
    # The third was replaced by v2 one day ago.
    assert [ref.hash for ref in line.refs() if ref.type is RefType.HISTORY] == histories[2:]
    assert {ref.hash for ref in plan.refs if ref.type is RefType.HISTORY} == set(histories[:2])
    assert {h.path(Suffix.HISTORY) for h in histories[:2]} <= set(names)


def test_what_the_manifest_names_stays_also_if_the_reflog_has_forgotten_it(
    both: tuple[Site, Timeline],
) -> None:
    target, line = both
    line.put("a/f", b"1")
    manifest = line.repository.manifest()
    with line.repository.maintenance(line.now) as work:
        work.reflog.database.execute("DELETE FROM refs")
        data = work.reflog.serialize()
    keys = load_keys(target.keys, NAME)
    unlisted = replace(manifest, reflog=ContentHash.of(data, target.algorithm))
    (target.storage / ".cvmfsreflog").write_bytes(data)
    path = target.storage / manifests.FILE_NAME
    path.write_bytes(manifests.sign_manifest(unlisted, keys.private_key))
    line.wait(9)
    assert line.refs() == []
    line.collect()
    assert all(problem.startswith("ERROR .cvmfsreflog: ") for problem in target.judge())
    line.put("a/f", b"2")
    assert target.judge() == []


def test_objects_of_aborted_publishes_go_after_the_grace(both: tuple[Site, Timeline]) -> None:
    target, line = both
    line.put("a/f", b"1")
    left = line.store(b"nobody names this")
    line.wait(3)
    young = line.store(b"nor this, but it is young")
    plan, names = line.collect(grace=2, revisions=2)
    assert left in names
    assert young not in names
    assert (plan.recent.objects, plan.recent.bytes) == (1, 25)
    assert young in line.names()
    assert left not in line.names()
    _, names = line.collect()
    assert young in names
    assert target.judge() == []


def test_what_is_no_object_is_told_and_never_removed(line: Timeline) -> None:
    strays = {"data/00/readme.txt", "data/ab/" + "0" * 37, "data/ff/" + "1" * 38 + "T"}
    for name in strays:
        (line.storage / name).write_bytes(b"?")
        os.utime(line.storage / name, (0, 0))
    line.wait(1)
    plan, names = line.collect()
    assert set(plan.strays) == strays
    assert plan.stray_count == 3
    assert not strays & set(names)
    assert all((line.storage / name).exists() for name in strays)


def test_the_manifest_is_signed_again_only_if_the_reflog_changes(
    both: tuple[Site, Timeline],
) -> None:
    target, line = both
    for number in range(3):
        line.put("a/f", b"%d" % number)
    line.wait(5)
    line.collect(grace=5, revisions=5)
    before = target.repository.manifest()
    left = line.store(b"nobody names this")
    line.wait(5)
    _, names = line.collect(grace=5, revisions=5)
    assert names == [left]
    assert target.repository.manifest() == before
    line.collect()
    after = target.repository.manifest()
    assert (after.root_hash, after.revision) == (before.root_hash, before.revision)
    assert after.reflog != before.reflog
    assert after.timestamp == line.now
    assert target.judge() == []


def test_a_chain_that_was_collected_before_ends_there_when_more_is_to_be_kept(
    line: Timeline,
) -> None:
    for number in range(6):
        line.put("a/f", b"%d" % number)
        line.wait(1)
    head = {line.repository.manifest().root_hash} | {tag.hash for tag in line.tags()}
    line.collect()
    plan, names = line.collect(grace=100, revisions=100)
    assert {kept.root_hash for kept in plan.kept} == head
    assert names == []


def test_what_an_interrupted_run_has_left_of_a_revision_does_not_stop_a_longer_grace(
    line: Timeline,
) -> None:
    roots = []
    for number in range(4):
        roots.append(line.put(f"d{number}/f", b"%d" % number))
        line.wait(1)
    _, names = line.plan()
    first = roots[0].path(Suffix.CATALOG)
    assert first in names

    def stop(step: str) -> None:
        if step.startswith("sweep"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Collector(line.repository, line.scratch).collect(line.now, line.retention(), step=stop)
    for name in set(names) - {root.path(Suffix.CATALOG) for root in roots}:
        (line.storage / name).unlink()
    plan, rest = line.collect(grace=100, revisions=100)
    assert rest == []
    assert [kept.is_whole for kept in plan.kept] == [True, True, False, False]
    _, rest = line.collect()
    assert set(rest) == {root.path(Suffix.CATALOG) for root in roots} & set(names)


# ---------------------------------------------------------------- sandboxes


@pytest.mark.parametrize("grace", [0, 2])
def test_a_sandbox_without_a_name_goes_first_and_its_objects_when_its_revisions_have_gone(
    both: tuple[Site, Timeline], grace: float
) -> None:
    target, line = both
    line.publish(IMAGE, "one")
    line.publish("ghcr.io/a/b:2", "two")
    line.wait(3)
    gone = line.unpublish(IMAGE)
    line.wait(3)
    line.tag("keep")
    number = line.repository.revision().number
    planned, names = line.plan(grace)
    before = line.names()
    plan, removed = line.collect(grace)
    assert [removal.path for removal in plan.removals] == [sandbox("one")]
    assert plan.removals == planned.removals
    assert plan.refs == planned.refs
    assert removed == names
    assert before - line.names() == set(names)
    assert line.repository.revision().number == number + 1
    with line.repository.open() as view:
        assert not view.is_directory(sandbox("one"))
        assert view.is_directory(sandbox("two"))
    line.consists_of(gone)  # the tag and trunk-previous keep it
    assert target.judge() == []
    assert line.collect(grace)[0].removals == ()


def test_nothing_is_removed_from_the_tree_if_the_objects_cannot_be_planned(
    line: Timeline,
) -> None:
    line.publish(IMAGE, "one")
    line.tag("broken")
    root = line.repository.manifest().root_hash
    line.wait(1)
    line.unpublish(IMAGE)
    line.wait(1)
    line.put("x/f", b"so that it is neither trunk nor before it")
    (line.storage / root.path(Suffix.CATALOG)).unlink()
    before = contents(line.storage)
    line.wait(9)
    with pytest.raises(RepositoryError, match="nothing was removed"):
        line.collect(grace=5)
    assert contents(line.storage) == before


# ---------------------------------------------------------------- the plan


def test_a_dry_run_names_exactly_what_the_run_removes_and_changes_nothing(
    both: tuple[Site, Timeline],
) -> None:
    target, line = both
    for number in range(8):
        line.put(f"d{number % 3}/f", b"%d" % number * 1000)
        line.store(b"left behind %d" % number)
        line.wait(1)
        if number == 3:
            line.tag("three")
    (line.storage / "data/00/stray").write_bytes(b"?")
    everything = contents(line.storage)
    planned, names = line.plan(grace=3)
    assert contents(line.storage) == everything
    assert not any(line.scratch.iterdir())
    before = line.names()
    plan, removed = line.collect(grace=3)
    assert removed == names
    assert before - line.names() == set(names)
    assert not any(line.scratch.iterdir())
    for field in ("kept", "dropped", "refs", "objects", "recent", "strays", "removals"):
        assert getattr(plan, field) == getattr(planned, field)
    (line.storage / "data/00/stray").unlink()
    sizes = {name: len(everything[name][0]) for name in names}
    assert plan.total.objects == len(sizes)
    assert plan.total.bytes == sum(sizes.values())
    plain = sum(name[-1] not in "PCHXM" for name in names)
    assert plan.objects[Suffix.DATA].objects == plain
    assert target.judge() == []


# ---------------------------------------------------------------- refusals


def remove_object(name: str) -> Callable[[Timeline], None]:
    def damage(line: Timeline) -> None:
        manifest = line.repository.manifest()
        roots = {"head": manifest.root_hash, "tag": line.tags()[0].hash}
        if name == "nested":
            with line.repository.snapshot() as snapshot:
                gone = next(ref.hash for path, ref in snapshot.catalogs() if path)
        else:
            gone = roots[name]
        (line.storage / gone.path(Suffix.CATALOG)).unlink()

    return damage


def flip_tagged(line: Timeline) -> None:
    path = line.storage / line.tags()[0].hash.path(Suffix.CATALOG)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose_predecessor(line: Timeline) -> None:
    """A revision that the reflog lists, that has no tag, and that is to be kept."""
    tagged = {tag.hash for tag in line.tags()}
    roots = [r.hash for r in line.refs() if r.type is RefType.CATALOG and r.hash not in tagged]
    (line.storage / roots[-1].path(Suffix.CATALOG)).unlink()


def spoil_reflog(line: Timeline) -> None:
    with line.repository.maintenance(line.now) as work:
        work.reflog.database.execute("INSERT INTO refs VALUES ('no hash', 0, 1)")


def lose_reflog(line: Timeline) -> None:
    (line.storage / ".cvmfsreflog").unlink()


def unlistable(line: Timeline) -> None:
    shutil.rmtree(line.storage / "data" / "00")
    (line.storage / "data" / "00").write_bytes(b"")


def sql(statement: str) -> Callable[[Timeline], None]:
    """A tagged revision whose root catalog has something that we would not write."""

    def damage(line: Timeline) -> None:
        manifest = line.repository.manifest()
        store = line.repository.store
        data = decompress(store.read(manifest.root_hash, Suffix.CATALOG), 10**9)
        stored = compress(vectors.edit_database(data, statement))
        root = ContentHash.of(stored, HashAlgorithm.SHA1)
        store.put(stored, root, Suffix.CATALOG)
        with line.repository.maintenance(line.now) as work:
            work.history.add_tag("strange", root, manifest.revision, manifest.timestamp, 0)

    return damage


FAULTS: dict[str, tuple[Callable[[Timeline], None], str]] = {
    "published root missing": (remove_object("head"), "is missing"),
    "tagged root missing": (remove_object("tag"), "is missing"),
    "nested catalog missing": (remove_object("nested"), "is missing"),
    "tagged root damaged": (flip_tagged, "is damaged: its hash differs"),
    "listed predecessor missing": (lose_predecessor, "is missing"),
    "malformed reflog entry": (spoil_reflog, "is not a CernVM-FS content hash"),
    "reflog missing": (lose_reflog, "is missing"),
    "folder that cannot be listed": (unlistable, "Not a directory"),
    "unknown hash algorithm": (
        sql("UPDATE catalog SET flags = flags | 0x700 WHERE hash IS NOT NULL"),
        "unknown hash algorithm, 7",
    ),
    "malformed hash": (
        sql("UPDATE catalog SET hash = 'text' WHERE hash IS NOT NULL"),
        "malformed hashes",
    ),
    "later format": (
        sql("UPDATE properties SET value = '8' WHERE key = 'schema_revision'"),
        "schema 2.5 revision 8, which is not understood",
    ),
    "nested catalogs forgotten": (
        sql("DELETE FROM nested_catalogs"),
        "does not say which catalogs are nested in it",
    ),
    "nested catalog unnameable": (
        sql("UPDATE nested_catalogs SET sha1 = 'x'"),
        "is not a CernVM-FS content hash",
    ),
    "table missing": (sql("DROP TABLE chunks"), "has no table chunks"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_any_doubt_ends_the_run_and_nothing_is_removed(line: Timeline, fault: str) -> None:
    line.put("top", b"in the root catalog")
    for number in range(4):
        line.put(f"d{number % 2}/f", b"%d" % number)
        line.wait(1)
        if number == 1:
            line.tag("kept-by-name")
    line.store(b"nobody names this")
    damage, message = FAULTS[fault]
    damage(line)
    line.wait(1)
    before = contents(line.storage)
    for run in (line.plan, line.collect):
        with pytest.raises(RepositoryError, match=message) as caught:
            run(0.5, 3)
        assert caught.value.hint
        assert contents(line.storage) == before
    assert not line.scratch.exists() or not any(line.scratch.iterdir())


def test_a_repository_that_is_not_garbage_collectable_is_left_alone(
    both: tuple[Site, Timeline],
) -> None:
    target, line = both
    line.put("a/f", b"1")
    manifest = target.repository.manifest()
    keys = load_keys(target.keys, NAME)
    path = target.storage / manifests.FILE_NAME
    unmarked = replace(manifest, garbage_collectable=False)
    path.write_bytes(manifests.sign_manifest(unmarked, keys.private_key))
    line.wait(9)
    before = contents(line.storage)
    for run in (line.plan, line.collect):
        with pytest.raises(RepositoryError, match="not garbage-collectable") as caught:
            run()
        assert "CVMFS_GARBAGE_COLLECTION=true" in caught.value.hint
    assert contents(line.storage) == before


# ---------------------------------------------------------------- repositories of stock tools


@pytest.mark.parametrize("name", vectors.NAMES)
def test_all_named_revisions_of_a_stock_repository_survive(tmp_path: Path, name: str) -> None:
    damaged = vectors.Damaged(tmp_path, name)
    keys = vectors.copy_keys(tmp_path / "keys", name)
    repository = NativeRepository(name, LocalStore(damaged.root), keys)
    line = Timeline(repository, damaged.root, tmp_path / "state")
    line.now = int(vectors.NOW.timestamp())
    tagged = {tag.hash for tag in line.tags()}
    assert len(tagged) == 3
    before = {root: line.consists_of(root) for root in tagged}
    _, names = line.plan()
    plan, removed = line.collect()
    assert removed == names
    assert [dropped.number for dropped in plan.dropped] == [0]
    assert {root: line.consists_of(root) for root in tagged} == before
    assert line.names() == line.needed(tagged)
    report = damaged.check()
    assert report.errors == []


def test_beside_stock_tools_their_locks_count_and_the_checksum_of_the_reflog_follows(
    tmp_path: Path,
) -> None:
    stock = Stock(tmp_path / "host")
    spool = Spool(stock.spool, stock.name)
    repository = NativeRepository(
        stock.name, LocalStore(stock.root), stock.keys_folder, NativeOptions(bookkeeping=spool)
    )
    line = Timeline(repository, stock.root, tmp_path / "state")
    line.now = int(vectors.NOW.timestamp())
    flag = stock.spool / "in_transaction.lock"
    flag.write_bytes(b"")
    before = stock.everything()
    for run in (line.plan, line.collect):
        with pytest.raises(LockedError):
            run()
    assert stock.everything() == before
    flag.unlink()
    before = stock.everything()
    _, names = line.plan()
    assert {path: each[0::2] for path, each in stock.everything().items()} == {
        path: each[0::2] for path, each in before.items()
    }
    _, removed = line.collect()
    assert removed == names
    assert names
    checksum = ContentHash.of(stock.reflog_file.read_bytes(), HashAlgorithm.SHA1)
    assert (stock.spool / "reflog.chksum").read_text().strip() == str(checksum)
    assert repository.manifest().reflog == checksum
    assert sorted(os.listdir(stock.spool)) == ["client.local", "reflog.chksum"]
    assert stock.check().errors == []


def test_bind_mountpoints_of_a_stock_repository_keep_what_they_show(tmp_path: Path) -> None:
    damaged = vectors.Damaged(tmp_path)
    first = next(ref for ref in reflog_of(damaged) if ref.type is RefType.CATALOG).hash
    damaged.edit_catalog(
        "", f"INSERT INTO bind_mountpoints VALUES ('/.cvmfs/snapshots/old', '{first}', 0)"
    )
    keys = vectors.copy_keys(tmp_path / "keys")
    repository = NativeRepository(damaged.name, LocalStore(damaged.root), keys)
    line = Timeline(repository, damaged.root, tmp_path / "state")
    line.now = int(vectors.NOW.timestamp())
    shown = line.consists_of(first)
    gone = ContentHash(b"none of all objects!")
    damaged.edit_catalog(
        "", f"INSERT INTO bind_mountpoints VALUES ('/.cvmfs/snapshots/gone', '{gone}', 0)"
    )
    line.collect()
    assert line.consists_of(first) == shown


def reflog_of(damaged: vectors.Damaged) -> list[Ref]:
    with Reflog.open(damaged.reflog_file.read_bytes()) as reflog:
        return reflog.entries()
