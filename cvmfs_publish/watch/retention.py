"""Decide which names are given up, and when garbage is collected.  Pure.

A name goes only if the configuration says so, no list has named it for a day, lists were read at
both ends of that day, and never more than a share of all names at once: a list that was emptied by
mistake is noticed before much is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cvmfs_publish.state.model import Image, ImageKey
from cvmfs_publish.watch.runs import Collect

ABSENT_FOR = timedelta(days=1)  # between the first and the last look at lists without the name


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """What is kept, and for how long."""

    keep_replaced: timedelta = timedelta(days=30)
    remove_unlisted: bool = False
    max_share: float = 5.0  # percent of all names that may go in one run
    every: timedelta | None = timedelta(days=1)  # between collections; None: there are none
    keep_revisions: int = 1


@dataclass(frozen=True, slots=True)
class RetirePlan:
    """Which names go now, and which would if there were not so many."""

    unpublish: tuple[ImageKey, ...]
    held: tuple[ImageKey, ...]
    forget: tuple[ImageKey, ...]  # were never published


def plan_retirement(
    unlisted: Sequence[Image], names: int, settings: RetentionSettings
) -> RetirePlan:
    """Return which names are given up.

    Args:
        unlisted: images that no list names any more.
        names: how many are published altogether.
        settings: of the configuration.
    """
    absent = [
        image
        for image in unlisted
        if image.unlisted_at is not None
        and image.unlisted_checked_at is not None
        and image.unlisted_checked_at - image.unlisted_at >= ABSENT_FOR
    ]
    forget = tuple(image.key for image in absent if not image.digest_published)
    if not settings.remove_unlisted:
        return RetirePlan((), (), forget)
    going = sorted(
        (image for image in absent if image.digest_published),
        key=lambda image: (image.unlisted_at, image.key),
    )
    most = max(1, int(names * settings.max_share / 100))
    keys = [image.key for image in going]
    return RetirePlan(tuple(keys[:most]), tuple(keys[most:]), forget)


def is_due(last: datetime | None, every: timedelta | None, now: datetime) -> bool:
    """Whether something that is done every so often is due; one in the future is of a wrong clock.

    What was never done is due.
    """
    if every is None:
        return False
    return last is None or last > now or now - last >= every


def plan_collection(images: Sequence[Image], settings: RetentionSettings) -> Collect:
    """Return the order to collect garbage, with what lists say about keeping replaced images."""
    graces = {
        image.name: int(image.keep_replaced.total_seconds())
        for image in images
        if image.keep_replaced is not None
    }
    grace = int(settings.keep_replaced.total_seconds())
    return Collect(grace, settings.keep_revisions, graces)
