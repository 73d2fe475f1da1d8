"""A watcher on a clock of its own, in a process that dies where a test wants it to.

`python -m tests.watch_day BASE HOST KILLED` forks a life for each line that it is sent:

    {"at": seconds since 1970, "day": name, "pushes": [[repository, tag, digest, delivery], ...]}

A life does everything that is due at that moment, and then answers `done`.  At every step that has
not been written to the file KILLED on that day, it writes it there and kills itself; the answer is
then `died`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cvmfs_publish.publish import PublishSettings
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.native.gc import Collector
from cvmfs_publish.repository.records import iter_publications
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.source import RegistrySource
from cvmfs_publish.state.model import Budget, Facts, ImageKey, Progress, Push
from cvmfs_publish.state.state import State, WatchLock
from cvmfs_publish.watch.daemon import Parts, Watcher
from cvmfs_publish.watch.lists import Place, WishlistLoader
from cvmfs_publish.watch.outbound import Outbound
from cvmfs_publish.watch.poller import Poller
from cvmfs_publish.watch.queue import QueueSettings
from cvmfs_publish.watch.retention import RetentionSettings
from cvmfs_publish.watch.runs import Collect, Order, Publish, RunEnd, Switch, Unpublish
from cvmfs_publish.watch.wanted import Wanted
from cvmfs_publish.watch.work import collect, end_of_publish, facts_of, switch, unpublish
from tests.support import Site

INTERVAL = timedelta(minutes=15)
# the watcher dies often, and it is no image's fault
QUEUE = QueueSettings(quarantine_after=1000, longest_wait=timedelta(minutes=10))
RETENTION = RetentionSettings(remove_unlisted=True, max_share=100)


class DayClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime) -> None:
        self.time = now

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


class OneRegistry:
    """`Registries` and `Taggers` of a test: a client for all of them."""

    def __init__(self, client: RegistryClient) -> None:
        self._source = RegistrySource(client)

    def source(self, registry: str) -> RegistrySource:
        del registry
        return self._source

    tagger = source

    def forget(self, registry: str) -> None:
        pass

    def budget(self, registry: str, now: datetime) -> Budget:
        del now
        return Budget(registry)


class Ended:
    """A run that is over when it has begun."""

    def __init__(self, found: RunEnd) -> None:
        self._end = found

    def end(self) -> RunEnd:
        return self._end

    def stop(self) -> None:
        pass

    kill = stop


class InlineRunner:
    """A `Runner` that does everything at once, in this process, with the real publisher."""

    def __init__(self, target: Site, clock: DayClock, step: Callable[[str], None]) -> None:
        self._target = target
        self._clock = clock
        self._step = step

    def start(
        self, order: Order, report: Callable[[str, Progress], None], wake: Callable[[], None]
    ) -> Ended:
        del report, wake
        if isinstance(order, Publish):
            return Ended(self._publish(order))
        if isinstance(order, Unpublish):
            return Ended(self._unpublish(order))
        if isinstance(order, Switch):
            return Ended(self._switch(order))
        return Ended(self._collect(order))

    def phase(self, reference: str, phase: str) -> None:
        if not reference:
            self._step(f"publish: {phase}")

    def layer(self, *_: object) -> None:
        pass

    def _publish(self, order: Publish) -> RunEnd:
        result = self._target.publish(
            *(item.reference for item in order.items), now=self._clock.now(), reporter=self
        )
        names = {str(Reference.parse(item.reference)): item.name for item in order.items}
        return end_of_publish(result, names, {})

    def _unpublish(self, order: Unpublish) -> RunEnd:
        return unpublish(
            self._target.repository,
            order,
            self._clock.now(),
            lambda name: self._step(f"unpublish: {name}"),
        )

    def _switch(self, order: Switch) -> RunEnd:
        return switch(
            self._target.repository,
            order,
            self._clock.now(),
            lambda name: self._step(f"switch: {name}"),
        )

    def _collect(self, order: Collect) -> RunEnd:
        collector = Collector(self._target.repository, self._target.state)
        return collect(collector, order, self._clock.now())


class Life:
    """A watcher, from when it starts until it has done what is due."""

    def __init__(self, base: Path, host: str, step: Callable[[str], None], now: datetime) -> None:
        self.clock = DayClock(now)
        self.host = host
        self._step = step
        self._target = Site(base)
        self._lock = WatchLock(base / "state")
        self.state = State.open(base / "state")
        self._outbound = Outbound()
        client = RegistryClient(attempts=1)
        registries = OneRegistry(client)
        loader = WishlistLoader([Place(base / "list.yaml")], base / "state/lists", self._outbound)
        self.wanted = Wanted(self.state, loader, registries, timedelta(hours=1))
        self.poller = Poller(self.state, registries, INTERVAL, lambda: 0.5, parallel=2)
        self.watcher = Watcher(
            self.state,
            Parts(
                interval=INTERVAL,
                queue=QUEUE,
                retention=RETENTION,
                runner=InlineRunner(self._target, self.clock, step),
                wanted=self.wanted,
                poller=self.poller,
                find_published=self._find_published,
                recipe_of=lambda _: PublishSettings().recipe(),
            ),
            clock=self.clock,
            jitter=lambda: 0.5,
            step=step,
        )

    def close(self) -> None:
        self.poller.close()
        self.state.close()
        self._outbound.close()
        self._target.client.close()
        with self._lock:
            pass

    def _find_published(self) -> list[tuple[ImageKey, Facts, datetime]]:
        with self._target.repository.open() as view:
            return [
                (
                    ImageKey(Reference.parse(record.reference).name, record.platform),
                    facts_of(record),
                    datetime.fromisoformat(record.published_at),
                )
                for record in iter_publications(view)
            ]

    def live(self, pushes: list[list[str]]) -> None:
        """Start, take in what is pushed, and do what is due."""
        self.watcher.recover(self.clock.now())
        self._step("submit")
        self.watcher.submit(
            [
                Push(self.host, repository, tag, digest, "test", delivery)
                for repository, tag, digest, delivery in pushes
            ]
        )
        self._step("lists")
        self.wanted.load(self.clock.now())
        self._step("adopt")
        self.watcher.adopt()
        self._step("polls")
        while self.poller.step(self.clock.now()):
            self._step("polled")
        while True:
            self.watcher.tick(self.clock.now())
            if self.watcher.is_idle():
                break


def main(base: Path, host: str, killed: Path) -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            moment = json.loads(line)
            life(base, host, killed, moment)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            answer = "died" if os.WTERMSIG(status) == signal.SIGKILL else f"signal {status}"
        else:
            answer = "done" if status == 0 else f"status {status}"
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def life(base: Path, host: str, killed: Path, moment: dict[str, object]) -> None:
    at = moment["at"]
    assert isinstance(at, int)

    def step(name: str) -> None:
        mark = f"{moment['day']}: {name}"
        with killed.open("a+") as file:
            file.seek(0)
            if mark in file.read().splitlines():
                return
            print(mark, file=file, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    pushes = moment["pushes"]
    assert isinstance(pushes, list)
    found = Life(base, host, step, datetime.fromtimestamp(at, UTC))
    found.live(pushes)
    found.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
