"""Object stores that refuse, fail, are slow or lie: nothing is lost, and a person is told why.

After every attempt the repository is judged where it really is, and the next publish succeeds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cvmfs_publish.content.s3_lock import FILE_NAME as LOCK
from cvmfs_publish.errors import LockedError, RepositoryError
from cvmfs_publish.publish import PublishResult
from cvmfs_publish.repository.native.repository import NativeOptions
from tests.fakes.lying_s3 import (
    BUSY,
    BUSY_AFTER,
    DROPPED,
    DROPPED_AFTER,
    REFUSED,
    UNCONDITIONAL,
    Asked,
    Lie,
    LyingS3,
    Rule,
)
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.s3 import SECRET_KEY, S3Bucket, S3Server
from tests.s3_site import S3Site, s3_site

MANIFEST, REFLOG = ".cvmfspublished", ".cvmfsreflog"
OLD = b"what a cache kept"


class Scene:
    """A sound repository, one image to publish into it, and a store that lies on the way."""

    def __init__(self, target: S3Site, lying: LyingS3, registry: FakeRegistry) -> None:
        self.target = target
        self.lying = lying
        self.honest = target.settings
        self.reference = registry.name("a/one", "1")
        archive = Tar()
        for number in range(5):
            archive.file(f"file{number}", b"%d" % number * 100)
        registry.add_image("a/one", [archive.done()], tag="1")
        self.before = target.repository.revision()
        self.names_before, self.files_before = self.bucket.names(), self.files()

    def publish(self, rule: Rule, *, timeout: float = 5.0) -> PublishResult:
        """Publish through the lying store."""
        self.lying.rule = rule
        store = self.target.repository.store
        self.target.settings = replace(
            self.honest, endpoint=self.lying.url, patience=1.0, timeout=timeout
        )
        self.target.reopen(NativeOptions())
        try:
            return self.target.publish(self.reference)
        finally:
            self.target.repository.store.close()
            store.close()
            self.target.settings = self.honest
            self.target.reopen(NativeOptions())

    def refusal(self, rule: Rule, *, timeout: float = 5.0) -> str:
        """Publish in vain; return the error and its remedy."""
        with pytest.raises(RepositoryError) as caught:
            self.publish(rule, timeout=timeout)
        assert SECRET_KEY not in str(caught.value) + caught.value.hint
        assert caught.value.hint
        assert caught.value.exit_code == 5
        return f"{caught.value}\n{caught.value.hint}"

    def assert_unharmed(self, *, published: bool = False, reflog_is_newer: bool = False) -> None:
        """The repository is as before, or has the new revision, and can be written.

        A reflog that is newer than the manifest is what the next writer begins with.
        """
        revision = self.target.repository.revision()
        assert revision.number == self.before.number + published
        if not self.lying.count("PUT", REFLOG):  # objects may have come, and that is all
            assert self.files() == self.files_before
            assert self.bucket.names() >= self.names_before
            return
        errors = self.target.judge()
        assert errors == [] or (reflog_is_newer and all(REFLOG in error for error in errors))
        if published:
            return
        result = self.target.publish(self.reference)
        assert result.images[0].status == "published"
        assert LOCK not in self.bucket.names()
        if errors:
            assert self.target.judge() == []

    def files(self) -> dict[str, bytes]:
        """Return the files beside the objects, the lock aside."""
        names = {name for name in self.bucket.names() if not name.startswith("data/")}
        return {name: self.bucket.get(name) for name in names - {LOCK}}

    @property
    def bucket(self) -> S3Bucket:
        assert self.target.bucket is not None
        return self.target.bucket


@pytest.fixture
def scene(tmp_path: Path, s3_server: S3Server, bucket: S3Bucket) -> Iterator[Scene]:
    with (
        FakeRegistry() as registry,
        s3_site(tmp_path, bucket) as target,
        LyingS3(s3_server) as lying,
    ):
        yield Scene(target, lying, registry)


def on(method: str, name: str, *lies: Lie) -> Rule:
    """Tell one lie after the other, the last one for ever."""

    def rule(asked: Asked) -> Lie | None:
        if asked.method != method or not asked.name.startswith(name):
            return None
        return lies[min(asked.number, len(lies) - 1)]

    return rule


def everywhere(lie: Lie) -> Rule:
    return lambda _: lie


@pytest.mark.parametrize(
    ("rule", "reason", "remedy"),
    [
        (everywhere(REFUSED), "AccessDenied (403)", "s3:PutObject"),
        (on("PUT", "data/", REFUSED), "AccessDenied (403)", "s3:PutObject"),
        (on("HEAD", "data/", Lie(403)), "answered 403", "s3:ListBucket"),
        (on("PUT", REFLOG, REFUSED), "AccessDenied (403)", "s3:PutObject"),
        (on("PUT", MANIFEST, REFUSED), "AccessDenied (403)", "s3:PutObject"),
        (on("PUT", "data/", Lie(507, "InsufficientStorage")), "InsufficientStorage", "quota"),
        (on("PUT", "data/", DROPPED), "connection broke", "try again"),
        (on("GET", REFLOG, BUSY), "SlowDown (503)", "repository.s3.connections"),
        (on("GET", MANIFEST, Lie(data=b"<html>")), "is damaged", "check"),
    ],
)
def test_a_store_that_refuses_or_fails_changes_nothing(
    scene: Scene, rule: Rule, reason: str, remedy: str
) -> None:
    text = scene.refusal(rule)
    assert reason in text
    assert remedy in text
    scene.assert_unharmed(reflog_is_newer=scene.lying.count("PUT", MANIFEST) > 0)


def test_a_slow_store_is_given_up(scene: Scene) -> None:
    started = time.monotonic()
    text = scene.refusal(on("PUT", "data/", Lie(seconds=3.0)), timeout=0.5)
    assert "no answer in time" in text
    assert time.monotonic() - started < 20
    scene.assert_unharmed()


@pytest.mark.parametrize("lie", [BUSY, DROPPED], ids=["busy", "dropped"])
def test_what_fails_in_passing_is_repeated(scene: Scene, lie: Lie) -> None:
    def rule(asked: Asked) -> Lie | None:
        return lie if scene.lying.count(asked.method) <= 2 else None

    result = scene.publish(rule)
    assert result.images[0].status == "published"
    assert {asked.method for asked in scene.lying.asked} == {"GET", "HEAD", "PUT", "DELETE"}
    scene.assert_unharmed(published=True)


@pytest.mark.parametrize(
    ("name", "lies"),
    [
        (LOCK, (DROPPED_AFTER, Lie())),
        (REFLOG, (DROPPED_AFTER, Lie())),
        (MANIFEST, (DROPPED_AFTER, Lie())),
        (MANIFEST, (DROPPED, DROPPED_AFTER, Lie())),
        (MANIFEST, (DROPPED_AFTER,)),
        (MANIFEST, (BUSY_AFTER,)),
    ],
)
def test_a_conditional_write_without_an_answer_is_looked_for(
    scene: Scene, name: str, lies: tuple[Lie, ...]
) -> None:
    result = scene.publish(on("PUT", name, *lies))
    assert result.images[0].status == "published"
    assert scene.lying.count("PUT", name) > 1 or len(lies) == 1
    scene.assert_unharmed(published=True)


def test_a_manifest_that_may_have_arrived_keeps_its_objects(scene: Scene) -> None:
    def rule(asked: Asked) -> Lie | None:
        if asked.name != MANIFEST:
            return None
        if asked.method == "PUT":
            return DROPPED_AFTER
        return BUSY if scene.lying.count("PUT", MANIFEST) else None

    assert "SlowDown" in scene.refusal(rule)
    assert scene.lying.count("POST") == 0  # bulk removal
    assert scene.lying.count("DELETE", "data/") == 0
    scene.assert_unharmed(published=True)


@pytest.mark.parametrize("name", [MANIFEST, REFLOG])
def test_a_store_that_returns_old_contents_is_noticed(scene: Scene, name: str) -> None:
    def rule(asked: Asked) -> Lie | None:
        if asked.method == "GET" and asked.name == name and scene.lying.count("PUT", name):
            return Lie(data=OLD)
        return None

    text = scene.refusal(rule)
    assert f"{name} in {scene.bucket.settings.location} was written" in text
    assert "still returns something else" in text
    assert scene.lying.count("POST") == 0
    if name == REFLOG:
        assert scene.lying.count("PUT", MANIFEST) == 0
        assert scene.target.repository.revision() == scene.before
        scene.target.publish(scene.reference)
        assert scene.target.judge() == []
    else:
        scene.assert_unharmed(published=True)


def test_contents_that_are_old_for_a_moment_are_waited_for(scene: Scene) -> None:
    old = iter([Lie(data=OLD)] * 2)

    def rule(asked: Asked) -> Lie | None:
        is_late = asked.method == "GET" and scene.lying.count("PUT", MANIFEST) > 0
        return next(old, None) if is_late and asked.name == MANIFEST else None

    assert scene.publish(rule).images[0].status == "published"
    scene.assert_unharmed(published=True)


@pytest.mark.parametrize("condition", ["if-match", "if-none-match"])
@pytest.mark.parametrize("ignores", [True, False], ids=["ignored", "not-implemented"])
def test_a_store_without_conditional_writes_is_refused_before_anything_is_written(
    scene: Scene, condition: str, ignores: bool
) -> None:
    def rule(asked: Asked) -> Lie | None:
        if asked.method != "PUT" or condition not in asked.headers:
            return None
        return UNCONDITIONAL if ignores else Lie(400, "NotImplemented")

    names = scene.bucket.names()
    text = scene.refusal(rule)
    assert "conditional writes" in text or "NotImplemented" in text
    assert {asked.name for asked in scene.lying.asked if asked.method == "PUT"} == {LOCK}
    assert scene.bucket.names() == names
    scene.assert_unharmed()


def test_somebody_who_writes_without_a_lock_is_noticed(scene: Scene) -> None:
    foreign = scene.bucket.get(MANIFEST) + b"more\n"

    def rule(asked: Asked) -> Lie | None:
        if asked.method == "PUT" and asked.name == REFLOG:
            scene.bucket.put(MANIFEST, foreign)
        return None

    before = scene.bucket.get(MANIFEST)
    with pytest.raises(LockedError, match="changed by somebody else"):
        scene.publish(rule)
    assert scene.bucket.get(MANIFEST) == foreign
    scene.bucket.put(MANIFEST, before)
    scene.target.publish(scene.reference)
    assert scene.target.judge() == []


@pytest.mark.parametrize("step", [REFLOG, MANIFEST])
@pytest.mark.parametrize("way", ["removed", "taken"])
def test_a_publisher_that_lost_its_lock_replaces_nothing(scene: Scene, step: str, way: str) -> None:
    """The lock is lost at the worst moment: right after the step before."""
    before = {name: scene.bucket.get(name) for name in (MANIFEST, REFLOG)}
    last = "data/" if step == REFLOG else REFLOG

    def rule(asked: Asked) -> Lie | None:
        if asked.method == "PUT" and asked.name.startswith(last):
            if way == "removed":
                scene.bucket.delete(LOCK)
            else:
                scene.bucket.put(LOCK, b"somebody else's")
        return None

    with pytest.raises(LockedError, match=r"the lock on .* was lost"):
        scene.publish(rule)
    assert scene.bucket.get(MANIFEST) == before[MANIFEST]
    assert (scene.bucket.get(REFLOG) == before[REFLOG]) == (step == REFLOG)
    if way == "taken":
        assert scene.bucket.get(LOCK) == b"somebody else's"  # nor is that lock taken away
        scene.bucket.delete(LOCK)
    scene.target.publish(scene.reference)
    assert scene.target.judge() == []


def test_an_unreachable_store_is_told_from_one_that_refuses(scene: Scene) -> None:
    port = scene.lying.url.rpartition(":")[2]
    scene.lying.__exit__()
    text = scene.refusal(lambda _: None)
    assert f"http://127.0.0.1:{port}" in text
    assert "connection refused" in text
    assert "repository.s3.endpoint" in text
    scene.lying.__enter__()
    scene.assert_unharmed()
