"""Carry out the watcher's orders in this process, whichever that is.

Every order may have been carried out before, by a process that was killed before it could say so:
then it is found done, and counts as done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cvmfs_publish.naming import switch_now
from cvmfs_publish.publish import ImageResult, PublishResult
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import Repository
from cvmfs_publish.repository.layouts import place_name
from cvmfs_publish.repository.names import is_known, unpublish_images
from cvmfs_publish.repository.native.commit import ignore_step
from cvmfs_publish.repository.native.gc import Collector, Retention
from cvmfs_publish.repository.records import Publication
from cvmfs_publish.repository.staging import StagedName
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.compliance import NO_RULES, Compliance
from cvmfs_publish.state.model import Facts, Failure
from cvmfs_publish.watch.runs import Collect, ItemEnd, RunEnd, Switch, Unpublish

if TYPE_CHECKING:  # whoever has such a repository has loaded them
    from cvmfs_publish.repository.cvmfs_server import ServerRepository
    from cvmfs_publish.repository.directory import DirectoryRepository


def end_of_publish(
    result: PublishResult, names: Mapping[str, str], phases: Mapping[str, float]
) -> RunEnd:
    """Return what a publish came to; `names` of images by how the publisher calls them."""
    return RunEnd(tuple(_item_end(image, names, result) for image in result.images), phases=phases)


def _item_end(image: ImageResult, names: Mapping[str, str], result: PublishResult) -> ItemEnd:
    name = names.get(image.reference, image.reference)
    if image.error is not None:
        failure = Failure.of(image.error)
        return ItemEnd(name, "failed", failure=failure, exit_code=image.error.exit_code)
    if image.publication is None or image.status == "refused":
        raise TypeError(f"{name} is {image.status}, but there is no record of it")
    facts = facts_of(image.publication)
    if image.status in ("published", "staged"):
        facts = Facts(
            digest=facts.digest,
            image_id=facts.image_id,
            revision=result.revision if image.status == "published" else facts.revision,
            entries=facts.entries,
            content_bytes=facts.content_bytes,
            stored_bytes=facts.stored_bytes,
            layers_total=image.layers_total,
            layers_reused=image.layers_reused,
            fetched_bytes=image.fetched_bytes,
            seconds=round(image.seconds, 3),
            findings=facts.findings,
            recipe=facts.recipe,
        )
    return ItemEnd(name, image.status, facts)


def facts_of(record: Publication) -> Facts:
    """Return what a record says of an image."""
    return Facts(
        digest=record.digest,
        image_id=record.image_id,
        revision=record.revision,
        entries=record.entries,
        content_bytes=record.content_bytes,
        stored_bytes=record.stored_bytes,
        layers_total=len(record.layers),
        findings=len(record.findings),
        recipe=record.recipe,
    )


def unpublish(
    repository: Repository,
    order: Unpublish,
    now: datetime,
    step: Callable[[str], None] = ignore_step,
) -> RunEnd:
    """Remove names; those that are not there any more are removed."""
    platform = Platform.parse(order.platform)
    references = {name: Reference.parse(name) for name in order.names}
    with repository.open() as view:
        there = [
            name
            for name, reference in references.items()
            if is_known(view, place_name(reference, platform))
        ]
    items = [ItemEnd(name, "unpublished") for name in order.names if name not in there]
    result = unpublish_images(repository, there, now=now, platform=platform, step=step)
    for image in result.images:
        error = image.error
        items.append(
            ItemEnd(
                Reference.parse(image.reference).name,
                image.status,
                failure=Failure.of(error) if error is not None else None,
                exit_code=error.exit_code if error is not None else 0,
            )
        )
    return RunEnd(tuple(items))


def switch(
    repository: Repository,
    order: Switch,
    now: datetime,
    step: Callable[[str], None] = ignore_step,
    *,
    compliance: Compliance = NO_RULES,
) -> RunEnd:
    """Point names at what they wait for; those that do not wait for it any more are left alone."""
    names = [StagedName(*each) for each in order.names]
    done = switch_now(repository, names, now, step, compliance)
    return RunEnd(
        tuple(
            ItemEnd(Reference.parse(record.reference).name, "published", facts_of(record))
            for record in done
        )
    )


def collect_tree(
    repository: DirectoryRepository | ServerRepository, order: Collect, now: datetime
) -> RunEnd:
    """Collect garbage where the tree is seen as files; there are no revisions to keep."""
    graces = {name: timedelta(seconds=seconds) for name, seconds in order.graces.items()}
    found = repository.collect(now, timedelta(seconds=order.grace_seconds), graces)
    return RunEnd(removed_bytes=found.file_bytes + found.object_bytes)


def collect(collector: Collector, order: Collect, now: datetime) -> RunEnd:
    """Collect garbage."""
    graces = {name: timedelta(seconds=seconds) for name, seconds in order.graces.items()}
    retention = Retention(timedelta(seconds=order.grace_seconds), order.keep_revisions, graces)
    plan = collector.collect(int(now.timestamp()), retention)
    return RunEnd(removed_bytes=plan.total.bytes)
