"""Orders are carried out in processes of their own, whatever those do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.state.model import Facts, Failure, LayerProgress, Progress
from cvmfs_publish.watch.child import (
    ChildRunner,
    format_end,
    format_order,
    parse_end,
    parse_order,
)
from cvmfs_publish.watch.runs import (
    Collect,
    Item,
    ItemEnd,
    Order,
    Publish,
    RunEnd,
    Switch,
    Unpublish,
)

ORDER = Publish(
    (Item("ghcr.io/a/b:1", "ghcr.io/a/b:1"),), "linux/amd64", '{"permissions": "strict"}'
)
END = RunEnd(
    (
        ItemEnd("one", "published", Facts("sha256:1", seconds=1.5)),
        ItemEnd("two", "failed", None, Failure("remote", "no", "later"), 3),
    ),
    phases={"fetching": 2.5},
)


@pytest.mark.parametrize(
    "order",
    [
        ORDER,
        Unpublish(("a", "b"), "linux/arm64"),
        Switch((("a", "linux/amd64", "sha256:1"), ("b", "linux/arm64", "sha256:2"))),
        Collect(5, 2, {"a": 7}),
    ],
)
def test_orders_arrive_as_they_were_sent(order: Order) -> None:
    assert parse_order(format_order(order)) == order


@pytest.mark.parametrize("end", [END, RunEnd(failure=Failure("locked", "no"), exit_code=5)])
def test_ends_arrive_as_they_were_sent(end: RunEnd) -> None:
    assert parse_end(json.loads(format_end(end))["end"]) == end


def run(script: str) -> tuple[RunEnd, list[tuple[str, Progress]]]:
    reports: list[tuple[str, Progress]] = []
    woken = threading.Event()
    found = ChildRunner([sys.executable, "-c", script]).start(
        ORDER, lambda name, progress: reports.append((name, progress)), woken.set
    )
    assert woken.wait(60)
    end = found.end()
    assert end is not None
    return end, reports


def test_what_a_child_says_is_heard() -> None:
    script = f"""
import sys
order = sys.stdin.readline()
assert "ghcr.io/a/b:1" in order
print('{{"phase": ["b", "fetching"]}}')
print('{{"layer": ["b", "sha256:2", 3, 10]}}')
print("what is this")
print({format_end(END)!r})
"""
    end, reports = run(script)
    assert end == END
    layer = LayerProgress("sha256:2", 3, 10)
    assert reports == [("b", Progress("fetching")), ("b", Progress("fetching", (layer,)))]


@pytest.mark.parametrize(
    ("script", "crash"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("raise SystemExit(7)", "exit code 7"),
        ("pass", "exit code 0"),  # it said nothing
    ],
)
def test_a_child_that_dies_is_noticed(script: str, crash: str) -> None:
    assert run(script)[0] == RunEnd(crash=crash)


def test_a_child_can_be_stopped_and_killed() -> None:
    woken = threading.Event()
    script = "import time; time.sleep(600)"
    for end in ("stop", "kill"):
        woken.clear()
        found = ChildRunner([sys.executable, "-c", script]).start(ORDER, print, woken.set)
        assert found.end() is None
        getattr(found, end)()
        assert woken.wait(60)
        assert found.end() in (
            RunEnd(crash="killed by SIGTERM"),
            RunEnd(crash="killed by SIGKILL"),
        )


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no process can be started"):
        ChildRunner([str(tmp_path / "nothing")]).start(ORDER, print, print)


def test_a_child_ends_with_its_watcher(tmp_path: Path) -> None:
    """Its input ends, and with it the process; nothing is published for nobody."""
    config = tmp_path / "cvmfs-publish.yaml"
    config.write_text("repository: {name: a.example.org}\n")
    fifo = tmp_path / "fifo"  # stands in the way of whatever the child does first
    os.mkfifo(fifo)
    config.unlink()
    config.symlink_to(fifo)
    with subprocess.Popen(
        [sys.executable, "-m", "cvmfs_publish.cli.publish_run", str(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(format_order(ORDER).encode() + b"\n")
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.stdin.close()
        assert process.wait(60) == 143
