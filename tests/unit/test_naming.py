"""Names follow their images, in a region of twelve Stratum 1s that has its own clock."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta

import pytest

from cvmfs_publish.errors import LockedError
from cvmfs_publish.naming import (
    Switching,
    Wanted,
    read_all_staged,
    still_waiting,
    switch_now,
    switch_ready,
)
from cvmfs_publish.replicas import Goal, Survey, Waiting
from cvmfs_publish.repository.records import Staged
from cvmfs_publish.repository.staging import StagedName
from tests import versions
from tests.region import NATURES, Region
from tests.versions import put, sandbox, stage

NAME = "ghcr.io/a/b:1"
OTHER = "ghcr.io/a/b:2"
MINUTE = timedelta(minutes=1)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def region_of_this_module(tmp_path_factory: pytest.TempPathFactory) -> Region:
    region = Region(tmp_path_factory.mktemp("region"))
    region.admit(list(NATURES[:12]))  # all but the dead one; that comes in a test of its own
    return region


@pytest.fixture
def region(region_of_this_module: Region) -> Region:
    """All natures, everything of earlier tests settled."""
    region = region_of_this_module
    for member, nature in zip(region.members, NATURES, strict=False):
        region.become(member, "fast")
        region.become(member, nature)
    switch_now(region.site.repository, [StagedName.of(each) for each in staged(region)], region.now)
    region.remember()
    return region


def staged(region: Region) -> tuple[Staged, ...]:
    return read_all_staged(region.site.repository)


def publish(region: Region, version: str, replicas: int, name: str = NAME) -> StagedName:
    region.seconds += 1
    with region.site.repository.transaction(int(region.now.timestamp())) as transaction:
        if replicas:
            found = StagedName.of(stage(transaction, name, version, region.now, replicas))
        else:
            record = put(transaction, name, version, region.now)
            found = StagedName(record.reference, record.platform, record.manifest_digest)
    region.remember()
    return found


def leads_to(region: Region, name: str = NAME) -> str:
    with region.site.repository.open() as view:
        found = versions.leads_to(view, name)
    assert found is not None
    return found


def switching(region: Region, said: list[str], most: int = 0) -> Switching:
    def sleep(seconds: float) -> None:
        region.step(seconds)

    return Switching(
        region.site.repository,
        region.look,
        Wanted(most),
        now=lambda: region.now,
        monotonic=lambda: region.seconds,
        sleep=sleep,
        tell=said.append,
    )


def test_what_is_found_of_each_is_what_was_done_to_it(region: Region) -> None:
    publish(region, "A", 0)
    publish(region, "B", 0)
    region.step()
    found = [standing.health for standing in region.look().replicas]
    assert found == [
        "ok",
        "behind",
        "behind",
        "behind",
        "expired",
        "wrong-key",
        "unsigned",
        "foreign",
        "future",
        "forked",
        "incomplete",
        "stale-proxy",
    ]
    newest = region.revision
    for member, standing in zip(region.members, region.look().replicas, strict=True):
        for revision in range(1, newest + 2):
            assert standing.has(revision) == (member.served >= revision), member.nature


def test_a_name_follows_when_the_wanted_number_has_the_image(region: Region) -> None:
    publish(region, "A", 0)
    name = publish(region, "B", 2)
    said: list[str] = []
    waited = switching(region, said).wait([name], timedelta(seconds=30))
    # only one is so fast; the others come when there is something newer
    assert [each.publication.reference for each in waited.waiting] == [NAME]
    assert waited.switched == ()
    assert "1 of 12 replicas have revision" in said[-1]
    assert leads_to(region) == sandbox("A")
    error = still_waiting(waited, Wanted(), timedelta(seconds=30))
    assert error.exit_code == 3
    assert f"after 30 seconds {NAME} waits: 1 of 12 replicas" in str(error)
    assert "2 are wanted; missing: http://s2.example.org" in str(error)
    publish(region, "A", 0, OTHER)  # another publish brings the slow one to what the name waits for
    waited = switching(region, []).wait([name], 10 * MINUTE)
    assert waited.waiting == ()
    assert [record.reference for record in waited.switched] == [NAME]
    assert leads_to(region) == sandbox("B")


def test_what_others_left_is_switched_along(region: Region) -> None:
    publish(region, "A", 0)
    publish(region, "A", 0, OTHER)
    publish(region, "B", 1, OTHER)  # by somebody who was killed then
    name = publish(region, "C", 1)
    waited = switching(region, []).wait([name], MINUTE)
    assert {record.reference for record in waited.switched} == {NAME, OTHER}
    assert staged(region) == ()


def test_less_than_was_wanted_can_do_later_and_more_never(region: Region) -> None:
    publish(region, "A", 0)
    publish(region, "B", 3)
    region.step()
    survey = region.look()
    assert switch_ready(region.site.repository, survey, Wanted(9), region.now) == []
    assert switch_ready(region.site.repository, survey, Wanted(), region.now) == []
    (record,) = switch_ready(region.site.repository, survey, Wanted(1), region.now)
    assert record.reference == NAME


def test_only_those_that_are_meant_are_switched(region: Region) -> None:
    name = publish(region, "B", 1)
    publish(region, "C", 1, OTHER)
    region.step()
    (record,) = switch_ready(
        region.site.repository, region.look(), Wanted(), region.now, among=[name]
    )
    assert record.reference == NAME
    assert [each.publication.reference for each in staged(region)] == [OTHER]


def test_no_revision_is_made_where_nothing_has_arrived(region: Region) -> None:
    publish(region, "C", 12)
    before = region.revision
    assert switch_ready(region.site.repository, region.look(), Wanted(), region.now) == []
    assert region.revision == before


def test_a_writer_that_is_in_the_way_is_told_and_nothing_is_lost(region: Region) -> None:
    publish(region, "D", 1)
    region.step()
    survey = region.look()
    with (
        region.site.repository.transaction(int(region.now.timestamp())),
        pytest.raises(LockedError),
    ):
        switch_ready(region.site.repository, survey, Wanted(), region.now)
    assert len(switch_ready(region.site.repository, survey, Wanted(), region.now)) == 1


def test_a_writer_that_ends_in_time_is_waited_for(region: Region) -> None:
    name = publish(region, "A", 1)
    with ExitStack() as stack:
        stack.enter_context(region.site.repository.transaction(int(region.now.timestamp())))

        def sleep(seconds: float) -> None:
            region.step(seconds)
            stack.close()

        waiting = Switching(
            region.site.repository,
            region.look,
            Wanted(),
            now=lambda: region.now,
            monotonic=lambda: region.seconds,
            sleep=sleep,
        )
        region.step()
        with pytest.raises(LockedError):
            waiting.wait([name], timedelta())
        waited = waiting.wait([name], MINUTE)
    assert [record.reference for record in waited.switched] == [NAME]


def test_ctrl_c_while_waiting_loses_nothing(region: Region) -> None:
    name = publish(region, "A", 4)

    def interrupt() -> Survey:
        raise KeyboardInterrupt

    waiting = Switching(region.site.repository, interrupt, Wanted(), now=lambda: region.now)
    with pytest.raises(KeyboardInterrupt):
        waiting.wait([name], MINUTE)
    assert [StagedName.of(each) for each in staged(region)] == [name]


def test_what_is_not_whole_is_not_waited_for(region: Region) -> None:
    publish(region, "A", 0)
    name = publish(region, "D", 1)
    with region.site.repository.transaction(int(region.now.timestamp())) as transaction:
        transaction.remove(sandbox("D"))
    region.remember()
    waited = switching(region, []).wait([name], MINUTE)
    assert (waited.switched, waited.waiting) == ((), ())
    assert leads_to(region) == sandbox("A")
    publish(region, "A", 0)


def test_a_revision_is_waited_for_in_the_same_region(region: Region) -> None:
    revision = region.revision
    publish(region, "B", 0)
    newest = region.revision
    waiting = Waiting(region.look, monotonic=lambda: region.seconds, sleep=region.step)
    survey = waiting.wait(Goal(newest, 1, MINUTE))
    assert survey.having(newest) == region.serving(newest) == 1
    survey = waiting.wait(Goal(newest, 2, MINUTE))
    assert survey.having(newest) == 1  # the slow ones never have the newest
    survey = waiting.wait(Goal(revision, 2, MINUTE))
    assert survey.having(revision) >= 2


def test_one_that_dies_counts_no_more(region: Region) -> None:
    publish(region, "C", 1)
    region.step()
    region.become(region.members[0], "dead")
    assert switch_ready(region.site.repository, region.look(), Wanted(), region.now) == []
