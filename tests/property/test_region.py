"""Twelve Stratum 1s, each as slow or ill as it likes: no name is early, none is forgotten."""

from __future__ import annotations

import shutil
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from cvmfs_publish.errors import InputError
from cvmfs_publish.naming import Wanted, read_all_staged, switch_ready
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM
from cvmfs_publish.repository.names import rollback, unpublish
from tests.region import HEALTHY, NATURES, Nature, Region
from tests.versions import put, stage

pytestmark = pytest.mark.slow

TAGS = ("ghcr.io/a/b:1", "ghcr.io/a/b:2")
MEMBERS = 12


class Naming(RuleBasedStateMachine):
    """A publisher that is killed after every step: nothing of it but the repository stays."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="cvmfs-publish-region-"))
        self.region = Region(self.base)
        self.seconds = 0
        self.wanted = 1

    def teardown(self) -> None:
        try:
            self.catch_up()
        finally:
            shutil.rmtree(self.base)

    def catch_up(self) -> None:
        """When all are well, nothing waits any longer."""
        if not self.region.members:
            return
        for member in self.region.members:
            self.region.become(member, "fast")
        self.look()
        assert read_all_staged(self.region.site.repository) == ()

    @initialize(natures=st.permutations(NATURES), wanted=st.integers(1, 3))
    def begin(self, natures: list[Nature], wanted: int) -> None:
        self.wanted = wanted
        self.region.admit(natures[:MEMBERS])

    # what people do

    @rule(tag=st.sampled_from(TAGS), version=st.sampled_from("ABC"))
    def publish(self, tag: str, version: str) -> None:
        now = self.later()
        with self.region.site.repository.transaction(int(now.timestamp())) as transaction:
            stage(transaction, tag, version, now, self.wanted)
        self.region.remember()
        self.look()

    @rule(tag=st.sampled_from(TAGS), version=st.sampled_from("ABC"))
    def publish_at_once(self, tag: str, version: str) -> None:
        now = self.later()
        with self.region.site.repository.transaction(int(now.timestamp())) as transaction:
            put(transaction, tag, version, now)
        self.region.remember()

    @rule(tag=st.sampled_from(TAGS), goes_back=st.booleans())
    def change_their_minds(self, tag: str, goes_back: bool) -> None:
        now = self.later()
        undo = rollback if goes_back else unpublish
        try:
            with self.region.site.repository.transaction(int(now.timestamp())) as transaction:
                undo(transaction, Reference.parse(tag), DEFAULT_PLATFORM, now)
        except InputError:  # there is nothing of that name
            return
        self.region.remember()

    @rule(number=st.integers(0, MEMBERS - 1), nature=st.sampled_from(NATURES))
    def become(self, number: int, nature: Nature) -> None:
        self.region.become(self.region.members[number], nature)

    @rule()
    def pass_time(self) -> None:
        self.region.step()
        self.look()

    @rule(number=st.integers(0, MEMBERS - 1))
    def let_one_fetch(self, number: int) -> None:
        self.region.snapshot(self.region.members[number])
        self.look()

    def look(self) -> None:
        """What was found agrees with what is true, and decides alone which names are switched."""
        repository = self.region.site.repository
        survey = self.region.look()
        before = read_all_staged(repository)
        for staged in before:
            assert survey.having(staged.revision) == self.region.serving(staged.revision)
        done = switch_ready(repository, survey, Wanted(), self.later())
        self.region.remember()
        arrived = {
            staged.publication.path
            for staged in before
            if self.region.serving(staged.revision) >= self.wanted
        }
        assert {record.path for record in done} == arrived
        left = {staged.publication.path for staged in read_all_staged(repository)}
        assert left == {staged.publication.path for staged in before} - arrived

    # what is always true

    @invariant()
    def no_client_sees_a_name_that_leads_nowhere(self) -> None:
        for member in self.region.members:
            if member.nature in HEALTHY:
                for path, sandbox, is_whole in self.region.names(member):
                    assert sandbox is not None, f"{path} leads nowhere at {member.url}"
                    assert is_whole, f"{path} at {member.url}"

    def later(self) -> datetime:
        self.seconds += 1
        return self.region.now + timedelta(seconds=self.seconds)


def test_no_name_is_early_and_none_is_forgotten() -> None:
    run_state_machine_as_test(
        Naming,
        settings=settings(
            max_examples=8,
            # A failure names its steps; shortening them would take minutes of publishing.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
