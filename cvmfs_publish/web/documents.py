"""Turn what is known into JSON documents; `openapi.py` describes each of them.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from cvmfs_publish.repository.names import Version
from cvmfs_publish.repository.native.repository import RepositoryInfo
from cvmfs_publish.repository.records import Publication, Staged
from cvmfs_publish.state.model import (
    Budget,
    Event,
    Failure,
    Image,
    ImageKey,
    Job,
    ListProblem,
    ListState,
)
from cvmfs_publish.web.catalogue import Item
from cvmfs_publish.web.commands import SiteCommands
from cvmfs_publish.web.library import Details, Shelf
from cvmfs_publish.web.views import Lag
from cvmfs_publish.words import format_time

Document = dict[str, Any]
_RECORD_FIELDS = tuple(
    field.name for field in fields(Publication) if field.name not in ("history", "findings")
)


def time(at: datetime | None) -> str | None:
    return format_time(at) if at is not None else None


def describe_repository(
    shelf: Shelf, info: RepositoryInfo, counts: Mapping[str, int], alive_at: datetime | None
) -> Document:
    manifest = shelf.manifest
    return {
        "repository": manifest.name,
        "revision": manifest.revision,
        "root_hash": str(manifest.root_hash),
        "published_at": time(shelf.published_at),
        "images": len(shelf.images),
        "sandboxes": shelf.sandboxes,
        "bytes": info.counters["file_size"],
        "reuse": round(shelf.reuse, 4),
        "whitelist_ends_at": time(info.whitelist.ends_at),
        "certificate_expires_at": time(info.certificate_expires_at),
        "watcher_alive_at": time(alive_at),
        "statuses": dict(counts),
        "damaged": list(shelf.damaged),
    }


def describe_item(item: Item, image: Image | None) -> Document:
    """Return an image in few words, as lists of images have it."""
    record = item.record
    return {
        "name": item.key.name,
        "platform": item.key.platform,
        "status": item.condition,
        "owner": item.owner,
        "digest": record.digest if record is not None else "",
        "image_id": record.image_id if record is not None else "",
        "revision": record.revision if record is not None else None,
        "published_at": record.published_at if record is not None else None,
        "entries": record.entries if record is not None else None,
        "bytes": record.content_bytes if record is not None else None,
        "changed_at": time(datetime.fromtimestamp(item.changed_at, UTC)),
        "progress": describe_progress(image),
        "failure": describe_failure(image.failure if image is not None else None),
    }


def describe_image(
    item: Item,
    image: Image | None,
    details: Details | None,
    sites: Iterable[SiteCommands],
    rollback: Mapping[str, str],
) -> Document:
    """Return everything about one image."""
    return {
        **describe_item(item, image),
        "wish": describe_wish(image),
        "publication": describe_publication(item.record) if item.record is not None else None,
        "layers": [asdict(layer) for layer in details.layers] if details is not None else [],
        "history": [
            describe_version(version, rollback)
            for version in (details.history.versions[::-1] if details is not None else ())
        ],
        "staged": describe_staged(details.history.staged) if details is not None else None,
        "commands": [asdict(site) for site in sites],
    }


def describe_staged(staged: Staged | None) -> Document | None:
    """Return what a name waits to lead to."""
    if staged is None:
        return None
    return {
        "digest": staged.publication.digest,
        "staged_at": staged.publication.published_at,
        "revision": staged.revision,
        "replicas": staged.replicas,
    }


def describe_wish(image: Image | None) -> Document | None:
    if image is None:
        return None
    return {
        "reference": image.reference,
        "is_wished": image.is_wished,
        "list": image.list,
        "line": image.line,
        "owner": image.owner,
        "priority": image.priority,
        "requested_at": time(image.requested_at),
        "seen_at": time(image.seen_at),
        "fetching_at": time(image.fetching_at),
        "published_at": time(image.published_at),
        "replicated_at": time(image.replicated_at),
        "polled_at": time(image.polled_at),
        "next_poll_at": time(image.next_poll_at),
        "digest_seen": image.digest_seen,
        "digest_published": image.digest_published,
        "attempts": image.attempts,
        "next_attempt_at": time(image.next_attempt_at),
        "layers_total": image.facts.layers_total if image.facts is not None else None,
        "layers_reused": image.facts.layers_reused if image.facts is not None else None,
        "fetched_bytes": image.facts.fetched_bytes if image.facts is not None else None,
        "seconds": image.facts.seconds if image.facts is not None else None,
    }


def describe_publication(record: Publication) -> Document:
    """Return the record, its history left out."""
    document = {name: getattr(record, name) for name in _RECORD_FIELDS}
    for name in ("layers", "roots_added", "pinned"):
        document[name] = list(document[name])
    return {**document, "findings": [finding._asdict() for finding in record.findings]}


def describe_version(version: Version, rollback: Mapping[str, str]) -> Document:
    return {
        **version.event._asdict(),
        "is_current": version.is_current,
        "is_kept": version.is_kept,
        "is_pinned": version.is_pinned,
        "rollback": rollback.get(version.event.manifest_digest, ""),
    }


def describe_progress(image: Image | None) -> Document | None:
    if image is None or image.progress is None:
        return None
    progress = image.progress
    return {
        "phase": progress.phase,
        "done": progress.done,
        "total": progress.total,
        "layers": [asdict(layer) for layer in progress.layers],
    }


def describe_failure(failure: Failure | None) -> Document | None:
    return asdict(failure) if failure is not None else None


def describe_key(key: ImageKey) -> Document:
    return {"name": key.name, "platform": key.platform}


def describe_job(job: Job) -> Document:
    return {
        **describe_key(job.key),
        "reference": job.reference,
        "digest": job.digest,
        "owner": job.owner,
        "priority": job.priority,
        "reason": job.reason,
        "enqueued_at": time(job.enqueued_at),
        "not_before": time(job.not_before),
        "attempts": job.attempts,
        "is_running": job.is_running,
    }


def describe_event(event: Event) -> Document:
    return {
        "id": event.id,
        "at": time(event.at),
        "kind": event.kind,
        "message": event.message,
        "name": event.name,
        "platform": event.platform,
        "list": event.list,
        "owner": event.owner,
        "details": dict(event.details),
    }


def describe_list(found: ListState, problems: Iterable[ListProblem]) -> Document:
    return {
        "name": found.name,
        "entries": found.entries,
        "images": found.images,
        "loaded_at": time(found.loaded_at),
        "checked_at": time(found.checked_at),
        "failure": describe_failure(found.failure),
        "problems": [
            {
                "line": problem.line,
                "text": problem.text,
                "failure": describe_failure(problem.failure),
                "owner": problem.owner,
                "since": time(problem.since),
            }
            for problem in problems
        ],
    }


def describe_budget(budget: Budget) -> Document:
    return {
        "registry": budget.registry,
        "limit": budget.limit,
        "remaining": budget.remaining,
        "resets_at": time(budget.resets_at),
        "blocked_until": time(budget.blocked_until),
        "requests": budget.requests,
        "failures": budget.failures,
        "updated_at": time(budget.updated_at),
    }


def describe_lag(lag: Lag) -> Document:
    return {
        "url": lag.replica.url,
        "revision": lag.replica.revision,
        "behind": lag.behind,
        "checked_at": time(lag.replica.checked_at),
        "failure": describe_failure(lag.replica.failure),
    }
