"""Turn what is known into the rows, figures and links of pages; for `site.py` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

from starlette.requests import Request

from cvmfs_publish.repository.names import Version
from cvmfs_publish.state.model import Image, ImageKey, ListProblem, ListState, Search, Status
from cvmfs_publish.state.reading import Reader
from cvmfs_publish.web.catalogue import Catalogue, Item
from cvmfs_publish.web.chart import Chart, draw_sizes
from cvmfs_publish.web.library import Details, Shelf
from cvmfs_publish.web.pages import DEFAULT_PLATFORM, short_digest
from cvmfs_publish.web.parameters import (
    Values,
)
from cvmfs_publish.web.rollback import plan_rollbacks
from cvmfs_publish.web.views import (
    PHASES,
    Bar,
    ago,
    days_left,
    plan_bars,
    since,
)
from cvmfs_publish.words import format_bytes, plural

WIDE, NARROW = (1100, 340), (360, 420)  # units of the picture of sizes, on screens and phones
WARN_DAYS = 7  # before the whitelist expires, as the command line warns
SHOWN_FAILURES = 6
FAILED: tuple[Status, ...] = ("failed", "quarantined")
LIVE = ("waiting", "queued", "publishing")  # what will change soon


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure at a glance."""

    title: str
    figure: str
    note: str
    state: str = ""  # ok, warn or bad
    link: str = ""


@dataclass(frozen=True, slots=True)
class Links:
    """To the other pages of a list."""

    title: str
    number: int
    last: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Field:
    """One thing to filter by."""

    name: str
    title: str
    all: str
    values: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One image in the list of images."""

    name: str
    platform: str
    condition: str
    notes: list[str]  # what else tells it from others
    size: int | None
    entries: int | None
    changed_at: datetime
    percent: int | None
    failure: str


@dataclass(frozen=True, slots=True)
class Running:
    """One image that is being published."""

    image: Image
    phase: str
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class ListRow:
    """One wishlist among others."""

    list: ListState
    url: str
    problems: Sequence[ListProblem]


@dataclass(frozen=True, slots=True)
class Action:
    """What somebody who is logged in may have done."""

    title: str
    path: str


@dataclass(frozen=True, slots=True)
class ShownVersion:
    """One event of an image's history."""

    event: object
    is_current: bool
    is_pinned: bool
    command: str  # that goes back to it; "" where there is none


@dataclass(frozen=True, slots=True)
class Facts:
    """The published revision."""

    published_at: datetime
    root_hash: str
    entries: int
    catalogs: int
    bytes: int
    sandboxes: int
    whitelist_ends_at: datetime
    certificate_expires_at: datetime


def plan_tiles(
    shelf: Shelf | None,
    catalogue: Catalogue | None,
    facts: Facts | None,
    reader: Reader | None,
    now: datetime,
) -> list[Tile]:
    if shelf is None or facts is None or catalogue is None:
        return []
    counts = catalogue.facets.conditions
    waiting = sum(counts.get(each, 0) for each in LIVE)
    failed = counts.get("failed", 0) + counts.get("quarantined", 0)
    oldest = reader.oldest_wish() if reader is not None else None
    days = days_left(facts.whitelist_ends_at, now)
    return [
        Tile(
            "Images",
            f"{len(shelf.images):,}",
            f"in revision {shelf.manifest.revision}",
            "ok",
            "/images",
        ),
        Tile(
            "Content",
            format_bytes(facts.bytes),
            f"{shelf.reuse * 100:.0f} % of layers shared",
        ),
        Tile(
            "On its way",
            f"{waiting:,}",
            f"oldest wish {ago(oldest, now)}"
            if oldest is not None and waiting
            else "nothing waits",
            link="/images?sort=requested",
        ),
        Tile(
            "Failures",
            f"{failed:,}",
            f"{counts.get('quarantined', 0):,} in quarantine" if failed else "none",
            "bad" if failed else "ok",
            "/images?status=failed" if counts.get("failed") else "/images?status=quarantined",
        ),
        _whitelist_tile(days),
        Tile("Last revision", since(shelf.published_at, now), "ago"),
    ]


def _whitelist_tile(days: float) -> Tile:
    if days <= 0:
        return Tile("Whitelist", "expired", "clients refuse new revisions", "bad")
    state = "warn" if days <= WARN_DAYS else "ok"
    figure = plural(int(days), "day") if days >= 1 else plural(int(days * 24), "hour")
    return Tile("Whitelist", figure, "until it expires", state)


def list_running(reader: Reader | None) -> list[Running]:
    if reader is None:
        return []
    images = reader.search(Search(status="publishing", order="requested", limit=20)).images
    return [
        Running(
            image,
            PHASES.get(image.progress.phase, image.progress.phase) if image.progress else "",
            plan_bars(image.progress),
        )
        for image in images
    ]


def list_failed(reader: Reader | None) -> list[Image]:
    """Return what failed last, the last first."""
    if reader is None:
        return []
    found = [
        image
        for status in FAILED
        for image in reader.search(
            Search(status=status, order="changed", limit=SHOWN_FAILURES)
        ).images
    ]
    found.sort(key=lambda image: image.changed_at, reverse=True)
    return found[:SHOWN_FAILURES]


def count_failed(reader: Reader | None) -> int:
    counts = reader.counts() if reader is not None else {}
    return sum(counts.get(status, 0) for status in FAILED)


def list_wishlists(reader: Reader | None) -> list[ListRow]:
    if reader is None:
        return []
    problems = reader.problems()
    return [
        ListRow(
            each,
            "/wishlists/lines?" + urlencode({"list": each.name}),
            [problem for problem in problems if problem.list == each.name],
        )
        for each in reader.lists()
    ]


def plan_choices(catalogue: Catalogue, values: Values) -> list[Field]:
    facets = catalogue.facets
    fields = [
        Field("status", "Status", "Any status", facets.conditions),
        Field("registry", "Registry", "Any registry", facets.registries),
        Field("platform", "Platform", "Any platform", facets.platforms),
        Field("owner", "Owner", "Anybody", facets.owners),
    ]
    # what is asked for stays visible, also when nothing has it any more
    return [
        Field(field.name, field.title, field.all, {**field.values, **_asked(field, values)})
        for field in fields
    ]


def _asked(field: Field, values: Values) -> dict[str, int]:
    asked = values.text(field.name)
    return {asked: 0} if asked and asked not in field.values else {}


def plan_links(title: str, request: Request, page: int, total: int, size: int) -> Links:
    last = max(1, -(-total // size))
    page = min(page, last)

    def to(number: int) -> str:
        query = urlencode(
            [(name, value) for name, value in request.query_params.multi_items() if name != "page"]
            + ([("page", str(number))] if number > 1 else [])
        )
        return request.url.path + (f"?{query}" if query else "")

    return Links(
        title, page, last, to(page - 1) if page > 1 else "", to(page + 1) if page < last else ""
    )


def describe_row(item: Item, image: Image | None) -> Row:
    record = item.record
    progress = plan_bars(image.progress if image is not None else None)
    return Row(
        item.key.name,
        item.key.platform,
        item.condition,
        _notes(item),
        record.content_bytes if record is not None else None,
        record.entries if record is not None else None,
        datetime.fromtimestamp(item.changed_at, UTC),
        progress[0].percent if progress else None,
        image.failure.message if image is not None and image.failure is not None else "",
    )


def _notes(item: Item) -> list[str]:
    platform = "" if item.key.platform == DEFAULT_PLATFORM else item.key.platform
    digest = short_digest(item.record.digest) if item.record is not None else ""
    return [text for text in (platform, digest, item.owner) if text]


def find_others(shelf: Shelf, reader: Reader | None, key: ImageKey) -> list[ImageKey]:
    """Return the other platforms of a name."""
    found = {other for other in shelf.images if other.name == key.name}
    if reader is not None:
        found |= {image.key for image in reader.platforms(key.name)}
    return sorted(found - {key})


def draw_charts(details: Details | None) -> tuple[list[Chart], str]:
    if details is None or not any(size.bytes for size in details.sizes):
        return [], ""
    charts = [draw_sizes(details.sizes, *shape) for shape in (WIDE, NARROW)]
    total = sum(size.bytes for size in details.sizes)
    largest = ", ".join(
        f"/{size.path} {100 * size.bytes / total:.0f} %" for size in details.sizes[:5]
    )
    return charts, f"Share of {format_bytes(total)} by directory: {largest}"


def list_versions(details: Details | None) -> list[ShownVersion]:
    if details is None:
        return []
    commands = plan_rollbacks(details.history)
    shown: list[ShownVersion] = []
    for version in reversed(details.history.versions):
        command = commands.pop(version.event.manifest_digest, "")  # each once, at its last event
        shown.append(_shown(version, command))
    return shown


def _shown(version: Version, command: str) -> ShownVersion:
    return ShownVersion(version.event, version.is_current, version.is_pinned, command)
