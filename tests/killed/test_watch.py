"""A watcher that is killed at every step of some days loses nothing and does nothing twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, cast

from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM
from cvmfs_publish.repository.names import read_history
from cvmfs_publish.repository.records import iter_publications
from cvmfs_publish.state.model import ImageKey
from cvmfs_publish.state.reading import Reader
from tests.fakes.registry import FakeRegistry, status, tar_of
from tests.support import Site, keys_of_this_run

ROOT = Path(__file__).parents[2]
LATER = timedelta(hours=8)
RETRY = timedelta(minutes=15)  # until whatever waits after a death is tried again


class Days:
    """A registry, a wishlist, a watcher that is killed, and the time of day."""

    def __init__(self, base: Path, registry: FakeRegistry) -> None:
        self.base = base
        self.registry = registry
        self.now = datetime.now(UTC).replace(microsecond=0) - timedelta(days=10)
        self.site = Site(base)
        shutil.copytree(keys_of_this_run(), self.site.keys)
        self.site.repository.create(self.site.algorithm, self.now)
        self.killed = base / "killed"
        self.deaths = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.watch_day", base, registry.host, self.killed],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def close(self) -> None:
        self.site.client.close()
        with self.process:
            cast(IO[str], self.process.stdin).close()

    def wish(self, *lines: str) -> None:
        text = "\n".join(f"  - {line}" for line in lines)
        (self.base / "list.yaml").write_text(f"version: 1\nimages:\n{text}\n")

    def push(self, repository: str, tag: str, content: bytes) -> str:
        layers = [tar_of({"same": b"same"}), tar_of({"file": content})]
        return str(self.registry.add_image(repository, layers, tag=tag))

    def day(
        self,
        name: str,
        *pushes: tuple[str, str, str],
        after: timedelta = LATER,
        settles: bool = True,
    ) -> None:
        """Some time passes; what is pushed is told again until somebody has taken it in.

        `settles`: and more time, until everything that is wished is there.
        """
        self.now += after
        self._live(name, [[*push, f"{name} {n}"] for n, push in enumerate(pushes)])
        while settles and self._is_busy():
            self.now += RETRY
            self._live(name, [])

    def _is_busy(self) -> bool:
        with Reader.open(self.site.state) as state:
            return bool(state.queue_length())

    def _live(self, name: str, told: list[list[str]]) -> None:
        line = json.dumps({"at": int(self.now.timestamp()), "day": name, "pushes": told})
        requests, answers = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)
        while True:
            print(line, file=requests, flush=True)
            answer = answers.readline().strip()
            if answer != "died":
                assert answer == "done"
                return
            self.deaths += 1

    def name(self, repository: str, tag: str) -> str:
        return f"{self.registry.host}/{repository}:{tag}"

    def history(self, repository: str, tag: str) -> list[str]:
        reference = Reference.parse(self.name(repository, tag))
        with self.site.repository.open() as view:
            found = read_history(view, reference, DEFAULT_PLATFORM)
        return [version.event.digest for version in found.versions]


def test_killed_at_every_step_nothing_is_lost_and_nothing_is_done_twice(tmp_path: Path) -> None:
    with FakeRegistry() as registry:
        days = Days(tmp_path, registry)
        try:
            _live(days)
        finally:
            days.close()


def _live(days: Days) -> None:
    registry = days.registry
    one = [days.push("a/one", "1", b"first")]
    two = [days.push("a/two", "1", b"two")]
    old = days.push("a/old", "1", b"old")
    many = [days.push("a/many", "v1", b"v1")]
    rule = f"{{name: {registry.host}/a/many, tags: {{match: 'v*'}}}}"
    lines = [days.name("a/one", "1"), days.name("a/two", "1"), rule]
    # the first day: a list, and what it wishes
    days.wish(*lines, days.name("a/old", "1"))
    days.day("list")
    # pushes: the new content of a tag, twice told; and a tag nobody knows yet
    one.append(days.push("a/one", "1", b"second"))
    many.append(days.push("a/many", "v2", b"v2"))
    told = ("a/one", "1", one[-1])
    days.day("pushes", told, told, ("a/many", "v2", many[-1]))
    # nobody tells of this, and one that is on no list
    two.append(days.push("a/two", "1", b"two again"))
    days.push("a/stranger", "1", b"unwished")
    days.day("poll", ("a/stranger", "1", ""))
    # an outage, during which somebody pushes
    registry.fault("GET", "", status(503), times=None)
    registry.fault("HEAD", "", status(503), times=None)
    one.append(days.push("a/one", "1", b"third"))
    days.day("outage", ("a/one", "1", one[-1]), settles=False)
    registry.be_honest()
    days.day("after the outage")
    # a line is taken out; a day later its name goes
    days.wish(*lines)
    days.day("without a line")
    days.day("still without it", after=timedelta(hours=26))
    for _ in range(9):  # so many steps unpublishing has, and it is begun once in an hour
        days.day("still without it", after=timedelta(hours=2))
    days.day("the last")
    for (repository, tag), digests in {
        ("a/one", "1"): one,
        ("a/two", "1"): two,
        ("a/many", "v1"): many[:1],
        ("a/many", "v2"): many[1:],
        ("a/old", "1"): [old, old],  # published, unpublished
    }.items():
        assert days.history(repository, tag) == digests
    with days.site.repository.open() as view:
        names = {Reference.parse(record.reference).name for record in iter_publications(view)}
    assert names == {
        days.name(repository, tag)
        for repository, tag in [("a/one", "1"), ("a/two", "1"), ("a/many", "v1"), ("a/many", "v2")]
    }
    with Reader.open(days.site.state) as state:
        events = Counter(
            (event.name, event.message.rpartition(", ")[2])
            for event in state.events_since(0)
            if event.kind == "image-published"
        )
        image = state.image(ImageKey(days.name("a/one", "1"), "linux/amd64"))
        assert state.queue() == ()
    assert image is not None
    assert image.status in ("published", "unchanged")
    expected = [*[("a/one", "1", d) for d in one], *[("a/two", "1", d) for d in two]]
    expected += [("a/many", f"v{n + 1}", d) for n, d in enumerate(many)] + [("a/old", "1", old)]
    assert events == Counter({(days.name(r, t), d): 1 for r, t, d in expected})
    assert days.site.judge() == []
    # every step that there is was one it died before
    steps = {line.partition(": ")[2] for line in days.killed.read_text().splitlines()}
    assert days.deaths == len(days.killed.read_text().splitlines())
    assert steps >= {
        *("recover", "submit", "lists", "adopt", "polls", "polled", "take pushes", "begin run"),
        *("start run", "publish: catalogs", "publish: switch", "publish: done", "end run"),
        *("finish run", "ended run", "retire", "unpublish: switch", "unpublish: done"),
    }
