"""What names lead to: published, unpublished, rolled back, pinned; on a repository in memory."""

from __future__ import annotations

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, RepositoryError
from cvmfs_publish.layers.tree import empty_tree
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository import records
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM, place_name
from cvmfs_publish.repository.names import (
    History,
    get_publication,
    match_digest,
    pin,
    read_history,
    rollback,
    unpin,
    unpublish,
    unpublish_images,
)
from cvmfs_publish.repository.records import (
    Event,
    Publication,
    SandboxRecord,
    iter_publications,
    read_publication,
    read_unpublished,
)
from cvmfs_publish.sources.base import Platform
from tests.memory import MemoryRepository
from tests.versions import ARM64, at, image_id, leads_to, manifest, manifest_digest, put, sandbox

NAME = "ghcr.io/a/b:1"
OTHER = "ghcr.io/a/b:2"
REFERENCE = Reference.parse(NAME)
METADATA = ".metadata/ghcr.io/a/b:1"


class Names:
    """A repository and what people do with its names, a transaction each."""

    def __init__(self) -> None:
        self.repository = MemoryRepository()
        self.day = 0.0

    def publish(
        self,
        version: str,
        name: str = NAME,
        platform: Platform = DEFAULT_PLATFORM,
        digest: Digest | None = None,
    ) -> Publication:
        self.day += 1
        with self.repository.transaction(int(at(self.day).timestamp())) as transaction:
            return put(transaction, name, version, at(self.day), platform=platform, digest=digest)

    def unpublish(self, name: str = NAME, platform: Platform = DEFAULT_PLATFORM) -> None:
        self.day += 1
        with self.repository.transaction(int(at(self.day).timestamp())) as transaction:
            unpublish(transaction, Reference.parse(name), platform, at(self.day))

    def rollback(
        self, to: str = "", name: str = NAME, platform: Platform = DEFAULT_PLATFORM
    ) -> bool:
        self.day += 1
        with self.repository.transaction(int(at(self.day).timestamp())) as transaction:
            done = rollback(transaction, Reference.parse(name), platform, at(self.day), to)
            return done.is_changed

    def pin(self, name: str = NAME) -> Publication:
        self.day += 1
        with self.repository.transaction(int(at(self.day).timestamp())) as transaction:
            return pin(transaction, Reference.parse(name), DEFAULT_PLATFORM, at(self.day))

    def unpin(self, name: str = NAME) -> Publication:
        with self.repository.transaction(int(at(self.day).timestamp())) as transaction:
            return unpin(transaction, Reference.parse(name), DEFAULT_PLATFORM)

    def collect(self, version: str) -> None:
        """Remove a sandbox and its records, as gc does after the grace."""
        with self.repository.transaction(int(at(self.day).timestamp())) as transaction:
            transaction.remove(sandbox(version))
            transaction.remove(f"{METADATA}/.replaced/{manifest_digest(version).hex}")

    def leads_to(self, name: str = NAME, variant: str = "amd64") -> str | None:
        with self.repository.open() as view:
            return leads_to(view, name, variant)

    def link(self, path: str) -> str | None:
        with self.repository.open() as view:
            return view.read_symlink(path)

    def record(self, name: str = NAME, platform: Platform = DEFAULT_PLATFORM) -> Publication | None:
        with self.repository.open() as view:
            return read_publication(view, place_name(Reference.parse(name), platform).publication)

    def history(self, name: str = NAME, platform: Platform = DEFAULT_PLATFORM) -> History:
        with self.repository.open() as view:
            return read_history(view, Reference.parse(name), platform)

    def past(self, name: str = NAME, platform: Platform = DEFAULT_PLATFORM) -> list[str]:
        """What happened to a name: the word and the version it is about."""
        known = {str(manifest_digest(version)): version for version in "ABCD"}
        return [
            f"{version.event.what} {known[version.event.manifest_digest]}"
            for version in self.history(name, platform).versions
        ]


@pytest.fixture
def names() -> Names:
    return Names()


# publishing


def test_a_name_remembers_what_it_led_to(names: Names) -> None:
    first = names.publish("A")
    assert first.history == ()
    second = names.publish("B")
    assert second.history == (first.event,)
    assert second.history[0] == Event(
        at=first.published_at,
        revision=2,
        digest=first.digest,
        manifest_digest=first.manifest_digest,
        image_id=first.image_id,
        what="published",
    )
    assert names.publish("C").history == (first.event, second.event)
    assert names.record() == Publication.from_json(names.record().to_json())  # type: ignore[union-attr]
    with names.repository.open() as view:
        kept = f"{METADATA}/.replaced/{manifest_digest('A').hex}"
        assert view.read_file(f"{kept}/publication.json") == first.to_json()
        assert view.read_file(f"{kept}/manifest.json") == manifest("A")
        assert [record.manifest_digest for record in iter_publications(view)] == [
            str(manifest_digest("C"))
        ]


def test_what_a_name_leads_to_is_not_among_the_replaced(names: Names) -> None:
    for version in "ABA":
        names.publish(version)
    with names.repository.open() as view:
        assert view.list_names(f"{METADATA}/.replaced") == [(manifest_digest("B").hex, True)]
    assert names.past() == ["published A", "published B", "published A"]


def test_publishing_the_same_again_is_remembered_but_nothing_is_replaced(names: Names) -> None:
    names.publish("A")
    names.publish("A", digest=Digest.of(b"an index"))
    assert names.past() == ["published A", "published A"]
    assert not names.repository.open().__enter__().is_directory(f"{METADATA}/.replaced")


def test_a_record_without_history_has_none(names: Names) -> None:
    names.publish("A")
    record = names.record()
    assert record is not None
    assert (record.history, record.pinned, record.what) == ((), (), "published")


def test_only_the_newest_events_are_kept(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvmfs_publish.repository.names.MAX_EVENTS", 2)
    for version in "ABCD":
        names.publish(version)
    assert names.past() == ["published B", "published C", "published D"]
    names.unpublish()
    assert names.past() == ["published D", "unpublished D"]
    names.rollback(str(manifest_digest("D")))
    assert records.MAX_EVENTS == 1000


def test_a_name_published_twice_in_one_transaction_moved_once(names: Names) -> None:
    names.publish("A")
    with names.repository.transaction(0) as transaction:
        put(transaction, NAME, "B", at(2))
        put(transaction, NAME, "C", at(2))
    assert names.past() == ["published A", "published C"]
    with names.repository.open() as view:
        assert view.list_names(f"{METADATA}/.replaced") == [(manifest_digest("A").hex, True)]


# unpublishing


def test_an_unpublished_name_leads_nowhere_and_its_sandbox_stays(names: Names) -> None:
    names.publish("A")
    names.unpublish()
    assert names.leads_to() is None
    assert names.link(NAME) is None
    assert names.leads_to(f"ghcr.io/a/b@{manifest_digest('A')}") == sandbox("A")
    assert names.record() is None
    assert names.past() == ["published A", "unpublished A"]
    with names.repository.open() as view:
        assert list(iter_publications(view)) == []
        assert view.read_file(f"{METADATA}/manifest.json") is None
    assert names.repository.revision().number == 3


def test_an_unpublished_name_can_be_published_again(names: Names) -> None:
    names.publish("A")
    names.unpublish()
    names.publish("B")
    assert names.leads_to() == sandbox("B")
    assert names.past() == ["published A", "unpublished A", "published B"]
    with names.repository.open() as view:
        assert read_unpublished(view, f"{METADATA}/unpublished.json") is None
    names.rollback()
    assert names.leads_to() == sandbox("A")


def test_a_pinned_name_is_not_unpublished(names: Names) -> None:
    names.publish("A")
    names.pin()
    before = names.repository.revision()
    with pytest.raises(InputError, match="is pinned") as caught:
        names.unpublish()
    assert "unpin ghcr.io/a/b:1" in caught.value.hint
    assert (names.repository.revision(), names.leads_to()) == (before, sandbox("A"))
    names.unpin()
    names.unpublish()
    assert names.leads_to() is None


def test_a_name_that_is_none_is_told_with_what_was_meant(names: Names) -> None:
    names.publish("A")
    with pytest.raises(InputError, match=r"ghcr\.io/a/bb:1 is not published") as caught:
        names.unpublish("ghcr.io/a/bb:1")
    assert caught.value.hint == "did you mean ghcr.io/a/b:1?"
    with pytest.raises(InputError, match="for linux/amd64, not for linux/arm64") as caught:
        names.unpublish(platform=ARM64)
    assert "--platform linux/amd64" in caught.value.hint
    names.unpublish()
    with pytest.raises(InputError, match="not published any more") as caught:
        names.unpublish()
    assert "rollback" in caught.value.hint


def test_a_digest_with_the_name_must_be_the_one_it_leads_to(names: Names) -> None:
    names.publish("A")
    names.publish("B")
    with pytest.raises(InputError, match="leads to"):
        names.unpublish(f"{NAME}@{manifest_digest('A')}")
    names.unpublish(f"{NAME}@{manifest_digest('B')}")
    assert names.leads_to() is None


def test_one_of_two_names_of_an_image_goes_and_the_other_stays(names: Names) -> None:
    names.publish("A")
    names.publish("A", OTHER)
    names.unpublish()
    assert (names.leads_to(), names.leads_to(OTHER)) == (None, sandbox("A"))


def test_a_name_by_digest_is_unpublished_and_leads_on_for_running_jobs(names: Names) -> None:
    name = f"ghcr.io/a/b@{manifest_digest('A')}"
    names.publish("A", name)
    names.unpublish(name)
    assert names.record(name) is None
    assert names.leads_to(name) == sandbox("A")
    assert names.rollback(name=name)
    record = names.record(name)
    assert record is not None
    assert record.what == "rolled back"


def test_several_images_are_unpublished_in_one_revision(names: Names) -> None:
    names.publish("A")
    names.publish("B", OTHER)
    before = names.repository.revision().number
    result = unpublish_images(
        names.repository, [NAME, "ghcr.io/a/c:1", OTHER, "Not/Valid", NAME, f"docker://{NAME}"],
        now=at(9),
    )  # fmt: skip
    assert [image.status for image in result.images] == [
        "unpublished", "failed", "unpublished", "failed",
    ]  # fmt: skip
    assert result.exit_code == 6
    assert names.repository.revision().number == before + 1
    assert names.leads_to() is names.leads_to(OTHER) is None
    record = result.images[0].publication
    assert record is not None
    assert record.manifest_digest == str(manifest_digest("A"))


def test_failures_alone_change_nothing_and_have_the_code_of_the_first(names: Names) -> None:
    before = names.repository.revision()
    assert unpublish_images(names.repository, [NAME], now=at(9)).exit_code == 2
    assert unpublish_images(names.repository, ["Not/Valid"], now=at(9)).exit_code == 2
    assert names.repository.revision() == before


# platforms


def test_the_public_name_follows_the_platforms_that_are_left(names: Names) -> None:
    variant = "../../.multiarch/$(CVMFS_ARCH:-amd64)/ghcr.io/a/b:1"
    names.publish("A")
    direct = names.link(NAME)
    names.publish("B", platform=ARM64)
    assert names.link(NAME) == variant
    names.unpublish(platform=ARM64)
    assert names.link(NAME) == direct
    with names.repository.open() as view:
        assert view.list_names(".multiarch") == [(".cvmfscatalog", False)]
    names.rollback(platform=ARM64)
    assert names.link(NAME) == variant
    assert names.leads_to(variant="arm64") == sandbox("B")
    names.unpublish()
    assert names.link(NAME) == variant
    assert (names.leads_to(), names.leads_to(variant="arm64")) == (None, sandbox("B"))
    names.unpublish(platform=ARM64)
    assert names.link(NAME) is None
    assert names.past(platform=ARM64) == [
        "published B", "unpublished B", "rolled back B", "unpublished B",
    ]  # fmt: skip


def test_another_platform_alone_is_unpublished(names: Names) -> None:
    names.publish("A", platform=ARM64)
    names.unpublish(platform=ARM64)
    assert names.link(NAME) is None
    names.publish("B")
    assert names.leads_to() == sandbox("B")


def test_platforms_of_a_name_have_each_their_own_past(names: Names) -> None:
    index = Digest.of(b"index")
    names.publish("A", digest=index)
    names.publish("B", platform=ARM64, digest=index)
    names.publish("C")
    names.rollback()
    assert names.past() == ["published A", "published C", "rolled back A"]
    assert names.past(platform=ARM64) == ["published B"]
    assert names.leads_to(variant="arm64") == sandbox("B")


# going back


def test_rollback_leads_to_what_was_before_and_again_to_what_was_after(names: Names) -> None:
    first = names.publish("A")
    names.publish("B")
    before = names.repository.revision().number
    assert names.rollback()
    assert names.leads_to() == sandbox("A")
    assert names.repository.revision().number == before + 1
    record = names.record()
    assert record is not None
    assert (record.digest, record.revision, record.what) == (
        first.digest,
        before + 1,
        "rolled back",
    )
    assert names.past() == ["published A", "published B", "rolled back A"]
    assert names.rollback()
    assert names.leads_to() == sandbox("B")


@pytest.mark.parametrize("kind", ["digest", "manifest_digest", "image_id"])
@pytest.mark.parametrize("short", [False, True])
def test_rollback_goes_to_any_digest(names: Names, kind: str, short: bool) -> None:
    first = names.publish("A", digest=Digest.of(b"index"))
    names.publish("B")
    names.publish("C")
    text = getattr(first, kind)
    assert names.rollback(text[7:15] if short else text)
    assert names.leads_to() == sandbox("A")


def test_rollback_to_where_the_name_leads_is_no_revision(names: Names) -> None:
    names.publish("A")
    names.publish("B")
    before = names.repository.revision()
    assert not names.rollback(str(manifest_digest("B")))
    assert names.repository.revision() == before


def test_rollback_brings_an_unpublished_name_back(names: Names) -> None:
    names.publish("A")
    names.publish("B")
    names.unpublish()
    assert names.rollback()
    assert names.leads_to() == sandbox("B")
    names.unpublish()
    assert names.rollback(str(image_id("A")))
    assert names.leads_to() == sandbox("A")
    assert names.past()[-3:] == ["rolled back B", "unpublished B", "rolled back A"]


def test_rollback_passes_over_what_was_removed(names: Names) -> None:
    for version in "ABC":
        names.publish(version)
    names.collect("B")
    names.rollback()
    assert names.leads_to() == sandbox("A")


def test_rollback_passes_over_a_sandbox_that_is_lost(names: Names) -> None:
    for version in "ABC":
        names.publish(version)
    with names.repository.transaction(0) as transaction:
        transaction.remove(sandbox("B"))
    assert [version.is_kept for version in names.history().versions] == [True, False, True]
    names.rollback()
    assert names.leads_to() == sandbox("A")


def test_rollback_with_nothing_to_go_back_to_is_refused(names: Names) -> None:
    names.publish("A")
    with pytest.raises(InputError, match="never led to anything else") as caught:
        names.rollback()
    assert "history ghcr.io/a/b:1" in caught.value.hint
    with pytest.raises(InputError, match=r"ghcr\.io/a/b:2 is not published"):
        names.rollback(name=OTHER)


def test_rollback_to_a_sandbox_that_was_removed_says_how_to_get_it(names: Names) -> None:
    names.publish("A")
    names.publish("B")
    names.collect("A")
    for to in ("", str(manifest_digest("A"))):
        with pytest.raises(InputError, match="that sandbox was removed") as caught:
            names.rollback(to)
        assert f"publish {NAME}@{manifest_digest('A')}`" in caught.value.hint


def test_rollback_to_an_unknown_digest_lists_what_there_is(names: Names) -> None:
    names.publish("A")
    with pytest.raises(InputError, match="never led to") as caught:
        names.rollback(str(Digest.of(b"unknown")))
    assert str(manifest_digest("A")) in caught.value.hint
    for text in ("abc", "", " ", "sha256:", "xyzxyzxyz", "md5:abcdef"):
        with pytest.raises(InputError):
            names.rollback(text or "-")


def test_rollback_of_a_name_with_a_digest_says_what_to_type(names: Names) -> None:
    names.publish("A")
    with pytest.raises(InputError, match="a tag and a digest") as caught:
        names.rollback(name=f"{NAME}@{manifest_digest('A')}")
    assert f"rollback {NAME} --to {manifest_digest('A')}" in caught.value.hint


def event(digest: str, manifest: str, image: str) -> Event:
    return Event("", 0, f"sha256:{digest}", f"sha256:{manifest}", f"sha256:{image}", "published")


def test_a_prefix_must_mean_one_version() -> None:
    one, two = event("aaaaaa1", "bbbbbb1", "cccccc1"), event("aaaaaa2", "bbbbbb2", "cccccc1")
    assert match_digest([one, two], "bbbbbb1", "x") == [one]
    assert match_digest([one, two], "sha256:bbbbbb2", "x") == [two]
    assert match_digest([one, two], "cccccc", "x") == [one, two]  # one image, two manifests
    assert match_digest([one, one], "AAAAAA", "x") == [one, one]
    with pytest.raises(InputError, match="aaaaaa may mean sha256:aaaaaa1, sha256:aaaaaa2"):
        match_digest([one, two], "aaaaaa", "x")
    with pytest.raises(InputError, match="never led to sha512:aaaaaa"):
        match_digest([one, two], "sha512:aaaaaa", "x")
    same = event("dddddd1", "dddddd2", "dddddd3")
    assert match_digest([same], "dddddd", "x") == [same]


def test_a_manifest_may_change_and_the_image_stay_the_same(names: Names) -> None:
    names.publish("A")
    names.publish("A-again")
    assert names.leads_to() == sandbox("A")
    assert names.rollback()
    record = names.record()
    assert record is not None
    assert record.manifest_digest == str(manifest_digest("A"))
    assert names.leads_to() == sandbox("A")


def test_a_record_that_comes_back_tells_how_its_sandbox_is_now(names: Names) -> None:
    names.publish("A")
    names.publish("B")
    hexadecimal = image_id("A").hex
    path = f".metadata/.images/{hexadecimal[:2]}/{hexadecimal}.json"
    with names.repository.transaction(0) as transaction:
        digest = transaction.tree_digest(sandbox("A"))
        made = SandboxRecord("a newer recipe", str(digest))
        transaction.put_file(path, made.to_json())
    names.rollback()
    record = names.record()
    assert record is not None
    assert (record.recipe, record.tree_digest) == (made.recipe, made.tree_digest)


def test_nobody_goes_back_to_a_sandbox_that_is_not_what_it_was(names: Names) -> None:
    names.publish("A")
    names.publish("B")
    with names.repository.transaction(0) as transaction:
        transaction.put_tree(sandbox("A"), empty_tree())
    with pytest.raises(RepositoryError, match=r"has tree digest sha256:.*its record says"):
        names.rollback()
    assert names.leads_to() == sandbox("B")


def test_two_names_go_back_to_a_sandbox_they_share(names: Names) -> None:
    for version in "AB":
        names.publish(version)
        names.publish(version, OTHER)
    names.rollback()
    assert (names.leads_to(), names.leads_to(OTHER)) == (sandbox("A"), sandbox("B"))
    names.rollback(name=OTHER)
    names.unpublish()
    assert (names.leads_to(), names.leads_to(OTHER)) == (None, sandbox("A"))


# pins


def test_a_pin_keeps_what_the_name_led_to_then(names: Names) -> None:
    names.publish("A")
    pinned = names.pin()
    assert (pinned.pinned_at, pinned.pinned) == (
        "2026-11-22T12:00:00+00:00",
        (f"/{sandbox('A')}",),
    )
    before = names.repository.revision()
    assert names.pin() == pinned
    assert names.repository.revision() == before
    moved = names.publish("B")
    assert (moved.pinned_at, moved.pinned) == (pinned.pinned_at, pinned.pinned)
    both = names.pin()
    assert both.pinned == (f"/{sandbox('A')}", f"/{sandbox('B')}")
    assert both.pinned_at == pinned.pinned_at
    names.rollback()
    record = names.record()
    assert record is not None
    assert len(record.pinned) == 2
    assert (names.unpin().pinned_at, names.unpin().pinned) == ("", ())
    with pytest.raises(InputError, match="not published"):
        names.pin(OTHER)


@pytest.mark.parametrize("is_unpublished", [False, True])
def test_a_pin_ends_with_unpin_also_when_going_back_to_a_record_that_had_it(
    names: Names, is_unpublished: bool
) -> None:
    names.publish("A")
    names.pin()
    names.publish("B")
    names.unpin()
    if is_unpublished:
        names.unpublish()
    names.rollback(str(manifest_digest("A")))
    record = names.record()
    assert record is not None
    assert (record.pinned_at, record.pinned) == ("", ())


# reading


def test_history_tells_what_is_kept_pinned_and_current(names: Names) -> None:
    names.publish("A")
    names.publish("B")
    names.pin()
    names.publish("C")
    names.collect("A")
    found = names.history()
    assert [(v.is_kept, v.is_pinned, v.is_current) for v in found.versions] == [
        (False, False, False), (True, True, False), (True, False, True),
    ]  # fmt: skip
    assert found.current == names.record()
    names.unpin()
    names.unpublish()
    assert not any(version.is_current for version in names.history().versions)
    with pytest.raises(InputError, match=r"ghcr\.io/a/b:2 is not published"):
        names.history(OTHER)


def test_a_damaged_record_is_told_with_its_place(names: Names) -> None:
    names.publish("A")
    with names.repository.transaction(0) as transaction:
        transaction.put_file(f"{METADATA}/publication.json", b"{")
    with names.repository.open() as view, pytest.raises(RepositoryError, match=METADATA):
        get_publication(view, REFERENCE, DEFAULT_PLATFORM)
    with pytest.raises(RepositoryError, match="malformed publication"):
        names.publish("B")
