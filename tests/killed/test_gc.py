"""A collector that is killed leaves a sound repository, and the next one ends its work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import LockedError
from cvmfs_publish.repository.native.repository import NativeRepository
from tests.collecting import PAST_DAYS, Timeline, timeline
from tests.s3 import S3Bucket
from tests.s3_site import S3Site
from tests.support import NAME, Site, keys_of_this_run
from tests.versions import sandbox

GRACE = 2  # days
VISIBLE = {"plan", "certificate", "switch reflog", "switch", "done"}  # before or after each
ROOT = Path(__file__).parents[2]

# What the victim runs: collect at `now`, tell every step, and die before the step with that number
# or name.  How its object store is reached is the last argument; nothing if it is a folder.
VICTIM = """
import json, os, signal, sys
from datetime import timedelta
from pathlib import Path
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.repository.native.gc import Collector, Retention
from cvmfs_publish.repository.native.repository import NativeRepository

base, now, grace, fatal = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
settings = json.loads(sys.argv[6])
steps = []

def step(name):
    print(name, flush=True)
    if fatal in (str(len(steps)), name, name.partition(" ")[0]):
        if sys.argv[5] == "wait":
            sys.stdin.read()
        os.kill(os.getpid(), signal.SIGKILL)
    steps.append(name)

if settings:
    from cvmfs_publish.content.s3_client import S3Settings
    from tests.s3_site import S3Site
    repository = S3Site(base, None, S3Settings(**settings)).repository
else:  # without what only tests need, which takes longest to load
    repository = NativeRepository(sys.argv[7], LocalStore(base / "repository"), base / "keys")
retention = Retention(timedelta(days=grace), 0)
Collector(repository, base / "state").collect(now, retention, step=step)
repository.store.close()
"""


def victim(
    target: Site, now: int, fatal: int | str, mode: str = "die", grace: int = GRACE
) -> subprocess.Popen[str]:
    settings = target.settings.as_dict() if isinstance(target, S3Site) else None
    base = str(target.keys.parent)
    words = [base, str(now), str(grace), str(fatal), mode, json.dumps(settings), NAME]
    return subprocess.Popen(
        [sys.executable, "-c", VICTIM, *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def aborted(target: Site, now: int, fatal: int | str = -1, grace: int = GRACE) -> list[str]:
    """Run the victim to its end, and return the steps it told."""
    with victim(target, now, fatal, grace=grace) as process:
        out, _ = process.communicate()
    assert process.returncode == (0 if fatal == -1 else -signal.SIGKILL)
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
    beside, whole = copied(line, tmp_path / "whole")
    steps = aborted(beside, whole.now)
    expected = result_of(whole)
    assert steps[:2] == ["removals", "catalogs"]
    assert steps.count("switch") == 2  # the revision without the sandbox, and the shorter reflog
    assert steps.index("plan") > steps.index("done")
    sweeps = [number for number, step in enumerate(steps) if step.startswith("sweep ")]
    assert len(sweeps) > 5
    # Of the two commits the first; of the second, which writes no tree, where it is seen.
    first, second = steps.index("done"), steps.index("plan")
    seen = [number for number in range(second, sweeps[0]) if steps[number] in VISIBLE]
    for number in [*range(first + 1), *seen, *sweeps[:2], sweeps[-1]]:
        folder = tmp_path / str(number)
        target, copy = copied(line, folder)
        assert aborted(target, copy.now, number) == steps[: number + 1]
        problems = target.judge()
        if steps[number] == "switch":
            assert all(".cvmfsreflog" in problem for problem in problems)
        else:
            assert problems == [], steps[number]
        for root in {kept.hash for kept in copy.tags()}:
            copy.consists_of(root)
        names = copy.plan(GRACE)[1] if number % 4 == 0 else None
        _, removed = copy.collect(GRACE)
        assert names in (None, removed)
        assert result_of(copy) == expected, steps[number]
        assert target.judge() == []
        with copy.repository.open() as view:
            assert not view.is_directory(sandbox("version 2"))
        shutil.rmtree(folder)


@pytest.mark.parametrize("stage", ["plan", "sweep"])
def test_nobody_writes_while_it_collects(prepared: tuple[Site, Timeline], stage: str) -> None:
    target, line = prepared
    copy, _ = copied(line, line.storage.parent.with_name("steps"))
    steps = aborted(copy, line.now)
    last = len(steps) - 1
    number = last if stage == "sweep" else len(steps) - 1 - steps[::-1].index("certificate")
    with victim(target, line.now, number, "wait") as process:
        assert process.stdout is not None
        for _ in range(number + 1):  # the last line is told, and then nothing happens any more
            assert process.stdout.readline()
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
        process = victim(target, line.now, -1)
        out, _ = process.communicate()
        assert process.returncode == 1
        assert "sweep" not in out
        assert before <= line.names()
    line.consists_of(line.repository.manifest().root_hash)
    assert target.judge() == []
    assert os.listdir(line.storage / "data" / "txn") == []


# Each run goes on where the one before was killed: first with the tree, then with objects.
# What the tree's commit does between these is what any publish does: `test_publish`.
# Every single step is tried above, on a folder.
FATAL: list[int | str] = ["removals", "switch", "reflog", "switch reflog", "switch", "sweep", 5]


def test_killed_again_and_again_a_collection_in_object_storage_goes_on(
    tmp_path: Path, bucket: S3Bucket
) -> None:
    target = S3Site(tmp_path, bucket, bucket.settings)
    shutil.copytree(keys_of_this_run(), target.keys)
    target.repository.create(target.algorithm, datetime.now(UTC) - timedelta(days=PAST_DAYS))
    with target.client, closing(target.repository.store):
        line = Timeline(target.repository, None, tmp_path / "state")
        prepare(line)
        number = line.repository.revision().number
        for step in FATAL:
            before = bucket.names()
            told = aborted(target, line.now, step, grace=0)
            removed = {name for name in before - bucket.names() if name.startswith("data/")}
            assert not removed or told[-1].startswith("sweep ")
            problems = target.judge()
            if step == "switch":
                assert all(".cvmfsreflog" in problem for problem in problems)
            else:
                assert problems == [], step
        assert line.repository.revision().number == number + 1
        _, names = line.plan()
        assert names
        before = bucket.names()
        _, removed_now = line.collect()
        assert removed_now == names
        assert before - bucket.names() >= set(names)
        roots = {tag.hash for tag in line.tags()}
        assert line.names() == line.needed(roots) | line.beside()
        assert target.judge() == []
