"""A publisher that is killed leaves the old or the new revision, and nothing for a person to do.

Once before each of its named steps in turn, and at random moments of a larger publish.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.support import site

STEPS = ["catalogs", "history", "certificate", "reflog", "sync", "prepare"]
STEPS += ["switch reflog", "switch", "done"]
KILLS = 50

# What the victim runs: publish `reference`, and die before step `step` if that is named.
VICTIM = """
import os, signal, sys
from pathlib import Path
from tests.support import Site

base, reference, step = sys.argv[1:]

class Killer:
    def phase(self, name, phase):
        if not name and phase == step:
            os.kill(os.getpid(), signal.SIGKILL)
    def layer(self, *_):
        pass

target = Site(Path(base))
with target.client:
    result = target.publish(reference, reporter=Killer())
sys.exit(result.exit_code)
"""


def victim(base: Path, reference: str, step: str = "-") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", VICTIM, str(base), reference, step]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], start_new_session=True)


def image(number: int, files: int, size: int) -> list[bytes]:
    numbers = random.Random(number)
    layers = []
    for layer in range(3):
        tar = Tar()
        for file in range(files):
            tar.file(f"d{file % 7}/l{layer}-{file}", numbers.randbytes(size) + bytes(size))
        layers.append(tar.done())
    return layers


@pytest.mark.parametrize("step", STEPS)
def test_killed_before_a_step_readers_see_the_old_or_the_new_revision(
    tmp_path: Path, step: str
) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/one", image(1, 5, 100), tag="1")
        registry.add_image("a/two", image(2, 5, 100), tag="1")
        target.publish(f"{registry.host}/a/one:1")
        before = target.repository.revision()
        process = victim(tmp_path, f"{registry.host}/a/two:1", step)
        assert process.wait(60) == -signal.SIGKILL
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
        assert not any(
            p.name.startswith("cvmfs-publish") for p in target.storage.glob("data/txn/*")
        )


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_ever_lost(tmp_path: Path) -> None:
    chance = random.Random(20_261_120)
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/one", image(0, 40, 20_000), tag="first")
        started = time.monotonic()
        process = victim(tmp_path, registry.name("a/one", "first"))
        assert process.wait(120) == 0
        duration = time.monotonic() - started
        killed = 0
        for attempt in range(KILLS):
            registry.add_image("a/one", image(attempt + 1, 40, 20_000), tag="1")
            before = target.repository.revision()
            process = victim(tmp_path, registry.name("a/one", "1"))
            time.sleep(chance.uniform(0.1, duration * 1.05))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            after = target.repository.revision()
            assert after == before or after.number == before.number + 1
            assert target.judge() == []
        assert killed >= KILLS // 2
        result = target.publish(registry.name("a/one", "1"))
        assert result.exit_code == 0
        assert target.judge() == []
