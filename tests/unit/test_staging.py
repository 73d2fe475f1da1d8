"""Names that wait for replicas: what is visible meanwhile, what ends the waiting, what is kept."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta

import pytest

from cvmfs_publish.config import ImageRule
from cvmfs_publish.errors import InputError, IntegrityError, RepositoryError
from cvmfs_publish.patterns import ImagePattern
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import Transaction
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM, place_name
from cvmfs_publish.repository.names import (
    get_publication,
    pin,
    read_history,
    rollback,
    unpublish,
)
from cvmfs_publish.repository.records import (
    Publication,
    Staged,
    iter_publications,
    iter_records,
    iter_staged,
    renumbered,
)
from cvmfs_publish.repository.removal import plan_removals
from cvmfs_publish.repository.staging import (
    StagedName,
    choose_staged,
    hindrance,
    is_to_wait,
    settle,
    stage_name,
    switch_names,
)
from cvmfs_publish.sources.compliance import Compliance, ComplianceError
from tests.memory import MemoryRepository
from tests.versions import (
    ARM64,
    at,
    leads_to,
    manifest,
    manifest_digest,
    put,
    sandbox,
    stage,
)

NAME = "ghcr.io/a/b:1"
REFERENCE = Reference.parse(NAME)
NAMES = place_name(REFERENCE, DEFAULT_PLATFORM)
DIGEST_NAME = "ghcr.io/a/b@{}"


class World:
    """A repository and what people do with one name, a transaction each."""

    def __init__(self) -> None:
        self.repository = MemoryRepository()
        self.day = 0.0

    def publish(self, version: str, **options: object) -> Publication:
        with self.open() as transaction:
            return put(transaction, NAME, version, at(self.day), **options)  # type: ignore[arg-type]

    def stage(self, version: str, replicas: int = 2, **options: object) -> Staged:
        with self.open() as transaction:
            return stage(transaction, NAME, version, at(self.day), replicas, **options)  # type: ignore[arg-type]

    def switch(self, *names: StagedName) -> list[Publication]:
        wanted = names or tuple(map(StagedName.of, self.staged))
        with self.open() as transaction:
            return switch_names(transaction, wanted, at(self.day))

    def open(self) -> AbstractContextManager[Transaction]:
        self.day += 1
        return self.repository.transaction(int(at(self.day).timestamp()))

    @property
    def staged(self) -> list[Staged]:
        with self.repository.open() as view:
            return list(iter_staged(view))

    def leads_to(self, name: str = NAME, variant: str = "amd64") -> str | None:
        with self.repository.open() as view:
            return leads_to(view, name, variant)

    def past(self) -> list[str]:
        known = {str(manifest_digest(version)): version for version in "ABCD"}
        with self.repository.open() as view:
            events = read_history(view, REFERENCE, DEFAULT_PLATFORM).versions
        return [f"{each.event.what} {known[each.event.manifest_digest]}" for each in events]

    def garbage(self, days: float) -> list[str]:
        with self.repository.open() as view:
            plan = plan_removals(view, at(self.day + days), timedelta(days=30))
        return [removal.path for removal in plan]


@pytest.fixture
def world() -> World:
    return World()


def by_digest(version: str) -> str:
    return DIGEST_NAME.format(manifest_digest(version))


# the two phases


def test_a_name_stays_where_it_is_until_it_is_switched(world: World) -> None:
    world.publish("A")
    staged = world.stage("B")
    assert world.leads_to() == sandbox("A")
    assert world.leads_to(by_digest("B")) == sandbox("B")  # it can lead nowhere else
    assert world.past() == ["published A"]
    (record,) = world.switch()
    assert world.leads_to() == sandbox("B")
    assert world.past() == ["published A", "published B"]
    assert world.staged == []
    assert record.revision == staged.revision + 1
    assert record.published_at > staged.publication.published_at


def test_a_first_name_leads_nowhere_before(world: World) -> None:
    world.stage("A")
    assert world.leads_to() is None
    with world.repository.open() as view:
        assert list(iter_publications(view)) == []
        assert list(iter_records(view)) == []
        with pytest.raises(InputError, match="waits until 2 replicas have revision") as failure:
            get_publication(view, REFERENCE, DEFAULT_PLATFORM)
    assert "cvmfs-publish switch ghcr.io/a/b:1 --now" in failure.value.hint
    assert world.past() == []
    world.switch()
    assert world.leads_to() == sandbox("A")
    assert world.past() == ["published A"]
    with world.repository.open() as view:
        assert view.read_file(f"{NAMES.metadata}/manifest.json") == manifest("A")
        assert not view.is_directory(".metadata/.staged")  # nothing is left behind


def test_each_platform_waits_for_itself(world: World) -> None:
    world.publish("A")
    world.stage("B", platform=ARM64)
    world.stage("C")
    assert len(world.staged) == 2
    (arm,) = [each for each in world.staged if each.publication.platform == "linux/arm64"]
    world.switch(StagedName.of(arm))
    assert (world.leads_to(), world.leads_to(variant="arm64")) == (sandbox("A"), sandbox("B"))
    world.switch()
    assert (world.leads_to(), world.leads_to(variant="arm64")) == (sandbox("C"), sandbox("B"))


def test_only_the_image_that_was_meant_is_switched(world: World) -> None:
    world.publish("A")
    older = StagedName.of(world.stage("B"))
    world.stage("C")
    assert world.switch(older) == []
    assert world.leads_to() == sandbox("A")
    world.switch()
    assert world.leads_to() == sandbox("C")


def test_nothing_is_waited_for_where_a_name_does_not_move(world: World) -> None:
    first = world.publish("A")
    staged = world.stage("B")
    with world.repository.open() as view:
        assert not is_to_wait(view, REFERENCE, first)
        assert is_to_wait(view, REFERENCE, staged.publication)
        digest = Reference.parse(by_digest("B"))
        assert not is_to_wait(view, digest, staged.publication)


# what ends the waiting


def test_a_newer_publish_supersedes_what_waits(world: World) -> None:
    world.publish("A")
    world.stage("B")
    newer = world.stage("C")
    assert world.staged == [newer]
    world.publish("D")
    assert world.staged == []
    assert world.leads_to() == sandbox("D")
    assert world.past() == ["published A", "published D"]


def test_a_rollback_ends_the_waiting_also_one_to_where_the_name_leads(world: World) -> None:
    world.publish("A")
    current = world.publish("B")
    world.stage("C")
    with world.open() as transaction:
        done = rollback(transaction, REFERENCE, DEFAULT_PLATFORM, at(world.day), current.digest)
    assert not done.is_changed
    assert world.staged == []
    world.stage("C")
    with world.open() as transaction:
        rollback(transaction, REFERENCE, DEFAULT_PLATFORM, at(world.day))
    assert (world.staged, world.leads_to()) == ([], sandbox("A"))


def test_an_unpublish_ends_the_waiting(world: World) -> None:
    world.publish("A")
    world.stage("B")
    with world.open() as transaction:
        unpublish(transaction, REFERENCE, DEFAULT_PLATFORM, at(world.day))
    assert (world.staged, world.leads_to()) == ([], None)


def test_an_unpublished_name_that_never_led_anywhere_can_be_brought_back(world: World) -> None:
    world.stage("A")
    with world.open() as transaction:
        unpublish(transaction, REFERENCE, DEFAULT_PLATFORM, at(world.day))
    assert (world.staged, world.leads_to(), world.past()) == ([], None, ["unpublished A"])
    with world.open() as transaction:
        rollback(transaction, REFERENCE, DEFAULT_PLATFORM, at(world.day))
    assert world.leads_to() == sandbox("A")
    assert world.past() == ["unpublished A", "rolled back A"]


def test_a_pin_keeps_what_it_pins_and_the_name_moves_on(world: World) -> None:
    world.publish("A")
    world.stage("B")
    with world.open() as transaction:
        pin(transaction, REFERENCE, DEFAULT_PLATFORM, at(world.day))
    (record,) = world.switch()
    assert record.pinned == (f"/{sandbox('A')}",)
    assert sandbox("A") not in world.garbage(1000)


def test_what_is_wanted_now_counts(world: World) -> None:
    current = world.publish("A")
    staged = world.stage("B", 3)

    def ask(record: Publication, replicas: int) -> Publication | Staged:
        with world.open() as transaction:
            return settle(transaction, record, replicas, at(world.day))

    found = ask(staged.publication, 1)
    assert isinstance(found, Staged)
    assert found.replicas == world.staged[0].replicas == 1
    assert ask(current, 1) == current  # the tag is back where it was
    assert world.staged == []
    staged = world.stage("B", 3)
    found = ask(staged.publication, 0)
    assert isinstance(found, Publication)
    assert world.leads_to() == sandbox("B")
    assert ask(found, 2) == found


# keeping


def test_a_sandbox_that_a_name_waits_for_is_not_collected(world: World) -> None:
    world.publish("A")
    world.stage("B")
    assert world.garbage(1000) == []
    world.stage("C")
    assert world.garbage(1000) == [sandbox("B")]  # superseded, and never named


def test_what_never_was_named_is_collected_with_its_name_by_digest(world: World) -> None:
    world.stage("A")
    with world.open() as transaction:
        unpublish(transaction, REFERENCE, DEFAULT_PLATFORM, at(world.day))
    with world.repository.open() as view:
        assert plan_removals(view, at(world.day + 29), timedelta(days=30)) == ()
        (removal,) = plan_removals(view, at(world.day + 31), timedelta(days=30))
    assert removal.path == sandbox("A")
    assert by_digest("A") in removal.also


def test_what_is_not_whole_is_never_named(world: World) -> None:
    world.publish("A")
    staged = world.stage("B")
    with world.open() as transaction:
        transaction.remove(sandbox("B"))
    assert world.switch() == []
    assert world.leads_to() == sandbox("A")
    with (
        pytest.raises(RepositoryError, match="of which something was removed"),
        world.open() as transaction,
    ):
        settle(transaction, staged.publication, 0, at(world.day))


def test_a_name_that_another_has_taken_meanwhile_holds_back_no_other(world: World) -> None:
    with world.open() as transaction:
        staged = stage(transaction, NAME, "A", at(world.day), 2)
        record = replace(staged.publication, short_name="/a/b:1")
        stage_name(transaction, REFERENCE, Staged(record, 2), manifest("A"))
        stage(transaction, "ghcr.io/a/other:1", "B", at(world.day), 2)
    with world.open() as transaction:
        put(transaction, "a.org/a/b:1", "C", at(world.day))
        transaction.make_directories("a")
        transaction.put_symlink("a/b:1", "../a.org/a/b:1")
    (record,) = world.switch()
    assert record.reference == "ghcr.io/a/other:1"
    (left,) = world.staged
    with world.repository.open() as view:
        assert "is that of a.org/a/b:1" in str(hindrance(view, left))


def test_rules_that_came_meanwhile_hold_back_what_waits(world: World) -> None:
    staged = world.stage("A")
    rules = Compliance("test.example.org", refuse=(ImageRule(ImagePattern.parse("ghcr.io/a/*")),))
    with world.open() as transaction:
        assert switch_names(transaction, [StagedName.of(staged)], at(world.day), rules) == []
    with pytest.raises(ComplianceError), world.open() as transaction:
        settle(transaction, staged.publication, 0, at(world.day), rules)
    assert world.leads_to() is None
    assert world.switch()


def test_a_name_that_does_not_wait_is_told(world: World) -> None:
    staged = world.stage("A")
    assert choose_staged(world.staged, REFERENCE, DEFAULT_PLATFORM) == staged
    with pytest.raises(InputError, match="waits for no replicas"):
        choose_staged(world.staged, Reference.parse("ghcr.io/a/b:2"), DEFAULT_PLATFORM)
    with pytest.raises(InputError, match="for linux/arm64 waits for no replicas"):
        choose_staged(world.staged, REFERENCE, ARM64)


# the record


def test_the_record_survives_and_follows_another_revision(world: World) -> None:
    staged = world.stage("A")
    assert Staged.from_json(staged.to_json()) == staged
    moved = Staged.from_json(renumbered(staged.to_json(), staged.revision, 77))
    assert (moved.revision, moved.replicas) == (77, staged.replicas)
    assert renumbered(staged.to_json(), staged.revision + 1, 77) == staged.to_json()
    assert renumbered(b"{}", 1, 2) == b"{}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format": 1, "replicas": "2", "publication": {}}',
        b'{"format": 1, "replicas": 2, "publication": {}}',
        b'{"format": 2, "replicas": 2, "publication": {}}',
    ],
)
def test_a_damaged_record_is_told_with_its_place(world: World, data: bytes) -> None:
    world.stage("A")
    with pytest.raises(IntegrityError):
        Staged.from_json(data)
    with world.open() as transaction:
        transaction.put_file(f"{NAMES.staged}/staged.json", data)
    with pytest.raises(RepositoryError, match=r"/\.metadata/\.staged/ghcr\.io/a/b:1/staged\.json"):
        _ = world.staged
