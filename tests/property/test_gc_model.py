"""Random lives of a repository with its garbage collected at random, against a model."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.repository.native.reflog import RefType
from tests.collecting import DAY, timeline
from tests.images import fast_directory
from tests.support import JUDGE, NAME
from tests.versions import sandbox

NAMES = st.sampled_from(["ghcr.io/a/b:1", "ghcr.io/a/b:2", "docker.io/c:1"])
VERSIONS = st.sampled_from(["one", "two", "three", "four"])
GRACES = st.sampled_from([0, 0, 0.5, 1, 3, 30])  # days
MAX_DAYS = 25  # between the first revision and now


@cache
def load_judge() -> Any:  # noqa: ANN401 - a program
    spec = spec_from_file_location("judge_of_gc", JUDGE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Revision:
    """What the model knows of a revision."""

    root: ContentHash
    replaced: int | None = None  # Unix seconds
    is_collected: bool = False


class Life(RuleBasedStateMachine):
    """`revisions` are all there ever were, the published one last."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="cvmfs-publish-life-", dir=fast_directory()))
        self.stack = contextlib.ExitStack()
        self.count = 0
        self.left: dict[str, int] = {}  # objects of aborted publishes, when they were stored
        self.names: dict[str, str] = {}

    @initialize(algorithm=st.sampled_from(HashAlgorithm))
    def create(self, algorithm: HashAlgorithm) -> None:
        self.target, self.line = self.stack.enter_context(timeline(self.folder, algorithm))
        self.start = self.line.now
        self.revisions = [Revision(self.line.repository.manifest().root_hash)]
        self.tags: dict[str, ContentHash] = {}

    def teardown(self) -> None:
        if self.count:
            self.collect(0, 0)
        self.stack.close()
        shutil.rmtree(self.folder)

    def tick(self) -> None:
        """Let every revision have a second of its own, which is all that a repository can tell."""
        self.line.now += 1

    def published(self, root: ContentHash) -> None:
        if root != self.revisions[-1].root:
            self.revisions[-1].replaced = self.line.now
            self.revisions.append(Revision(root))

    # what people do

    @rule(name=NAMES, version=VERSIONS)
    def publish(self, name: str, version: str) -> None:
        self.tick()
        self.published(self.line.publish(name, version))
        self.names[name] = version

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def unpublish(self, data: st.DataObject) -> None:
        self.tick()
        name = data.draw(st.sampled_from(sorted(self.names)))
        self.published(self.line.unpublish(name))
        del self.names[name]

    @rule(path=st.sampled_from(["d/f", "e/f"]), size=st.sampled_from([1, 3000]))
    def put(self, path: str, size: int) -> None:
        self.tick()
        self.count += 1
        self.published(self.line.put(path, b"%d" % self.count * size))

    @rule()
    def tag(self) -> None:
        self.tick()
        self.count += 1
        self.line.tag(f"t{self.count}")
        self.tags[f"t{self.count}"] = self.revisions[-1].root

    @precondition(lambda self: self.tags)
    @rule(data=st.data())
    def remove_tag(self, data: st.DataObject) -> None:
        self.tick()
        name = data.draw(st.sampled_from(sorted(self.tags)))
        with self.line.repository.maintenance(self.line.now) as work:
            work.history.remove_tag(name)
        del self.tags[name]

    @rule()
    def abort(self) -> None:
        self.count += 1
        self.left[self.line.store(b"aborted %d" % self.count)] = self.line.now

    @rule(days=st.sampled_from([0.01, 0.4, 1, 2]))
    def wait(self, days: float) -> None:
        if self.line.now + days * DAY <= self.start + MAX_DAYS * DAY:
            self.line.wait(days)

    # what must hold

    @rule(grace=GRACES, revisions=st.sampled_from([0, 0, 1, 2, 5]))
    def collect(self, grace: float, revisions: int) -> None:
        self.tick()
        before = self.line.names()
        planned, names = self.line.plan(grace, revisions)
        assert self.line.names() == before
        plan, removed = self.line.collect(grace, revisions)
        self.published(self.line.repository.manifest().root_hash)
        assert (removed, plan.removals) == (names, planned.removals)
        assert before - self.line.names() == set(removed)
        if grace < MAX_DAYS:
            self.check_names(plan.removals, grace)
        kept = self.to_be_kept(grace, revisions)
        assert {each.root_hash for each in plan.kept} == kept
        assert {r.hash for r in self.line.refs() if r.type is RefType.CATALOG} == kept
        reachable = self.line.needed(kept) | self.line.beside()
        since = self.line.now - grace * DAY
        young = {n for n in self.line.names() if (self.line.storage / n).stat().st_mtime > since}
        assert self.line.names() - reachable <= young
        assert {n for n, at in self.left.items() if at > since} & before <= self.line.names()
        for revision in self.revisions:
            revision.is_collected = revision.root not in kept
        self.check_soundness()
        assert self.line.collect(grace, revisions)[0].is_empty

    def to_be_kept(self, grace: float, revisions: int) -> set[ContentHash]:
        now, chain = self.line.now, self.revisions[-2::-1]
        there = {each.root for each in chain if not each.is_collected}
        unbroken = takewhile(lambda root: root in there, [each.root for each in chain])
        recent = {
            each.root
            for each in chain
            if each.replaced is not None and now - each.replaced < grace * DAY
        }
        named = {each.root for each in self.revisions[-2:]} | set(self.tags.values())
        return named | set(islice(unbroken, revisions)) | (recent & there)

    def check_names(self, removals: Any, grace: float) -> None:  # noqa: ANN401
        """What names lead to is there, and nothing of it was removed."""
        used = {sandbox(version) for version in self.names.values()}
        assert not used & {removal.path for removal in removals}
        with self.line.repository.open() as view:
            for path in used:
                assert view.is_directory(path)
            assert all(not view.is_directory(removal.path) for removal in removals)

    def check_soundness(self) -> None:
        out, err = io.StringIO(), io.StringIO()
        key = self.target.keys / f"{NAME}.pub"
        with redirect_stdout(out), redirect_stderr(err):
            load_judge().main([str(self.line.storage), "--scrub", "--public-key", str(key)])
        assert " 0 errors" in f" {out.getvalue().splitlines()[-1]}", out.getvalue() + err.getvalue()


@pytest.mark.slow
def test_whatever_happens_only_what_nobody_may_use_is_removed() -> None:
    if not JUDGE.is_file():
        pytest.skip(f"{JUDGE} is not there")
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=4,
            # A failure names its steps; shortening them would take minutes of judging.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
