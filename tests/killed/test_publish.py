"""A publisher that is killed leaves the old or the new revision, and nothing for a person to do.

Once before each of its named steps in turn, and at random moments of a larger publish.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.s3_site import S3Site, s3_site
from tests.support import Site, site

STEPS = ["catalogs", "history", "certificate", "reflog", "sync", "prepare"]
STEPS += ["switch reflog", "switch", "done"]
# In object storage: before anything is written, and before and after what readers see.
S3_STEPS = ["catalogs", "sync", "switch reflog", "switch", "done"]
KILLS = 16

# What the victim runs: publish `reference`, and die before step `step` if that is named.  How its
# object store is reached comes on standard input; nothing if the repository is a folder.
VICTIM = """
import json, os, signal, sys
from pathlib import Path
from cvmfs_publish.content.s3_client import S3Settings
from tests.s3_site import S3Site
from tests.support import Site

base, reference, step = sys.argv[1:]
settings = sys.stdin.read()

class Killer:
    def phase(self, name, phase):
        if not name and phase == step:
            os.kill(os.getpid(), signal.SIGKILL)
    def layer(self, *_):
        pass

base = Path(base)
target = S3Site(base, None, S3Settings(**json.loads(settings))) if settings else Site(base)
with target.client:
    result = target.publish(reference, reporter=Killer())
sys.exit(result.exit_code)
"""


def victim(target: Site, reference: str, step: str = "-") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", VICTIM, str(target.keys.parent), reference, step]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, cwd=Path(__file__).parents[2], start_new_session=True
    )
    settings = target.settings.as_dict() if isinstance(target, S3Site) else None
    with cast(BinaryIO, process.stdin) as stdin:
        stdin.write(json.dumps(settings).encode() if settings else b"")
    return process


def image(number: int, files: int, size: int) -> list[bytes]:
    numbers = random.Random(number)
    layers = []
    for layer in range(3):
        tar = Tar()
        for file in range(files):
            tar.file(f"d{file % 7}/l{layer}-{file}", numbers.randbytes(size) + bytes(size))
        layers.append(tar.done())
    return layers


@contextmanager
def site_of(kind: str, request: pytest.FixtureRequest) -> Iterator[Site]:
    tmp_path: Path = request.getfixturevalue("tmp_path")
    if kind == "local":
        with site(tmp_path) as local:
            yield local
    else:
        with s3_site(tmp_path, request.getfixturevalue("bucket")) as remote:
            yield remote


def leftovers(target: Site) -> list[str]:
    """Return what a killed writer may leave behind beside objects."""
    if isinstance(target, S3Site):
        assert target.bucket is not None
        return [name for name in target.bucket.names() if name.startswith(".cvmfs-publish")]
    return [path.name for path in target.storage.glob("data/txn/cvmfs-publish*")]


@pytest.mark.parametrize(
    ("kind", "step"), [("local", step) for step in STEPS] + [("s3", step) for step in S3_STEPS]
)
def test_killed_before_a_step_readers_see_the_old_or_the_new_revision(
    request: pytest.FixtureRequest, kind: str, step: str
) -> None:
    with FakeRegistry() as registry, site_of(kind, request) as target:
        registry.add_image("a/one", image(1, 5, 100), tag="1")
        registry.add_image("a/two", image(2, 5, 100), tag="1")
        target.publish(f"{registry.host}/a/one:1")
        before = target.repository.revision()
        process = victim(target, f"{registry.host}/a/two:1", step)
        assert process.wait(60) == -signal.SIGKILL
        if kind == "s3":  # its lock is still there, and is no hindrance for those who follow
            assert leftovers(target) == [".cvmfs-publish.lock"]
        after = target.repository.revision()
        if step == "done":
            assert after.number == before.number + 1
        else:
            assert after == before
        if step == "switch":
            # The one moment in which the reflog is newer than the manifest; readers do not look at
            # it, and the next writer goes on from there.
            assert all(".cvmfsreflog" in error for error in target.judge())
        else:
            assert target.judge() == []
        result = target.publish(f"{registry.host}/a/two:1")
        assert [i.status for i in result.images] == ["unchanged" if step == "done" else "published"]
        assert result.revision == before.number + 1
        assert target.judge() == []
        if step == "done":  # whoever has nothing to write needs no lock
            target.publish(f"{registry.host}/a/two:1", force=True)
        assert leftovers(target) == []


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_ever_lost(tmp_path: Path) -> None:
    chance = random.Random(20_261_120)
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/one", image(0, 40, 20_000), tag="first")
        started = time.monotonic()
        process = victim(target, registry.name("a/one", "first"))
        assert process.wait(120) == 0
        duration = time.monotonic() - started
        killed = 0
        for attempt in range(KILLS):
            registry.add_image("a/one", image(attempt + 1, 40, 20_000), tag="1")
            before = target.repository.revision()
            process = victim(target, registry.name("a/one", "1"))
            time.sleep(chance.uniform(0.1, duration * 1.05))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            after = target.repository.revision()
            assert after == before or after.number == before.number + 1
            # Killed between the two renames, the manifest does not know of the reflog yet.
            assert [found for found in target.judge() if ".cvmfsreflog" not in found] == []
        assert killed >= KILLS // 2
        result = target.publish(registry.name("a/one", "1"))
        assert result.exit_code == 0
        assert target.judge() == []
