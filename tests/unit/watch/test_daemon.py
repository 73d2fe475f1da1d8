"""The service goes on: over crashes, refusals, bugs, clocks that are set, and stops in order."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.repository.staging import StagedName
from cvmfs_publish.state.database import StateError
from cvmfs_publish.state.model import (
    Facts,
    Failure,
    Image,
    ImageKey,
    Polled,
    Progress,
    Push,
    Wish,
)
from cvmfs_publish.state.state import State
from cvmfs_publish.watch.daemon import Parts, Watcher
from cvmfs_publish.watch.poller import Poller
from cvmfs_publish.watch.queue import QueueSettings
from cvmfs_publish.watch.replication import Replication
from cvmfs_publish.watch.retention import RetentionSettings
from cvmfs_publish.watch.runs import Collect, ItemEnd, Order, Publish, RunEnd, Switch, Unpublish
from cvmfs_publish.watch.wanted import Wanted

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DIGEST = f"sha256:{'1' * 64}"
PLATFORM = "linux/amd64"


class Clock:
    def __init__(self) -> None:
        self.time = NOW
        self.ticks = 0.0

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.ticks

    def wait(self, span: timedelta) -> None:
        self.time += span
        self.ticks += span.total_seconds()


class Running:
    """A run that ends when the test says how."""

    def __init__(self, order: Order, report: Callable[[str, Progress], None]) -> None:
        self.order = order
        self.report = report
        self.found: RunEnd | None = None
        self.stops = 0

    def end(self) -> RunEnd | None:
        return self.found

    def stop(self) -> None:
        self.stops += 1
        self.found = self.found or RunEnd(crash="killed by SIGTERM")

    kill = stop


def done(order: Order) -> RunEnd:
    """Everything that was ordered works."""
    if isinstance(order, Publish):
        items = [ItemEnd(item.name, "published", Facts(DIGEST)) for item in order.items]
        return RunEnd(tuple(items))
    if isinstance(order, Unpublish):
        return RunEnd(tuple(ItemEnd(name, "unpublished") for name in order.names))
    return RunEnd(removed_bytes=7)


class Looks:
    """Stands for `Replication`: names are ready when the test says so."""

    def __init__(self) -> None:
        self.ready: tuple[StagedName, ...] = ()
        self.settled = 0

    @property
    def is_ready(self) -> bool:
        return bool(self.ready)

    def take_ready(self) -> tuple[StagedName, ...]:
        ready, self.ready = self.ready, ()
        return ready

    def settle(self, now: datetime) -> None:
        del now
        self.settled += 1

    def step(self, now: datetime) -> timedelta:
        del now
        return MINUTE


@dataclass
class Runs:
    """A `Runner` that remembers its runs; `answer` ends them at once."""

    answer: Callable[[Order], RunEnd] | None = None
    runs: list[Running] = field(default_factory=list)
    error: RepositoryError | None = None

    def start(
        self, order: Order, report: Callable[[str, Progress], None], wake: Callable[[], None]
    ) -> Running:
        del wake
        if self.error is not None:
            raise self.error
        run = Running(order, report)
        self.runs.append(run)
        if self.answer is not None:
            run.found = self.answer(order)
        return run

    @property
    def names(self) -> list[list[str]]:
        return [
            [item.name for item in run.order.items]
            for run in self.runs
            if isinstance(run.order, Publish)
        ]


class Lists:
    """Stands for `Wanted`: wishes are what the test writes into the state."""

    is_loaded = True

    def __init__(self) -> None:
        self.loads = 0
        self.error: Exception | None = None

    def load(self, now: datetime) -> None:
        del now
        self.loads += 1
        if self.error is not None:
            raise self.error

    def take_pushes(self, pushes: object, now: datetime) -> tuple[ImageKey, ...]:
        del pushes, now
        return ()


class Polls:
    """Stands for `Poller`."""

    def __init__(self) -> None:
        self.set_by: list[timedelta] = []

    def step(self, now: datetime) -> bool:
        del now
        return False

    def note_clock(self, by: timedelta) -> None:
        self.set_by.append(by)


class Service:
    def __init__(self, state: State, looks: Looks | None = None) -> None:
        self.state = state
        self.clock = Clock()
        self.runs = Runs()
        self.lists = Lists()
        self.polls = Polls()
        self.said: list[str] = []
        self.parts = Parts(
            interval=15 * MINUTE,
            queue=QueueSettings(quarantine_after=3),
            retention=RetentionSettings(every=None, remove_unlisted=True),
            runner=self.runs,
            wanted=cast(Wanted, self.lists),
            poller=cast(Poller, self.polls),
            replication=cast(Replication, looks),
        )
        self.watcher = Watcher(
            state, self.parts, clock=self.clock, jitter=lambda: 1.0, alive=self.said.append
        )

    def wish(self, *names: str) -> list[ImageKey]:
        keys = [ImageKey(f"ghcr.io/a/{name}:1", PLATFORM) for name in names]
        self.state.replace_wishes([Wish(key, key.name, "list") for key in keys], self.clock.now())
        self.state.enqueue(keys, self.clock.now(), "poll")
        return keys

    def tick(self, count: int = 1, span: timedelta = MINUTE) -> None:
        for _ in range(count):
            self.watcher.tick(self.clock.now())
            self.clock.wait(span)

    def image(self, key: ImageKey) -> Image:
        found = self.state.image(key)
        assert found is not None
        return found

    def events(self) -> list[str]:
        return [event.kind for event in self.state.events_since(0)]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with State.open(tmp_path) as state:
        yield Service(state)


def test_what_waits_together_is_published_together(service: Service) -> None:
    service.runs.answer = done
    service.wish("one", "two")
    service.tick(2)
    assert service.runs.names == [["ghcr.io/a/one:1", "ghcr.io/a/two:1"]]
    assert service.state.counts() == {"published": 2}
    assert service.events() == ["image-published"] * 2


READY = StagedName("ghcr.io/a/one:1", PLATFORM, DIGEST)


def test_names_are_switched_in_between_and_nothing_waits_for_replicas(tmp_path: Path) -> None:
    with State.open(tmp_path) as state:
        looks = Looks()
        service = Service(state, looks)
        service.wish("one")
        service.tick()
        service.runs.runs[0].found = RunEnd(
            (ItemEnd("ghcr.io/a/one:1", "staged", Facts(DIGEST, revision=2)),)
        )
        service.tick()
        assert state.counts() == {"staged": 1}
        assert service.watcher.is_idle()
        keys = [ImageKey(f"ghcr.io/a/{name}:1", PLATFORM) for name in ("one", "two")]
        state.replace_wishes([Wish(key, key.name, "list") for key in keys], NOW)
        state.enqueue(keys[1:], NOW, "poll")
        service.runs.answer = done  # of another one, meanwhile
        service.tick(2)
        assert service.runs.names[-1] == ["ghcr.io/a/two:1"]
        looks.ready = (READY,)
        assert not service.watcher.is_idle()
        service.tick(2)
        order = service.runs.runs[-1].order
        assert order == Switch(((READY.reference, READY.platform, READY.manifest_digest),))
        assert looks.settled == 1
        assert service.watcher.is_idle()


def test_a_switch_that_died_is_left_to_the_next_look(tmp_path: Path) -> None:
    with State.open(tmp_path) as state:
        looks = Looks()
        service = Service(state, looks)
        looks.ready = (READY,)
        service.tick()
        service.runs.runs[0].found = RunEnd(crash="killed by SIGKILL")
        service.tick()
        assert looks.settled == 0
        assert service.events() == ["publish-refused"]
        looks.ready = (READY,)
        service.runs.answer = done
        service.tick(20)
        assert [type(run.order) for run in service.runs.runs] == [Switch, Switch]
        assert looks.settled == 1


def test_how_far_a_publish_is_can_be_seen_while_it_goes_on(service: Service) -> None:
    (key,) = service.wish("one")
    service.tick()
    service.runs.runs[0].report(key.name, Progress("stacking"))
    service.tick()
    image = service.image(key)
    assert (image.status, image.progress) == ("publishing", Progress("stacking"))
    service.runs.runs[0].found = done(service.runs.runs[0].order)
    service.tick()
    assert service.image(key).progress is None


def test_an_image_that_always_kills_its_publish_is_quarantined_and_the_rest_goes_on(
    service: Service,
) -> None:
    def answer(order: Order) -> RunEnd:
        assert isinstance(order, Publish)
        if any("bad" in item.name for item in order.items):
            return RunEnd(crash="killed by SIGKILL")
        return done(order)

    service.runs.answer = answer
    bad, good, fine = service.wish("bad", "good", "fine")
    service.tick(30)
    assert [service.image(key).status for key in (good, fine)] == ["published"] * 2
    image = service.image(bad)
    assert (image.status, image.attempts) == ("quarantined", 3)
    assert image.failure is not None
    assert "killed by SIGKILL" in image.failure.message
    runs = len(service.runs.runs)
    service.tick(100)
    assert len(service.runs.runs) == runs
    # the innocent were tried by themselves after the first death, and did not die again
    assert service.runs.names[0] == [key.name for key in (bad, good, fine)]
    assert all(len(names) == 1 for names in service.runs.names[1:])
    service.state.enqueue([bad], service.clock.now(), "command")
    service.tick(2)
    assert len(service.runs.runs) == runs + 1


def test_a_registry_that_is_down_is_waited_for_without_end(service: Service) -> None:
    failure = Failure("remote", "unreachable")
    service.runs.answer = lambda order: RunEnd(
        (ItemEnd("ghcr.io/a/one:1", "failed", None, failure, 3),)
    )
    (key,) = service.wish("one")
    service.tick(24 * 60)
    assert 5 < len(service.runs.runs) < 30
    assert service.image(key).status == "failed"
    service.runs.answer = done
    service.tick(7 * 60)
    assert service.image(key).status == "published"


@pytest.mark.parametrize("kind", ["locked", "repository"])
def test_a_repository_that_cannot_be_written_is_no_images_fault(
    service: Service, kind: str
) -> None:
    service.runs.answer = lambda _: RunEnd(failure=Failure(kind, "no"), exit_code=5)
    (key,) = service.wish("one")
    service.tick(30, timedelta(seconds=20))
    image = service.image(key)
    assert (image.status, image.attempts) == ("queued", 0)
    assert 1 < len(service.runs.runs) < 30
    assert service.events() == ["publish-refused"]
    assert service.state.moment("refused") == NOW + timedelta(seconds=20)
    service.runs.answer = done
    service.tick(20)
    assert service.image(key).status == "published"
    assert service.state.moment("refused") is None


def test_the_end_of_a_publish_is_written_down_when_the_state_can_be_written_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StateError("the disk is full")

    service.runs.answer = done
    (key,) = service.wish("one")
    service.tick()
    with monkeypatch.context() as patched:
        patched.setattr(service.state, "finish_run", fail)
        for _ in range(2):
            with pytest.raises(StateError):
                service.tick()
    service.tick()
    assert service.image(key).status == "published"
    assert service.runs.names == [[key.name]]
    assert service.state.open_runs() == ()


def test_a_bug_while_a_publish_is_started_leaves_nothing_behind(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    (key,) = service.wish("one")
    with monkeypatch.context() as patched:
        patched.setattr(service.runs, "start", fail)
        with pytest.raises(RuntimeError):
            service.tick()
    assert service.state.open_runs() == ()
    service.runs.answer = done
    service.tick(2)
    assert service.image(key).status == "published"


def test_a_bug_about_a_push_does_not_hold_up_what_waits(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(service.lists, "take_pushes", fail)
    service.runs.answer = done
    (key,) = service.wish("one")
    service.watcher.submit([Push("ghcr.io", "a/two", "1")])
    service.tick(2)
    assert service.image(key).status == "published"
    assert "watch-trouble" in service.events()


def test_a_single_look_tells_that_nothing_could_be_published(service: Service) -> None:
    service.runs.answer = lambda _: RunEnd(failure=Failure("repository", "no"), exit_code=5)
    (key,) = service.wish("one")
    assert not service.watcher.run_once()
    assert service.image(key).status == "queued"
    service.clock.wait(timedelta(hours=1))
    service.runs.answer = done
    assert service.watcher.run_once()


def test_no_process_can_be_started(service: Service) -> None:
    service.runs.error = RepositoryError("no process can be started: no memory")
    (key,) = service.wish("one")
    service.tick(2)
    assert service.image(key).status == "queued"
    service.runs.error = None
    service.runs.answer = done
    service.tick(20)
    assert service.image(key).status == "published"


def test_what_a_killed_watcher_left_is_taken_up(service: Service) -> None:
    (key,) = service.wish("one")
    service.tick()
    assert service.image(key).status == "publishing"
    heir = Service(service.state)
    heir.runs.answer = done
    heir.watcher.recover(heir.clock.now())
    assert heir.image(key).status == "failed"  # it may be what killed it: not at once again
    heir.tick(5)
    assert heir.image(key).status == "published"


@pytest.mark.parametrize("by", [timedelta(days=365), timedelta(days=-365)])
def test_a_clock_that_is_set_moves_what_is_planned(
    service: Service, by: timedelta, caplog: pytest.LogCaptureFixture
) -> None:
    failure = Failure("remote", "unreachable")
    service.runs.answer = lambda _: RunEnd(
        (ItemEnd("ghcr.io/a/one:1", "failed", None, failure, 3),)
    )
    service.wish("one")
    service.tick(2, timedelta(seconds=1))
    service.runs.answer = done
    service.clock.time += by
    with caplog.at_level(logging.WARNING):
        service.tick(1, timedelta(seconds=1))
    assert "the clock was set" in caplog.text
    assert service.polls.set_by == [by]
    assert len(service.runs.runs) == 1  # its minute has not passed
    service.tick(3)
    assert len(service.runs.runs) == 2


def test_names_that_no_list_wishes_go_and_are_forgotten(service: Service) -> None:
    service.runs.answer = done
    keys = service.wish("one", "two")
    service.tick(2)
    service.state.replace_wishes([Wish(keys[0], keys[0].name, "list")], service.clock.now())
    service.clock.wait(timedelta(days=1))
    service.tick(2)
    assert len(service.runs.runs) == 1
    service.state.confirm_unlisted([keys[1]], service.clock.now())
    service.clock.wait(timedelta(hours=1))
    service.tick(2)
    assert [run.order for run in service.runs.runs][1:] == [Unpublish((keys[1].name,), PLATFORM)]
    assert service.state.image(keys[1]) is None
    assert "image-unpublished" in service.events()


def test_a_name_that_is_wished_again_while_it_goes_is_published_again(service: Service) -> None:
    service.runs.answer = done
    (key,) = service.wish("one")
    service.tick(2)
    service.state.record_polls([Polled(key, NOW, DIGEST)], service.clock.now())
    service.state.replace_wishes([], service.clock.now())
    service.clock.wait(timedelta(days=1))
    service.state.confirm_unlisted([key], service.clock.now())
    service.runs.answer = None
    service.tick()
    service.state.replace_wishes([Wish(key, key.name, "list")], service.clock.now())
    service.runs.answer = done
    service.runs.runs[-1].found = done(service.runs.runs[-1].order)
    service.tick(3)
    assert service.runs.names == [[key.name], [key.name]]
    assert service.image(key).status == "published"


def test_lists_are_read_again_soon_if_that_failed(service: Service) -> None:
    service.lists.error = RepositoryError("the state is locked")
    for _ in range(2):
        with pytest.raises(RepositoryError):
            service.watcher._read_lists()
    service.lists.error = None
    for _ in range(2):
        service.watcher._read_lists()
    assert service.lists.loads == 3


def test_garbage_is_collected_once_in_a_while(service: Service) -> None:
    service.runs.answer = done
    parts = service.parts
    watcher = Watcher(
        service.state,
        Parts(
            interval=parts.interval,
            queue=parts.queue,
            retention=RetentionSettings(every=timedelta(days=1)),
            runner=parts.runner,
            wanted=parts.wanted,
            poller=parts.poller,
        ),
        clock=service.clock,
        jitter=lambda: 1.0,
    )
    for _ in range(52):
        watcher.tick(service.clock.now())
        service.clock.wait(timedelta(hours=1))
    orders = [run.order for run in service.runs.runs]
    assert len(orders) == 2
    assert all(isinstance(order, Collect) for order in orders)
    assert service.events() == ["collected"] * 2


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_service_outlives_bugs_stops_in_order_and_reads_its_configuration_again(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    (key,) = service.wish("one")
    service.lists.error = ZeroDivisionError("a bug")
    thread = threading.Thread(target=service.watcher.run, args=(lambda: service.parts,))
    thread.start()
    try:
        wait_until(lambda: "watch-trouble" in service.events())
        service.lists.error = None
        service.watcher.read_lists_soon()
        wait_until(lambda: bool(service.runs.runs))
        loads = service.lists.loads
        service.watcher.reload_soon()
        wait_until(lambda: service.lists.loads > loads)
        assert service.watcher.submit([Push("ghcr.io", "a/one", "1", delivery="1")]) == 1
    finally:
        service.watcher.stop()
        thread.join(30)
    assert not thread.is_alive()
    # the publish under way was ended, and is not held against the image
    assert service.runs.runs[0].stops == 1
    assert (service.image(key).status, service.image(key).attempts) == ("queued", 0)
    assert service.said[0] == "READY=1"
    assert service.said[-1] in ("STOPPING=1", "WATCHDOG=1")
    assert {"WATCHDOG=1", "STOPPING=1"} <= set(service.said)
    assert any(said.startswith("RELOADING=1\nMONOTONIC_USEC=") for said in service.said)
    assert "a bug" in caplog.text
