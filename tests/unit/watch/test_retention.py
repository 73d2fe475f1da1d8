"""Names go late, few at a time, and never because something could not be read."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.state.model import Facts, Image, ImageKey, Result, Wish
from cvmfs_publish.state.state import State
from cvmfs_publish.watch.retention import (
    RetentionSettings,
    is_due,
    plan_collection,
    plan_retirement,
)

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
REMOVES = RetentionSettings(remove_unlisted=True)


@pytest.fixture
def images(tmp_path: Path) -> list[Image]:
    """Forty images, published, and unlisted now."""
    keys = [ImageKey(f"ghcr.io/a/i{n:02}:1", "linux/amd64") for n in range(40)]
    with State.open(tmp_path) as memory:
        memory.replace_wishes([Wish(key, key.name, "list") for key in keys], NOW)
        memory.enqueue(keys, NOW, "command")
        run = memory.begin_run(memory.due_jobs(NOW), {}, NOW)
        facts = Facts("sha256:" + "1" * 64)
        memory.finish_run(run, [Result(key, "published", facts) for key in keys], NOW)
        memory.replace_wishes([], NOW)
        return list(memory.unlisted())


def seen(images: list[Image], after: timedelta) -> list[Image]:
    return [replace(image, unlisted_checked_at=NOW + after) for image in images]


def test_nothing_goes_unless_it_is_configured(images: list[Image]) -> None:
    plan = plan_retirement(seen(images, 9 * DAY), 40, RetentionSettings())
    assert (plan.unpublish, plan.held, plan.forget) == ((), (), ())


def test_nothing_goes_before_lists_were_read_without_it_for_a_day(images: list[Image]) -> None:
    assert not plan_retirement(images, 40, REMOVES).unpublish
    assert not plan_retirement(seen(images, DAY - HOUR), 40, REMOVES).unpublish
    assert plan_retirement(seen(images, DAY), 40, REMOVES).unpublish


def test_never_more_than_a_share_goes_and_the_rest_is_told(images: list[Image]) -> None:
    plan = plan_retirement(seen(images, DAY), 40, REMOVES)
    assert len(plan.unpublish) == 2  # 5 percent
    assert len(plan.held) == 38
    plan = plan_retirement(seen(images[:3], DAY), 3, REMOVES)
    assert len(plan.unpublish) == 1  # but at least one


def test_what_was_never_published_is_forgotten(images: list[Image]) -> None:
    never = [replace(image, digest_published="") for image in seen(images[:2], DAY)]
    assert plan_retirement(never, 40, REMOVES).forget == tuple(image.key for image in never)


@pytest.mark.parametrize(
    ("last", "every", "due"),
    [
        (None, DAY, True),
        (NOW - HOUR, DAY, False),
        (NOW - DAY, DAY, True),
        (NOW + DAY, DAY, True),  # of a clock that was wrong
        (None, None, False),
    ],
)
def test_what_is_done_every_so_often(
    last: datetime | None, every: timedelta | None, due: bool
) -> None:
    assert is_due(last, every, NOW) is due


def test_lists_may_keep_what_they_replaced_longer(images: list[Image]) -> None:
    longer = replace(images[0], keep_replaced=60 * DAY)
    order = plan_collection([longer, images[1]], RetentionSettings())
    assert order.grace_seconds == 30 * 86400
    assert order.graces == {images[0].name: 60 * 86400}
