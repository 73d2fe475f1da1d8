"""The tables of the watcher's state, and how rows become values.

Times are seconds since 1970 with fractions, platforms and digests as text, the rest as JSON.  A
change of this schema raises `VERSION`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from cvmfs_publish.state.model import (
    Budget,
    Dropped,
    Event,
    Facts,
    Failure,
    Image,
    ImageKey,
    Job,
    LayerProgress,
    ListProblem,
    ListState,
    Progress,
    Push,
    Replica,
    StoredPush,
    TagList,
)

VERSION = 1
FILE_NAME = "watch.sqlite"

SCHEMA = """
CREATE TABLE image (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  platform TEXT NOT NULL,
  registry TEXT NOT NULL,
  reference TEXT NOT NULL,
  status TEXT NOT NULL DEFAULT 'waiting',
  wished INTEGER NOT NULL DEFAULT 1,
  list TEXT NOT NULL DEFAULT '',
  line INTEGER NOT NULL DEFAULT 0,
  owner TEXT NOT NULL DEFAULT '',
  priority INTEGER NOT NULL DEFAULT 0,
  keep_replaced REAL,
  policy TEXT NOT NULL DEFAULT '',
  requested_at REAL NOT NULL,
  seen_at REAL,
  fetching_at REAL,
  published_at REAL,
  replicated_at REAL,
  changed_at REAL NOT NULL,
  polled_at REAL,
  next_poll_at REAL,
  digest_seen TEXT NOT NULL DEFAULT '',
  digest_published TEXT NOT NULL DEFAULT '',
  attempts INTEGER NOT NULL DEFAULT 0,
  next_attempt_at REAL,
  failure TEXT,
  progress TEXT,
  facts TEXT,
  revision INTEGER NOT NULL DEFAULT 0,
  unlisted_at REAL,
  unlisted_checked_at REAL,
  absent_at REAL,
  UNIQUE (name, platform)
);
CREATE INDEX image_status ON image (status);
CREATE INDEX image_registry ON image (registry);
CREATE INDEX image_changed ON image (changed_at);
CREATE INDEX image_requested ON image (requested_at);
CREATE INDEX image_poll ON image (next_poll_at) WHERE wished;
CREATE INDEX image_unlisted ON image (unlisted_at) WHERE unlisted_at IS NOT NULL;
CREATE INDEX image_replicated ON image (revision) WHERE replicated_at IS NULL AND revision > 0;
CREATE TABLE job (
  id INTEGER PRIMARY KEY,
  image INTEGER NOT NULL UNIQUE REFERENCES image (id) ON DELETE CASCADE,
  digest TEXT NOT NULL,
  reason TEXT NOT NULL,
  enqueued_at REAL NOT NULL,
  not_before REAL NOT NULL,
  alone INTEGER NOT NULL DEFAULT 0,
  again TEXT,
  run INTEGER REFERENCES run (id)
);
CREATE INDEX job_due ON job (not_before) WHERE run IS NULL;
CREATE TABLE run (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  started_at REAL NOT NULL
);
CREATE TABLE share (
  owner TEXT PRIMARY KEY,
  used REAL NOT NULL
);
CREATE TABLE push (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  registry TEXT NOT NULL,
  repository TEXT NOT NULL,
  tag TEXT NOT NULL,
  digest TEXT NOT NULL,
  source TEXT NOT NULL,
  delivery TEXT NOT NULL,
  received_at REAL NOT NULL
);
CREATE TABLE delivery (
  source TEXT NOT NULL,
  delivery TEXT NOT NULL,
  received_at REAL NOT NULL,
  PRIMARY KEY (source, delivery)
);
CREATE INDEX delivery_age ON delivery (received_at);
CREATE TABLE event (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at REAL NOT NULL,
  kind TEXT NOT NULL,
  message TEXT NOT NULL,
  name TEXT NOT NULL,
  platform TEXT NOT NULL,
  list TEXT NOT NULL,
  owner TEXT NOT NULL,
  details TEXT NOT NULL
);
CREATE INDEX event_name ON event (name);
CREATE TABLE list (
  name TEXT PRIMARY KEY,
  entries INTEGER NOT NULL,
  images INTEGER NOT NULL,
  loaded_at REAL,
  checked_at REAL NOT NULL,
  failure TEXT
);
CREATE TABLE problem (
  list TEXT NOT NULL,
  line INTEGER NOT NULL,
  text TEXT NOT NULL,
  failure TEXT NOT NULL,
  owner TEXT NOT NULL,
  since REAL NOT NULL,
  PRIMARY KEY (list, line, text)
);
CREATE TABLE tags (
  registry TEXT NOT NULL,
  repository TEXT NOT NULL,
  tags TEXT NOT NULL,
  etag TEXT NOT NULL,
  fetched_at REAL NOT NULL,
  next_at REAL NOT NULL,
  PRIMARY KEY (registry, repository)
);
CREATE TABLE dropped (
  path TEXT PRIMARY KEY,
  mark TEXT NOT NULL,
  name TEXT,
  platform TEXT,
  failure TEXT,
  found_at REAL NOT NULL
);
CREATE TABLE budget (
  registry TEXT PRIMARY KEY,
  most INTEGER,
  remaining INTEGER,
  resets_at REAL,
  blocked_until REAL,
  requests INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  updated_at REAL NOT NULL
);
CREATE TABLE replica (
  url TEXT PRIMARY KEY,
  revision INTEGER NOT NULL,
  checked_at REAL NOT NULL,
  failure TEXT
);
CREATE TABLE counter (
  name TEXT NOT NULL,
  label TEXT NOT NULL,
  value REAL NOT NULL,
  PRIMARY KEY (name, label)
);
CREATE TABLE moment (
  name TEXT PRIMARY KEY,
  at REAL NOT NULL
);
CREATE TABLE cursor (
  reader TEXT PRIMARY KEY,
  event INTEGER NOT NULL
)"""

IMAGE_COLUMNS = (
    "name, platform, reference, status, wished, list, line, owner, priority, keep_replaced,"
    " policy, requested_at, seen_at, fetching_at, published_at, replicated_at, changed_at,"
    " polled_at, next_poll_at, digest_seen, digest_published, attempts,"
    " next_attempt_at, failure, progress, facts, unlisted_at, unlisted_checked_at, absent_at"
)
JOB_COLUMNS = (
    "job.id, name, platform, reference, job.digest, owner, priority, policy, reason,"
    " enqueued_at, not_before, attempts, alone, run IS NOT NULL"
)
EVENT_COLUMNS = "id, at, kind, message, name, platform, list, owner, details"


def stamp(at: datetime | None) -> float | None:
    return at.timestamp() if at is not None else None


def at(value: float | None) -> datetime | None:
    return datetime.fromtimestamp(value, UTC) if value is not None else None


def span(seconds: float | None) -> timedelta | None:
    return timedelta(seconds=seconds) if seconds is not None else None


def known(value: float) -> datetime:
    return datetime.fromtimestamp(value, UTC)


def format_failure(failure: Failure | None) -> str | None:
    if failure is None:
        return None
    return json.dumps([failure.kind, failure.message, failure.hint])


def parse_failure(text: str | None) -> Failure | None:
    return Failure(*json.loads(text)) if text else None


def format_progress(progress: Progress) -> str:
    layers = [[layer.digest, layer.done, layer.total] for layer in progress.layers]
    return json.dumps([progress.phase, layers])


def _progress(text: str | None) -> Progress | None:
    if not text:
        return None
    phase, layers = json.loads(text)
    return Progress(phase, tuple(LayerProgress(*layer) for layer in layers))


def image(row: tuple[Any, ...]) -> Image:
    """Return the image of a row of `IMAGE_COLUMNS`."""
    name, platform, reference, status, wished, list_name, line, owner, priority, keep = row[:10]
    policy, requested, seen, fetching, published, replicated, changed, polled, next_poll = row[
        10:19
    ]
    digest_seen, digest_published, attempts, next_attempt, failure, progress, facts = row[19:26]
    unlisted, unlisted_checked, absent = row[26:]
    return Image(
        key=ImageKey(name, platform),
        reference=reference,
        status=status,
        is_wished=bool(wished),
        list=list_name,
        line=line,
        owner=owner,
        priority=priority,
        keep_replaced=span(keep),
        policy=policy,
        requested_at=known(requested),
        seen_at=at(seen),
        fetching_at=at(fetching),
        published_at=at(published),
        replicated_at=at(replicated),
        changed_at=known(changed),
        polled_at=at(polled),
        next_poll_at=at(next_poll),
        digest_seen=digest_seen,
        digest_published=digest_published,
        attempts=attempts,
        next_attempt_at=at(next_attempt),
        failure=parse_failure(failure),
        progress=_progress(progress),
        facts=Facts(**json.loads(facts)) if facts else None,
        unlisted_at=at(unlisted),
        unlisted_checked_at=at(unlisted_checked),
        absent_at=at(absent),
    )


def job(row: tuple[Any, ...]) -> Job:
    """Return the job of a row of `JOB_COLUMNS`."""
    number, name, platform, reference, digest, owner, priority, policy, reason = row[:9]
    enqueued, not_before, attempts, alone, running = row[9:]
    return Job(
        number,
        ImageKey(name, platform),
        reference,
        digest,
        owner,
        priority,
        policy,
        reason,
        known(enqueued),
        known(not_before),
        attempts,
        bool(alone),
        bool(running),
    )


def event(row: tuple[Any, ...]) -> Event:
    """Return the event of a row of `EVENT_COLUMNS`."""
    number, when, kind, message, name, platform, list_name, owner, details = row
    return Event(
        number, known(when), kind, message, name, platform, list_name, owner, json.loads(details)
    )


def push(row: tuple[Any, ...]) -> StoredPush:
    number, *fields, received = row
    return StoredPush(number, Push(*fields), known(received))


def list_state(row: tuple[Any, ...]) -> ListState:
    name, entries, images, loaded, checked, failure = row
    return ListState(name, entries, images, at(loaded), known(checked), parse_failure(failure))


def problem(row: tuple[Any, ...]) -> ListProblem:
    list_name, line, text, failure, owner, since = row
    return ListProblem(list_name, line, text, Failure(*json.loads(failure)), owner, known(since))


def budget(row: tuple[Any, ...]) -> Budget:
    registry, most, remaining, resets, blocked, requests, failures, updated = row
    return Budget(
        registry, most, remaining, at(resets), at(blocked), requests, failures, known(updated)
    )


def replica(row: tuple[Any, ...]) -> Replica:
    url, revision, checked, failure = row
    return Replica(url, revision, known(checked), parse_failure(failure))


def dropped(row: tuple[Any, ...]) -> Dropped:
    path, mark, name, platform, failure, found = row
    key = ImageKey(name, platform) if name else None
    return Dropped(path, mark, key, parse_failure(failure), known(found))


def tag_list(row: tuple[Any, ...]) -> TagList:
    registry, repository, tags, etag, fetched, next_at = row
    return TagList(
        registry, repository, tuple(json.loads(tags)), etag, known(fetched), known(next_at)
    )
