"""Questions about the watcher's state, for whoever shows it.

Any number of threads and processes may ask while the watcher works; nobody waits for anybody.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Self

from cvmfs_publish.state import schema
from cvmfs_publish.state.database import Database, StateError
from cvmfs_publish.state.model import (
    Budget,
    Event,
    Image,
    ImageKey,
    Job,
    ListProblem,
    ListState,
    Order,
    Outline,
    Page,
    Replica,
    Search,
    Status,
)

MAX_WORDS = 8  # of a search; more say nothing more
_ORDERS: dict[Order, str] = {
    "name": "name, platform",
    "changed": "changed_at DESC, name",
    "requested": "requested_at DESC, name",
    "line": "list, line, name, platform",
}


class Reader:
    """The state, to be read.  Any number of threads may use it at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the state in the `state` directory.

        Raises:
            StateError: there is none yet, or it cannot be used.
        """
        path = folder / schema.FILE_NAME
        if not path.exists():
            raise StateError(
                f"{path} does not exist: no watcher has run here yet",
                hint="start `cvmfs-publish watch`, or correct `state` in the configuration",
            )
        return cls(Database(path, schema.SCHEMA, schema.VERSION))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    # images

    def search(self, search: Search) -> Page:
        """Return a page of the images that fit; those that nobody wishes any more included."""
        where, values = _conditions(search)
        text = f" WHERE {' AND '.join(where)}" if where else ""
        total = self._number(f"SELECT COUNT(*) FROM image{text}", values)  # noqa: S608
        rows = self._database.rows(
            f"SELECT {schema.IMAGE_COLUMNS} FROM image{text}"  # noqa: S608 - our own words
            f" ORDER BY {_ORDERS[search.order]} LIMIT ? OFFSET ?",
            [*values, search.limit, search.offset],
        )
        return Page(tuple(map(schema.image, rows)), total)

    def image(self, key: ImageKey) -> Image | None:
        rows = self._database.rows(
            f"SELECT {schema.IMAGE_COLUMNS} FROM image WHERE name = ? AND platform = ?",  # noqa: S608
            [key.name, key.platform],
        )
        return schema.image(rows[0]) if rows else None

    def images(self, keys: Collection[ImageKey]) -> dict[ImageKey, Image]:
        """Return those of these images that are known, in one query."""
        rows = self._database.rows(
            f"SELECT {schema.IMAGE_COLUMNS} FROM image WHERE (name, platform) IN"  # noqa: S608
            " (SELECT value ->> 0, value ->> 1 FROM json_each(?))",
            [json.dumps([[key.name, key.platform] for key in keys])],
        )
        found = map(schema.image, rows)
        return {image.key: image for image in found}

    def outlines(self) -> list[Outline]:
        """Return the outlines of all images, in no order; of 10,000 in 20 ms."""
        rows = self._database.rows(
            "SELECT name, platform, status, wished, list, owner, requested_at, changed_at"
            " FROM image"
        )
        return list(map(Outline._make, rows))

    def platforms(self, name: str) -> tuple[Image, ...]:
        """Return all images of a name, by platform."""
        rows = self._database.rows(
            f"SELECT {schema.IMAGE_COLUMNS} FROM image WHERE name = ? ORDER BY platform",  # noqa: S608
            [name],
        )
        return tuple(map(schema.image, rows))

    def counts(self) -> dict[Status, int]:
        """Return how many images have each status; those without any are left out."""
        rows = self._database.rows("SELECT status, COUNT(*) FROM image GROUP BY status")
        return dict(rows)

    def registries(self) -> dict[str, int]:
        """Return how many images each registry has, by its name."""
        return dict(
            self._database.rows(
                "SELECT registry, COUNT(*) FROM image GROUP BY registry ORDER BY registry"
            )
        )

    def owners(self) -> dict[str, int]:
        """Return how many images each owner wishes, by their name."""
        return dict(
            self._database.rows(
                "SELECT owner, COUNT(*) FROM image WHERE wished GROUP BY owner ORDER BY owner"
            )
        )

    def oldest_wish(self) -> datetime | None:
        """Return since when the image that waits longest for its first publication waits."""
        rows = self._database.rows(
            "SELECT MIN(requested_at) FROM image WHERE wished AND published_at IS NULL"
            " AND status IN ('waiting', 'queued', 'publishing', 'failed')"
        )
        return schema.at(rows[0][0])

    # the queue

    def queue(self, limit: int = 1000) -> tuple[Job, ...]:
        """Return jobs, those under way first, then in the order in which they are due."""
        rows = self._database.rows(
            f"SELECT {schema.JOB_COLUMNS} FROM job JOIN image ON image.id = job.image"  # noqa: S608
            " ORDER BY run IS NULL, not_before, job.id LIMIT ?",
            [limit],
        )
        return tuple(map(schema.job, rows))

    def queue_length(self) -> int:
        return self._number("SELECT COUNT(*) FROM job")

    # events

    def events_since(self, number: int, limit: int = 1000) -> tuple[Event, ...]:
        """Return the events after the one of this number, oldest first."""
        rows = self._database.rows(
            f"SELECT {schema.EVENT_COLUMNS} FROM event WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608
            [number, limit],
        )
        return tuple(map(schema.event, rows))

    def latest_events(
        self, limit: int = 100, *, before: int | None = None, name: str = ""
    ) -> tuple[Event, ...]:
        """Return the newest events, newest first; `before` a number, about one name."""
        where, values = ["1"], list[object]()
        if before is not None:
            where.append("id < ?")
            values.append(before)
        if name:
            where.append("name = ?")
            values.append(name)
        rows = self._database.rows(
            f"SELECT {schema.EVENT_COLUMNS} FROM event WHERE {' AND '.join(where)}"  # noqa: S608
            " ORDER BY id DESC LIMIT ?",
            [*values, limit],
        )
        return tuple(map(schema.event, rows))

    # the rest

    def lists(self) -> tuple[ListState, ...]:
        rows = self._database.rows(
            "SELECT name, entries, images, loaded_at, checked_at, failure FROM list ORDER BY name"
        )
        return tuple(map(schema.list_state, rows))

    def problems(self, list_name: str = "") -> tuple[ListProblem, ...]:
        """Return the lines that cannot be used, of one list or of all."""
        rows = self._database.rows(
            "SELECT list, line, text, failure, owner, since FROM problem"
            " WHERE ? IN ('', list) ORDER BY list, line",
            [list_name],
        )
        return tuple(map(schema.problem, rows))

    def budgets(self) -> tuple[Budget, ...]:
        rows = self._database.rows(
            "SELECT registry, most, remaining, resets_at, blocked_until, requests, failures,"
            " updated_at FROM budget ORDER BY registry"
        )
        return tuple(map(schema.budget, rows))

    def replicas(self) -> tuple[Replica, ...]:
        rows = self._database.rows(
            "SELECT url, revision, checked_at, failure FROM replica ORDER BY url"
        )
        return tuple(map(schema.replica, rows))

    def counters(self) -> dict[tuple[str, str], float]:
        """Return all counters by name and label; they only grow."""
        rows = self._database.rows("SELECT name, label, value FROM counter ORDER BY name, label")
        return {(name, label): value for name, label, value in rows}

    def moment(self, name: str) -> datetime | None:
        """Return when something happened last: `alive`, `polled`, `published`, `collected`, …"""
        rows = self._database.rows("SELECT at FROM moment WHERE name = ?", [name])
        return schema.at(rows[0][0]) if rows else None

    def _number(self, sql: str, values: Sequence[object] = ()) -> int:
        return int(self._database.rows(sql, values)[0][0])


def _conditions(search: Search) -> tuple[list[str], list[object]]:
    where: list[str] = []
    values: list[object] = []
    for word in search.text.split()[:MAX_WORDS]:
        escaped = word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        where.append(r"name || ' ' || owner || ' ' || list LIKE ? ESCAPE '\'")
        values.append(f"%{escaped}%")
    for column, value in (
        ("status", search.status),
        ("registry", search.registry),
        ("owner", search.owner),
        ("list", search.list),
        ("platform", search.platform),
    ):
        if value:
            where.append(f"{column} = ?")
            values.append(value)
    return where, values
