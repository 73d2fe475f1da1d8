"""Killed at any step of the second phase, a name leads where it led or to the new image."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cvmfs_publish.naming import read_all_staged, switch_now
from cvmfs_publish.repository.staging import StagedName
from tests.killed.test_publish import STEPS
from tests.support import Site
from tests.versions import at, leads_to, put, sandbox, stage

pytestmark = pytest.mark.slow

NAME = "ghcr.io/a/b:1"


@pytest.mark.parametrize("last", STEPS)
def test_killed_before_a_step_of_the_switch_nothing_is_lost(tmp_path: Path, last: str) -> None:
    site = Site(tmp_path).create()
    repository = site.repository
    start = repository.manifest().timestamp
    with repository.transaction(start + 1) as transaction:
        put(transaction, NAME, "A", at(1))
    with repository.transaction(start + 2) as transaction:
        stage(transaction, NAME, "B", at(2), 2)
    now = at(3).fromtimestamp(start + 3, at(3).tzinfo)

    def switch(step: str = "") -> None:
        names = [StagedName.of(staged) for staged in read_all_staged(repository)]

        def die(name: str) -> None:
            if name == step:
                os.kill(os.getpid(), signal.SIGKILL)

        switch_now(repository, names, now, die)

    victim = os.fork()
    if not victim:
        switch(last)
        os._exit(0)
    _, status = os.waitpid(victim, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    is_switched = last == "done"
    with repository.open() as view:
        assert leads_to(view, NAME) == sandbox("B" if is_switched else "A")
    assert len(read_all_staged(repository)) == (not is_switched)
    switch()  # by whoever comes next
    with repository.open() as view:
        assert leads_to(view, NAME) == sandbox("B")
    assert read_all_staged(repository) == ()
