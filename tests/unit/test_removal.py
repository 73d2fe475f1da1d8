"""Which sandboxes are removed, and that nothing else is; on a repository in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest

from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import View
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM
from cvmfs_publish.repository.names import pin, rollback, unpin, unpublish
from cvmfs_publish.repository.records import iter_publications
from cvmfs_publish.repository.removal import Removal, apply_removals, plan_removals
from tests.memory import Entry, Folder, Link, MemoryRepository, MemoryTransaction
from tests.versions import ARM64, DAY, at, image_id, leads_to, manifest_digest, put, sandbox

NAME = "ghcr.io/a/b:1"
OTHER = "quay.io/other:2"
GRACE = 30 * DAY


@pytest.fixture
def repository() -> MemoryRepository:
    return MemoryRepository()


@contextmanager
def on_day(repository: MemoryRepository, day: float) -> Iterator[MemoryTransaction]:
    with repository.transaction(int(at(day).timestamp())) as transaction:
        yield transaction


def publish(repository: MemoryRepository, day: float, version: str, name: str = NAME) -> None:
    with on_day(repository, day) as transaction:
        put(transaction, name, version, at(day))


def gone(repository: MemoryRepository, day: float, name: str = NAME) -> None:
    with on_day(repository, day) as transaction:
        unpublish(transaction, Reference.parse(name), DEFAULT_PLATFORM, at(day))


def plan(repository: MemoryRepository, day: float, grace: timedelta = GRACE) -> list[Removal]:
    with repository.open() as view:
        return list(plan_removals(view, at(day), grace))


def planned(repository: MemoryRepository, day: float, grace: timedelta = GRACE) -> set[str]:
    return {removal.path for removal in plan(repository, day, grace)}


def collect(repository: MemoryRepository, day: float, grace: timedelta = GRACE) -> None:
    with on_day(repository, day) as transaction:
        apply_removals(transaction, plan_removals(transaction, at(day), grace))


def test_what_a_name_led_to_goes_when_the_grace_after_it_moved_has_passed(
    repository: MemoryRepository,
) -> None:
    publish(repository, 0, "A")
    publish(repository, 100, "B")
    assert plan(repository, 129.9) == []
    (removal,) = plan(repository, 130)
    hexadecimal = image_id("A").hex
    assert removal == Removal(
        path=sandbox("A"),
        why="no name leads to it any more",
        since=at(100),
        also=(
            f".metadata/.images/{hexadecimal[:2]}/{hexadecimal}.json",
            f".metadata/ghcr.io/a/b:1/.replaced/{manifest_digest('A').hex}",
            f"ghcr.io/a/b@{manifest_digest('A')}",
        ),
    )


def test_removing_leaves_names_and_what_they_lead_to(repository: MemoryRepository) -> None:
    publish(repository, 0, "B")
    before = dict(repository.entries)
    publish(repository, 1, "A")
    publish(repository, 2, "B")
    collect(repository, 100)
    after = dict(repository.entries)
    record = ".metadata/ghcr.io/a/b:1/publication.json"
    assert after.pop(record) != before.pop(record)  # its history
    assert after == before
    assert plan(repository, 1000) == []


def test_an_unpublished_name_is_forgotten_but_for_its_history(
    repository: MemoryRepository,
) -> None:
    publish(repository, 0, "A")
    gone(repository, 5)
    assert plan(repository, 34) == []
    assert planned(repository, 35) == {sandbox("A")}
    collect(repository, 35)
    files = [path for path, entry in repository.entries.items() if isinstance(entry, bytes)]
    assert [path for path in files if not path.endswith("/.cvmfscatalog")] == [
        ".metadata/ghcr.io/a/b:1/unpublished.json"
    ]
    assert "ghcr.io" not in repository.entries
    assert not any(isinstance(entry, Link) for entry in repository.entries.values())
    assert repository.entries.keys() >= {".flat", ".metadata"}


def test_a_sandbox_stays_while_any_name_leads_to_it(repository: MemoryRepository) -> None:
    publish(repository, 0, "A")
    publish(repository, 0, "A", OTHER)
    gone(repository, 1)
    assert plan(repository, 100) == []
    gone(repository, 90, OTHER)
    assert plan(repository, 119) == []
    assert [(r.path, r.since) for r in plan(repository, 120)] == [(sandbox("A"), at(90))]
    names = {f"ghcr.io/a/b@{manifest_digest('A')}", f"quay.io/other@{manifest_digest('A')}"}
    assert names <= set(plan(repository, 120)[0].also)


def test_a_sandbox_of_another_platform_stays(repository: MemoryRepository) -> None:
    with on_day(repository, 0) as transaction:
        put(transaction, NAME, "A", at(0), platform=ARM64)
    publish(repository, 0, "B")
    assert plan(repository, 100) == []
    with on_day(repository, 1) as transaction:
        unpublish(transaction, Reference.parse(NAME), ARM64, at(1))
    assert planned(repository, 100) == {sandbox("A")}


def test_a_pin_keeps_a_sandbox_also_when_the_name_moves_on(repository: MemoryRepository) -> None:
    publish(repository, 0, "A")
    with on_day(repository, 1) as transaction:
        pin(transaction, Reference.parse(NAME), DEFAULT_PLATFORM, at(1))
    publish(repository, 2, "B")
    publish(repository, 3, "C")
    assert planned(repository, 100) == {sandbox("B")}
    with on_day(repository, 101) as transaction:
        unpin(transaction, Reference.parse(NAME), DEFAULT_PLATFORM)
    assert planned(repository, 101) == {sandbox("A"), sandbox("B")}


def test_a_name_by_digest_counts_if_it_was_asked_for(repository: MemoryRepository) -> None:
    by_digest = f"ghcr.io/a/b@{manifest_digest('A')}"
    publish(repository, 0, "A")
    publish(repository, 0, "A", by_digest)
    publish(repository, 1, "B")
    assert plan(repository, 100) == []
    gone(repository, 50, by_digest)
    assert plan(repository, 79) == []
    (removal,) = plan(repository, 80)
    assert by_digest in removal.also
    collect(repository, 80)
    assert by_digest not in repository.entries


def test_what_was_rolled_back_to_stays_and_what_was_left_goes(repository: MemoryRepository) -> None:
    publish(repository, 0, "A")
    publish(repository, 1, "B")
    with on_day(repository, 10) as transaction:
        rollback(transaction, Reference.parse(NAME), DEFAULT_PLATFORM, at(10))
    assert planned(repository, 39) == set()
    assert [(r.path, r.since) for r in plan(repository, 40)] == [(sandbox("B"), at(10))]


def test_a_sandbox_published_again_within_its_grace_stays(repository: MemoryRepository) -> None:
    publish(repository, 0, "A")
    publish(repository, 1, "B")
    publish(repository, 20, "A", OTHER)
    assert planned(repository, 100) == set()
    gone(repository, 60, OTHER)
    assert planned(repository, 89) == set()


def test_a_sandbox_whose_event_is_forgotten_was_left_before_the_oldest_known(
    repository: MemoryRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvmfs_publish.repository.names.MAX_EVENTS", 1)
    for day, version in enumerate("ABC"):
        publish(repository, day, version)
    assert {(r.path, r.since) for r in plan(repository, 100)} == {
        (sandbox("A"), at(1)), (sandbox("B"), at(2)),
    }  # fmt: skip


def test_an_event_that_unpublished_tells_by_itself_when_a_sandbox_was_left(
    repository: MemoryRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvmfs_publish.repository.names.MAX_EVENTS", 1)
    publish(repository, 0, "A")
    gone(repository, 5)
    assert [removal.since for removal in plan(repository, 100)] == [at(5)]


def orphan(repository: MemoryRepository, version: str, day: float) -> None:
    """Make a sandbox that no record mentions, as two publishes of a tag in one call may."""
    before = dict(repository.entries)
    publish(repository, day, version, "orphans.example.org/x:1")
    added = repository.entries.keys() - before.keys()
    for path in added:
        if not path.startswith((".flat", ".metadata/.images")) and path != ".metadata":
            del repository.entries[path]


class Undated:
    """A view of a backend that does not tell times."""

    def __init__(self, view: View) -> None:
        self.read_file = view.read_file
        self.read_symlink = view.read_symlink
        self.is_directory = view.is_directory
        self.list_names = view.list_names


def test_a_sandbox_nothing_mentions_goes_by_the_time_it_was_made_or_stays(
    repository: MemoryRepository,
) -> None:
    orphan(repository, "A", 3)
    assert plan(repository, 32) == []
    (removal,) = plan(repository, 33)
    assert (removal.path, removal.since) == (sandbox("A"), at(3))
    assert removal.why == "no name ever led to it"
    with repository.open() as view:
        assert plan_removals(Undated(view), at(1000), GRACE) == ()


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-20T12:00:00"])
def test_a_sandbox_stays_if_it_is_unknown_when_it_was_left(
    repository: MemoryRepository, text: str
) -> None:
    publish(repository, 0, "A")
    publish(repository, 1, "B")
    path = ".metadata/ghcr.io/a/b:1/publication.json"
    record = repository.entries[path]
    assert isinstance(record, bytes)
    changed = record.replace(b'"published_at": "2026-11-21T12:00:00+00:00"',
                             f'"published_at": "{text}"'.encode())  # fmt: skip
    assert changed != record
    repository.entries[path] = changed
    assert plan(repository, 1000) == []


def test_one_name_of_which_it_is_unknown_is_enough_to_stay(repository: MemoryRepository) -> None:
    for name in (NAME, OTHER):
        publish(repository, 0, "A", name)
    gone(repository, 1)
    gone(repository, 2, OTHER)
    path = ".metadata/ghcr.io/a/b:1/unpublished.json"
    record = repository.entries[path]
    assert isinstance(record, bytes)
    for text in (b'"at": "never"', b'"what": "published", "at": "2026-11-20T12:00:00+00:00"'):
        changed = record.replace(b'"at": "2026-11-21T12:00:00+00:00"', text)
        assert changed != record
        repository.entries[path] = changed.replace(b'"unpublished"', b'"published"')
        assert plan(repository, 1000) == []
    repository.entries[path] = record
    assert planned(repository, 1000) == {sandbox("A")}


def test_a_clock_that_went_back_removes_nothing(repository: MemoryRepository) -> None:
    publish(repository, 10, "A")
    publish(repository, 11, "B")
    assert plan(repository, 5, timedelta(0)) == []
    assert planned(repository, 11, timedelta(0)) == {sandbox("A")}


FOREIGN: dict[str, Entry] = {
    ".flat/ff": Folder(),
    ".flat/ff/" + "f" * 64: Folder(),  # a sandbox of another program
    ".flat/notes": b"of the operator",
    ".layers": Folder(),
    ".layers/ab": Folder(),
    ".layers/ab/layerfs": b"",
    ".chains": Folder(),
    ".chains/ab": b"",
    "software": Folder(),
    "software/empty": Folder(),
    "ghcr.io": Folder(),
    "ghcr.io/empty": Folder(),
    "readme": b"text",
    ".metadata": Folder(),
    ".metadata/quay.io": Folder(),
    ".metadata/quay.io/x:1": Folder(),
    ".metadata/quay.io/x:1/manifest.json": b"{}",
    "quay.io": Folder(),
    "quay.io/x:1": Link("../.flat/ff/" + "f" * 64),
}


def test_what_others_made_is_not_touched(repository: MemoryRepository) -> None:
    repository.entries |= FOREIGN
    for day, version in enumerate("ABC"):
        publish(repository, day, version)
    gone(repository, 5)
    assert len(plan(repository, 1000)) == 3
    collect(repository, 1000)
    left = {path: repository.entries.get(path) for path in FOREIGN}
    assert left == FOREIGN
    assert not any(sandbox(version) in repository.entries for version in "ABC")


LINKS = {
    "a tag of another program": ("ghcr.io/a/b:theirs", "../../{sandbox}"),
    "an alias of a directory in it": ("ghcr.io/tool", "../{sandbox}/bin"),
    "an alias at the root": ("latest", "{sandbox}"),
    "an alias of the name by digest": ("ghcr.io/a/alias", "b@{manifest}"),
    "an alias into the name by digest": ("ghcr.io/a/alias", "b@{manifest}/bin"),
    "an alias of an alias": ("latest", "ghcr.io/a/../a/b@{manifest}"),
    "an absolute alias": ("ghcr.io/abs", "/cvmfs/test.example.org/ghcr.io/a/b@{manifest}"),
    "an absolute alias of it": ("ghcr.io/abs", "/cvmfs/test.example.org/{sandbox}"),
    "a link for a platform": (".multiarch/arm64/ghcr.io/a/b:1", "../../../../{sandbox}"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_a_link_that_somebody_else_made_keeps_a_sandbox(
    repository: MemoryRepository, kind: str
) -> None:
    publish(repository, 0, "A")
    publish(repository, 1, "B")
    path, text = LINKS[kind]
    with on_day(repository, 2) as transaction:
        transaction.make_directories(path.rpartition("/")[0])
        target = text.format(sandbox=sandbox("A"), manifest=manifest_digest("A"))
        transaction.put_symlink(path, target)
        transaction.put_symlink("circle", "circle")
        transaction.put_symlink("out", "../../etc")
        transaction.put_symlink("nowhere", "ghcr.io/none")
    assert plan(repository, 1000) == []
    with on_day(repository, 3) as transaction:
        transaction.remove(path)
    assert planned(repository, 1000) == {sandbox("A")}


def test_a_link_by_way_of_a_linked_directory_keeps_a_sandbox(
    repository: MemoryRepository,
) -> None:
    publish(repository, 0, "A")
    publish(repository, 1, "B")
    with on_day(repository, 2) as transaction:
        transaction.put_symlink("mirror", "ghcr.io/a")
        transaction.put_symlink("tool", f"mirror/b@{manifest_digest('A')}")
    assert plan(repository, 1000) == []


def test_a_name_by_digest_of_another_program_keeps_a_sandbox(repository: MemoryRepository) -> None:
    publish(repository, 0, "A")
    publish(repository, 1, "B")
    name = f"ghcr.io/a/b@{manifest_digest('A')}"
    with on_day(repository, 2) as transaction:
        transaction.make_directories(f".metadata/{name}")
        transaction.put_file(f".metadata/{name}/manifest.json", b"{}")
    assert plan(repository, 1000) == []


def test_a_record_that_cannot_be_read_stops_everything(repository: MemoryRepository) -> None:
    publish(repository, 0, "A")
    publish(repository, 1, "B")
    publish(repository, 1, "C", OTHER)
    for path in (
        ".metadata/quay.io/other:2/publication.json",
        f".metadata/ghcr.io/a/b:1/.replaced/{manifest_digest('A').hex}/publication.json",
    ):
        kept = repository.entries[path]
        repository.entries[path] = b"{"
        with pytest.raises(RepositoryError, match="malformed"):
            plan(repository, 1000)
        repository.entries[path] = kept
    assert planned(repository, 1000) == {sandbox("A")}


def names_of(repository: MemoryRepository) -> dict[str, str | None]:
    with repository.open() as view:
        paths = [record.path for record in iter_publications(view)]
        return {path: leads_to(view, path[1:]) for path in paths}


def test_names_of_what_stays_lead_where_they_led(repository: MemoryRepository) -> None:
    for day, version in enumerate("ABCABDA"):
        publish(repository, day, version)
        publish(repository, day, version, f"{OTHER}.{day}")
    for day in range(4):
        gone(repository, 10 + day, f"{OTHER}.{day}")
    with repository.open() as view:
        before = {
            record.path: leads_to(view, record.path[1:]) for record in iter_publications(view)
        }
    assert planned(repository, 1000) == {sandbox("C")}
    collect(repository, 1000)
    after = names_of(repository)
    assert before == after
    assert None not in after.values()


def test_a_plan_of_nothing_is_no_revision(repository: MemoryRepository) -> None:
    publish(repository, 0, "A")
    before = repository.revision()
    collect(repository, 1000)
    assert repository.revision() == before


def test_a_grace_is_counted_from_any_time_zone(repository: MemoryRepository) -> None:
    publish(repository, 0, "A")
    publish(repository, 1, "B")
    later = datetime.fromisoformat("2026-12-21T14:00:00+02:00")
    with repository.open() as view:
        assert len(plan_removals(view, later, GRACE)) == 1
        assert len(plan_removals(view, later - timedelta(seconds=1), GRACE)) == 0


def test_a_name_may_have_a_grace_of_its_own_and_the_longest_counts(
    repository: MemoryRepository,
) -> None:
    publish(repository, 0, "A")
    publish(repository, 0, "A", OTHER)
    publish(repository, 100, "B")
    publish(repository, 100, "C", OTHER)
    later = at(131)
    with repository.open() as view:
        assert plan_removals(view, later, GRACE, {NAME: 60 * DAY}) == ()
        assert plan_removals(view, later, GRACE, {NAME: 10 * DAY, OTHER: 60 * DAY}) == ()
        both = {NAME: 10 * DAY, OTHER: 20 * DAY}
        assert len(plan_removals(view, at(121), GRACE, both)) == 1
        assert plan_removals(view, at(119), GRACE, both) == ()
