"""The service: looks, listens, and lets be published what changed, until it is told to stop.

Everything that matters is in the state before anything is done about it, so that a watcher that is
killed at any moment is continued by the next.  Three threads: one asks registries, one reads lists,
and one, the caller's, does the rest; each does one thing at a time and waits for no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from cvmfs_publish.errors import PublishError
from cvmfs_publish.sources.compliance import ComplianceError
from cvmfs_publish.state import figures
from cvmfs_publish.state.database import StateError
from cvmfs_publish.state.model import (
    Event,
    Facts,
    Failure,
    ImageKey,
    Job,
    Progress,
    Push,
    Result,
    Status,
)
from cvmfs_publish.state.state import State
from cvmfs_publish.watch.notify import Notifier
from cvmfs_publish.watch.poller import Poller
from cvmfs_publish.watch.queue import (
    QueueSettings,
    choose_batch,
    crash_failure,
    judge,
    plan_wait,
)
from cvmfs_publish.watch.replication import Replication
from cvmfs_publish.watch.retention import (
    RetentionSettings,
    is_due,
    plan_collection,
    plan_retirement,
)
from cvmfs_publish.watch.runs import (
    Item,
    Order,
    Publish,
    Run,
    RunEnd,
    Runner,
    Switch,
    Unpublish,
)
from cvmfs_publish.watch.wanted import Wanted

TICK = timedelta(seconds=10)  # the longest the main thread sleeps; a sign of life each time
LEAST = timedelta(milliseconds=50)
IDLE = timedelta(seconds=1)  # between two looks of the other threads for something due
JUMP = timedelta(minutes=1)  # by which the clock must have been set to be noticed
RETIRE_EVERY = timedelta(hours=1)
PROGRESS_EVERY = 0.5  # seconds between two notes of how far an image is
STOP_GRACE = timedelta(seconds=60)  # for a publish to end when the service is stopped
# images of these, or their sandboxes, are there to be unpublished
IN_REPOSITORY: tuple[Status, ...] = ("staged", "published", "unchanged", "gone")
MAX_PUSHES = 1000  # looked at in one transaction

log = logging.getLogger(__name__)


class Clock(Protocol):
    """What time it is."""

    def now(self) -> datetime:
        """Return the time of day, UTC; it may be set."""

    def monotonic(self) -> float:
        """Return seconds that only grow."""


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class Drop(Protocol):
    """What looks after a directory into which files are put (`files.DropFolder`)."""

    def step(self, now: datetime) -> bool:
        """Take in the files that are complete; return whether some may be so in a moment."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the service consists of; other ones after a reload."""

    interval: timedelta
    queue: QueueSettings
    retention: RetentionSettings
    runner: Runner
    wanted: Wanted
    poller: Poller
    drop: Drop | None = None
    notifier: Notifier | None = None
    replication: Replication | None = None
    # what the repository has: images, what is known of them, and when they were published
    find_published: Callable[[], Iterable[tuple[ImageKey, Facts, datetime]]] | None = None
    recipe_of: Callable[[str], str] = lambda _: ""  # how sandboxes of a policy are made now


@dataclass(slots=True)
class _Active:
    """An order that is carried out at present."""

    order: Order
    run: Run
    progress: dict[ImageKey, Progress]  # that is not written down yet
    number: int = 0  # of the run in the state, if it publishes
    jobs: tuple[Job, ...] = ()
    noted_at: float = float("-inf")


class Watcher:
    """The service.  `submit`, `wake`, `stop` and `reload_soon` may be called by any thread."""

    def __init__(
        self,
        state: State,
        parts: Parts,
        *,
        clock: Clock,
        jitter: Callable[[], float],
        step: Callable[[str], None] = lambda _: None,
        alive: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Put it together; nothing happens yet.

        Args:
            state: its memory; the caller holds the `WatchLock`.
            parts: what it works with.
            clock: tells the time.
            jitter: returns a number from 0 to 1, another one each time.
            step: told the name of every step before it is taken.
            alive: told for systemd: READY=1, WATCHDOG=1, RELOADING=1, STOPPING=1.
        """
        self._state = state
        self._parts = parts
        self._clock = clock
        self._jitter = jitter
        self._step = step
        self._alive = alive
        self._active: _Active | None = None
        self._progress_lock = threading.Lock()
        self._paused_until = float("-inf")  # monotonic: the repository cannot be written
        self._refusals = 0  # in a row
        self._skew = self._measure()
        self._marked_at = float("-inf")
        self._wake = threading.Event()
        self._wake_lists = threading.Event()
        self._wake_polls = threading.Event()
        self._wake_files = threading.Event()
        self._wake_notifier = threading.Event()
        self._wake_replication = threading.Event()
        self._stopping = threading.Event()
        self._reload = threading.Event()
        self._is_ready = False  # what is wanted and what is published is known
        self._listed_at = float("-inf")

    # for other threads

    def submit(self, pushes: Iterable[Push]) -> int:
        """Take in what registries told; return how many are new.  Durable when it returns."""
        count = self._state.submit(pushes, self._clock.now())
        self._wake.set()
        return count

    def wake(self) -> None:
        """Look at once for something to do."""
        self._wake.set()

    def read_lists_soon(self) -> None:
        """A wishlist has changed."""
        self._listed_at = float("-inf")
        self._wake_lists.set()

    def ask_soon(self) -> None:
        """A registry is to be asked about something at once."""
        self._wake_polls.set()

    def look_at_files_soon(self) -> None:
        """Something was put into the drop directory."""
        self._wake_files.set()

    def stop(self) -> None:
        """End in order: what is published now is finished, or left as it was."""
        self._stopping.set()
        for event in (
            *(self._wake, self._wake_lists, self._wake_polls),
            *(self._wake_files, self._wake_notifier, self._wake_replication),
        ):
            event.set()

    def reload_soon(self) -> None:
        """Read configuration and wishlists again."""
        self._reload.set()
        self._wake.set()

    # the service

    def run(self, load_parts: Callable[[], Parts]) -> None:
        """Work until told to stop; `load_parts` reads the configuration again."""
        self.recover(self._clock.now())
        threads = [
            threading.Thread(target=self._repeat, args=(name, work, event), name=name)
            for name, work, event in (
                ("lists", self._read_lists, self._wake_lists),
                ("polls", self._ask_registries, self._wake_polls),
                ("files", self._look_at_files, self._wake_files),
                ("notifier", self._notify, self._wake_notifier),
                ("replicas", self._look_at_replicas, self._wake_replication),
            )
        ]
        for thread in threads:
            thread.start()
        self._alive("READY=1")
        while not self._stopping.is_set():
            if self._reload.is_set():
                self._guard("reload", lambda: self._load_again(load_parts))
            wait = self._guard("main", lambda: self.tick(self._clock.now())) or IDLE
            self._alive("WATCHDOG=1")
            self._wake.wait(wait.total_seconds())
            self._wake.clear()
        self._alive("STOPPING=1")
        self._finish_or_abandon()
        for thread in threads:
            thread.join()

    def run_once(self) -> bool:
        """Look at everything once and publish what is due; return whether all of it worked."""
        now = self._clock.now()
        self.recover(now)
        self._parts.wanted.load(now)
        self.adopt()
        self._state.poll_all(now)
        while self._parts.poller.step(now) and not self._stopping.is_set():
            pass
        while self._look_at_files() == IDLE and not self._stopping.wait(IDLE.total_seconds()):
            pass
        self._work_until_idle()
        self._guard("replicas", self._look_at_replicas)
        self._work_until_idle()  # names whose images have arrived
        self._notify()
        problems = [each for each in self._state.problems() if each.failure.kind != "warning"]
        # what the repository's own rules keep out is no trouble
        troubled = [
            image
            for image in self._state.troubled()
            if image.failure is None or image.failure.kind != ComplianceError.kind
        ]
        return not (troubled or problems or self._refusals)

    def _work_until_idle(self) -> None:
        while not self._stopping.is_set():
            self.tick(self._clock.now())
            if self.is_idle():
                break
            self._wake.wait(IDLE.total_seconds())
            self._wake.clear()
        self._finish_or_abandon()

    def _repeat(self, name: str, work: Callable[[], timedelta], event: threading.Event) -> None:
        while not self._stopping.is_set():
            wait = self._guard(name, work) or TICK
            event.wait(wait.total_seconds())
            event.clear()

    def _guard(self, name: str, work: Callable[[], timedelta | None]) -> timedelta | None:
        """Do something; whatever goes wrong is told, and the service goes on."""
        try:
            return work()
        except PublishError as error:
            log.error("%s: %s", name, error)
            failure = Failure.of(error)
        except Exception as error:  # a service outlives its bugs, and tells of them
            log.exception("%s: a bug", name)
            failure = Failure("bug", f"{type(error).__name__}: {error}")
        self._tell_trouble(name, failure)
        return TICK

    def _tell_trouble(self, name: str, failure: Failure) -> None:
        event = Event(0, self._clock.now(), "watch-trouble", f"{name}: {failure.message}")
        try:
            self._state.log([event])
        except PublishError as error:  # it is the state that is in trouble
            log.error("%s", error)

    def _load_again(self, load_parts: Callable[[], Parts]) -> None:
        self._reload.clear()
        self._alive(f"RELOADING=1\nMONOTONIC_USEC={int(self._clock.monotonic() * 1e6)}")
        try:
            self._parts = load_parts()
            self._is_ready = False
        finally:
            self.read_lists_soon()
            self._alive("READY=1")
        log.info("the configuration was read again")

    def _read_lists(self) -> timedelta:
        now, elapsed = self._clock.now(), self._clock.monotonic() - self._listed_at
        left = self._parts.interval.total_seconds() - elapsed
        if left > 0:
            return min(timedelta(seconds=left), TICK)
        self._listed_at = self._clock.monotonic()
        try:
            self._parts.wanted.load(now)
            if not self._is_ready:
                self.adopt()
        except Exception:
            self._listed_at = float("-inf")  # the state or the repository; soon again
            raise
        self._wake.set()
        self._wake_polls.set()
        return IDLE

    def _ask_registries(self) -> timedelta:
        if not self._is_ready:
            return IDLE
        if self._parts.poller.step(self._clock.now()):
            self._wake.set()
            return timedelta()
        return IDLE

    def _look_at_files(self) -> timedelta:
        drop = self._parts.drop
        if drop is None or not self._is_ready:
            return TICK
        is_pending = drop.step(self._clock.now())
        self._wake.set()
        return IDLE if is_pending else TICK

    def _notify(self) -> timedelta:
        if self._parts.notifier is not None:
            self._parts.notifier.deliver(self._clock.now())
        return TICK

    def _look_at_replicas(self) -> timedelta:
        replication = self._parts.replication
        if replication is None:
            return TICK
        wait = replication.step(self._clock.now())
        if replication.is_ready:
            self._wake.set()
        return wait

    def adopt(self) -> None:
        """What is published already need not be published again, unless it is made otherwise."""
        now = self._clock.now()
        if self._parts.find_published is not None:
            self._state.adopt(list(self._parts.find_published()), now)
        outdated = [
            image.key
            for image in self._state.published()
            if image.facts is not None
            and image.status in ("published", "unchanged")
            and image.facts.recipe not in ("", self._parts.recipe_of(image.policy))
        ]
        if outdated:
            log.info("%d images are to be prepared otherwise than they are", len(outdated))
        if self._parts.replication is not None:
            self._parts.replication.settle(now)  # what was rolled back meanwhile stays so
        # in case other replicas are waited for than those they wait for, or none
        outdated += [image.key for image in self._state.staged()]
        self._state.enqueue(outdated, now, "poll")
        self._is_ready = True

    # one pass of the main thread; everything here takes milliseconds

    def recover(self, now: datetime) -> None:
        """Take up what a watcher that was killed left behind."""
        self._step("recover")
        queue = self._parts.queue
        self._state.unmark("refused")
        self._state.limit_waits(now, self._parts.interval * 2, queue.longest_wait)
        for number in self._state.open_runs():
            jobs = self._state.abandon_run(number, now, is_counted=True)
            self._suspect(jobs, "the watcher ended during it", now)

    def tick(self, now: datetime) -> timedelta:
        """Do what is due; return how long nothing will be."""
        self._note_clock()
        self._mark_alive(now)
        if self._active is not None:
            self._look_after(self._active, now)
        if self._parts.wanted.is_loaded:
            self._guard("pushes", lambda: self._take_pushes(now))  # what waits is published anyway
        if self._active is None and not self._stopping.is_set():
            self._start_something(now)
        return self._wait(now)

    def _measure(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()

    def _note_clock(self) -> None:
        skew = self._measure()
        by = timedelta(seconds=skew - self._skew)
        if abs(by) < JUMP:
            return
        log.warning("the clock was set by %s; everything planned moves along", by)
        self._skew = skew
        self._state.shift_times(by)
        self._parts.poller.note_clock(by)

    def _mark_alive(self, now: datetime) -> None:
        monotonic = self._clock.monotonic()
        if monotonic - self._marked_at >= TICK.total_seconds() / 2:
            self._marked_at = monotonic
            self._state.mark("alive", now)

    def _wait(self, now: datetime) -> timedelta:
        if self._active is not None:
            return IDLE
        next_at = self._state.next_job_at()
        if next_at is None or self._clock.monotonic() < self._paused_until:
            return TICK
        return max(LEAST, min(TICK, next_at - now))

    def _take_pushes(self, now: datetime) -> None:
        pushes = self._state.pushes(MAX_PUSHES)
        if pushes:
            self._step("take pushes")
            self._parts.wanted.take_pushes(pushes, now)

    # runs

    def is_idle(self) -> bool:
        """Whether nothing is under way, and nothing could be begun."""
        return self._active is None and not self._can_start()

    def _can_start(self) -> bool:
        now = self._clock.now()
        paused = self._clock.monotonic() < self._paused_until
        replication = self._parts.replication
        is_ready = replication is not None and replication.is_ready
        return not paused and (is_ready or bool(self._state.due_jobs(now, 1)))

    def _start_something(self, now: datetime) -> None:
        if self._clock.monotonic() < self._paused_until:
            return
        order = self._switch_order() or self._housekeeping(now)
        if order is not None:
            self._active = self._begin(order)
            return
        batch = choose_batch(self._state.due_jobs(now), self._state.shares(), self._parts.queue)
        if batch is None:
            return
        first = batch.jobs[0]
        items = tuple(Item(job.reference, job.key.name) for job in batch.jobs)
        self._step("begin run")
        number = self._state.begin_run(batch.jobs, batch.shares, now)
        self._step("start run")
        order = Publish(items, first.key.platform, first.policy)
        try:
            active = self._begin(order)
        except PublishError as error:
            self._state.abandon_run(number, now, is_counted=False)
            self._refuse(Failure.of(error), now)
            return
        except Exception:  # nothing is left behind that looks as if it went on
            self._state.abandon_run(number, now, is_counted=False)
            raise
        active.number, active.jobs = number, batch.jobs
        self._active = active

    def _switch_order(self) -> Order | None:
        replication = self._parts.replication
        ready = replication.take_ready() if replication is not None else ()
        if not ready:
            return None
        self._step("switch")
        return Switch(
            tuple((each.reference, each.platform, each.manifest_digest) for each in ready)
        )

    def _begin(self, order: Order) -> _Active:
        platform = order.platform if isinstance(order, Publish | Unpublish) else ""
        unsent: dict[ImageKey, Progress] = {}

        def report(name: str, progress: Progress) -> None:
            if name:
                with self._progress_lock:
                    unsent[ImageKey(name, platform)] = progress

        run = self._parts.runner.start(order, report, self._wake.set)
        return _Active(order, run, unsent)

    def _look_after(self, active: _Active, now: datetime) -> None:
        end = active.run.end()
        if end is None:
            self._note_progress(active)
            return
        self._step("end run")
        self._active = None
        try:
            self._end(active, end, now)
        except StateError:  # full or locked: what became of the run is written down later
            self._active = active
            raise
        self._step("ended run")
        self._wake_notifier.set()

    def _end(self, active: _Active, end: RunEnd, now: datetime) -> None:
        if isinstance(active.order, Publish):
            self._end_publish(active, end, now)
        elif isinstance(active.order, Unpublish):
            self._end_unpublish(active.order, end, now)
        elif isinstance(active.order, Switch):
            self._end_switch(end, now)
        else:
            self._end_collect(end, now)

    def _note_progress(self, active: _Active) -> None:
        monotonic = self._clock.monotonic()
        if monotonic - active.noted_at < PROGRESS_EVERY:
            return
        active.noted_at = monotonic
        with self._progress_lock:
            progress = dict(active.progress)
            active.progress.clear()
        if progress:
            self._state.set_progress(progress)

    def _end_publish(self, active: _Active, end: RunEnd, now: datetime) -> None:
        if end.crash:
            was_stopped = self._stopping.is_set()
            jobs = self._state.abandon_run(active.number, now, is_counted=not was_stopped)
            if not was_stopped:
                log.error("a publish of %d images ended without a result: %s", len(jobs), end.crash)
                self._suspect(jobs, end.crash, now)
            return
        if end.failure is not None:
            self._state.abandon_run(active.number, now, is_counted=False)
            self._refuse(end.failure, now)
            return
        self._accept()
        attempts = {job.key.name: job.attempts + 1 for job in active.jobs}
        keys = {job.key.name: job.key for job in active.jobs}
        results = []
        for item in end.items:
            key = keys.get(item.name)
            if key is None:
                continue
            if item.failure is not None:
                results.append(
                    judge(
                        key,
                        item.failure,
                        item.exit_code,
                        attempts[item.name],
                        now,
                        self._parts.queue,
                        self._jitter(),
                    )
                )
            elif item.status == "published" or item.status in ("staged", "unchanged"):
                results.append(Result(key, item.status, item.facts))
        self._step("finish run")
        self._state.finish_run(active.number, results, now)
        self._count(end)

    def _count(self, end: RunEnd) -> None:
        amounts: figures.Amounts = {}
        for phase, seconds in end.phases.items():
            figures.add(amounts, figures.observe(figures.PUBLISH_SECONDS, phase, seconds))
        for item in end.items:
            figures.add(amounts, {(figures.IMAGES, item.status): 1})
            if item.facts is not None and item.status == "published":
                figures.add(amounts, _amounts(item.facts))
        self._state.count(amounts)

    def _suspect(self, jobs: Sequence[Job], how: str, now: datetime) -> None:
        """A run died: one image is guilty or not; of several nobody knows which."""
        if len(jobs) != 1:
            return
        (job,) = jobs
        failure = crash_failure(how)
        result = judge(job.key, failure, 1, job.attempts, now, self._parts.queue, self._jitter())
        self._state.set_back(job.key, result, now)

    def _refuse(self, failure: Failure, now: datetime) -> None:
        """Nothing can be published at present, which is no image's fault."""
        self._refusals += 1
        wait = plan_wait(self._refusals, self._parts.queue, self._jitter())
        wait = min(wait, timedelta(minutes=15))
        if failure.kind == "locked":  # somebody else publishes; it will not be long
            wait = min(wait, timedelta(seconds=15))
        self._paused_until = self._clock.monotonic() + wait.total_seconds()
        log.error("nothing can be published: %s; tried again in %s", failure.message, wait)
        if self._refusals == 1:
            self._state.mark("refused", now)
            self._state.log([Event(0, now, "publish-refused", failure.message)])

    def _accept(self) -> None:
        """The repository can be written."""
        if self._refusals:
            self._refusals = 0
            self._state.unmark("refused")

    def _finish_or_abandon(self) -> None:
        """Give the run under way some time to end, then end it."""
        active = self._active
        if active is None:
            return
        deadline = self._clock.monotonic() + STOP_GRACE.total_seconds()
        active.run.stop()
        while active.run.end() is None:
            if self._clock.monotonic() > deadline:
                active.run.kill()
            self._alive("WATCHDOG=1")
            self._wake.wait(IDLE.total_seconds())
            self._wake.clear()
        self._guard("stop", lambda: self._look_after(active, self._clock.now()))

    def _end_switch(self, end: RunEnd, now: datetime) -> None:
        """What was not switched is found again by the next look."""
        if end.crash or end.failure is not None:
            self._refuse(end.failure or crash_failure(end.crash), now)
            return
        self._accept()
        if self._parts.replication is not None:
            self._parts.replication.settle(now)

    # housekeeping

    def _housekeeping(self, now: datetime) -> Order | None:
        settings = self._parts.retention
        if is_due(self._state.moment("retired"), RETIRE_EVERY, now):
            order = self._plan_retirement(now)
            if order is not None:
                return order
        if is_due(self._state.moment("collected"), settings.every, now):
            if self._state.moment("collected") is None:  # not right after the installation
                self._state.mark("collected", now)
                return None
            return plan_collection(self._state.kept_longer(), settings)
        return None

    def _plan_retirement(self, now: datetime) -> Order | None:
        counts = self._state.counts()
        names = sum(counts.get(status, 0) for status in IN_REPOSITORY)
        plan = plan_retirement(self._state.unlisted(), names, self._parts.retention)
        self._step("retire")
        self._state.forget(plan.forget)
        if plan.held:
            message = (
                f"{len(plan.held)} names that no list wishes any more stay for now:"
                f" only {len(plan.unpublish)} go at a time (`retention.max_share`)"
            )
            log.warning("%s", message)
            self._state.log([Event(0, now, "retention-held", message)])
        self._state.mark("retired", now)
        platforms = {key.platform for key in plan.unpublish}
        if not platforms:
            return None
        first = min(platforms)
        return Unpublish(tuple(key.name for key in plan.unpublish if key.platform == first), first)

    def _end_unpublish(self, order: Unpublish, end: RunEnd, now: datetime) -> None:
        if end.crash or end.failure is not None:
            self._refuse(end.failure or crash_failure(end.crash), now)
            return
        self._accept()
        gone = [item.name for item in end.items if item.failure is None]
        self._state.log(
            [
                Event(
                    0,
                    now,
                    "image-unpublished",
                    f"{name}: no list wishes it any more",
                    name=name,
                    platform=order.platform,
                )
                for name in gone
            ]
        )
        self._state.note_unpublished([ImageKey(name, order.platform) for name in gone], now)
        for item in end.items:
            if item.failure is not None:
                log.warning("%s stays: %s", item.name, item.failure.message)

    def _end_collect(self, end: RunEnd, now: datetime) -> None:
        self._state.mark("collected", now)
        failure = end.failure or (crash_failure(end.crash) if end.crash else None)
        if failure is not None:
            log.error("collecting garbage failed: %s", failure.message)
            self._state.log([Event(0, now, "collect-failed", failure.message)])
            return
        self._state.count({(figures.COLLECTED_BYTES, ""): end.removed_bytes})
        message = f"garbage was collected: {end.removed_bytes} bytes"
        self._state.log([Event(0, now, "collected", message)])


def _amounts(facts: Facts) -> figures.Amounts:
    return {
        (figures.FETCHED_BYTES, ""): facts.fetched_bytes,
        (figures.CONTENT_BYTES, ""): facts.content_bytes,
        (figures.STORED_BYTES, ""): facts.stored_bytes,
        (figures.LAYERS, ""): facts.layers_total,
        (figures.LAYERS_REUSED, ""): facts.layers_reused,
    }
