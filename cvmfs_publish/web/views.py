"""Turn what is known into what pages show: steps, percentages, words.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from cvmfs_publish.repository.records import Publication
from cvmfs_publish.state.model import Image, ListProblem, Progress, Replica
from cvmfs_publish.web.access import Session
from cvmfs_publish.web.catalogue import Condition
from cvmfs_publish.web.pages import short_digest
from cvmfs_publish.words import format_bytes, plural

StepState: TypeAlias = Literal["done", "now", "todo", "failed"]

MEANINGS: dict[Condition, str] = {
    "published": "Readers see it, and it is what the registry had at the last look.",
    "waiting": "Wished; the registry has not been asked yet.",
    "queued": "It is to be published; its turn comes.",
    "publishing": "It is being fetched and published.",
    "staged": "Its sandbox is published; its name leads there when enough replicas have it.",
    "failed": "The last attempt failed; it is tried again by itself.",
    "quarantined": "It failed too often: not tried again until its digest changes or somebody"
    " releases it.",
    "gone": "The registry has it no more.",
    "removed": "It was published, and its name was removed from the repository since.",
}
PHASES = {
    "asking": "asking the registry",
    "resolving": "reading the manifest",
    "fetching": "fetching layers",
    "stacking": "stacking layers",
    "fallback": "writing the image as one file",
    "committing": "committing the revision",
}


@dataclass(frozen=True, slots=True)
class Frame:
    """What every page shows around its content."""

    title: str
    active: str  # which entry of the menu this is
    repository: str
    revision: int | None  # None: the repository cannot be read
    version: str  # of the program
    can_log_in: bool
    session: Session | None
    feed: str  # path of the feed


@dataclass(frozen=True, slots=True)
class Step:
    """One step in the life of an image."""

    title: str
    state: StepState
    at: datetime | str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """Something of which a part is done."""

    title: str
    done: int
    total: int
    text: str  # both, for people

    @property
    def percent(self) -> int:
        return min(100, 100 * self.done // self.total) if self.total else 0


@dataclass(frozen=True, slots=True)
class ListLine:
    """A line of a wishlist: what it wishes, or why it cannot be used."""

    number: int  # 0: about the whole list
    images: tuple[Image, ...]
    problem: ListProblem | None = None


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a replica is behind."""

    replica: Replica
    behind: int  # revisions

    @property
    def text(self) -> str:
        if self.replica.failure is not None:
            return self.replica.failure.kind.replace("-", " ")
        return f"{plural(self.behind, 'revision')} behind" if self.behind else "up to date"


def plan_steps(
    image: Image | None, record: Publication | None, *, has_replicas: bool
) -> tuple[Step, ...]:
    """Return the life of an image so far and what is still to come."""
    if image is None:
        if record is None:
            return ()
        note = f"in revision {record.revision}, not by the watcher"
        return (Step(record.what.capitalize(), "done", record.published_at, note),)
    is_staged = image.status == "staged"
    is_there = image.digest_seen in ("", image.digest_published)
    is_current = is_there and record is not None and not is_staged
    steps = [_requested(image), _seen(image), _fetched(image, is_current or is_staged)]
    if is_staged:
        steps.append(_staged(image))
    steps.append(_published(image, record, is_current))
    if has_replicas:
        steps.append(_replicated(image, is_current))
    return tuple(steps)


def _requested(image: Image) -> Step:
    place = f"{image.list}:{image.line}" if image.line else image.list
    who = f" by {image.owner}" if image.owner else ""
    return Step("Requested", "done", image.requested_at, f"in {place}{who}" if place else who)


def _seen(image: Image) -> Step:
    if image.seen_at is None:
        is_refused = image.failure is not None and not image.digest_seen
        return Step("Seen in the registry", "failed" if is_refused else "now")
    return Step("Seen in the registry", "done", image.seen_at, short_digest(image.digest_seen))


def _fetched(image: Image, is_current: bool) -> Step:
    title = "Fetched"
    if image.status == "publishing":
        phase = image.progress.phase if image.progress is not None else "asking"
        return Step("Fetching", "now", image.fetching_at, PHASES.get(phase, phase))
    if image.status in ("failed", "quarantined") and image.attempts:
        return Step(title, "failed", image.fetching_at, plural(image.attempts, "attempt"))
    if is_current:
        return Step(title, "done", image.fetching_at, _fetched_note(image))
    return Step(title, "now" if image.status == "queued" else "todo")


def _fetched_note(image: Image) -> str:
    facts = image.facts
    if facts is None or not facts.layers_total:
        return ""
    layers = plural(facts.layers_total, "layer")
    return f"{layers}, {facts.layers_reused} reused, {format_bytes(facts.fetched_bytes)} fetched"


def _staged(image: Image) -> Step:
    revision = image.facts.revision if image.facts is not None else 0
    return Step("Waiting for replicas", "now", None, f"they are to have revision {revision}")


def _published(image: Image, record: Publication | None, is_current: bool) -> Step:
    if is_current and record is not None:
        return Step("Published", "done", record.published_at, f"in revision {record.revision}")
    if record is not None:
        note = f"an earlier version is, since revision {record.revision}"
        return Step("Published", "todo", None, note)
    return Step("Published", "todo")


def _replicated(image: Image, is_current: bool) -> Step:
    if image.replicated_at is not None and is_current:
        return Step("Replicated", "done", image.replicated_at, "every replica has it")
    return Step("Replicated", "now" if is_current else "todo")


def plan_bars(progress: Progress | None) -> tuple[Bar, ...]:
    """Return the progress of all layers together, then of each that is being fetched."""
    if progress is None or not progress.total:
        return ()
    text = f"{format_bytes(progress.done)} of {format_bytes(progress.total)}"
    bars = [Bar("All layers", progress.done, progress.total, text)]
    bars += [
        Bar(
            layer.digest,
            layer.done,
            layer.total,
            f"{format_bytes(layer.done)} of {format_bytes(layer.total)}",
        )
        for layer in progress.layers
    ]
    return tuple(bars)


def plan_lines(images: Sequence[Image], problems: Sequence[ListProblem]) -> list[ListLine]:
    """Return the lines of a wishlist in their order, problems where they stand."""
    by_line: dict[int, list[Image]] = {}
    for image in images:
        by_line.setdefault(image.line, []).append(image)
    lines = [ListLine(number, tuple(found)) for number, found in by_line.items()]
    lines += [ListLine(problem.line, (), problem) for problem in problems]
    return sorted(lines, key=lambda line: line.number)


def plan_lags(replicas: Sequence[Replica], revision: int) -> list[Lag]:
    return [Lag(replica, max(0, revision - replica.revision)) for replica in replicas]


def days_left(until: datetime, now: datetime) -> float:
    return (until - now) / timedelta(days=1)


def since(at: datetime, now: datetime) -> str:
    """Return how much time has passed, in the largest unit that says something."""
    seconds = max(0, int((now - at).total_seconds()))
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return plural(seconds // size, unit)
    return plural(seconds, "second")


def ago(at: datetime, now: datetime) -> str:
    return f"{since(at, now)} ago"
