"""What the watcher knows of images, lists and registries, as values.  Pure.

An image here is one published name on one platform.  Its life: somebody wishes it (`requested_at`),
the registry says what it is (`seen_at`), it is fetched (`fetching_at`), readers see it
(`published_at`), and every replica has it (`replicated_at`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, get_args

from cvmfs_publish.errors import PublishError

# waiting: wished, the registry was not asked yet.  queued: its turn comes.  unchanged: published,
# as the last look found it.  staged: in the repository, but its name waits for replicas.  failed:
# tried again at `next_attempt_at`.  quarantined: not tried again until its digest changes or
# somebody releases it.  gone: the registry has it no more.
Status = Literal[
    "waiting",
    "queued",
    "publishing",
    "staged",
    "published",
    "unchanged",
    "failed",
    "quarantined",
    "gone",
]
STATUSES: tuple[Status, ...] = get_args(Status)
Order = Literal["name", "changed", "requested", "line"]
ORDERS: tuple[Order, ...] = get_args(Order)
# What a job is for, most urgent first: somebody asked for it by hand, put a file into the drop
# directory, pushed it, or a look at the registry found it.
Reason = Literal["command", "file", "push", "poll"]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True, order=True)
class ImageKey:
    """One platform of one published name."""

    name: str  # `Reference.name`: ghcr.io/a/b:1
    platform: str  # linux/amd64

    def __str__(self) -> str:
        return f"{self.name} ({self.platform})"


@dataclass(frozen=True, slots=True)
class Wish:
    """That an image is to be published, and who says so where."""

    key: ImageKey
    reference: str  # what is fetched: a reference, or oci-archive:/path and the like
    list: str  # the wishlist, as the configuration names it
    line: int = 0  # in the wishlist; 0 where there is none
    owner: str = ""
    priority: int = 0  # the higher, the sooner
    keep_replaced: timedelta | None = None  # if the list says so
    policy: str = ""  # how its sandbox differs from what is configured, as JSON; "" not at all


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something did not work, as every error of the program says it."""

    kind: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: PublishError) -> Failure:
        return cls(error.kind, str(error), error.hint)


@dataclass(frozen=True, slots=True)
class LayerProgress:
    """How much of one layer has arrived."""

    digest: str
    done: int  # compressed bytes
    total: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a publish is."""

    phase: str  # asking, resolving, fetching, stacking, fallback, committing
    layers: tuple[LayerProgress, ...] = ()

    @property
    def done(self) -> int:
        return sum(layer.done for layer in self.layers)

    @property
    def total(self) -> int:
        return sum(layer.total for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the last publish of an image said about it."""

    digest: str  # what the tag named
    image_id: str = ""
    revision: int = 0
    entries: int = 0
    content_bytes: int = 0
    stored_bytes: int = 0
    layers_total: int = 0
    layers_reused: int = 0
    fetched_bytes: int = 0
    seconds: float = 0.0
    findings: int = 0
    recipe: str = ""  # how its sandbox was made


@dataclass(frozen=True, slots=True)
class Image:
    """Everything known of one image."""

    key: ImageKey
    reference: str
    status: Status
    is_wished: bool
    list: str
    line: int
    owner: str
    priority: int
    keep_replaced: timedelta | None
    policy: str
    requested_at: datetime
    seen_at: datetime | None  # when the digest of now was seen first
    fetching_at: datetime | None
    published_at: datetime | None
    replicated_at: datetime | None
    changed_at: datetime  # when any of all this changed last
    polled_at: datetime | None
    next_poll_at: datetime | None
    digest_seen: str
    digest_published: str
    attempts: int  # since the last success, the one under way included
    next_attempt_at: datetime | None
    failure: Failure | None
    progress: Progress | None  # while it is published
    facts: Facts | None
    unlisted_at: datetime | None  # since when no list names it
    unlisted_checked_at: datetime | None  # when lists that could be read were last without it
    absent_at: datetime | None  # since when the registry says that it has it no more

    @property
    def name(self) -> str:
        return self.key.name

    @property
    def platform(self) -> str:
        return self.key.platform


class Outline(NamedTuple):
    """What lists of all images need of one."""

    name: str
    platform: str
    status: Status
    is_wished: bool
    list: str
    owner: str
    requested_at: float  # seconds since 1970, as the next: ten thousand are compared
    changed_at: float


@dataclass(frozen=True, slots=True)
class Search:
    """Which images to show.  Empty fields do not matter."""

    text: str = ""  # words that all occur in name, owner or list
    status: Status | None = None
    registry: str = ""
    owner: str = ""
    list: str = ""
    platform: str = ""
    order: Order = "name"
    offset: int = 0
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Page:
    """A part of what a search found."""

    images: tuple[Image, ...]
    total: int  # of all pages


@dataclass(frozen=True, slots=True)
class Job:
    """That an image is to be published now, or from a time on."""

    id: int
    key: ImageKey
    reference: str
    digest: str  # "" if it was not asked for
    owner: str
    priority: int
    policy: str
    reason: Reason
    enqueued_at: datetime
    not_before: datetime
    attempts: int  # that ended without success so far
    is_alone: bool  # not together with others: it may be what killed a publish
    is_running: bool


@dataclass(frozen=True, slots=True)
class Result:
    """How the publish of one image ended."""

    key: ImageKey
    status: Status  # published, staged, unchanged, failed or quarantined
    facts: Facts | None = None
    failure: Failure | None = None
    next_attempt_at: datetime | None = None  # of one that failed


@dataclass(frozen=True, slots=True)
class Polled:
    """What a look at the registry found."""

    key: ImageKey
    next_poll_at: datetime
    digest: str = ""
    failure: Failure | None = None
    is_absent: bool = False  # the registry itself says that it has no such image


@dataclass(frozen=True, slots=True)
class Push:
    """That somebody pushed an image, as a registry told."""

    registry: str
    repository: str
    tag: str  # "" if only the digest is known
    digest: str = ""
    source: str = ""  # which kind of webhook
    delivery: str = ""  # its number; one that is known already is not taken again


@dataclass(frozen=True, slots=True)
class StoredPush:
    """A push that waits to be looked at."""

    id: int
    push: Push
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for logs, feeds and notifications."""

    id: int  # grows; 0 before it is stored
    at: datetime
    kind: str
    message: str
    name: str = ""
    platform: str = ""
    list: str = ""
    owner: str = ""
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListState:
    """What became of one wishlist."""

    name: str
    entries: int
    images: int
    loaded_at: datetime | None  # when it was read last, and what is in use is from
    checked_at: datetime
    failure: Failure | None = None  # of the last look; what was read before stays in use


@dataclass(frozen=True, slots=True)
class ListProblem:
    """A line of a wishlist that cannot be used."""

    list: str
    line: int
    text: str  # the line
    failure: Failure
    owner: str = ""
    since: datetime | None = None  # None before it is stored


@dataclass(frozen=True, slots=True)
class Budget:
    """What may still be asked of a registry."""

    registry: str
    limit: int | None = None  # requests that count, per window
    remaining: int | None = None
    resets_at: datetime | None = None
    blocked_until: datetime | None = None  # it said "too many requests"
    requests: int = 0  # made since the watcher runs
    failures: int = 0  # in a row
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Replica:
    """How far a replica is."""

    url: str
    revision: int
    checked_at: datetime
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A file in the drop directory that was looked at."""

    path: str
    mark: str  # of its size and times: another one is another file
    key: ImageKey | None  # None: it is no image
    failure: Failure | None
    found_at: datetime


@dataclass(frozen=True, slots=True)
class TagList:
    """What tags a repository has, as its registry said."""

    registry: str
    repository: str
    tags: tuple[str, ...]
    etag: str
    fetched_at: datetime
    next_at: datetime
