"""Lists and tags become wishes; what cannot be read takes none away."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.errors import InputError, RemoteError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import ImageNotFoundError, Platform, TagListing
from cvmfs_publish.state.model import Failure, ImageKey, Push
from cvmfs_publish.state.state import State
from cvmfs_publish.watch.lists import Loaded
from cvmfs_publish.watch.wanted import Refusal, Wanted, repository_of
from cvmfs_publish.watch.wishlist import parse_wishlist

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Lists:
    def __init__(self) -> None:
        self.texts = {"a.yaml": "version: 1\nimages:\n  - ghcr.io/a/one:1\n"}
        self.errors: dict[str, InputError] = {}

    def load(self, now: datetime) -> list[Loaded]:
        return [
            Loaded(
                name, parse_wishlist(text, name) if text else None, now, self.errors.get(name), text
            )
            for name, text in self.texts.items()
        ]


class Taggers:
    def __init__(self) -> None:
        self.found: dict[tuple[str, str], tuple[str, ...]] = {
            ("ghcr.io", "a/many"): ("v1", "v2", "x")
        }
        self.error: Exception | None = None
        self.asked = 0
        self.etag = ""
        self.etags: list[str] = []

    def tagger(self, registry: str) -> Taggers:
        del registry
        return self

    def tags(self, registry: str, repository: str) -> tuple[str, ...]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.found[registry, repository]

    def list_tags(self, registry: str, repository: str, etag: str = "") -> TagListing | None:
        tags = self.tags(registry, repository)
        self.etags.append(etag)
        if self.etag and self.etag == etag:
            return None
        return TagListing(tags, self.etag)


class World:
    def __init__(self, state: State) -> None:
        self.state = state
        self.lists = Lists()
        self.taggers = Taggers()
        self.wanted = Wanted(state, self.lists, self.taggers, HOUR)

    def names(self) -> set[str]:
        return {outline.name for outline in self.state.outlines() if outline.is_wished}

    def push(self, tag: str, digest: str = "", repository: str = "a/many") -> list[ImageKey]:
        self.state.submit([Push("ghcr.io", repository, tag, digest)], NOW)
        return list(self.wanted.take_pushes(self.state.pushes(), NOW))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with State.open(tmp_path) as state:
        yield World(state)


RULE = "version: 1\nimages:\n  - {name: ghcr.io/a/many, tags: {match: 'v*'}}\n"


def test_patterns_are_what_the_registry_has(world: World) -> None:
    world.lists.texts["b.yaml"] = RULE
    world.wanted.load(NOW)
    assert world.names() == {"ghcr.io/a/one:1", "ghcr.io/a/many:v1", "ghcr.io/a/many:v2"}
    assert [each.images for each in world.state.lists()] == [1, 2]


def test_tags_are_listed_once_in_their_interval(world: World) -> None:
    world.lists.texts["b.yaml"] = RULE
    for minute in range(0, 180, 15):
        world.wanted.load(NOW + timedelta(minutes=minute))
    assert 3 <= world.taggers.asked <= 4


@pytest.mark.parametrize("error", [RemoteError("down"), ImageNotFoundError("unknown")])
def test_a_registry_that_is_down_takes_no_wish_away(world: World, error: Exception) -> None:
    world.lists.texts["b.yaml"] = RULE
    world.wanted.load(NOW)
    world.taggers.error = error
    world.wanted.load(NOW + 2 * HOUR)
    assert "ghcr.io/a/many:v2" in world.names()
    assert world.state.unlisted() == ()


def test_a_tag_that_is_gone_is_unlisted_and_that_is_confirmed_only_by_looking(
    world: World,
) -> None:
    world.lists.texts["b.yaml"] = RULE
    world.wanted.load(NOW)
    world.taggers.found["ghcr.io", "a/many"] = ("v2",)
    world.wanted.load(NOW + 2 * HOUR)
    (image,) = world.state.unlisted()
    assert (image.name, image.unlisted_checked_at) == ("ghcr.io/a/many:v1", NOW + 2 * HOUR)
    world.taggers.error = RemoteError("down")
    world.wanted.load(NOW + 4 * HOUR)
    assert world.state.unlisted()[0].unlisted_checked_at == NOW + 2 * HOUR
    world.taggers.error = None
    world.lists.errors["a.yaml"] = InputError("HTML")
    world.wanted.load(NOW + 6 * HOUR)
    assert world.state.unlisted()[0].unlisted_checked_at == NOW + 2 * HOUR
    world.lists.errors.clear()
    world.wanted.load(NOW + 8 * HOUR)
    assert world.state.unlisted()[0].unlisted_checked_at == NOW + 8 * HOUR


def test_a_list_that_was_never_read_since_keeps_its_wishes(world: World) -> None:
    world.wanted.load(NOW)
    world.lists.texts["a.yaml"] = ""
    world.lists.errors["a.yaml"] = InputError("nobody is there")
    World(world.state).wanted.load(NOW)
    world.wanted.load(NOW)
    assert world.names() == {"ghcr.io/a/one:1"}


def test_a_new_tag_that_is_pushed_is_wished_at_once_without_a_question(world: World) -> None:
    world.lists.texts["b.yaml"] = RULE
    world.wanted.load(NOW)
    asked = world.taggers.asked
    assert [key.name for key in world.push("v3")] == ["ghcr.io/a/many:v3"]
    assert world.push("unwished") == []
    assert world.push("1", repository="a/stranger") == []
    assert world.taggers.asked == asked
    assert world.state.pushes() == ()
    assert [job.reason for job in world.state.due_jobs(NOW)] == ["push"]


def test_a_push_without_a_tag_lets_the_repository_be_looked_at(world: World) -> None:
    world.wanted.load(NOW)
    (key,) = [image.key for image in world.state.due_polls(NOW, 10)]
    world.state.postpone({key: NOW + HOUR})
    assert world.push("", repository="a") == []
    assert [image.key for image in world.state.due_polls(NOW, 10)] == [key]


def test_a_line_that_is_wrong_stops_no_other_and_its_owner_is_told_once(world: World) -> None:
    world.lists.texts["a.yaml"] = (
        "version: 1\nimages:\n  - ghcr.io/a/one:1\n"
        "  - {name: 'UPPER/case:1', owner: me@example.org}\n"
    )
    for _ in range(3):
        world.wanted.load(NOW)
    assert world.names() == {"ghcr.io/a/one:1"}
    (event,) = world.state.latest_events()
    assert (event.kind, event.owner, event.list) == (
        "wishlist-problem",
        "me@example.org",
        "a.yaml:4",
    )
    assert [problem.line for problem in world.state.problems()] == [4]


def test_platforms_and_policies_are_those_of_the_list(world: World) -> None:
    world.lists.texts["a.yaml"] = (
        "version: 1\nimages:\n"
        "  - {name: ghcr.io/a/one:1, platforms: [linux/amd64, linux/arm64], priority: 3,"
        " keep_replaced: 60d, sandbox: {permissions: strict}}\n"
    )
    world.wanted.load(NOW)
    images = world.state.platforms("ghcr.io/a/one:1")
    assert [image.platform for image in images] == ["linux/amd64", "linux/arm64"]
    assert {(image.priority, image.keep_replaced, image.policy) for image in images} == {
        (3, timedelta(days=60), '{"permissions": "strict"}')
    }


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("ghcr.io/a/b:1", ("ghcr.io", "a/b")),
        ("localhost:5000/a:1", ("localhost:5000", "a")),
        ("ghcr.io/a/b@sha256:11", ("ghcr.io", "a/b")),
    ],
)
def test_repositories_of_names(name: str, place: tuple[str, str]) -> None:
    assert repository_of(name) == place


def test_tags_that_are_as_they_were_stay_and_a_pushed_one_is_confirmed(world: World) -> None:
    world.lists.texts["b.yaml"] = RULE
    world.taggers.etag = '"1"'
    for hours in range(3):
        world.wanted.load(NOW + 2 * hours * HOUR)
    assert "ghcr.io/a/many:v2" in world.names()
    world.push("v3")  # known without asking; the next list is read whatever it is called
    world.wanted.load(NOW + 6 * HOUR)
    assert world.taggers.etags == ["", '"1"', '"1"', ""]
    assert "ghcr.io/a/many:v3" not in world.names()


@pytest.mark.parametrize("is_told", [False, True])
def test_what_rules_keep_out_is_not_wished_and_told_if_nobody_else_takes_it(
    world: World, is_told: bool
) -> None:
    def refusal(reference: Reference, platform: Platform) -> Refusal | None:
        if reference.tag != "v2":
            return None
        return Refusal(Failure("warning", f"{reference} for {platform}: no", "ask"), is_told)

    world.lists.texts["b.yaml"] = RULE
    wanted = Wanted(world.state, world.lists, world.taggers, HOUR, refusal)
    wanted.load(NOW)
    assert world.names() == {"ghcr.io/a/one:1", "ghcr.io/a/many:v1"}
    assert [each.images for each in world.state.lists()] == [1, 1]
    problems = [(each.list, each.line, each.failure.message) for each in world.state.problems()]
    told = ("b.yaml", 3, "ghcr.io/a/many:v2 for linux/amd64: no")
    assert problems == ([told] if is_told else [])
