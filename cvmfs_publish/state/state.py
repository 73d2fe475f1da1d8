"""The watcher's memory: wishes, what registries said, the queue, and what became of it all.

Nothing that was taken in is lost when the program is killed: every method is one transaction.  What
is published counts as attempted before it starts, so that an image that kills its publisher is
noticed by whoever comes next.  One watcher at a time writes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

from cvmfs_publish.state import schema
from cvmfs_publish.state.database import Database, StateError
from cvmfs_publish.state.model import (
    REASONS,
    Budget,
    Dropped,
    Event,
    Facts,
    Image,
    ImageKey,
    Job,
    ListProblem,
    ListState,
    Polled,
    Progress,
    Push,
    Reason,
    Replica,
    Result,
    StoredPush,
    TagList,
    Wish,
)
from cvmfs_publish.state.reading import Reader

LOCK_NAME = "watch.lock"
DROP_LIST = "drop"  # what is wished because its file is, or was, in the drop directory
MAX_EVENTS = 100_000  # kept; a busy month
DELIVERY_MEMORY = timedelta(days=30)  # a registry repeats a delivery for hours, or by hand


class WatchLock:
    """Held by the one watcher of a state directory; free when its process ends, however."""

    def __init__(self, folder: Path) -> None:
        """Take it.

        Raises:
            StateError: another watcher has it, or the directory cannot be written.
        """
        path = folder / LOCK_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StateError(
                f"{path} cannot be written: {error.strerror}",
                hint="run as the account that owns the `state` directory",
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise StateError(
                f"another watcher, process {holder or 'unknown'}, works with {folder}",
                hint="stop it first, or give this one a `state` of its own",
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def __enter__(self) -> WatchLock:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


class State(Reader):
    """The state, to be read and written.  Any number of threads may use it at once."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the state in the `state` directory, or make it.

        Raises:
            StateError: it cannot be used.
        """
        return cls(Database(folder / schema.FILE_NAME, schema.SCHEMA, schema.VERSION))

    # wishes

    def replace_wishes(
        self, wishes: Iterable[Wish], now: datetime, kept_lists: Collection[str] = ()
    ) -> tuple[ImageKey, ...]:
        """Make these all the wishes there are; return the images that are new.

        Of several wishes for an image the most urgent counts, else the first.  `kept_lists` could
        not be read: what they wished stays wished.
        """
        chosen: dict[ImageKey, Wish] = {}
        for wish in wishes:
            if wish.priority > chosen.setdefault(wish.key, wish).priority:
                chosen[wish.key] = wish
        time = now.timestamp()
        with self._database.writing():
            known = self._wishes()
            new = [wish for key, wish in chosen.items() if key not in known]
            self._database.change_many(
                "INSERT INTO image (name, platform, registry, reference, list, line, owner,"
                " priority, keep_replaced, policy, requested_at, changed_at, next_poll_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(wish.key.name, wish.key.platform, wish.key.name.partition("/")[0]),
                        *_wish_values(wish),
                        *(time, time, time if _is_in_registry(wish) else None),
                    )
                    for wish in new
                ],
            )
            self._database.change_many(
                "UPDATE image SET wished = 1, unlisted_at = NULL, unlisted_checked_at = NULL,"
                " absent_at = NULL, next_poll_at = ?,"
                " requested_at = CASE WHEN wished THEN requested_at ELSE ? END, changed_at = ?,"
                " status = CASE WHEN status = 'gone' AND NOT wished THEN 'waiting'"
                " ELSE status END, reference = ?, list = ?, line = ?, owner = ?, priority = ?,"
                " keep_replaced = ?, policy = ? WHERE name = ? AND platform = ?",
                [
                    (
                        *(time if _is_in_registry(wish) else None, time, time),
                        *_wish_values(wish),
                        *(key.name, key.platform),
                    )
                    for key, wish in chosen.items()
                    if key in known and known[key] != wish
                ],
            )
            left = [
                (time, time, key.name, key.platform)
                for key, wish in known.items()
                if wish is not None and key not in chosen and wish.list not in kept_lists
            ]
            self._database.change_many(
                "UPDATE image SET wished = 0, unlisted_at = ?, changed_at = ?, next_poll_at = NULL"
                " WHERE name = ? AND platform = ?",
                left,
            )
            self._database.change(
                "DELETE FROM job WHERE run IS NULL AND image IN"
                " (SELECT id FROM image WHERE NOT wished)"
            )
            self._settle_unqueued()
            for key, other in known.items():
                if other is not None and other.policy != chosen.get(key, other).policy:
                    self._enqueue(key, "", now, "poll")
        return tuple(wish.key for wish in new)

    def drop(self, dropped: Dropped, wish: Wish | None, now: datetime) -> None:
        """Take in a file of the drop directory; with a wish its image is to be published.

        An image that a list wishes from its registry stays that list's.
        """
        with self._database.writing():
            self._database.change(
                "INSERT OR REPLACE INTO dropped VALUES (?, ?, ?, ?, ?, ?)",
                [
                    *(dropped.path, dropped.mark),
                    *((dropped.key.name, dropped.key.platform) if dropped.key else (None, None)),
                    *(schema.format_failure(dropped.failure), dropped.found_at.timestamp()),
                ],
            )
            if wish is not None:
                others = [known for known in self._wishes().values() if known is not None]
                self.replace_wishes([*(o for o in others if o.key != wish.key), wish], now)
                self.enqueue([wish.key], now, "file")

    def dropped(self) -> dict[str, Dropped]:
        """Return the files of the drop directory that were looked at, by their paths."""
        rows = self._database.rows(
            "SELECT path, mark, name, platform, failure, found_at FROM dropped"
        )
        return {row[0]: schema.dropped(row) for row in rows}

    def forget_dropped(self, paths: Iterable[str]) -> None:
        """Forget files that are no longer there; what was published of them stays."""
        with self._database.writing():
            self._database.change_many(
                "DELETE FROM dropped WHERE path = ?", [(path,) for path in paths]
            )

    def wished_below(self, place: str) -> tuple[ImageKey, ...]:
        """Return the wished images of a repository, and of those below it."""
        return tuple(
            key
            for key, wish in self._wishes().items()
            if wish is not None and key.name.startswith((f"{place}:", f"{place}@", f"{place}/"))
        )

    def wished(self, list_name: str) -> tuple[Wish, ...]:
        """Return what a list wishes at present."""
        return tuple(
            wish for wish in self._wishes().values() if wish is not None and wish.list == list_name
        )

    def _wishes(self) -> dict[ImageKey, Wish | None]:
        """Return all images and who wishes them; None: nobody does."""
        found: dict[ImageKey, Wish | None] = {}
        for name, platform, wished, *values in self._database.rows(
            "SELECT name, platform, wished, reference, list, line, owner, priority, keep_replaced,"
            " policy FROM image"
        ):
            key = ImageKey(name, platform)
            found[key] = _wish(key, values) if wished else None
        return found

    def _settle_unqueued(self) -> None:
        """An image whose job was dropped is no longer on its way."""
        self._database.change(
            "UPDATE image SET next_attempt_at = NULL,"
            " status = CASE WHEN digest_published = '' THEN 'waiting' ELSE 'published' END"
            " WHERE status IN ('queued', 'failed') AND NOT wished"
        )

    # looking at registries

    def due_polls(self, now: datetime, limit: int) -> tuple[Image, ...]:
        """Return wished images whose registry is to be asked by now, longest due first."""
        rows = self._database.rows(
            f"SELECT {schema.IMAGE_COLUMNS} FROM image WHERE wished AND next_poll_at <= ?"  # noqa: S608
            " ORDER BY next_poll_at LIMIT ?",
            [now.timestamp(), limit],
        )
        return tuple(map(schema.image, rows))

    def next_poll_at(self) -> datetime | None:
        rows = self._database.rows("SELECT MIN(next_poll_at) FROM image WHERE wished")
        return schema.at(rows[0][0])

    def postpone(self, polls: Mapping[ImageKey, datetime]) -> None:
        """Let registries be asked about these at other times."""
        with self._database.writing():
            self._database.change_many(
                "UPDATE image SET next_poll_at = ? WHERE name = ? AND platform = ? AND wished",
                [(at.timestamp(), key.name, key.platform) for key, at in polls.items()],
            )

    def poll_all(self, now: datetime) -> None:
        """Let registries be asked about everything at once."""
        with self._database.writing():
            self._database.change(
                "UPDATE image SET next_poll_at = ? WHERE wished AND next_poll_at IS NOT NULL",
                [now.timestamp()],
            )

    def poll_soon(self, keys: Iterable[ImageKey], now: datetime) -> None:
        """Let registries be asked about these at once."""
        self.postpone(dict.fromkeys(keys, now))

    def record_polls(
        self, polls: Sequence[Polled], now: datetime, reason: Reason = "poll"
    ) -> tuple[ImageKey, ...]:
        """Write down what registries said; return the images that are to be published for it."""
        with self._database.writing():
            due = [poll.key for poll in polls if self._record_poll(poll, now, reason)]
            self._mark("polled", now)
        return tuple(due)

    def _record_poll(self, poll: Polled, now: datetime, reason: Reason) -> bool:
        image = self.image(poll.key)
        if image is None:
            return False
        time = now.timestamp()
        self._update(poll.key, polled_at=time)
        if image.is_wished:
            self._update(poll.key, next_poll_at=poll.next_poll_at.timestamp())
        if poll.failure is not None:
            self._record_poll_failure(image, poll, time)
            return False
        if image.absent_at is not None or image.status == "gone":
            self._update(poll.key, absent_at=None)
        # the error of a publish stays until one succeeds, that of a look until the next look
        if image.status not in ("failed", "quarantined") or image.next_attempt_at is None:
            if image.failure is not None and image.status != "quarantined":
                self._update(poll.key, failure=None, changed_at=time)
            if image.status in ("gone", "failed"):
                settled = "published" if image.digest_published else "waiting"
                self._update(poll.key, status=settled, changed_at=time)
        return self._see(poll.key, poll.digest, now, reason)

    def _record_poll_failure(self, image: Image, poll: Polled, time: float) -> None:
        if poll.is_absent:
            first = schema.stamp(image.absent_at) or time
            self._update(image.key, absent_at=first)
        busy = image.status in ("queued", "publishing", "quarantined")
        if busy or (image.status == "failed" and image.next_attempt_at is not None):
            return
        status = image.status
        if poll.is_absent:
            status = "gone"
        elif not image.digest_published:
            status = "failed"
        if status != image.status or image.failure != poll.failure:
            self._update(
                image.key,
                status=status,
                failure=schema.format_failure(poll.failure),
                changed_at=time,
            )

    def _see(self, key: ImageKey, digest: str, now: datetime, reason: Reason) -> bool:
        """An image is seen to have a digest; return whether it is to be published for it."""
        image = self.image(key)
        if image is None or not image.is_wished:
            return False
        time = now.timestamp()
        if digest and digest != image.digest_seen:
            self._update(key, digest_seen=digest, seen_at=time, changed_at=time)
            if image.status == "quarantined":
                self._update(key, status="waiting", attempts=0, failure=None)
                self._log_image("image-released", image, now, "its digest has changed")
            elif image.status == "failed" and image.next_attempt_at is not None:
                self._update(key, attempts=0)  # what failed is not what is there now
                self._database.change(
                    "UPDATE job SET not_before = ? WHERE run IS NULL AND image ="
                    " (SELECT id FROM image WHERE name = ? AND platform = ?)",
                    [time, key.name, key.platform],
                )
        elif image.status == "quarantined":
            return False
        if digest and digest == image.digest_published:
            return False
        return self._enqueue(key, digest, now, reason)

    def unlisted(self) -> tuple[Image, ...]:
        """Return the images that no list names any more, and that are known to be published."""
        rows = self._database.rows(
            f"SELECT {schema.IMAGE_COLUMNS} FROM image"  # noqa: S608
            " WHERE unlisted_at IS NOT NULL ORDER BY name, platform"
        )
        return tuple(map(schema.image, rows))

    def kept_longer(self) -> tuple[Image, ...]:
        """Return the images whose list says how long what they replaced is kept."""
        rows = self._database.rows(
            f"SELECT {schema.IMAGE_COLUMNS} FROM image WHERE keep_replaced IS NOT NULL"  # noqa: S608
        )
        return tuple(map(schema.image, rows))

    def forget(self, keys: Iterable[ImageKey]) -> None:
        """Forget images that are unpublished and not wished."""
        with self._database.writing():
            self._database.change_many(
                "DELETE FROM image WHERE name = ? AND platform = ? AND NOT wished",
                [(key.name, key.platform) for key in keys],
            )

    def confirm_unlisted(self, keys: Iterable[ImageKey], now: datetime) -> None:
        """All lists were read again, and do not name these."""
        with self._database.writing():
            self._database.change_many(
                "UPDATE image SET unlisted_checked_at = ?"
                " WHERE name = ? AND platform = ? AND unlisted_at IS NOT NULL",
                [(now.timestamp(), key.name, key.platform) for key in keys],
            )

    # pushes

    def submit(self, pushes: Iterable[Push], now: datetime) -> int:
        """Take in what registries told, for good; return how many are new.

        When this returns, not even a power failure loses them.
        """
        time, count = now.timestamp(), 0
        with self._database.writing(durably=True):
            self._database.change(
                "DELETE FROM delivery WHERE received_at < ?",
                [(now - DELIVERY_MEMORY).timestamp()],
            )
            for push in pushes:
                marks = f"{push.delivery}\n{push.registry}/{push.repository}:{push.tag}"
                if push.delivery and not self._database.change(
                    "INSERT OR IGNORE INTO delivery VALUES (?, ?, ?)",
                    [push.source, f"{marks}@{push.digest}", time],
                ):
                    continue
                self._database.insert(
                    "INSERT INTO push (registry, repository, tag, digest, source, delivery,"
                    " received_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [*_push_values(push), time],
                )
                count += 1
        return count

    def pushes(self, limit: int = 1000) -> tuple[StoredPush, ...]:
        """Return pushes that nobody has looked at, oldest first."""
        rows = self._database.rows(
            "SELECT id, registry, repository, tag, digest, source, delivery, received_at FROM push"
            " ORDER BY id LIMIT ?",
            [limit],
        )
        return tuple(map(schema.push, rows))

    def take_pushes(
        self, pushes: Iterable[StoredPush], digests: Mapping[ImageKey, str], now: datetime
    ) -> tuple[ImageKey, ...]:
        """Pushes were understood as being about these images; return those to be published now.

        `digests` are what was pushed, "" where that was not told; one that is published already
        needs nothing.
        """
        due = []
        with self._database.writing():
            for key, digest in digests.items():
                image = self.image(key)
                if image is None or not image.is_wished:
                    continue
                if image.status == "quarantined":  # is it another digest?
                    self._update(key, next_poll_at=now.timestamp())
                elif not digest or digest != image.digest_published:
                    self._enqueue(key, digest, now, "push")
                    due.append(key)
            self._database.change_many(
                "DELETE FROM push WHERE id = ?", [(push.id,) for push in pushes]
            )
        return tuple(due)

    # the queue

    def enqueue(self, keys: Iterable[ImageKey], now: datetime, reason: Reason) -> None:
        """Let wished images be published, whatever is known of their digests.

        One that is in quarantine is released.
        """
        with self._database.writing():
            for key in keys:
                image = self.image(key)
                if image is None or not image.is_wished:
                    continue
                if image.status in ("quarantined", "failed"):
                    self._update(key, status="waiting", attempts=0, next_attempt_at=None)
                    self._log_image("image-released", image, now, "somebody wants it tried again")
                self._enqueue(key, image.digest_seen, now, reason)

    def _enqueue(self, key: ImageKey, digest: str, now: datetime, reason: Reason) -> bool:
        """Make a job of an image; return whether there was none."""
        time = now.timestamp()
        found = self._database.rows(
            "SELECT job.id, reason, run FROM job JOIN image ON image.id = job.image"
            " WHERE name = ? AND platform = ?",
            [key.name, key.platform],
        )
        if found:
            number, known, run = found[0]
            if run is None:
                best = min(known, reason, key=REASONS.index)
                self._database.change(
                    "UPDATE job SET digest = ?, reason = ? WHERE id = ?", [digest, best, number]
                )
                if reason in ("command", "file", "push"):
                    self._database.change(
                        "UPDATE job SET not_before = ? WHERE id = ?", [time, number]
                    )
            else:
                self._database.change("UPDATE job SET again = ? WHERE id = ?", [digest, number])
            return False
        self._database.insert(
            "INSERT INTO job (image, digest, reason, enqueued_at, not_before)"
            " SELECT id, ?, ?, ?, ? FROM image WHERE name = ? AND platform = ?",
            [digest, reason, time, time, key.name, key.platform],
        )
        self._update(key, status="queued", changed_at=time)
        return True

    def due_jobs(self, now: datetime, limit: int = 1000) -> tuple[Job, ...]:
        """Return the jobs that may start now: the most urgent first, then the oldest."""
        order = " ".join(f"WHEN '{reason}' THEN {rank}" for rank, reason in enumerate(REASONS))
        rows = self._database.rows(
            f"SELECT {schema.JOB_COLUMNS} FROM job JOIN image ON image.id = job.image"  # noqa: S608
            " WHERE run IS NULL AND not_before <= ?"
            f" ORDER BY priority DESC, CASE reason {order} END, enqueued_at, job.id LIMIT ?",
            [now.timestamp(), limit],
        )
        return tuple(map(schema.job, rows))

    def next_job_at(self) -> datetime | None:
        rows = self._database.rows("SELECT MIN(not_before) FROM job WHERE run IS NULL")
        return schema.at(rows[0][0])

    def shares(self) -> dict[str, float]:
        """Return how much each owner was given so far, by their weights."""
        return dict(self._database.rows("SELECT owner, used FROM share"))

    def begin_run(self, jobs: Sequence[Job], shares: Mapping[str, float], now: datetime) -> int:
        """Start to publish these together, every one counted as an attempt; return its number."""
        time = now.timestamp()
        with self._database.writing():
            run = self._database.insert("INSERT INTO run (started_at) VALUES (?)", [time])
            for job in jobs:
                self._database.change("UPDATE job SET run = ? WHERE id = ?", [run, job.id])
                self._database.change(
                    "UPDATE image SET status = 'publishing', fetching_at = ?, changed_at = ?,"
                    " attempts = attempts + 1, next_attempt_at = NULL, progress = NULL"
                    " WHERE name = ? AND platform = ?",
                    [time, time, job.key.name, job.key.platform],
                )
            self._database.change("DELETE FROM share")
            self._database.change_many("INSERT INTO share VALUES (?, ?)", list(shares.items()))
        return run

    def set_progress(self, progress: Mapping[ImageKey, Progress]) -> None:
        with self._database.writing():
            for key, value in progress.items():
                self._update(key, progress=schema.format_progress(value))

    def finish_run(self, run: int, results: Iterable[Result], now: datetime) -> None:
        """Write down how the images of a run ended; those without a result wait again."""
        with self._database.writing():
            jobs = {job.key: job for job in self._jobs_of(run)}
            for result in results:
                job = jobs.pop(result.key, None)
                if job is not None:
                    self._finish(job, result, now)
            for job in jobs.values():
                self._requeue(job, now, is_counted=False)
            self._database.change("DELETE FROM run WHERE id = ?", [run])
            self._mark("published", now)

    def _finish(self, job: Job, result: Result, now: datetime) -> None:
        time = now.timestamp()
        image = self.image(job.key)
        if image is None:
            return
        changes: dict[str, object] = {"status": result.status, "changed_at": time, "progress": None}
        changes["failure"] = schema.format_failure(result.failure)
        facts = result.facts
        if facts is not None:
            known = image.facts
            if result.status == "unchanged" and known and known.digest == facts.digest:
                facts = replace(known, recipe=facts.recipe)
            changes["facts"] = json.dumps(asdict(facts))
            changes["digest_published"] = facts.digest
            changes["attempts"] = 0
            is_new = image.digest_published != facts.digest
            if result.status == "staged":
                changes |= {"revision": 0, "replicated_at": None}  # until the name leads there
            elif is_new or image.published_at is None or self._was_staged(job.key):
                changes |= {"published_at": time, "replicated_at": None}
                changes["revision"] = facts.revision
            if image.digest_seen != facts.digest:
                changes |= {"digest_seen": facts.digest, "seen_at": time}
            if is_new:
                word = "staged" if result.status == "staged" else "published"
                self._log_image(f"image-{word}", image, now, f"{word}, {facts.digest}")
            elif result.status == "published" and self._was_staged(job.key):
                self._log_image("image-published", image, now, f"published, {facts.digest}")
        elif result.failure is not None:
            kind = "image-quarantined" if result.status == "quarantined" else "image-failed"
            self._log_image(kind, image, now, result.failure.message)
        changes["next_attempt_at"] = schema.stamp(result.next_attempt_at)
        self._update(job.key, **changes)
        again = self._database.rows("SELECT again FROM job WHERE id = ?", [job.id])[0][0]
        if result.status == "failed" and result.next_attempt_at is not None:
            self._database.change(
                "UPDATE job SET run = NULL, again = NULL, alone = 0, not_before = ? WHERE id = ?",
                [time if again is not None else result.next_attempt_at.timestamp(), job.id],
            )
            return
        self._database.change("DELETE FROM job WHERE id = ?", [job.id])
        if again is not None and (facts is None or again != facts.digest):
            self._enqueue(job.key, again, now, job.reason)  # pushed again in the meantime

    def _was_staged(self, key: ImageKey) -> bool:
        """Whether an image is known to be in the repository, without a name that leads there."""
        rows = self._database.rows(
            "SELECT 1 FROM image WHERE name = ? AND platform = ? AND revision = 0"
            " AND digest_published != ''",
            [key.name, key.platform],
        )
        return bool(rows)

    def _requeue(self, job: Job, now: datetime, *, is_counted: bool, alone: bool = False) -> None:
        """Put a job back where it was; `is_counted`: what happened may be the image's fault."""
        self._database.change(
            "UPDATE job SET run = NULL, alone = ? WHERE id = ?", [alone or job.is_alone, job.id]
        )
        self._database.change(
            "UPDATE image SET status = 'queued', progress = NULL, changed_at = ?,"
            " attempts = attempts - ? WHERE name = ? AND platform = ?",
            [now.timestamp(), 0 if is_counted else 1, job.key.name, job.key.platform],
        )

    def abandon_run(self, run: int, now: datetime, *, is_counted: bool) -> tuple[Job, ...]:
        """Put the jobs of a run back; return them with their attempts.

        If it may have been the fault of one of several (`is_counted`), they are tried one by one,
        so that the innocent do not suffer again.
        """
        with self._database.writing():
            jobs = self._jobs_of(run)
            suspects = is_counted and len(jobs) > 1
            for job in jobs:
                self._requeue(job, now, is_counted=is_counted, alone=suspects)
            self._database.change("DELETE FROM run WHERE id = ?", [run])
        return tuple(replace(job, is_running=False) for job in jobs)

    def open_runs(self) -> tuple[int, ...]:
        """Return the runs that were begun and not ended; of a watcher that was killed."""
        return tuple(number for (number,) in self._database.rows("SELECT id FROM run ORDER BY id"))

    def _jobs_of(self, run: int) -> list[Job]:
        rows = self._database.rows(
            f"SELECT {schema.JOB_COLUMNS} FROM job JOIN image ON image.id = job.image"  # noqa: S608
            " WHERE run = ? ORDER BY job.id",
            [run],
        )
        return [schema.job(row) for row in rows]

    def set_back(self, key: ImageKey, result: Result, now: datetime) -> None:
        """Give a waiting job the end of a run that died: later, or quarantine."""
        with self._database.writing():
            rows = self._database.rows(
                f"SELECT {schema.JOB_COLUMNS} FROM job JOIN image ON image.id = job.image"  # noqa: S608
                " WHERE name = ? AND platform = ? AND run IS NULL",
                [key.name, key.platform],
            )
            for row in rows:
                alone = schema.job(row).is_alone
                self._finish(schema.job(row), result, now)
                self._database.change("UPDATE job SET alone = ? WHERE id = ?", [alone, row[0]])

    # what is published already

    def adopt(self, found: Sequence[tuple[ImageKey, Facts, datetime]], now: datetime) -> None:
        """These images are published, and no others; `now`: when somebody began to look.

        Those that nobody has looked at yet are not published again.  Those that are wished and
        gone, because an older repository was restored or somebody took them out, are.
        """
        there = {key for key, _, _ in found}
        with self._database.writing():
            lost = [
                image.key
                for image in self.published()
                if image.key not in there
                and image.status in ("published", "unchanged")
                and (image.published_at is None or image.published_at < now)
            ]
            self.note_unpublished(lost, now)
            self._database.change_many(
                "UPDATE image SET digest_published = ?, facts = ?, published_at = ?, revision = ?,"
                " status = 'unchanged'"
                " WHERE name = ? AND platform = ? AND digest_published = '' AND status = 'waiting'",
                [
                    (
                        *(facts.digest, json.dumps(asdict(facts)), at.timestamp()),
                        *(facts.revision, key.name, key.platform),
                    )
                    for key, facts, at in found
                ],
            )

    def note_unpublished(self, keys: Iterable[ImageKey], now: datetime) -> None:
        """These are no longer in the repository: what nobody wishes is forgotten.

        What somebody wishes, perhaps again since the moment before, is published anew.
        """
        with self._database.writing():
            for key in keys:
                image = self.image(key)
                if image is None or not image.is_wished:
                    self.forget([key])
                    continue
                self._update(key, digest_published="", facts=None, revision=0, replicated_at=None)
                self._log_image("image-missing", image, now, "it is wished, but not published")
                self._enqueue(key, image.digest_seen, now, "poll")

    def staged(self) -> tuple[Image, ...]:
        """Return the images whose names wait for replicas, wished or not."""
        rows = self._database.rows(
            f"SELECT {schema.IMAGE_COLUMNS} FROM image WHERE status = 'staged'"  # noqa: S608
        )
        return tuple(map(schema.image, rows))

    def settle_staged(
        self,
        waiting: Mapping[ImageKey, Facts],
        named: Mapping[ImageKey, Facts],
        now: datetime,
    ) -> None:
        """Take over what the repository says of names that wait, whoever staged or switched them.

        `waiting`: all that wait.  `named`: what the names of those `staged` that do not wait any
        more lead to; one that is in neither leads nowhere.
        """
        with self._database.writing():
            for image in self.staged():
                if image.key in waiting:
                    continue
                if image.key not in named:
                    self.note_unpublished([image.key], now)
                    continue
                self._settle_named(image, named[image.key], now)
            for key, facts in waiting.items():
                known = self.image(key)
                if (
                    known is not None
                    and known.status in ("published", "unchanged")
                    and known.digest_published == facts.digest
                ):
                    self._update(key, status="staged", revision=0, replicated_at=None)

    def _settle_named(self, image: Image, facts: Facts, now: datetime) -> None:
        """A name waits no more: it leads to what it waited for, or was rolled back."""
        changes: dict[str, object] = {
            "status": "published",
            "changed_at": now.timestamp(),
            "revision": facts.revision,
            "replicated_at": None,
        }
        if facts.digest == image.digest_published:
            known = image.facts
            if known is not None:
                facts = replace(known, revision=facts.revision, recipe=facts.recipe)
            changes["published_at"] = now.timestamp()
            self._log_image("image-published", image, now, f"published, {facts.digest}")
        changes["facts"] = json.dumps(asdict(facts))
        self._update(image.key, **changes)

    def troubled(self) -> tuple[Image, ...]:
        """Return the wished images that cannot be published, by name."""
        rows = self._database.rows(
            f"SELECT {schema.IMAGE_COLUMNS} FROM image WHERE wished AND"  # noqa: S608
            " (status IN ('failed', 'quarantined') OR (status = 'gone' AND digest_published = ''))"
            " ORDER BY name, platform"
        )
        return tuple(map(schema.image, rows))

    def published(self) -> tuple[Image, ...]:
        """Return the wished images that are published."""
        rows = self._database.rows(
            f"SELECT {schema.IMAGE_COLUMNS} FROM image WHERE wished AND digest_published != ''"  # noqa: S608
        )
        return tuple(map(schema.image, rows))

    def forget_replicas(self, expected: Sequence[str]) -> None:
        """Forget the replicas that are not among these any more."""
        gone = [(replica.url,) for replica in self.replicas() if replica.url not in expected]
        if gone:
            with self._database.writing():
                self._database.change_many("DELETE FROM replica WHERE url = ?", gone)

    def record_replica(self, found: Replica, expected: Sequence[str], now: datetime) -> None:
        """Write down how far a replica is; what all `expected` ones have counts as replicated."""
        with self._database.writing():
            self._database.change(
                "INSERT OR REPLACE INTO replica VALUES (?, ?, ?, ?)",
                [
                    found.url,
                    found.revision,
                    found.checked_at.timestamp(),
                    schema.format_failure(found.failure),
                ],
            )
            known = {replica.url: replica.revision for replica in self.replicas()}
            if expected and all(url in known for url in expected):
                least = min(known[url] for url in expected)
                self._database.change(
                    "UPDATE image SET replicated_at = ?, changed_at = ? WHERE revision > 0"
                    " AND revision <= ? AND replicated_at IS NULL",
                    [now.timestamp(), now.timestamp(), least],
                )

    # lists, tags, registries

    def set_lists(
        self, lists: Sequence[ListState], problems: Sequence[ListProblem], now: datetime
    ) -> tuple[ListProblem, ...]:
        """Make these all the lists and problems there are; return the problems that are new."""
        known = {(p.list, p.line, p.text): p.since for p in self.problems()}
        with self._database.writing():
            self._database.change("DELETE FROM list")
            self._database.change_many(
                "INSERT OR REPLACE INTO list VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(each.name, each.entries, each.images, schema.stamp(each.loaded_at)),
                        *(each.checked_at.timestamp(), schema.format_failure(each.failure)),
                    )
                    for each in lists
                ],
            )
            self._database.change("DELETE FROM problem")
            self._database.change_many(
                "INSERT OR REPLACE INTO problem VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(each.list, each.line, each.text, schema.format_failure(each.failure)),
                        *(each.owner, (known.get(_place(each)) or now).timestamp()),
                    )
                    for each in problems
                ],
            )
        return tuple(replace(each, since=now) for each in problems if _place(each) not in known)

    def tag_list(self, registry: str, repository: str) -> TagList | None:
        rows = self._database.rows(
            "SELECT registry, repository, tags, etag, fetched_at, next_at FROM tags"
            " WHERE registry = ? AND repository = ?",
            [registry, repository],
        )
        return schema.tag_list(rows[0]) if rows else None

    def set_tag_list(self, found: TagList) -> None:
        with self._database.writing():
            self._database.change(
                "INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?, ?, ?)",
                [
                    *(found.registry, found.repository, json.dumps(found.tags), found.etag),
                    *(found.fetched_at.timestamp(), found.next_at.timestamp()),
                ],
            )

    def tag_lists(self) -> dict[tuple[str, str], TagList]:
        """Return the tags of all repositories that were listed, by registry and repository."""
        rows = self._database.rows(
            "SELECT registry, repository, tags, etag, fetched_at, next_at FROM tags"
        )
        return {(found.registry, found.repository): found for found in map(schema.tag_list, rows)}

    def set_budgets(self, budgets: Iterable[Budget], now: datetime) -> None:
        with self._database.writing():
            self._database.change_many(
                "INSERT OR REPLACE INTO budget VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(each.registry, each.limit, each.remaining),
                        *(schema.stamp(each.resets_at), schema.stamp(each.blocked_until)),
                        *(each.requests, each.failures, now.timestamp()),
                    )
                    for each in budgets
                ],
            )

    # events, counters, times

    def log(self, events: Iterable[Event]) -> None:
        """Write down what happened; of more than `MAX_EVENTS` the oldest go."""
        with self._database.writing():
            number = 0
            for event in events:
                number = self._database.insert(
                    "INSERT INTO event (at, kind, message, name, platform, list, owner, details)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        *(event.at.timestamp(), event.kind, event.message, event.name),
                        *(event.platform, event.list, event.owner, json.dumps(event.details)),
                    ],
                )
            self._database.change("DELETE FROM event WHERE id <= ?", [number - MAX_EVENTS])

    def _log_image(self, kind: str, image: Image, now: datetime, message: str) -> None:
        self.log(
            [
                Event(
                    0,
                    now,
                    kind,
                    f"{image.key}: {message}",
                    name=image.name,
                    platform=image.platform,
                    list=image.list,
                    owner=image.owner,
                )
            ]
        )

    def count(self, amounts: Mapping[tuple[str, str], float]) -> None:
        """Add to counters, by name and label."""
        with self._database.writing():
            self._database.change_many(
                "INSERT INTO counter VALUES (?, ?, ?)"
                " ON CONFLICT (name, label) DO UPDATE SET value = value + excluded.value",
                [(name, label, amount) for (name, label), amount in amounts.items()],
            )

    def cursor(self, reader: str) -> int | None:
        """Return the number of the last event that a reader has dealt with; None: a new reader."""
        rows = self._database.rows("SELECT event FROM cursor WHERE reader = ?", [reader])
        return int(rows[0][0]) if rows else None

    def set_cursor(self, reader: str, event: int) -> None:
        with self._database.writing():
            self._database.change("INSERT OR REPLACE INTO cursor VALUES (?, ?)", [reader, event])

    def mark(self, name: str, now: datetime) -> None:
        """Something happened now: `alive`, `collected`; or began: `refused`."""
        with self._database.writing():
            self._mark(name, now)

    def unmark(self, name: str) -> None:
        """What began then has ended: `refused`."""
        with self._database.writing():
            self._database.change("DELETE FROM moment WHERE name = ?", [name])

    def shift_times(self, by: timedelta) -> None:
        """The clock was set: what is planned for a time is due after the same wait as before."""
        seconds = by.total_seconds()
        with self._database.writing():
            for table, column in (
                ("image", "next_poll_at"),
                ("image", "next_attempt_at"),
                ("image", "unlisted_at"),  # names go a day after, not because a clock says so
                ("image", "unlisted_checked_at"),
                ("job", "not_before"),
                ("tags", "next_at"),
                ("budget", "blocked_until"),
                ("budget", "resets_at"),
            ):
                self._database.change(
                    f"UPDATE {table} SET {column} = {column} + ?"  # noqa: S608 - constants
                    f" WHERE {column} IS NOT NULL",
                    [seconds],
                )

    def limit_waits(self, now: datetime, poll: timedelta, attempt: timedelta) -> None:
        """Nothing waits longer than these: the clock may have been set while nobody looked."""
        with self._database.writing():
            for table, column, most in (
                ("image", "next_poll_at", poll),
                ("tags", "next_at", poll),
                ("image", "next_attempt_at", attempt),
                ("job", "not_before", attempt),
            ):
                self._database.change(
                    f"UPDATE {table} SET {column} = ? WHERE {column} > ?",  # noqa: S608 - constants
                    [now.timestamp(), (now + most).timestamp()],
                )

    def _mark(self, name: str, now: datetime) -> None:
        self._database.change(
            "INSERT OR REPLACE INTO moment VALUES (?, ?)", [name, now.timestamp()]
        )

    def _update(self, key: ImageKey, **changes: object) -> None:
        columns = ", ".join(f"{name} = ?" for name in changes)
        self._database.change(
            f"UPDATE image SET {columns} WHERE name = ? AND platform = ?",  # noqa: S608 - ours
            [*changes.values(), key.name, key.platform],
        )


def _place(problem: ListProblem) -> tuple[str, int, str]:
    return problem.list, problem.line, problem.text


def _is_in_registry(wish: Wish) -> bool:
    """Whether a registry can be asked about it; files are told of by the drop directory."""
    return wish.list != DROP_LIST


def _wish(key: ImageKey, values: Sequence[Any]) -> Wish:
    reference, list_name, line, owner, priority, keep, policy = values
    return Wish(key, reference, list_name, line, owner, priority, schema.span(keep), policy)


def _wish_values(wish: Wish) -> tuple[object, ...]:
    keep = wish.keep_replaced.total_seconds() if wish.keep_replaced is not None else None
    return (
        *(wish.reference, wish.list, wish.line, wish.owner, wish.priority),
        *(keep, wish.policy),
    )


def _push_values(push: Push) -> tuple[str, ...]:
    return push.registry, push.repository, push.tag, push.digest, push.source, push.delivery
