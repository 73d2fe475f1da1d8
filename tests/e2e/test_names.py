"""The life of names with a registry and the real format: back and forth, gone and again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.errors import LockedError
from cvmfs_publish.publish import ImageResult, PublishSettings
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM
from cvmfs_publish.repository.names import pin, read_history, rollback, unpublish, unpublish_images
from cvmfs_publish.repository.records import Publication
from cvmfs_publish.repository.removal import apply_removals, plan_removals
from cvmfs_publish.sandbox.policy import SandboxPolicy
from tests.e2e.test_publish import layer
from tests.fakes.registry import FakeRegistry
from tests.support import Site, assert_sound, site

NOW = timedelta(0)


def push(registry: FakeRegistry, text: str, tag: str = "1") -> str:
    """Make the tag lead to an image of this text; return its name."""
    registry.add_image("a/one", layers=[layer(common=b"1"), layer(one=text.encode())], tag=tag)
    return registry.name("a/one", tag)


def publish(target: Site, name: str, **options: object) -> ImageResult:
    (image,) = target.publish(name, **options).images  # type: ignore[arg-type]
    assert image.error is None
    return image


def record_of(image: ImageResult) -> Publication:
    assert image.publication is not None
    return image.publication


def go_back(target: Site, name: str, to: str = "") -> Publication:
    now = datetime.now(UTC)
    with target.repository.transaction(int(now.timestamp())) as transaction:
        done = rollback(transaction, Reference.parse(name), DEFAULT_PLATFORM, now, to)
    return done.publication


def collect(target: Site) -> list[str]:
    """Remove at once what no name leads to."""
    now = datetime.now(UTC)
    with target.repository.transaction(int(now.timestamp())) as transaction:
        plan = plan_removals(transaction, now, NOW)
        apply_removals(transaction, plan)
    return [f"/{removal.path}" for removal in plan]


def what_happened(target: Site, name: str) -> list[str]:
    with target.repository.open() as view:
        found = read_history(view, Reference.parse(name), DEFAULT_PLATFORM)
    return [version.event.what for version in found.versions]


def test_after_going_back_publish_brings_the_name_forward_again(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        name = push(registry, "old")
        old = record_of(publish(target, name))
        push(registry, "new")
        new = record_of(publish(target, name))
        asked = len(registry.requests)
        assert go_back(target, name).tree_digest == old.tree_digest
        assert len(registry.requests) == asked
        assert_sound(target)
        again = publish(target, name)
        assert (again.status, again.fetched_bytes) == ("published", 0)
        assert record_of(again).digest == new.digest
        assert publish(target, name).status == "unchanged"
        go_back(target, name)
        push(registry, "old")  # the registry went back, too
        assert publish(target, name).status == "unchanged"
        assert what_happened(target, name) == [
            "published", "published", "rolled back", "published", "rolled back",
        ]  # fmt: skip
        assert_sound(target)


def test_an_unpublished_image_is_published_again_without_fetching(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        name = push(registry, "old")
        first = record_of(publish(target, name))
        unpublish_images(target.repository, [name], now=datetime.now(UTC))
        again = publish(target, name)
        assert (again.status, again.fetched_bytes) == ("published", 0)
        assert record_of(again).sandbox == first.sandbox
        assert publish(target, name).status == "unchanged"
        assert publish(target, name, force=True).status == "published"
        assert what_happened(target, name) == [
            "published", "unpublished", "published", "published",
        ]  # fmt: skip
        assert_sound(target)


def test_what_was_collected_is_published_again(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        name, kept = push(registry, "old"), push(registry, "kept", "2")
        old, other = record_of(publish(target, name)), record_of(publish(target, kept))
        unpublish_images(target.repository, [name], now=datetime.now(UTC))
        assert collect(target) == [old.sandbox]
        assert_sound(target)
        before = target.published_tree(other.sandbox, tmp_path)
        again = publish(target, name)
        assert (again.status, record_of(again).sandbox) == ("published", old.sandbox)
        assert b"one" in target.published_tree(old.sandbox, tmp_path)
        assert target.published_tree(other.sandbox, tmp_path) == before
        assert_sound(target)


def test_a_sandbox_made_anew_under_another_name_is_what_the_first_goes_back_to(
    tmp_path: Path,
) -> None:
    roots = PublishSettings(policy=SandboxPolicy(roots=("/nfs", "/new/root")))
    with FakeRegistry() as registry, site(tmp_path) as target:
        name = push(registry, "old")
        old = record_of(publish(target, name))
        push(registry, "new")
        publish(target, name)
        other = push(registry, "old", "2")
        made = record_of(publish(target, other, settings=roots))
        assert made.sandbox == old.sandbox
        back = go_back(target, name, old.digest)
        assert (back.recipe, back.tree_digest) == (made.recipe, made.tree_digest)
        assert b"new/root" in target.published_tree(back.sandbox, tmp_path)
        assert publish(target, other, settings=roots).status == "unchanged"
        assert_sound(target)


def test_names_are_not_changed_while_another_publisher_writes(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        name = push(registry, "old")
        publish(target, name)
        before = target.repository.revision()
        with target.repository.transaction(int(datetime.now(UTC).timestamp())):
            with pytest.raises(LockedError):
                unpublish_images(target.repository, [name], now=datetime.now(UTC))
            with pytest.raises(LockedError):
                go_back(target, name)
        assert target.repository.revision() == before


def test_what_a_transaction_does_to_names_is_discarded_with_it(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        name = push(registry, "old")
        publish(target, name)
        push(registry, "new")
        publish(target, name)
        before = target.repository.revision()
        now = datetime.now(UTC)
        reference = Reference.parse(name)
        with (
            pytest.raises(ZeroDivisionError),
            target.repository.transaction(int(now.timestamp())) as transaction,
        ):
            rollback(transaction, reference, DEFAULT_PLATFORM, now)
            pin(transaction, reference, DEFAULT_PLATFORM, now)
            raise ZeroDivisionError
        assert target.repository.revision() == before
        assert what_happened(target, name) == ["published", "published"]
        with target.repository.transaction(int(now.timestamp())) as transaction:
            unpublish(transaction, reference, DEFAULT_PLATFORM, now)
            assert rollback(transaction, reference, DEFAULT_PLATFORM, now).is_changed
        assert publish(target, name).status == "unchanged"
        assert_sound(target)


def test_a_sandbox_that_no_record_mentions_goes_by_the_time_it_was_made(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        name = push(registry, "lost")
        lost = record_of(publish(target, name))
        now = datetime.now(UTC)
        with target.repository.transaction(int(now.timestamp())) as transaction:
            transaction.remove(f".metadata/{name}")
            transaction.remove(name)
        with target.repository.open() as view:
            assert plan_removals(view, now, timedelta(days=1)) == ()
            (removal,) = plan_removals(view, now + timedelta(days=2), timedelta(days=1))
        assert f"/{removal.path}" == lost.sandbox
        assert collect(target) == [lost.sandbox]
        assert_sound(target)


def test_a_name_that_leads_elsewhere_than_its_record_says_is_not_taken_for_unchanged(
    tmp_path: Path,
) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        name = push(registry, "one")
        image = publish(target, name)
        assert publish(target, name).status == "unchanged"
        path = record_of(image).path[1:]
        with target.repository.transaction(int(datetime.now(UTC).timestamp())) as transaction:
            right = transaction.read_symlink(path)
            transaction.put_symlink(path, "elsewhere")
        assert publish(target, name).status == "published"
        with target.repository.open() as view:
            assert view.read_symlink(path) == right
