"""A collector that is killed leaves a sound repository, and the next one ends its work."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import LockedError
from cvmfs_publish.repository.native.repository import NativeRepository
from tests.collecting import Timeline, timeline
from tests.support import NAME, Site
from tests.versions import sandbox

GRACE = 2  # days
ROOT = Path(__file__).parents[2]

# What the victim runs: collect at `now`, tell every step, and die before the step of that number.
VICTIM = """
import os, signal, sys
from datetime import timedelta
from pathlib import Path
from cvmfs_publish.repository.native.gc import Collector, Retention
from tests.support import Site

base, now, grace, fatal = Path(sys.argv[1]), *map(int, sys.argv[2:5])
steps = []

def step(name):
    print(name, flush=True)
    if len(steps) == fatal:
        if sys.argv[5] == "wait":
            sys.stdin.read()
        os.kill(os.getpid(), signal.SIGKILL)
    steps.append(name)

target = Site(base)
retention = Retention(timedelta(days=grace), 0)
Collector(target.repository, base / "state").collect(now, retention, step=step)
"""


def victim(base: Path, now: int, fatal: int, mode: str = "die") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(base), str(now), str(GRACE), str(fatal), mode],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def aborted(base: Path, now: int, fatal: int) -> list[str]:
    """Run the victim to its end, and return the steps it told."""
    with victim(base, now, fatal) as process:
        out, _ = process.communicate()
    assert process.returncode == (0 if fatal < 0 else -signal.SIGKILL)
    return out.split("\n")[:-1]


def prepare(line: Timeline) -> None:
    """Publish and unpublish, so that there is something to do for every part of a collection."""
    for number in range(4):
        line.publish(f"ghcr.io/a/b:{number}", f"version {number}")
        line.put("d/f", b"%d" % number)
        line.store(b"left behind %d" % number)
        line.wait(1)
    line.tag("kept")
    line.unpublish("ghcr.io/a/b:2")
    line.wait(5)
    line.put("d/f", b"new")
    line.wait(1)


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[tuple[Site, Timeline]]:
    with timeline(tmp_path / "prepared") as (target, line):
        prepare(line)
        yield target, line


def copied(line: Timeline, folder: Path) -> tuple[Site, Timeline]:
    """Return a copy, times of objects included."""
    shutil.copytree(line.storage.parent, folder)
    target = Site(folder)
    target.client.close()
    copy = Timeline(target.repository, target.storage, folder / "state", is_stamped=True)
    copy.now = line.now
    return target, copy


def result_of(line: Timeline) -> tuple[object, ...]:
    """What is there at the end, but for the bytes that depend on which run published them."""
    manifest = line.repository.manifest()
    listed = [(ref.hash, ref.type) for ref in line.refs()]
    return line.names(), sorted(listed), line.tags(), manifest.root_hash, manifest.revision


def test_killed_before_every_step_it_is_sound_and_the_next_run_ends_as_if_nothing_had_been(
    tmp_path: Path, prepared: tuple[Site, Timeline]
) -> None:
    _, line = prepared
    _, whole = copied(line, tmp_path / "whole")
    steps = aborted(tmp_path / "whole", whole.now, -1)
    expected = result_of(whole)
    assert steps[:2] == ["removals", "catalogs"]
    assert steps.count("switch") == 2  # the revision without the sandbox, and the shorter reflog
    assert steps.index("plan") > steps.index("done")
    sweeps = [number for number, step in enumerate(steps) if step.startswith("sweep ")]
    assert len(sweeps) > 5
    for number in [*range(sweeps[2]), sweeps[-1]]:
        folder = tmp_path / str(number)
        target, copy = copied(line, folder)
        assert aborted(folder, copy.now, number) == steps[: number + 1]
        problems = target.judge()
        if steps[number] == "switch":
            assert all(".cvmfsreflog" in problem for problem in problems)
        else:
            assert problems == [], steps[number]
        for root in {kept.hash for kept in copy.tags()}:
            copy.consists_of(root)
        _, names = copy.plan(GRACE)
        _, removed = copy.collect(GRACE)
        assert removed == names
        assert result_of(copy) == expected, steps[number]
        assert target.judge() == []
        with copy.repository.open() as view:
            assert not view.is_directory(sandbox("version 2"))
        shutil.rmtree(folder)


@pytest.mark.parametrize("stage", ["plan", "sweep"])
def test_nobody_writes_while_it_collects(prepared: tuple[Site, Timeline], stage: str) -> None:
    target, line = prepared
    base = line.storage.parent
    copy = base.with_name("steps")
    shutil.copytree(base, copy)
    steps = aborted(copy, line.now, -1)
    last = len(steps) - 1
    number = last if stage == "sweep" else len(steps) - 1 - steps[::-1].index("certificate")
    with victim(base, line.now, number, "wait") as process:
        assert process.stdout is not None
        for _ in range(number + 1):
            assert select.select([process.stdout], [], [], 60)[0]
            process.stdout.readline()
        before = line.repository.manifest()
        with pytest.raises(LockedError, match="is locked"):
            line.put("x/f", b"1")
        with pytest.raises(LockedError, match="is locked"):
            line.collect(GRACE)
        with pytest.raises(LockedError, match="is locked"):
            line.plan(GRACE)
        assert line.repository.manifest() == before
        process.kill()
    line.put("x/f", b"1")
    assert target.judge() == []


def test_it_does_not_begin_while_somebody_publishes(prepared: tuple[Site, Timeline]) -> None:
    target, line = prepared
    before = line.names()
    other = NativeRepository(NAME, LocalStore(line.storage), target.keys)
    with other.transaction(line.now) as transaction:
        transaction.put_file("new", b"uploaded before the collector comes")
        process = victim(line.storage.parent, line.now, -1)
        out, _ = process.communicate()
        assert process.returncode == 1
        assert "sweep" not in out
        assert before <= line.names()
    line.consists_of(line.repository.manifest().root_hash)
    assert target.judge() == []
    assert os.listdir(line.storage / "data" / "txn") == []
