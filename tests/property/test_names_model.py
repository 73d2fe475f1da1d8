"""Names, their past and what is collected, against a model; the judge has the last word."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.errors import InputError
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM
from cvmfs_publish.repository.names import (
    pin,
    read_history,
    rollback,
    unpin,
    unpublish,
    unpublish_images,
)
from cvmfs_publish.repository.records import iter_publications, iter_staged
from cvmfs_publish.repository.removal import apply_removals, plan_removals
from cvmfs_publish.repository.staging import StagedName, is_to_wait, switch_names
from cvmfs_publish.sources.base import Platform
from tests.images import fast_directory
from tests.support import JUDGE, Site, keys_of_this_run
from tests.versions import ARM64, image_id, leads_to, manifest_digest, put, sandbox, stage

VERSIONS = ["A", "A-2", "B", "C"]  # A and A-2 are one image with two manifests
BY_DIGEST = f"ghcr.io/a/b@{manifest_digest('A')}"
NAMES = ["ghcr.io/a/b:1", "ghcr.io/a/b:2", "ghcr.io/a:1", BY_DIGEST]
PLATFORMS = [DEFAULT_PLATFORM, ARM64]
GRACE = timedelta(minutes=5)
Key = tuple[str, Platform]
KEYS = [(name, p) for name in NAMES for p in PLATFORMS if name != BY_DIGEST or p == PLATFORMS[0]]


@dataclass
class Name:
    """What the model knows of a name: the version it leads to, its past, what can come back."""

    current: str | None = None
    past: list[tuple[str, str]] = field(default_factory=list)  # what happened, to which version
    kept: set[str] = field(default_factory=set)
    pinned: set[str] = field(default_factory=set)  # images
    staged: str | None = None  # the version it waits to lead to

    @property
    def is_known(self) -> bool:
        return self.current is not None or self.staged is not None


class NamesModel(RuleBasedStateMachine):
    """Random lives of names; every step is a transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="cvmfs-publish-names-", dir=fast_directory()))
        self.site = Site(self.folder)
        # early enough for all steps to lie in the past: the judge knows what time it is
        self.now = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=20)
        self.names: dict[Key, Name] = {key: Name() for key in KEYS}
        self.left: dict[str, datetime] = {}  # image → when a name last left it
        self.made: dict[str, datetime] = {}  # image → when its sandbox was made last
        self.images: set[str] = set()  # whose sandboxes are there
        self.immutable: dict[str, str] = {}  # link → version
        self.revision = 1

    @initialize(algorithm=st.sampled_from(HashAlgorithm))
    def create(self, algorithm: HashAlgorithm) -> None:
        self.site.algorithm = algorithm
        shutil.copytree(keys_of_this_run(), self.site.keys)
        self.site.repository.create(algorithm, self.now)

    def teardown(self) -> None:
        try:
            if self.site.storage.exists():
                assert self.site.judge() == []
        finally:
            self.site.client.close()
            shutil.rmtree(self.folder)

    def tick(self, changes: bool = True) -> int:
        self.now += timedelta(minutes=1)
        self.revision += changes
        return int(self.now.timestamp())

    def go(self, key: Key, version: str | None, what: str) -> None:
        """The name leads elsewhere, or, with None, nowhere."""
        name = self.names[key]
        if name.current is not None:
            self.left[name.current[0]] = self.now
            name.kept.add(name.current)
        elif version is None and name.staged is not None:
            self.left[name.staged[0]] = self.now
            name.kept.add(name.staged)
        name.past.append((what, version or name.current or name.staged or ""))
        name.current, name.staged = version, None
        if version is not None:
            name.kept.discard(version)
            self.make(key, version)

    def make(self, key: Key, version: str) -> None:
        """There is a sandbox, and a name by digest."""
        if version[0] not in self.images:
            self.made[version[0]] = self.now
        self.images.add(version[0])
        repository = key[0].rpartition("@" if "@" in key[0] else ":")[0]
        self.immutable[f"{repository}@{manifest_digest(version)}"] = version

    @rule(key=st.sampled_from(KEYS), version=st.sampled_from(VERSIONS), force=st.booleans())
    def publish(self, key: Key, version: str, force: bool) -> None:
        if key[0] == BY_DIGEST:
            version = "A"
        with self.site.repository.transaction(self.tick()) as transaction:
            put(transaction, key[0], version, self.now, platform=key[1], force=force)
        self.go(key, version, "published")

    @rule(version=st.sampled_from(VERSIONS), force=st.booleans())
    def publish_under_two_names(self, version: str, force: bool) -> None:
        with self.site.repository.transaction(self.tick()) as transaction:
            for name in NAMES[:2]:
                put(transaction, name, version, self.now, force=force)
        for name in NAMES[:2]:
            self.go((name, DEFAULT_PLATFORM), version, "published")

    @rule(key=st.sampled_from(KEYS[:-1]), version=st.sampled_from(VERSIONS))
    def stage(self, key: Key, version: str) -> None:
        name = self.names[key]
        waits = name.current is None or name.current[0] != version[0]
        with self.site.repository.transaction(self.tick()) as transaction:
            if waits:
                staged = stage(transaction, key[0], version, self.now, 2, platform=key[1])
                assert is_to_wait(transaction, Reference.parse(key[0]), staged.publication)
            else:
                put(transaction, key[0], version, self.now, platform=key[1])
        if not waits:
            self.go(key, version, "published")
            return
        name.staged = version
        self.make(key, version)

    @rule()
    def switch(self) -> None:
        waiting = {key: name.staged for key, name in self.names.items() if name.staged}
        with self.site.repository.open() as view:
            staged = [StagedName.of(each) for each in iter_staged(view)]
        assert sorted(each.manifest_digest for each in staged) == sorted(
            str(manifest_digest(version)) for version in waiting.values()
        )
        with self.site.repository.transaction(self.tick(bool(waiting))) as transaction:
            assert len(switch_names(transaction, staged, self.now)) == len(waiting)
        for key, version in waiting.items():
            self.go(key, version, "published")

    @rule(key=st.sampled_from(KEYS))
    def unpublish(self, key: Key) -> None:
        name = self.names[key]
        allowed = name.is_known and not name.pinned
        now = self.tick(allowed)
        with self.site.repository.transaction(now) as transaction:
            if not allowed:
                with pytest.raises(InputError):
                    unpublish(transaction, Reference.parse(key[0]), key[1], self.now)
                return
            unpublish(transaction, Reference.parse(key[0]), key[1], self.now)
        self.go(key, None, "unpublished")

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))
    def unpublish_several(self, names: Sequence[str]) -> None:
        keys = [(name, DEFAULT_PLATFORM) for name in dict.fromkeys(names)]
        gone = [k for k in keys if self.names[k].is_known and not self.names[k].pinned]
        self.tick(bool(gone))
        result = unpublish_images(self.site.repository, names, now=self.now)
        done = [image.reference for image in result.images if image.error is None]
        assert done == [name for name, _ in gone]
        assert result.exit_code == (0 if len(gone) == len(keys) else 6 if gone else 2)
        for key in gone:
            self.go(key, None, "unpublished")

    @rule(key=st.sampled_from(KEYS))
    def rollback(self, key: Key) -> None:
        name = self.names[key]
        past = [version for _, version in reversed(name.past) if version != name.current]
        self._rollback(key, "", next((v for v in past if v in name.kept), None))

    @rule(key=st.sampled_from(KEYS), version=st.sampled_from(VERSIONS), digits=st.integers(6, 64))
    def rollback_to(self, key: Key, version: str, digits: int) -> None:
        name = self.names[key]
        known = version in [v for _, v in name.past]
        possible = known and (version == name.current or version in name.kept)
        to = manifest_digest(version).hex[:digits]
        self._rollback(key, to, version if possible else None)

    def _rollback(self, key: Key, to: str, version: str | None) -> None:
        name = self.names[key]
        changes = version is not None and version != name.current
        now = self.tick(changes or (version is not None and name.staged is not None))
        with self.site.repository.transaction(now) as transaction:
            if version is None:
                with pytest.raises(InputError):
                    rollback(transaction, Reference.parse(key[0]), key[1], self.now, to)
                return
            done = rollback(transaction, Reference.parse(key[0]), key[1], self.now, to)
        assert done.publication.manifest_digest == str(manifest_digest(version))
        assert done.is_changed == changes
        name.staged = None
        if changes:
            self.go(key, version, "rolled back")

    @rule(key=st.sampled_from(KEYS))
    def pin(self, key: Key) -> None:
        name = self.names[key]
        changes = name.current is not None and name.current[0] not in name.pinned
        with self.site.repository.transaction(self.tick(changes)) as transaction:
            if name.current is None:
                with pytest.raises(InputError):
                    pin(transaction, Reference.parse(key[0]), key[1], self.now)
                return
            pin(transaction, Reference.parse(key[0]), key[1], self.now)
        name.pinned.add(name.current[0])

    @rule(key=st.sampled_from(KEYS))
    def unpin(self, key: Key) -> None:
        name = self.names[key]
        if name.current is None:
            return
        with self.site.repository.transaction(self.tick(bool(name.pinned))) as transaction:
            unpin(transaction, Reference.parse(key[0]), key[1])
        name.pinned.clear()

    @rule(minutes=st.integers(0, 8))
    def collect(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)
        used = {name.current[0] for name in self.names.values() if name.current is not None}
        used |= {image for name in self.names.values() for image in name.pinned}
        used |= {name.staged[0] for name in self.names.values() if name.staged is not None}
        late = self.now + timedelta(minutes=1) - GRACE
        gone = {i for i in self.images if i not in used and self.left.get(i, self.made[i]) <= late}
        now = self.tick(bool(gone))
        with self.site.repository.open() as view:
            foreseen = plan_removals(view, self.now, GRACE)
        with self.site.repository.transaction(now) as transaction:
            plan = plan_removals(transaction, self.now, GRACE)
            apply_removals(transaction, plan)
        assert plan == foreseen
        assert {removal.path for removal in plan} == {sandbox(image) for image in gone}
        self.images -= gone
        self.immutable = {k: v for k, v in self.immutable.items() if v[0] not in gone}
        for name in self.names.values():
            name.kept = {version for version in name.kept if version[0] not in gone}

    @invariant()
    def names_lead_where_the_model_says(self) -> None:
        if not self.site.storage.exists():
            return
        assert self.site.repository.revision().number == self.revision
        with self.site.repository.open() as view:
            for text in NAMES:
                current = {p: self.names[text, p].current for n, p in KEYS if n == text}
                alone = {p for p, version in current.items() if version} == {DEFAULT_PLATFORM}
                for platform, version in current.items():
                    shown = current[DEFAULT_PLATFORM] if alone else version
                    expected = sandbox(shown) if shown else None
                    if text != BY_DIGEST:
                        assert leads_to(view, text, platform.architecture) == expected
            for link, version in self.immutable.items():
                assert leads_to(view, link) == sandbox(version)
            published = {
                (r.path[1:], r.platform): r.manifest_digest for r in iter_publications(view)
            }
            assert published == {
                (text, str(platform)): str(manifest_digest(name.current))
                for (text, platform), name in self.names.items()
                if name.current
            }
            for image in "ABC":
                assert view.is_directory(sandbox(image)) == (image in self.images)

    @invariant()
    def history_tells_what_happened(self) -> None:
        if not self.site.storage.exists():
            return
        known = {str(manifest_digest(version)): version for version in VERSIONS}
        with self.site.repository.open() as view:
            for key, name in self.names.items():
                reference = Reference.parse(key[0])
                if not name.past and name.staged is None:
                    with pytest.raises(InputError):
                        read_history(view, reference, key[1])
                    continue
                found = read_history(view, reference, key[1])
                told = [(v.event.what, known[v.event.manifest_digest]) for v in found.versions]
                assert told == name.past
                for version, (_, text) in zip(found.versions, name.past, strict=True):
                    assert version.is_kept == (text in name.kept or text == name.current)
                    assert version.event.image_id == str(image_id(text))


@pytest.mark.slow
def test_names_agree_with_a_model_and_the_repository_is_sound() -> None:
    if not JUDGE.is_file():
        pytest.skip(f"{JUDGE} is not there")
    run_state_machine_as_test(
        NamesModel,
        settings=settings(
            max_examples=4,
            # A failure names its steps; shortening them would take minutes of publishing.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
